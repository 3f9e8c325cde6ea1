"""Reading Triton requests and refusing them: shared by the models, which carry a copy each."""

from __future__ import annotations

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray


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


def text_response(name: str, text: str) -> Any:
    """Return a response of one text."""
    return response(**{name: np.array([[text.encode("utf-8")]], np.object_)})


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


def generate(request_id: str, outputs: list[str], **inputs: NDArray[Any]) -> Any:
    """Call tensorrt_llm from another model; return an iterator of its responses."""
    request = pb_utils.InferenceRequest(
        model_name="tensorrt_llm",
        request_id=request_id,
        requested_output_names=outputs,
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    )
    return request.exec(decoupled=True)


def stop(request_id: str) -> None:
    """Ask tensorrt_llm to end a request that is running."""
    one = np.ones((1, 1), np.int32)
    for _ in generate(
        request_id,
        ["output_ids"],
        input_ids=one,
        input_lengths=one,
        request_output_len=one,
        stop=np.ones((1, 1), np.bool_),
    ):
        pass
