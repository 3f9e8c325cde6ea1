"""Reading Triton requests and answering them: shared by the models, which carry a copy each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

Inputs: TypeAlias = Mapping[str, NDArray[Any]]
Outputs: TypeAlias = Mapping[str, NDArray[Any]]

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

CANCEL_CHECK_S = 0.05
"""How often a model asks whether a client left, in seconds."""


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


def response(outputs: Outputs) -> Any:
    """Return a response of named outputs."""
    return pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, value) for name, value in outputs.items()]
    )


def strings(texts: Sequence[str]) -> NDArray[np.object_]:
    """Return texts as the tensor of one request: [1, n]."""
    return np.array([list(map(str.encode, texts))], np.object_)


def error_response(message: str, code: int) -> Any:
    """Return a response that says what is wrong."""
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))


class ResponseSink(Protocol):
    """What a model sends the responses of one request to."""

    def send(self, outputs: Outputs, *, last: bool = False) -> None:
        """Send a response."""

    def fail(self, message: str, code: int) -> None:
        """End the request with what is wrong."""

    def close(self) -> None:
        """End the request without a further response."""

    def is_cancelled(self) -> bool:
        """Return whether the client has left."""


class Sender:
    """Answers one request, with those of its outputs that it asks for.

    No others may reach Triton's stub: before 2.53 it drops them without Python's lock, which
    corrupts the memory of a model that has a second thread.
    """

    def __init__(self, request: Any, on_sent: Callable[[bool], None] | None = None) -> None:
        """`on_sent` is told, after each response, whether it was the last."""
        self._on_sent = on_sent
        self._sender = request.get_response_sender()
        self.wanted = frozenset(request.requested_output_names())

    def send(self, outputs: Outputs, *, last: bool = False) -> None:
        """Send a response."""
        tensors = [
            pb_utils.Tensor(name, value) for name, value in outputs.items() if name in self.wanted
        ]
        self._sender.send(pb_utils.InferenceResponse(tensors), _FINAL if last else 0)
        if self._on_sent is not None:
            self._on_sent(last)

    def fail(self, message: str, code: int) -> None:
        """End the request with what is wrong."""
        self._sender.send(error_response(message, code), _FINAL)
        if self._on_sent is not None:
            self._on_sent(True)

    def close(self) -> None:
        """End a decoupled request, without a further response."""
        self._sender.send(flags=_FINAL)
        if self._on_sent is not None:
            self._on_sent(True)

    def is_cancelled(self) -> bool:
        """Return whether the client has left; costs a message to the server process."""
        return bool(self._sender.is_cancelled())


def exchange(model: str, request_id: str, inputs: Inputs) -> None:
    """Call another model for its effect; RuntimeError when it refuses."""
    answer = pb_utils.InferenceRequest(
        model_name=model,
        request_id=request_id,
        requested_output_names=[],
        inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
    ).exec()
    if answer.has_error():
        raise RuntimeError(f"{model}: {answer.error().message()}")


class ModelError(Exception):
    """What another model answered that is wrong, with Triton's code for it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TokenModel:
    """The model tensorrt_llm, as another model calls it: from one thread, a call at a time.

    Triton's Python stub (2.51, and in its sources up to 26.07) hangs when a thread begins a
    decoupled call while another waits for a response: it takes a lock while it holds Python's own,
    and the two threads wait for each other.
    """

    def __init__(self) -> None:
        # The stub would free the responses of a call that nobody holds any more on a thread of its
        # own, without Python's lock, and crash. So a call is held until the stub has forgotten it.
        self._ended: list[Any] = []

    def is_left(self, asker: Any) -> bool:
        """Return whether the client of a request or response sender has left it."""
        left = bool(asker.is_cancelled())
        if not left:
            # The stub answers in turn: what ended before this question is forgotten by now.
            self._ended.clear()
        return left

    def generate(
        self, request_id: str, outputs: Sequence[str], timeout_us: int, inputs: Inputs
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs of each response; ModelError when tensorrt_llm refuses or fails."""
        responses = pb_utils.InferenceRequest(
            model_name="tensorrt_llm",
            request_id=request_id,
            requested_output_names=list(outputs),
            inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
            timeout=timeout_us,
        ).exec(decoupled=True)
        try:
            for answer in responses:
                tensors = answer.output_tensors()
                if not tensors and answer.has_error():
                    error = answer.error()
                    raise ModelError(error.message(), error.code())
                arrays: dict[str, NDArray[Any]] = {}
                for found in tensors:
                    arrays[found.name()] = found.as_numpy()
                yield arrays
        finally:
            self._ended.append(responses)

    def stop(self, request_id: str, stream_id: int | None = None) -> None:
        """Have a request that is running end, by the stream's id where tensorrt_llm knows one."""
        one = np.ones((1, 1), np.int32)
        inputs: dict[str, Any] = {"input_ids": one, "input_lengths": one, "request_output_len": one}
        if stream_id is not None:
            # The request id may be other clients' too.
            request_id = ""
            inputs["stream_id"] = np.array([[stream_id]], np.uint64)
        inputs["stop"] = np.ones((1, 1), np.bool_)
        # It may have ended by itself.
        with contextlib.suppress(ModelError):
            list(self.generate(request_id, ["output_ids"], 0, inputs))
