"""The least a relay over a streaming model can be: a thread per request that passes ids on."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, _: dict[str, str]) -> None:
        """Make the threads."""
        self._threads = ThreadPoolExecutor(256)

    def execute(self, requests: list[Any]) -> None:
        """Hand each request to a thread."""
        for request in requests:
            count = pb_utils.get_input_tensor_by_name(request, "count").as_numpy().copy()
            self._threads.submit(self._relay, request.get_response_sender(), count)

    def _relay(self, sender: Any, count: Any) -> None:
        asked = pb_utils.InferenceRequest(
            model_name="minimal",
            requested_output_names=["id"],
            inputs=[pb_utils.Tensor("count", count)],
        )
        for answer in asked.exec(decoupled=True):
            if answer.output_tensors():
                value = pb_utils.Tensor("id", answer.output_tensors()[0].as_numpy())
                sender.send(pb_utils.InferenceResponse([value]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
