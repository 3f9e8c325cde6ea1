"""Call a text model with any of its tensors, over gRPC and over HTTP."""

from __future__ import annotations

import json
import queue
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S, longer_and_longer

from minitron_trt.triton_repo.contract.tensors import ElementTypes, bls_model
from minitron_trt.triton_repo.serving.server_options import Endpoints

TYPES = {tensor.name: tensor.type for tensor in bls_model(ElementTypes()).inputs}
_NUMPY: dict[str, Any] = {
    "STRING": np.object_,
    "INT32": np.int32,
    "UINT64": np.uint64,
    "BOOL": np.bool_,
    "FP32": np.float32,
    "FP16": np.float16,
}

Response = dict[str, Any]
"""The outputs of one response: the value of each, or the list of its values."""


@dataclass(frozen=True)
class Answered:
    """The responses to one request."""

    responses: list[Response]

    @property
    def text(self) -> str:
        """Return the pieces of text, together."""
        return "".join(r.get("text_output", "") for r in self.responses)

    @property
    def finish_reason(self) -> str:
        """Return why the answer ended, as the last response says that says it."""
        said = [r["finish_reason"] for r in self.responses if "finish_reason" in r]
        return str(said[-1]) if said else ""


class RefusalError(Exception):
    """What the server said instead of an answer."""


def ask(endpoints: Endpoints, protocol: str, model: str, **inputs: Any) -> Answered:
    """Return every response to a request; RefusalError with the server's words."""
    given = {"stream": False, **inputs}
    request_id = given.pop("request_id", "")
    outputs = given.pop("outputs", None)
    timeout_us = given.pop("timeout_us", None)
    if protocol == "grpc":
        return _ask_grpc(endpoints, model, given, request_id, outputs, timeout_us)
    return _ask_http(endpoints, model, {"id": request_id, **given})


def ask_in_time(endpoints: Endpoints, model: str, **inputs: Any) -> Answered:
    """Return what a request over gRPC has when its time is up: the least that is long enough."""
    for seconds in longer_and_longer(0.3):
        answered = ask(endpoints, "grpc", model, timeout_us=int(seconds * 1e6), **inputs)
        if answered.text:
            break
    return answered


def _ask_grpc(
    endpoints: Endpoints,
    model: str,
    given: dict[str, Any],
    request_id: str,
    outputs: Any,
    timeout_us: int | None,
) -> Answered:
    answers: queue.Queue[Any] = queue.Queue()
    responses: list[Response] = []
    with grpc.InferenceServerClient(endpoints.grpc_url.removeprefix("grpc://")) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(
            model,
            tensors(given),
            outputs=outputs and [grpc.InferRequestedOutput(name) for name in outputs],
            request_id=request_id,
            timeout=timeout_us,
            enable_empty_final_response=True,
        )
        final = False
        while not final:
            answer = answers.get(timeout=PATIENCE_S)
            if isinstance(answer, Exception):
                raise RefusalError(str(answer))
            message = answer.get_response()
            final = message.parameters["triton_final_response"].bool_param
            if message.outputs:
                names = [output.name for output in message.outputs]
                responses.append({name: _plain(answer.as_numpy(name)) for name in names})
    return Answered(responses)


def tensors(given: dict[str, Any]) -> list[Any]:
    """Return gRPC inputs of one row."""
    return [_tensor(name, value) for name, value in given.items()]


def _tensor(name: str, value: Any) -> Any:
    values = value if isinstance(value, list) else [value]
    if TYPES[name] == "STRING":
        values = [item.encode() for item in values]
    array = np.array([values], _NUMPY[TYPES[name]])
    tensor = grpc.InferInput(name, list(array.shape), TYPES[name].replace("STRING", "BYTES"))
    tensor.set_data_from_numpy(array)
    return tensor


def _plain(array: Any) -> Any:
    values = [v.decode() if isinstance(v, bytes) else v for v in array.reshape(-1).tolist()]
    return values[0] if len(values) == 1 else values


def _ask_http(endpoints: Endpoints, model: str, body: dict[str, Any]) -> Answered:
    verb = "generate_stream" if body["stream"] or body.get("num_return_sequences") else "generate"
    request = urllib.request.Request(
        f"{endpoints.http_url}/v2/models/{model}/{verb}", json.dumps(body).encode()
    )
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            text = answer.read().decode()
    except urllib.error.HTTPError as error:
        raise RefusalError(error.read().decode()) from error
    if verb == "generate":
        return Answered([json.loads(text)])
    events = [json.loads(line.removeprefix("data:")) for line in text.split("\n\n") if line]
    for event in events:
        if "error" in event:
            raise RefusalError(event["error"])
    return Answered(events)
