"""Facts of this machine: its memory and cores, its GPUs, the packages that are installed."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Final

from minitron_trt.errors import MissingExtraError, OutputError, UnsupportedError
from minitron_trt.host.cgroup import core_quota, memory_left, memory_limit
from minitron_trt.host.processes import output_of

TRTLLM_PACKAGE: Final = "tensorrt-llm"
BUILDER: Final = "trtllm-build"
_NVIDIA_SMI: Final = "nvidia-smi"
_NVIDIA_SMI_S: Final = 20.0
_CUDAS: Final = ("13", "12")
_MEMINFO: Final = Path("/proc/meminfo")
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


def cache_home() -> Path:
    """Return the folder for what can be made again; OutputError where the user has no home."""
    named = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(named) if named else Path.home() / ".cache") / "minitron-trt"
    except RuntimeError:
        # In a container a user may be a number that no file there knows.
        raise OutputError(
            "this user has no home folder to keep caches in; set XDG_CACHE_HOME"
        ) from None


def memory_bytes() -> int:
    """Return this machine's memory, or what its container may use of it if that is less."""
    return _least(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), memory_limit())


def available_bytes() -> int:
    """Return how much memory the machine has left to give, or the container if that is less."""
    lines = _MEMINFO.read_text().splitlines()
    kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return _least(1024 * kibibytes, memory_left())


def usable_cores() -> int:
    """Return how many cores this process may run on; a quota of 1.5 cores keeps two busy."""
    # Not os.cpu_count, which counts the machine's.
    quota = core_quota()
    return _least(len(os.sched_getaffinity(0)), None if quota is None else ceil(quota))


def _least(count: int, limit: int | None) -> int:
    return count if limit is None else min(count, limit)


def query_gpus(*names: str) -> tuple[str, ...]:
    """Return what the driver says of each GPU, a line of comma-separated values; () without one."""
    said = output_of(
        (_NVIDIA_SMI, f"--query-gpu={','.join(names)}", "--format=csv,noheader"), _NVIDIA_SMI_S
    )
    return tuple(line for line in (said or "").splitlines() if line)


def local_gpus() -> tuple[LocalGpu, ...]:
    """Return the GPUs that the driver lists; none without a driver."""
    gpus = []
    for line in query_gpus("name", "compute_cap"):
        name, _, capability = line.rpartition(",")
        digits = capability.strip().replace(".", "")
        if digits.isdigit():
            gpus.append(LocalGpu(name.strip(), int(digits)))
    return tuple(gpus)


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
    raise MissingExtraError(TRTLLM_PACKAGE, "trtllm", "--compiler trtllm --runner local")


def trtllm_version() -> str | None:
    """Return the version of the installed TensorRT-LLM."""
    return package_version(TRTLLM_PACKAGE)


def cuda_version(package: str) -> str | None:
    """Return the CUDA that a package of TensorRT is for, by the name of its libraries' package."""
    return next((cuda for cuda in _CUDAS if package_version(f"{package}-cu{cuda}")), None)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, without importing it."""
    # It takes longer to import than help takes to print.
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
