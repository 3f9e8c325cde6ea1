"""The names of the runtimes, which commands, manifests and parameters know them by."""

from __future__ import annotations

from typing import Final

REFERENCE: Final = "reference"
TRTLLM: Final = "trtllm"
LLMAPI: Final = "llmapi"
RUNTIMES: Final = (REFERENCE, TRTLLM, LLMAPI)
WITH_TENSORRT_LLM: Final = (TRTLLM, LLMAPI)
"""Those that only a server with TensorRT-LLM runs; the others run on any Triton."""
