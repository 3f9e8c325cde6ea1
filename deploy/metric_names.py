"""What the runtimes publish, by the names of TensorRT-LLM's backend for Triton."""

from __future__ import annotations

from typing import Final

REQUESTS: Final = "nv_trt_llm_request_metrics"
"""Gauge of requests by `request_type`: active, scheduled, waiting, max."""
BLOCKS: Final = "nv_trt_llm_kv_cache_block_metrics"
"""Gauge of blocks of the KV cache by `kv_cache_block_type`: used, free, max, fraction."""
ERRORS: Final = "trtllm_request_error_total"
SUCCESSES: Final = "trtllm_request_success_total"
FIRST_TOKEN: Final = "trtllm_time_to_first_token_seconds"
TOKEN_TIME: Final = "trtllm_time_per_output_token_seconds"
