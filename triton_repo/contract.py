"""The tensors of each Triton model, by TensorRT-LLM's names; shapes leave out the batch axis.

Source: config.pbtxt of TensorRT-LLM's `inflight_batcher_llm` models. `context_ids` and `is_final`
are ours: they let postprocessing cut text exactly without remembering anything between responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model."""

    name: str
    type: str  # Triton's literal, without TYPE_
    dims: tuple[int, ...] = (1,)
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of one model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


def _optional(type_: str, *names: str, dims: tuple[int, ...] = (1,)) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type_, dims, optional=True) for name in names)


_WORD_IDS = (2, -1)  # row 0: ids one after another; row 1: where each word ends, then -1

TEXT: Final = Signature(
    inputs=(
        Tensor("text_input", "STRING"),
        Tensor("max_tokens", "INT32"),
        *_optional("STRING", "bad_words", "stop_words", dims=(-1,)),
        *_optional("INT32", "end_id", "top_k"),
        *_optional("FP32", "top_p", "temperature"),
        *_optional("UINT64", "seed"),
        *_optional("BOOL", "stream"),
    ),
    outputs=(Tensor("text_output", "STRING", (-1,)),),
)
"""What the ensemble and the BLS model offer."""

PREPROCESSING: Final = Signature(
    inputs=(
        Tensor("QUERY", "STRING"),
        Tensor("REQUEST_OUTPUT_LEN", "INT32"),
        *_optional("STRING", "BAD_WORDS_DICT", "STOP_WORDS_DICT", dims=(-1,)),
        *_optional("INT32", "END_ID"),
    ),
    outputs=(
        Tensor("INPUT_ID", "INT32", (-1,)),
        Tensor("REQUEST_INPUT_LEN", "INT32"),
        Tensor("BAD_WORDS_IDS", "INT32", _WORD_IDS),
        Tensor("STOP_WORDS_IDS", "INT32", _WORD_IDS),
        Tensor("REQUEST_OUTPUT_LEN", "INT32", (-1,)),
        Tensor("OUT_END_ID", "INT32"),
    ),
)

TENSORRT_LLM: Final = Signature(
    inputs=(
        Tensor("input_ids", "INT32", (-1,)),
        Tensor("input_lengths", "INT32"),
        Tensor("request_output_len", "INT32"),
        *_optional("INT32", "end_id", "runtime_top_k"),
        *_optional("INT32", "stop_words_list", "bad_words_list", dims=_WORD_IDS),
        *_optional("FP32", "temperature", "runtime_top_p"),
        *_optional("UINT64", "seed"),
        *_optional("BOOL", "stop", "streaming"),
    ),
    outputs=(
        Tensor("output_ids", "INT32", (-1, -1)),
        Tensor("sequence_length", "INT32", (-1,)),
        Tensor("context_ids", "INT32", (-1,)),
        Tensor("is_final", "BOOL"),
    ),
)

POSTPROCESSING: Final = Signature(
    inputs=(
        Tensor("TOKENS_BATCH", "INT32", (-1, -1)),
        Tensor("SEQUENCE_LENGTH", "INT32", (-1,)),
        *_optional("INT32", "CONTEXT_IDS", dims=(-1,)),
        *_optional("BOOL", "IS_FINAL"),
    ),
    outputs=(Tensor("OUTPUT", "STRING", (-1,)),),
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the ensemble; the maps go from the model's tensor to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


ENSEMBLE_STEPS: Final = (
    Step(
        "preprocessing",
        MappingProxyType(
            {
                "QUERY": "text_input",
                "REQUEST_OUTPUT_LEN": "max_tokens",
                "BAD_WORDS_DICT": "bad_words",
                "STOP_WORDS_DICT": "stop_words",
                "END_ID": "end_id",
            }
        ),
        MappingProxyType(
            {
                "INPUT_ID": "_input_ids",
                "REQUEST_INPUT_LEN": "_input_lengths",
                "BAD_WORDS_IDS": "_bad_words_list",
                "STOP_WORDS_IDS": "_stop_words_list",
                "REQUEST_OUTPUT_LEN": "_request_output_len",
                "OUT_END_ID": "_end_id",
            }
        ),
    ),
    Step(
        "tensorrt_llm",
        MappingProxyType(
            {
                "input_ids": "_input_ids",
                "input_lengths": "_input_lengths",
                "bad_words_list": "_bad_words_list",
                "stop_words_list": "_stop_words_list",
                "request_output_len": "_request_output_len",
                "end_id": "_end_id",
                "runtime_top_k": "top_k",
                "runtime_top_p": "top_p",
                "temperature": "temperature",
                "seed": "seed",
                "streaming": "stream",
            }
        ),
        MappingProxyType(
            {
                "output_ids": "_output_ids",
                "sequence_length": "_sequence_length",
                "context_ids": "_context_ids",
                "is_final": "_is_final",
            }
        ),
    ),
    Step(
        "postprocessing",
        MappingProxyType(
            {
                "TOKENS_BATCH": "_output_ids",
                "SEQUENCE_LENGTH": "_sequence_length",
                "CONTEXT_IDS": "_context_ids",
                "IS_FINAL": "_is_final",
            }
        ),
        MappingProxyType({"OUTPUT": "text_output"}),
    ),
)
