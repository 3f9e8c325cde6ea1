"""Stand-in for tensorrt_llm in benchmarks: real ids of the sample's text, as fast as they go.

It has no model. With the parameter `tokens_per_second` it paces each stream instead. Every response
carries the time at which it was sent, as `last_token_time_ns`, so that a client can tell how long
it was under way.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
from minitron_models.config_parameters import parameter
from minitron_models.triton_io import Sender, scalar, strings, tensor


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Take the ids to send, over and over."""
        self._ids: list[int] = json.loads(parameter(args, "ids"))
        self._interval = int(parameter(args, "stream_interval"))
        self._rate = float(parameter(args, "tokens_per_second"))

    def execute(self, requests: list[Any]) -> None:
        """Answer each request from a thread of its own."""
        for request in requests:
            sender = Sender(request)
            if scalar(request, "stop", False):
                sender.close()
                continue
            stream = tensor(request, "stream_id")
            echo = {} if stream is None else {"stream_id": stream.copy()}
            count = scalar(request, "request_output_len")
            threading.Thread(target=self._send, args=(sender, count, echo)).start()

    def _send(self, sender: Sender, count: int, echo: dict[str, Any]) -> None:
        ids = [self._ids[i % len(self._ids)] for i in range(count)]
        start = time.monotonic()
        for at in range(0, count, self._interval):
            part = ids[at : at + self._interval]
            if self._rate:
                time.sleep(max(0.0, start + (at + len(part)) / self._rate - time.monotonic()))
            last = at + len(part) == count
            outputs = {"output_ids": np.array([[part]], np.int32), **echo}
            if "last_token_time_ns" in sender.wanted:
                outputs["last_token_time_ns"] = np.array([[time.monotonic_ns()]], np.int64)
            if last:
                outputs["finish_reason"] = strings(["length"]).reshape(1, 1)
            sender.send(outputs, last=last)
