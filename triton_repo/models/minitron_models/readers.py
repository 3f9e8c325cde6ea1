"""Who still reads the streams of the ensemble, which a runtime has to find out by itself.

Triton does not cancel the step of an ensemble that is running when the client leaves; it cancels
the steps that would come after, and drops those from the queue of a model that takes batches.
Whatever was sent before postprocessing is asked lies in that queue before the question. So a stream
of which postprocessing has had fewer responses than were sent by then has no reader any more.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
from minitron_models.requests import Sender, tensor


class Readers:
    """The responses sent to each stream that is under way; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sent: dict[int, int] = {}
        self._unanswered = False

    def sender(self, request: Any) -> Sender:
        """Return the sender of a request, which counts when the request is a stream's."""
        stream_id = tensor(request, "stream_id")
        if stream_id is None or stream_id.size != 1:
            return Sender(request)
        return Sender(request, functools.partial(self.count, stream_id.item()))

    def count(self, stream_id: int, last: bool) -> None:
        """Count a response that is on its way; the last one ends the stream."""
        with self._lock:
            if last:
                self._sent.pop(stream_id, None)
            else:
                self._sent[stream_id] = self._sent.get(stream_id, 0) + 1

    def gone(self) -> list[int]:
        """Ask postprocessing; return the streams that nobody reads. One thread may ask."""
        with self._lock:
            sent = dict(self._sent)
        if not sent:
            return []
        answer = pb_utils.InferenceRequest(
            model_name="postprocessing",
            requested_output_names=["WATCHED_RESPONSES"],
            inputs=[
                pb_utils.Tensor("TOKENS_BATCH", np.empty((1, 1, 0), np.int32)),
                pb_utils.Tensor("WATCHED_STREAM_IDS", np.array([list(sent)], np.uint64)),
            ],
        ).exec()
        if answer.has_error():
            if not self._unanswered:
                # No fault where tensorrt_llm is served alone and its clients name streams.
                self._unanswered = True
                said = answer.error().message()
                pb_utils.Logger.log_warn(f"cannot tell who reads the ensemble's streams: {said}")
            return []
        had = answer.output_tensors()[0].as_numpy()[0].tolist()
        return [
            stream_id
            for (stream_id, count), seen in zip(sent.items(), had, strict=True)
            if 0 <= seen < count
        ]
