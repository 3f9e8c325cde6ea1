"""config.pbtxt as protobuf messages, so that no misspelt field or placeholder gets through."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from minitron_trt.errors import BadInputError
from minitron_trt.triton_repo.contract import ENSEMBLE_STEPS, TEXT, Signature

ModelConfig: TypeAlias = Any
"""A `ModelConfig` message; tritonclient ships no types."""


def python_model(
    name: str,
    signature: Signature,
    parameters: Mapping[str, str],
    *,
    max_batch_size: int,
    instances: int = 1,
    decoupled: bool = False,
) -> ModelConfig:
    """Return the config of a Python-backend model on the CPU."""
    config = _with_tensors(
        model_config_pb2.ModelConfig(name=name, backend="python", max_batch_size=max_batch_size),
        signature,
    )
    config.instance_group.add(count=instances, kind=model_config_pb2.ModelInstanceGroup.KIND_CPU)
    if decoupled:
        config.model_transaction_policy.decoupled = True
    for key, value in parameters.items():
        config.parameters[key].string_value = value
    return config


def ensemble(*, max_batch_size: int) -> ModelConfig:
    """Return the config of the ensemble preprocessing → tensorrt_llm → postprocessing."""
    config = _with_tensors(
        model_config_pb2.ModelConfig(
            name="ensemble", platform="ensemble", max_batch_size=max_batch_size
        ),
        TEXT,
    )
    for step in ENSEMBLE_STEPS:
        message = config.ensemble_scheduling.step.add(model_name=step.model, model_version=-1)
        message.input_map.update(step.inputs)
        message.output_map.update(step.outputs)
    return config


def _with_tensors(config: ModelConfig, signature: Signature) -> ModelConfig:
    for tensor in signature.inputs:
        config.input.add(
            name=tensor.name,
            data_type=f"TYPE_{tensor.type}",
            dims=tensor.dims,
            optional=tensor.optional,
        )
    for tensor in signature.outputs:
        config.output.add(name=tensor.name, data_type=f"TYPE_{tensor.type}", dims=tensor.dims)
    return config


def to_text(config: ModelConfig) -> str:
    """Return the message as config.pbtxt text."""
    return str(text_format.MessageToString(config))


def from_text(text: str, where: str) -> ModelConfig:
    """Parse config.pbtxt text; BadInputError names the file and the line."""
    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise BadInputError(f"{where}: {error}") from error
