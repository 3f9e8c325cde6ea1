"""Who still reads the streams of the ensemble, which a runtime has to find out by itself.

When a client leaves, Triton does not cancel the step of the ensemble that runs: tensorrt_llm. It
cancels those that follow: each response is a step of postprocessing, whose queue takes batches, and
from such a queue Triton drops what is cancelled. A response lies in that queue before any question
that tensorrt_llm asks later. So a stream of which postprocessing has seen fewer responses than were
sent before the question has no reader any more.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.triton_io import Sender, tensor
from minitron_models.triton_types import Outputs, TritonRequest, TritonResponse


class StreamReaders:
    """The responses sent to each stream that is under way; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[int, int] = {}
        self._warned = False

    def sender(self, request: TritonRequest) -> Sender:
        """Return the sender of a request, which counts the responses of each stream in it."""
        stream_ids = tensor(request, "stream_id")
        if stream_ids is None:
            return Sender(request)
        return Sender(request, functools.partial(self._count, stream_ids.reshape(-1).tolist()))

    def _count(self, stream_ids: Sequence[int], outputs: Outputs, last: bool) -> None:
        """Count a response that is on its way; the last one ends the request's streams."""
        with self._lock:
            if last:
                for stream_id in stream_ids:
                    self._sent.pop(stream_id, None)
            elif "stream_id" in outputs:
                stream_id = outputs["stream_id"].item()
                self._sent[stream_id] = self._sent.get(stream_id, 0) + 1

    def find_abandoned(self) -> list[int]:
        """Ask postprocessing; return the streams that nobody reads. One thread may ask."""
        with self._lock:
            sent = dict(self._sent)
        if not sent:
            return []
        answer: TritonResponse = pb_utils.InferenceRequest(
            model_name="postprocessing",
            requested_output_names=["WATCHED_RESPONSES"],
            inputs=[
                # Required of every request; no ids here.
                pb_utils.Tensor("TOKENS_BATCH", np.empty((1, 1, 0), np.int32)),
                pb_utils.Tensor("WATCHED_STREAM_IDS", np.array([list(sent)], np.uint64)),
            ],
        ).exec()
        if answer.has_error():
            self._warn(answer.error().message())
            return []
        arrived = answer.output_tensors()[0].as_numpy()[0].tolist()
        return [
            stream_id
            for (stream_id, count), seen in zip(sent.items(), arrived, strict=True)
            # -1 is of a stream that postprocessing does not know, or no longer.
            if 0 <= seen < count
        ]

    def _warn(self, reason: str) -> None:
        """Log, once, why it cannot be told: no fault where tensorrt_llm is served alone."""
        if not self._warned:
            self._warned = True
            pb_utils.Logger.log_warn(f"cannot tell who reads the ensemble's streams: {reason}")
