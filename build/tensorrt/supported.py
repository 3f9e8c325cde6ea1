"""Which checkpoints the network of our own computes; the others are TensorRT-LLM's to build."""

from __future__ import annotations

from minitron_trt.errors import UnsupportedError
from minitron_trt.quantization.precisions import TENSORRT_PRECISIONS
from minitron_trt.spec import Parallelism


def check_supported(precision: str, kv_cache: str | None, parallelism: Parallelism) -> None:
    """Raise UnsupportedError for what the network lacks; pipeline ranks it joins."""
    if precision not in TENSORRT_PRECISIONS:
        raise UnsupportedError(
            f"--compiler tensorrt builds {', '.join(TENSORRT_PRECISIONS)}; the checkpoint is "
            f"{precision}"
        )
    if kv_cache:
        raise UnsupportedError(
            f"--compiler tensorrt has no {kv_cache} KV cache: TensorRT's cache layer holds "
            "unquantized values only; convert with --kv-cache auto"
        )
    if parallelism.tp > 1:
        raise UnsupportedError(
            f"--compiler tensorrt builds for one GPU; the checkpoint is sharded for "
            f"{parallelism.tp}: convert with --tp 1"
        )
