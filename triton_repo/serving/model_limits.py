"""What bounds a served model: tokens of a sequence, sequences at once, and its vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from minitron_trt.build.engine import Engine
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.source.model_folder import folder_spec
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.spec import ModelSpec
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.model_config import CONFIG_PBTXT
from minitron_trt.triton_repo.parameters import COUNT
from minitron_trt.triton_repo.runtimes.llm_arguments import (
    MODEL_YAML,
    LlmArguments,
    read_llm_arguments,
)
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.serving.served_repository import ServedRepository

_ENGINE_PATH: Final = "gpt_model_path"


@dataclass(frozen=True, slots=True)
class ModelLimits:
    """The limits of a repository's model, and the sizes of what it is made of."""

    max_seq_len: int
    batch: int
    spec: ModelSpec


def read_limits(served: ServedRepository) -> ModelLimits:
    """Return the limits, whatever the runtime; UnsupportedError for a repository without any."""
    reader = _READERS.get(served.runtime)
    if reader is None:
        raise UnsupportedError(
            f"{served.folder} has no model of TensorRT-LLM's; expected one that triton-repo wrote, "
            "or with an engine"
        )
    return reader(served)


def open_engine(served: ServedRepository) -> tuple[Path, Engine]:
    """Return the engine of a repository for TensorRT-LLM's backend, and where it lies here."""
    generator = served.generators[0]
    path = Path(served.configs[generator].parameters[_ENGINE_PATH].string_value)
    # The config says where the repository will lie in a container, not where it lies now.
    if path.is_relative_to(served.mount):
        path = served.folder / path.relative_to(served.mount)
    return path, Engine.open(path)


def open_llm(served: ServedRepository) -> tuple[Path, LlmArguments]:
    """Return the folder of the LLM class's model, and the arguments; BadInputError without any."""
    version = served.folder / served.generators[0] / "1"
    arguments = read_llm_arguments(version / MODEL_YAML, LlmArguments)
    return version / arguments.model, arguments


def _of_engine(served: ServedRepository) -> ModelLimits:
    _, engine = open_engine(served)
    limits = engine.limits
    return ModelLimits(limits.max_seq_len, limits.max_batch_size, engine.model.spec)


def _of_llm(served: ServedRepository) -> ModelLimits:
    folder, arguments = open_llm(served)
    spec = folder_spec(folder)
    length = arguments.max_seq_len or spec.max_positions
    return ModelLimits(length, arguments.max_batch_size, spec)


def _of_reference(served: ServedRepository) -> ModelLimits:
    parameters = served.configs[TENSORRT_LLM].parameters
    checkpoint = served.folder / TENSORRT_LLM / "1" / parameters[_ENGINE_PATH].string_value
    return ModelLimits(
        max_seq_len=_count(served, "max_seq_len"),
        batch=_count(served, "max_batch_size"),
        spec=Checkpoint.open(checkpoint).spec,
    )


def _count(served: ServedRepository, key: str) -> int:
    """Return a parameter of the reference runtime; BadInputError when it is no such number."""
    parameters = served.configs[TENSORRT_LLM].parameters
    value = parameters[key].string_value if key in parameters else ""
    if not COUNT.accepts(value):
        raise BadInputError(
            f"{served.folder / TENSORRT_LLM / CONFIG_PBTXT}: {key} is {value!r}; expected "
            f"{COUNT.expected}"
        )
    return int(value)


_READERS: Final[Mapping[str, Callable[[ServedRepository], ModelLimits]]] = MappingProxyType(
    {TRTLLM: _of_engine, LLMAPI: _of_llm, REFERENCE: _of_reference}
)
