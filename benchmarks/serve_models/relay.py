"""The least a relay over a streaming model can be: it passes ids on, one request at a time."""

from __future__ import annotations

from typing import Any

import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    """Called by Triton's Python backend."""

    def initialize(self, _: dict[str, str]) -> None:
        """Keep the last call: the stub crashes when it has to free one itself."""
        self._call: Any = None

    def execute(self, requests: list[Any]) -> None:
        """Relay each request: one at a time, since the stub cannot call from several threads."""
        for request in requests:
            sender = request.get_response_sender()
            sender.is_cancelled()  # the stub has forgotten the last call once it answers
            self._call = pb_utils.InferenceRequest(
                model_name="minimal",
                requested_output_names=["id"],
                inputs=[pb_utils.get_input_tensor_by_name(request, "count")],
            ).exec(decoupled=True)
            for answer in self._call:
                if answer.output_tensors():
                    value = pb_utils.Tensor("id", answer.output_tensors()[0].as_numpy())
                    sender.send(pb_utils.InferenceResponse([value]))
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
