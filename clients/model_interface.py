"""What a model says that it takes and gives, and the tensors of a request to it.

The metadata is KServe's, the configuration an extension of Triton's, which says beside what may be
left out and whether a request has one response or many.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from minitron_trt.clients.messages import (
    ALIASES,
    COUNTS,
    FINISH_REASON,
    INPUT_IDS,
    INPUT_LENGTHS,
    OUTPUT_IDS,
    SEQUENCE_LENGTH,
    TENSORS,
    TEXT,
    GenerateRequest,
)
from minitron_trt.errors import RefusedError

DEFAULT_MAX_TOKENS: Final = 64
"""How many tokens to make at most where a request does not say; a model needs a number."""

_TEXT_INPUT: Final = "text_input"
_EXCLUDE: Final = "exclude_input_in_output"
_RETURN_FINISH_REASON: Final = "return_finish_reason"


@dataclass(frozen=True, slots=True)
class InputTensor:
    """An input as its model declares it, its shape with the axis of the batch if there is one."""

    datatype: str
    shape: tuple[int, ...] = (-1, -1)
    optional: bool = True

    def shape_of(self, count: int) -> tuple[int, ...]:
        """Return the shape of so many values in one request; () where the model tells none."""
        return (*(1,) * (len(self.shape) - 1), count) if self.shape else ()


@dataclass(frozen=True, slots=True)
class InferInput:
    """One tensor to send."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    value: Any

    @property
    def values(self) -> Sequence[Any]:
        """Return the elements, flat."""
        return self.value if isinstance(self.value, tuple) else (self.value,)


@dataclass(frozen=True, slots=True)
class InferCall:
    """What is sent for a request, in the model's own names: tensors, and the outputs to send back.

    `is_plain` means KServe's own call with one response, since the service has no other.
    """

    request: GenerateRequest
    inputs: tuple[InferInput, ...]
    outputs: tuple[str, ...]
    streams: bool
    is_plain: bool


@dataclass(frozen=True, slots=True)
class ModelInterface:
    """A model's inputs and outputs; `is_decoupled` is None where the server does not say.

    `is_triton` means that Triton's extensions are there: streams, and over HTTP generate.
    """

    inputs: Mapping[str, InputTensor]
    outputs: frozenset[str] | None = None
    is_decoupled: bool | None = None
    is_triton: bool = True

    @classmethod
    def of_metadata(
        cls,
        inputs: Mapping[str, tuple[str, Sequence[int]]],
        outputs: Iterable[str],
        *,
        required: Collection[str] = (),
        is_decoupled: bool | None = None,
        is_triton: bool,
    ) -> ModelInterface:
        """Return the interface of a model by the data types and shapes that it declares."""
        return cls(
            inputs={
                name: InputTensor(datatype, tuple(shape), optional=name not in required)
                for name, (datatype, shape) in inputs.items()
            },
            outputs=frozenset(outputs),
            is_decoupled=is_decoupled,
            is_triton=is_triton,
        )

    def call(self, request: GenerateRequest) -> InferCall:
        """Return the tensors of a request; RefusedError names the option that the model lacks."""
        # Where outputs are not known, none but the text is asked for.
        if request.count_tokens and self.outputs is not None:
            counts: dict[str, Any] = {name: True for name in COUNTS if name in self.inputs}
            request = replace(request, **counts, count_tokens=False)
        # NVIDIA Dynamo's frontend says nothing of decoupling, and streams all the same.
        streams = request.stream and self.is_decoupled is not False and self.is_triton
        inputs = self._prompt(request)
        for name, value in request.inputs().items():
            if name == "stream":
                value = streams
            declared = self._declared(name)
            if declared is not None:
                inputs.append(self._input(declared, value))
            # Every request has these two: a model of ids, or of one response, lacks nothing by it.
            elif name not in ("text_input", "stream"):
                raise self._lacks(request.model, name)
        if request.max_tokens is None and (declared := self._declared("max_tokens")):
            inputs.append(self._input(declared, DEFAULT_MAX_TOKENS))
        # TensorRT-LLM's llmapi model gives its reason when asked; others have no such input.
        if _RETURN_FINISH_REASON in self.inputs:
            inputs.append(self._input(_RETURN_FINISH_REASON, True))
        self._check_complete(request.model, {each.name for each in inputs})
        return InferCall(request, tuple(inputs), self._wanted(request), streams, not self.is_triton)

    @property
    def takes_text(self) -> bool:
        """Say whether the prompt is a text; it is token ids otherwise."""
        return _TEXT_INPUT in self.inputs

    def takes(self, name: str) -> bool:
        """Say whether the model has an input for a field of GenerateRequest, by whatever name."""
        return self._declared(name) is not None

    def _prompt(self, request: GenerateRequest) -> list[InferInput]:
        """Return the inputs of a prompt of token ids; a text is an input as the others."""
        if self.takes_text and request.input_ids:
            raise self._lacks(request.model, INPUT_IDS)
        if self.takes_text:
            return []
        if INPUT_IDS not in self.inputs:
            raise RefusedError(
                f"the model {request.model!r} takes neither text_input nor input_ids but "
                f"{self._names()}; expected a model of text, such as ensemble",
                field=_TEXT_INPUT,
            )
        if not request.input_ids:
            raise RefusedError(
                f"the model {request.model!r} takes token ids and no text; give input_ids, or ask "
                "ensemble or tensorrt_llm_bls, which have the tokenizer",
                field=_TEXT_INPUT,
            )
        prompt = [self._input(INPUT_IDS, tuple(request.input_ids))]
        if request.exclude_input_in_output is None and _EXCLUDE in self.inputs:
            # Without streams the model would put the prompt before its answer.
            prompt.append(self._input(_EXCLUDE, True))
        if INPUT_LENGTHS in self.inputs:
            prompt.append(self._input(INPUT_LENGTHS, len(request.input_ids)))
        return prompt

    def _declared(self, name: str) -> str | None:
        """Return what the model calls an input, None if it has none such."""
        names = (name, *ALIASES.get(name, ()))
        return next((each for each in names if each in self.inputs), None)

    def _input(self, name: str, value: Any) -> InferInput:
        tensor = self.inputs[name]
        count = len(value) if isinstance(value, tuple) else 1
        return InferInput(name, tensor.datatype, tensor.shape_of(count), value)

    def _wanted(self, request: GenerateRequest) -> tuple[str, ...]:
        if self.outputs is None:
            return (TEXT, *request.outputs())
        text = (TEXT,) if self.takes_text else (OUTPUT_IDS, SEQUENCE_LENGTH)
        names = (*text, FINISH_REASON, *request.outputs())
        return tuple(name for name in names if name in self.outputs)

    def _check_complete(self, model: str, names: set[str]) -> None:
        for name, tensor in self.inputs.items():
            if not tensor.optional and name not in names:
                raise RefusedError(
                    f"the model {model!r} needs the input {name}, which a request for text does "
                    "not have; ask another model",
                    field=name,
                )

    def _lacks(self, model: str, name: str) -> RefusedError:
        return RefusedError(
            f"the model {model!r} has no input {name}; leave it out, or ask another model (this "
            f"one takes {self._names()})",
            field=name,
        )

    def _names(self) -> str:
        return ", ".join(sorted(self.inputs)) or "nothing"


TEXT_MODEL: Final = ModelInterface(
    {name: InputTensor(datatype) for name, datatype in TENSORS.items()}
)
"""TensorRT-LLM's model of text: what is taken for granted where a server keeps it to itself."""
