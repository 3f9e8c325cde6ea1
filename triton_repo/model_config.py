"""config.pbtxt as protobuf messages, so that no misspelt field or placeholder gets through."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from google.protobuf import text_format

from minitron_trt.errors import BadInputError
from minitron_trt.triton_repo.config_messages import model_config_pb2
from minitron_trt.triton_repo.contract.ensemble_steps import Step
from minitron_trt.triton_repo.contract.model_names import ENSEMBLE, TENSORRT_LLM
from minitron_trt.triton_repo.contract.tensors import Signature, Tensor

CONFIG_PBTXT: Final = "config.pbtxt"
PYTHON_BACKEND: Final = "python"
ENSEMBLE_PLATFORM: Final = "ensemble"
TRTLLM_BACKEND: Final = "tensorrtllm"
"""TensorRT-LLM's C++ backend, under the name that a config gives it."""

ModelConfig: TypeAlias = Any
"""A `ModelConfig` message; tritonclient ships no types."""

_DAY_US: Final = 86_400_000_000


@dataclass(frozen=True, slots=True)
class Queue:
    """How Triton gathers requests for a model: at once, waiting at most, and for how long.

    0 is no limit, or no wait. `timed` has a request's own timeout end its waiting; Triton 2.51 then
    hands requests on up to half a second late, unless the model is busy with each for a while.
    `ordered` has responses leave in the order of their requests: else an ensemble takes those of a
    batch on several threads (since 25.06), and of two of one request either may come first.
    """

    batch: int = 0
    size: int = 0
    delay_us: int = 0
    timed: bool = False
    ordered: bool = False


def python_model(
    name: str,
    signature: Signature,
    parameters: Mapping[str, str],
    *,
    max_batch_size: int,
    instances: int = 1,
    queue: Queue | None = None,
    decoupled: bool = False,
) -> ModelConfig:
    """Return the config of a Python-backend model on the CPU; its queue has no end unless given."""
    config = model_config_pb2.ModelConfig(
        name=name, backend=PYTHON_BACKEND, max_batch_size=max_batch_size
    )
    _add_tensors(config, signature)
    if queue is not None:
        _add_queue(config, queue)
    return _with_instances(config, parameters, instances, decoupled=decoupled)


def engine_model(
    signature: Signature, parameters: Mapping[str, str], queue: Queue, *, decoupled: bool
) -> ModelConfig:
    """Return the config of `tensorrt_llm` on TensorRT-LLM's own backend, which finds its GPUs."""
    config = model_config_pb2.ModelConfig(
        name=TENSORRT_LLM, backend=TRTLLM_BACKEND, max_batch_size=queue.batch
    )
    _add_tensors(config, signature)
    _add_queue(config, queue)
    return _with_instances(config, parameters, 1, decoupled=decoupled)


def _add_queue(config: ModelConfig, queue: Queue) -> None:
    batching = config.dynamic_batching
    # Preferred, though not waited for: with a delay of 0 Triton hands on what is there.
    if queue.batch:
        batching.preferred_batch_size.append(queue.batch)
    batching.max_queue_delay_microseconds = queue.delay_us
    batching.preserve_ordering = queue.ordered
    policy = batching.default_queue_policy
    policy.max_queue_size = queue.size
    if queue.timed:
        # Triton heeds a request's timeout where it is less than the default.
        policy.allow_timeout_override = True
        policy.default_timeout_microseconds = _DAY_US


def _with_instances(
    config: ModelConfig, parameters: Mapping[str, str], instances: int, *, decoupled: bool
) -> ModelConfig:
    # By itself Triton makes an instance for each GPU. Python models of text need none, and
    # TensorRT-LLM's backend places its ranks on them itself.
    config.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if decoupled:
        config.model_transaction_policy.decoupled = True
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def ensemble(signature: Signature, steps: Iterable[Step], *, max_batch_size: int) -> ModelConfig:
    """Return the config of an ensemble, which offers `signature` through the steps."""
    config = model_config_pb2.ModelConfig(
        name=ENSEMBLE, platform=ENSEMBLE_PLATFORM, max_batch_size=max_batch_size
    )
    _add_tensors(config, signature)
    for step in steps:
        message = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        message.input_map.update(step.inputs)
        message.output_map.update(step.outputs)
    return config


def _add_tensors(config: ModelConfig, signature: Signature) -> None:
    for tensor in signature.inputs:
        message = config.input.add(**_fields(tensor), optional=tensor.optional)
        message.allow_ragged_batch = tensor.ragged
        if tensor.scalar:
            # Its presence says it: a shape without axes.
            message.reshape.SetInParent()
    for tensor in signature.outputs:
        config.output.add(**_fields(tensor))


def _fields(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "data_type": f"TYPE_{tensor.type}", "dims": tensor.dims}


def to_text(config: ModelConfig) -> str:
    """Return the message as config.pbtxt text."""
    return str(text_format.MessageToString(config))


def from_text(text: str, where: str) -> ModelConfig:
    """Parse config.pbtxt text; BadInputError names the file and the line."""
    config = model_config_pb2.ModelConfig()
    try:
        # A copy: what is done to a config may not show in the next that has the same text.
        config.CopyFrom(_parse(text))
    except (text_format.ParseError, ValueError) as error:
        # ValueError: a number that no enum can hold, of which the parser does not say the place.
        raise BadInputError(f"{where}: {error}") from error
    return config


# Protobuf parses text in Python, for 15 ms a config, and a repository that is written is read three
# times: to see that it opens, to check it, and to return it. Two repositories have ten configs.
@functools.lru_cache(maxsize=16)
def _parse(text: str) -> ModelConfig:
    return text_format.Parse(text, model_config_pb2.ModelConfig())
