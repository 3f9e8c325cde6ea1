"""Call the model `tensorrt_llm` of the reference runtime directly, without text models around."""

from __future__ import annotations

import contextlib
import queue
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from numpy.typing import NDArray
from tests.patience import PATIENCE_S

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.contract.model_names import MODELS
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

MODEL = "tensorrt_llm"

_TYPES = {
    **dict.fromkeys(("temperature", "runtime_top_p", "runtime_top_p_min"), np.float32),
    **dict.fromkeys(("runtime_top_p_decay", "repetition_penalty", "len_penalty"), np.float32),
    **dict.fromkeys(("presence_penalty", "frequency_penalty", "embedding_bias"), np.float32),
    **dict.fromkeys(("beam_search_diversity_rate",), np.float32),
    **dict.fromkeys(("seed", "stream_id", "lora_task_id", "prompt_table_extra_ids"), np.uint64),
    **dict.fromkeys(("lora_weights", "prompt_embedding_table"), np.float16),
    "context_phase_params": np.uint8,
}


@dataclass(frozen=True)
class Runtime:
    """A server's `tensorrt_llm`, and the Hugging Face model behind it."""

    url: str
    metrics_url: str
    model: Path
    pid: int
    http_url: str = ""

    @classmethod
    def of(cls, endpoints: Endpoints, model: Path, pid: int) -> Runtime:
        """Return the runtime of a server."""
        return cls(
            endpoints.grpc_url.removeprefix("grpc://"),
            f"http://127.0.0.1:{endpoints.metrics_port}/metrics",
            model,
            pid,
            endpoints.http_url,
        )

    def ask(self, ids: list[int], count: int, **inputs: Any) -> list[dict[str, NDArray[Any]]]:
        """Return the outputs of every response to one prompt; raises what the server says."""
        return self.ask_inputs(**prompt(ids, count), **inputs)

    def ask_inputs(self, **inputs: Any) -> list[dict[str, NDArray[Any]]]:
        """Return the outputs of every response to a request of just these inputs."""
        with self.open(**inputs) as answers:
            return list(outputs(answers))

    @contextlib.contextmanager
    def open(self, **inputs: Any) -> Iterator[queue.Queue[Any]]:
        """Send a request and give its responses as they come; leaving cancels it."""
        answers: queue.Queue[Any] = queue.Queue()
        request_id = inputs.pop("request_id", "")
        timeout_us = inputs.pop("timeout_us", None)
        with grpc.InferenceServerClient(self.url) as client:
            client.start_stream(lambda result, error: answers.put(error or result))
            client.async_stream_infer(
                MODEL,
                inputs_of(inputs),
                request_id=request_id,
                timeout=timeout_us,
                enable_empty_final_response=True,
            )
            yield answers
            client.stop_stream(cancel_requests=True)


def outputs(answers: queue.Queue[Any]) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the outputs of each response as it comes; raises what the server says."""
    while True:
        answer = answers.get(timeout=PATIENCE_S)
        if isinstance(answer, Exception):
            raise answer
        names = [output.name for output in answer.get_response().outputs]
        if names:
            yield {name: answer.as_numpy(name) for name in names}
        if answer.get_response().parameters["triton_final_response"].bool_param:
            return


def prompt(ids: list[int], count: int) -> dict[str, Any]:
    """Return the inputs that every request has."""
    return {"input_ids": [ids], "input_lengths": len(ids), "request_output_len": count}


def inputs_of(values: dict[str, Any]) -> list[grpc.InferInput]:
    """Return tensors of one row, with the types of the contract unless they are arrays."""
    return [_input(name, value) for name, value in values.items()]


def _input(name: str, value: Any) -> grpc.InferInput:
    if not isinstance(value, np.ndarray):
        kind = np.bool_ if isinstance(value, bool) else _TYPES.get(name, np.int32)
        if isinstance(value, str):
            kind = np.object_
        value = np.array(value if isinstance(value, list) else [[value]], kind)
    tensor = grpc.InferInput(name, value.shape, grpc.np_to_triton_dtype(value.dtype))
    tensor.set_data_from_numpy(value)
    return tensor


@contextlib.contextmanager
def serve(folder: Path, recipe: ServingRecipe, sample: str = "solar-llama") -> Iterator[Runtime]:
    """Run a server of a sample's `tensorrt_llm` alone."""
    model = sample_folder(sample)
    convert(str(model), folder / "checkpoint", ConvertOptions(tp=2, pp=2))
    repository = folder / "repository"
    emit_repository(folder / "checkpoint", repository, recipe)
    for name in MODELS:
        if name != MODEL:
            shutil.rmtree(repository / name)
    # Without its manifest it is any Triton repository, which may have one model.
    (repository / "minitron.json").unlink()
    with running_server(
        repository, ServerOptions(free_endpoints(), drain_s=3), timeout_s=300
    ) as server:
        yield Runtime.of(server.endpoints, model, server.pid)
