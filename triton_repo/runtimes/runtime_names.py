"""The names of the runtimes, which commands, manifests and parameters know them by."""

from __future__ import annotations

from typing import Final

REFERENCE: Final = "reference"
TRTLLM: Final = "trtllm"
LLMAPI: Final = "llmapi"
RUNTIMES: Final = (REFERENCE, TRTLLM, LLMAPI)
