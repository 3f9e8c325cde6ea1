"""What model.yaml says: the arguments of TensorRT-LLM's LLM class that others than it read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

import yaml

from minitron_trt.errors import BadInputError
from minitron_trt.records import Size, check_record, read_text
from minitron_trt.yaml_bounds import check_bounds

MODEL_YAML: Final = "model.yaml"
"""The file beside a model of the runtime llmapi, under upstream's name."""


@dataclass(frozen=True, slots=True)
class KvCacheArguments:
    """What is read of `kv_cache_config`."""

    dtype: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmPlacement:
    """What is read of every model.yaml, upstream's included, with LLM's defaults."""

    model: str
    tensor_parallel_size: Size = 1
    pipeline_parallel_size: Size = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class LlmArguments(LlmPlacement):
    """What is read of one that this tool wrote, where `model` is a folder beside the file.

    Upstream's has the batch elsewhere.
    """

    max_batch_size: Size
    max_seq_len: Size | None = None
    max_num_tokens: Size | None = None
    kv_cache_config: KvCacheArguments | None = None


P = TypeVar("P", bound=LlmPlacement)


def parse_llm_arguments(text: str, kind: type[P]) -> P:
    """Return what a model.yaml says; ValueError, in one line, when it is none.

    People edit the file, so that it may be anything.
    """
    try:
        check_bounds(text)
        return check_record(yaml.safe_load(text), kind)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error


def read_llm_arguments(path: Path, kind: type[P]) -> P:
    """Return what a model.yaml says; BadInputError when it is none."""
    try:
        return parse_llm_arguments(read_text(path), kind)
    except ValueError as error:
        raise BadInputError(
            f"{path} is not the arguments of TensorRT-LLM's LLM class ({error}); correct it, or "
            "make the repository again"
        ) from error
