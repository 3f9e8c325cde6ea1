"""Reading a Triton request and answering it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.triton_types import Outputs, TritonRequest, TritonResponse
from numpy.typing import NDArray

_FINAL = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL

CANCEL_CHECK_S = 0.05
"""How often a model asks whether a client left, in seconds."""


def tensor(request: TritonRequest, name: str) -> NDArray[Any] | None:
    """Return an input, or None when the client left it out."""
    value = pb_utils.get_input_tensor_by_name(request, name)
    return None if value is None else value.as_numpy()


def scalar(request: TritonRequest, name: str, default: Any = None) -> Any:
    """Return the one value of an input, or the default when the client left it out."""
    values = tensor(request, name)
    if values is None:
        return default
    if values.size != 1:
        raise ValueError(f"{name} holds {values.size} values; send one request at a time")
    return values.item()


def row_values(request: TritonRequest, name: str, rows: int, default: Any = None) -> list[Any]:
    """Return an input's one value of each row, or defaults when the client left it out."""
    values = tensor(request, name)
    if values is None:
        return [default] * rows
    if values.size != rows:
        raise ValueError(f"{name} holds {values.size} values; expected one for each of {rows} rows")
    found: list[Any] = values.reshape(-1).tolist()
    return found


def response(outputs: Outputs) -> TritonResponse:
    """Return a response of named outputs."""
    made: TritonResponse = pb_utils.InferenceResponse(
        [pb_utils.Tensor(name, value) for name, value in outputs.items()]
    )
    return made


def error_response(message: str, code: int) -> TritonResponse:
    """Return a response that says what is wrong."""
    made: TritonResponse = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    return made


def strings(texts: Sequence[str]) -> NDArray[np.object_]:
    """Return texts as upstream's models send them, without a batch axis: [n]."""
    return np.array(list(map(str.encode, texts)), np.object_)


class ResponseSink(Protocol):
    """What a model sends the responses of one request to."""

    def send(self, outputs: Outputs) -> None:
        """Send a response."""
        ...

    def fail(self, message: str, code: int) -> None:
        """End the request with what is wrong."""
        ...

    def close(self) -> None:
        """End the request without a further response."""
        ...

    def is_cancelled(self) -> bool:
        """Return whether the client has left."""
        ...


class Sender:
    """Answers one request, with those of its outputs that it asks for.

    No others may reach Triton's stub, the process that runs a Python model: before 2.53 it drops
    them without Python's lock, which corrupts the memory of a model that has a second thread.
    """

    def __init__(
        self, request: TritonRequest, on_sent: Callable[[Outputs, bool], None] | None = None
    ) -> None:
        """`on_sent` is told of each response after it was sent, and whether it was the last."""
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
            self._on_sent(outputs, last)

    def fail(self, message: str, code: int) -> None:
        """End the request with what is wrong."""
        self._sender.send(error_response(message, code), _FINAL)
        if self._on_sent is not None:
            self._on_sent({}, True)

    def close(self) -> None:
        """End the request without a further response; a model that is not decoupled owes one."""
        self._sender.send(flags=_FINAL)
        if self._on_sent is not None:
            self._on_sent({}, True)

    def is_cancelled(self) -> bool:
        """Return whether the client has left; costs a message to the server process."""
        return bool(self._sender.is_cancelled())
