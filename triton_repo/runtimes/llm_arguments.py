"""What model.yaml says: the arguments of TensorRT-LLM's LLM class that others than it read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import yaml

from minitron_trt.records import Size, check_record
from minitron_trt.yaml_bounds import check_bounds

MODEL_YAML: Final = "model.yaml"
"""The file beside a model of the runtime llmapi, under upstream's name."""


@dataclass(frozen=True, slots=True)
class KvCacheArguments:
    """What is read of `kv_cache_config`."""

    dtype: str = "auto"


@dataclass(frozen=True, slots=True)
class LlmArguments:
    """The arguments that are read, with LLM's defaults; `model` is a folder beside the file."""

    model: str
    max_batch_size: Size
    max_seq_len: Size | None = None
    max_num_tokens: Size | None = None
    tensor_parallel_size: Size = 1
    pipeline_parallel_size: Size = 1
    kv_cache_config: KvCacheArguments | None = None


def parse_llm_arguments(text: str) -> LlmArguments:
    """Return what a model.yaml says; ValueError, in one line, when it is none.

    People edit the file, so that it may be anything.
    """
    try:
        check_bounds(text)
        return check_record(yaml.safe_load(text), LlmArguments)
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(" ".join(str(error).split())) from error
