"""How the ensemble's steps pass tensors on: preprocessing, tensorrt_llm, postprocessing.

A step after tensorrt_llm, which answers many times, may take inputs from it alone: Triton refuses
others. So preprocessing tells postprocessing about a stream by a request of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from minitron_trt.triton_repo.contract.model_names import (
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
)
from minitron_trt.triton_repo.contract.tensors import ElementTypes, statistics
from minitron_trt.triton_repo.models.minitron_models.tensor_names import (
    ENCODED_INPUTS,
    PASSED_ON,
    TEXT_INPUTS,
)


@dataclass(frozen=True, slots=True)
class Step:
    """One step of the ensemble; the maps go from the model's tensor to the ensemble's."""

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


_ENCODED: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{name: target for target, name in ENCODED_INPUTS.items()},
        "REQUEST_OUTPUT_LEN": "request_output_len",
        "OUT_EXCLUDE_INPUT_IN_OUTPUT": "exclude_input_in_output",
    }
)
"""From preprocessing's outputs to tensorrt_llm's inputs."""

_PREPROCESSED: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{name: client_name for client_name, name in TEXT_INPUTS.items()},
        "REQUEST_OUTPUT_LEN": "max_tokens",
        "STREAM": "stream",
        "EXCLUDE_INPUT_IN_OUTPUT": "exclude_input_in_output",
    }
)
"""From preprocessing's inputs to the client's."""


def ensemble_steps(types: ElementTypes, *, reports_streams: bool) -> tuple[Step, ...]:
    """Return the steps.

    A runtime that `reports_streams` says a stream's id and why it ended, and pads no row of ids.
    Each tensor between two models costs time per token, so no step passes on what it need not.
    """
    encoded = dict(_ENCODED)
    results, decoded = {"output_ids": "_output_ids"}, {"TOKENS_BATCH": "_output_ids"}
    if reports_streams:
        encoded["STREAM_ID"] = "stream_id"
        results |= {"stream_id": "_answered_stream_id", "finish_reason": "_finish_reason"}
        decoded |= {"STREAM_ID": "_answered_stream_id", "FINISH_REASON": "_finish_reason"}
    else:
        # Only this length tells the ids of a row from its padding.
        results["sequence_length"] = decoded["SEQUENCE_LENGTH"] = "_sequence_length"
        # Without a stream's id, what tells the prompts of one request apart.
        decoded["BATCH_INDEX"] = "batch_index"
    return (
        Step(
            PREPROCESSING,
            _PREPROCESSED,
            {name: f"_{target}" for name, target in encoded.items()},
        ),
        Step(
            TENSORRT_LLM,
            {target: f"_{target}" for target in encoded.values()}
            | {target: name for name, target in PASSED_ON.items()},
            results | {tensor.name: tensor.name for tensor in statistics(types)},
        ),
        Step(
            POSTPROCESSING,
            {**decoded, "SEQUENCE_INDEX": "sequence_index"},
            {"OUTPUT": "text_output", "FINISH_REASON": "finish_reason"},
        ),
    )
