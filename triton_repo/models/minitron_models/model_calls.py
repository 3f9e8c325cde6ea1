"""Calling another model of the repository: around what Triton's Python stub cannot bear."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.triton_types import Cancellable, Inputs, TritonResponse
from numpy.typing import NDArray


def exchange(model: str, request_id: str, inputs: Inputs) -> None:
    """Call another model for its effect; RuntimeError when it refuses."""
    answer: TritonResponse = pb_utils.InferenceRequest(
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

    A model that drafts for it is called the same way, by its name.

    Triton's Python stub (2.51, and in its sources up to 26.07) hangs when a thread begins a
    decoupled call while another waits for a response: it takes a lock while it holds Python's own,
    and the two threads wait for each other.
    """

    def __init__(self) -> None:
        # The stub would free the responses of a call that nobody holds any more on a thread of its
        # own, without Python's lock, and crash. So a call is held until the stub has forgotten it.
        self._ended: list[Any] = []

    def check_client(self, client: Cancellable) -> bool:
        """Ask the server whether a request's client still waits; let go of ended calls if so."""
        if client.is_cancelled():
            # The stub may know it by itself, without a question to the server.
            return False
        # The stub answers in turn: what ended before this question is forgotten by now.
        self._ended.clear()
        return True

    def generate(
        self,
        request_id: str,
        outputs: Sequence[str],
        timeout_us: int,
        inputs: Inputs,
        *,
        name: str = "tensorrt_llm",
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the outputs of each response; ModelError when the model refuses or fails."""
        responses = pb_utils.InferenceRequest(
            model_name=name,
            request_id=request_id,
            requested_output_names=list(outputs),
            inputs=[pb_utils.Tensor(name, value) for name, value in inputs.items()],
            timeout=timeout_us,
        ).exec(decoupled=True)
        try:
            for answer in responses:
                tensors = answer.output_tensors()
                # Only one without outputs can be an error; asking costs time per token.
                if not tensors and answer.has_error():
                    error = answer.error()
                    raise ModelError(error.message(), error.code())
                arrays: dict[str, NDArray[Any]] = {}
                for output in tensors:
                    arrays[output.name()] = output.as_numpy()
                yield arrays
        finally:
            self._ended.append(responses)

    def stop(self, request_id: str, stream_id: int | None = None) -> None:
        """Have a request that is running end, by the stream's id where tensorrt_llm knows one."""
        # tensorrt_llm requires these three of every request; of one to stop it reads no more.
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
