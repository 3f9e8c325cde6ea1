"""What this machine has for a build: its GPUs, its memory and a TensorRT-LLM."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Final

from minitron_trt.errors import MissingExtraError, UnsupportedError

BUILDER: Final = "trtllm-build"
_QUERY: Final = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
_QUERY_S: Final = 20.0
_CUDAS: Final = ("13", "12")
_CGROUP: Final = Path("/sys/fs/cgroup/memory.max")
_LLMAPI: Final = (
    "serve the model without an engine: minitron-trt triton-repo MODEL --runtime llmapi"
)


@dataclass(frozen=True, slots=True)
class LocalGpu:
    """A GPU of this machine, as its driver names it."""

    name: str
    sm: int


@dataclass(frozen=True, slots=True)
class Builder:
    """A `trtllm-build` on this machine; the version is None where its package is elsewhere."""

    path: str
    version: str | None


def local_gpus() -> tuple[LocalGpu, ...]:
    """Return the GPUs that the driver lists; none without a driver."""
    if shutil.which(_QUERY[0]) is None:
        return ()
    try:
        result = subprocess.run(
            _QUERY, capture_output=True, text=True, timeout=_QUERY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    gpus = []
    for line in result.stdout.splitlines() if result.returncode == 0 else ():
        name, _, capability = line.rpartition(",")
        digits = capability.strip().replace(".", "")
        if digits.isdigit():
            gpus.append(LocalGpu(name.strip(), int(digits)))
    return tuple(gpus)


def memory_bytes() -> int:
    """Return this machine's memory, or the share of it that its container may use."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    text = _CGROUP.read_text().strip() if _CGROUP.is_file() else ""
    return min(total, int(text)) if text.isdigit() else total


def find_builder() -> Builder:
    """Return the `trtllm-build` on the PATH; an error says how to get one, or do without."""
    version = trtllm_version()
    path = shutil.which(BUILDER)
    if path is not None:
        return Builder(path, version)
    if version is not None:
        raise UnsupportedError(
            f"TensorRT-LLM {version} is installed but has no {BUILDER}: newer versions have no "
            f"engine builder; build with --runner docker, or {_LLMAPI}"
        )
    raise MissingExtraError("tensorrt-llm", "trtllm", "--compiler trtllm --runner local")


def trtllm_version() -> str | None:
    """Return the version of the installed TensorRT-LLM."""
    return package_version("tensorrt-llm")


def cuda_version(package: str) -> str | None:
    """Return the CUDA that a package of TensorRT is for, by the name of its libraries' package."""
    return next((cuda for cuda in _CUDAS if package_version(f"{package}-cu{cuda}")), None)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
