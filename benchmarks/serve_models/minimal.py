"""The least a streaming Python model can be: one id per response. The yardstick for the others."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, args: dict[str, str]) -> None:
        """Take the pace, 0 for none."""
        parameters = json.loads(args["model_config"])["parameters"]
        self._rate = float(parameters["tokens_per_second"]["string_value"])

    def execute(self, requests: list[Any]) -> None:
        """Answer each request from a thread of its own."""
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "count").as_numpy().item()
            sender = request.get_response_sender()
            threading.Thread(target=self._send, args=(sender, count)).start()

    def _send(self, sender: Any, count: int) -> None:
        start = time.monotonic()
        for at in range(1, count + 1):
            if self._rate:
                time.sleep(max(0.0, start + at / self._rate - time.monotonic()))
            # The id is the time, so that a client can tell how long it was under way.
            value = pb_utils.Tensor("id", np.array([[time.monotonic_ns()]], np.int64))
            final = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if at == count else 0
            sender.send(pb_utils.InferenceResponse([value]), final)
