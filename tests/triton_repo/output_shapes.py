"""The shapes of the outputs, as config.pbtxt declares them and as TensorRT-LLM's models send them.

Upstream's postprocessing sends the texts of a response as one axis, without the batch's, and its
tensorrt_llm_bls passes them on so. Every other output has the batch axis first, of one row.
"""

from __future__ import annotations

import queue
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S

from minitron_trt.triton_repo.serving.server_options import Endpoints

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Sizes:
    """What the shapes of an answer depend on."""

    prompt: int  # tokens
    vocab: int
    rows: int = 1  # beams
    tokens: int = 1  # in the response


TEXT_OUTPUTS: Final[Mapping[str, tuple[tuple[int, ...], tuple[str | int, ...]]]] = {
    "text_output": ((-1,), ("rows",)),
    "finish_reason": ((-1,), ("rows",)),
    "cum_log_probs": ((-1,), (1, "rows")),
    "output_log_probs": ((-1, -1), (1, "rows", "tokens")),
    "context_logits": ((-1, -1), (1, "prompt", "vocab")),
    "generation_logits": ((-1, -1, -1), (1, "rows", "tokens", "vocab")),
    "batch_index": ((1,), (1, 1)),
    "sequence_index": ((1,), (1, 1)),
    "kv_cache_alloc_new_blocks": ((1,), (1, 1)),
    "kv_cache_reused_blocks": ((1,), (1, 1)),
    "kv_cache_alloc_total_blocks": ((1,), (1, 1)),
    "arrival_time_ns": ((1,), (1, 1)),
    "first_scheduled_time_ns": ((1,), (1, 1)),
    "first_token_time_ns": ((1,), (1, 1)),
    "last_token_time_ns": ((1,), (1, 1)),
    "acceptance_rate": ((1,), (1, 1)),
    "total_accepted_draft_tokens": ((1,), (1, 1)),
    "total_draft_tokens": ((1,), (1, 1)),
    "num_input_tokens": ((1,), (1, 1)),
    "num_output_tokens": ((1,), (1, 1)),
}
"""Of ensemble and tensorrt_llm_bls: the declared dims, and the shape that is sent."""

RUNTIME_OUTPUTS: Final = {
    **{name: shapes for name, shapes in TEXT_OUTPUTS.items() if name != "text_output"},
    "output_ids": ((-1, -1), (1, "rows", "tokens")),
    "sequence_length": ((-1,), (1, "rows")),
    "finish_reason": ((1,), (1, 1)),
    "stream_id": ((1,), (1, 1)),
}
"""Of tensorrt_llm."""

EVERYTHING: Final = {
    "return_log_probs": True,
    "return_context_logits": True,
    "return_generation_logits": True,
    "return_perf_metrics": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
}
"""The inputs that turn every output on."""


def expected_shapes(
    table: Mapping[str, tuple[tuple[int, ...], tuple[str | int, ...]]], sizes: Sizes
) -> Shapes:
    """Return the shapes that a table says, for an answer of these sizes."""
    return {
        name: tuple(axis if isinstance(axis, int) else getattr(sizes, axis) for axis in shape)
        for name, (_, shape) in table.items()
    }


def declared_dims(endpoints: Endpoints, model: str) -> Shapes:
    """Return what the served config.pbtxt declares of each output."""
    with grpc.InferenceServerClient(endpoints.grpc_url.removeprefix("grpc://")) as client:
        config = client.get_model_config(model).config
    return {output.name: tuple(output.dims) for output in config.output}


def sent_shapes(endpoints: Endpoints, model: str, inputs: list[Any]) -> list[Shapes]:
    """Return the shapes of the outputs of each response; the last is of the one marked final."""
    answers: queue.Queue[Any] = queue.Queue()
    shapes: list[Shapes] = []
    with grpc.InferenceServerClient(endpoints.grpc_url.removeprefix("grpc://")) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(model, inputs, enable_empty_final_response=True)
        final = False
        while not final:
            answer = answers.get(timeout=PATIENCE_S)
            if isinstance(answer, Exception):
                raise answer
            message = answer.get_response()
            final = message.parameters["triton_final_response"].bool_param
            shapes.append({output.name: tuple(output.shape) for output in message.outputs})
    return shapes
