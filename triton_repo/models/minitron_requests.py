"""Reading Triton requests and answering them: shared by the models, which carry a copy each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

CANCEL_CHECK_S = 0.05
"""How often a model asks whether a client left; asking costs a message to the server process."""


def tensor(request: Any, name: str) -> NDArray[Any] | None:
    """Return an input, or None when the client left it out."""
    found = pb_utils.get_input_tensor_by_name(request, name)
    return None if found is None else found.as_numpy()


def scalar(request: Any, name: str, default: Any = None) -> Any:
    """Return the one value of an input, or the default when the client left it out."""
    values = tensor(request, name)
    if values is None:
        return default
    if values.size != 1:
        raise ValueError(f"{name} holds {values.size} values; send one request at a time")
    return values.item()


def response(**outputs: NDArray[Any]) -> Any:
    """Return a response of named outputs."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, value) for name, value in outputs.items()]
    )


def strings(*texts: str) -> NDArray[np.object_]:
    """Return texts as the tensor of one request: [1, n]."""
    return np.array([[text.encode("utf-8") for text in texts]], np.object_)


def error_response(message: str, code: int) -> Any:
    """Return a response that says what is wrong."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


def finish(sender: Any, last: Any = None) -> None:
    """End a decoupled request, with a last response or without."""
    final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL
    if last is None:
        sender.send(flags=final)
    else:
        sender.send(last, flags=final)


def exchange(model: str, request_id: str, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Call another model for its effect; RuntimeError when it refuses."""
    answer = pb_utils.InferenceRequest(
        model_name=model,
        request_id=request_id,
        requested_output_names=[],
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    ).exec()
    if answer.has_error():
        raise RuntimeError(f"{model}: {answer.error().message()}")


def generate(
    request_id: str, outputs: Sequence[str], timeout_us: int = 0, **inputs: NDArray[Any]
) -> Any:
    """Call tensorrt_llm from another model; return an iterator of its responses."""
    request = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=request_id,
        requested_output_names=list(outputs),
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
        timeout=timeout_us,
    )
    return request.exec(decoupled=True)


def stop(request_id: str, stream_id: int | None = None) -> None:
    """Ask tensorrt_llm to end a request that is running, by the stream's id where it knows one."""
    one = np.ones((1, 1), np.int32)
    inputs: dict[str, Any] = {"input_ids": one, "input_lengths": one, "request_output_len": one}
    if stream_id is not None:
        # The request id may be other clients' too.
        request_id = ""
        inputs["stream_id"] = np.array([[stream_id]], np.uint64)
    for _ in generate(request_id, ["output_ids"], **inputs, stop=np.ones((1, 1), np.bool_)):
        pass
