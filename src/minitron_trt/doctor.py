"""`minitron-trt doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, Final

import cloup

from minitron_trt.console import Console, console_options
from minitron_trt.errors import MinitronError, install_command
from minitron_trt.host.machine import (
    TRTLLM_PACKAGE,
    memory_bytes,
    package_version,
    query_gpus,
    usable_cores,
)
from minitron_trt.host.processes import output_of
from minitron_trt.tables import folded, output_width
from minitron_trt.version import __version__

_DOCKER: Final = ("docker", "info", "--format", "{{json .}}")
# An engine that hangs must not hold up what is said of the rest.
_DOCKER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing looked for: what was found, what it is good for, and how to get it when absent.

    `caution` is what whoever uses it must know.
    """

    name: str
    found: str | None
    gives: str
    remedy: str
    caution: str = ""


def _package(name: str, gives: str, extra: str) -> Capability:
    return Capability(name, package_version(name), gives, install_command(extra))


def _gpus() -> Capability:
    gpus = query_gpus("name", "compute_cap", "memory.total", "driver_version")
    return Capability(
        name="NVIDIA GPU",
        found="; ".join(gpus) or None,
        gives="run TensorRT-LLM engines",
        remedy="use a machine with an NVIDIA driver",
    )


def _memory() -> Capability:
    found = f"{memory_bytes() / 1e9:.1f} GB, {usable_cores()} cores"
    return Capability("memory", found, gives="", remedy="")


def _triton() -> Capability:
    from minitron_trt.triton_repo.serving.installation import EMBEDDED_PURPOSE, find_embedded

    gives = "serve --runner embedded"
    try:
        binary = find_embedded().binary
    except MinitronError as error:
        return Capability("tritonserver", None, gives, str(error))
    version = package_version("nvidia-pytriton")
    found = f"nvidia-pytriton {version}, {binary}"
    return Capability("tritonserver", found, gives, "", EMBEDDED_PURPOSE)


def _docker() -> Iterator[Capability]:
    """Ask docker's engine: the program alone runs nothing, and GPUs need NVIDIA's part."""
    gives = "build --runner docker"
    engine = _docker_engine()
    version = engine.get("ServerVersion")
    remedy = "install docker"
    if shutil.which(_DOCKER[0]):
        remedy = "its engine does not answer; start it, or join its group"
    yield Capability("docker", str(version) if version else None, gives, remedy)
    devices = [str(device.get("ID", "")) for device in engine.get("DiscoveredDevices") or ()]
    way = "nvidia runtime" if "nvidia" in (engine.get("Runtimes") or {}) else None
    # Without NVIDIA's runtime newer engines may still know the GPUs, by their CDI names.
    if way is None and any("nvidia.com/gpu" in device for device in devices):
        way = "nvidia devices by CDI"
    yield Capability(
        name="docker with GPUs",
        found=way,
        gives="engines in NVIDIA's images",
        remedy="install nvidia-container-toolkit and restart docker" if version else "see docker",
    )


def _docker_engine() -> dict[str, Any]:
    try:
        record = json.loads(output_of(_DOCKER, _DOCKER_S) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


CHECKS: Final[tuple[Callable[[], Capability], ...]] = (
    lambda: Capability(
        "minitron-trt", f"{__version__}, Python {platform.python_version()}", "convert bf16", ""
    ),
    _memory,
    _gpus,
    lambda: _package("torch", "the reference runtime", "reference"),
    lambda: _package("tokenizers", "the text of a served model", "server"),
    _triton,
    lambda: _package("nvidia-modelopt", "calibrated precisions", "quantize"),
    lambda: _package("tensorrt-rtx", "engines without a GPU", "rtx"),
    lambda: _package("tensorrt", "engines for this machine's GPU", "tensorrt"),
    lambda: _package(TRTLLM_PACKAGE, "TensorRT-LLM engines", "trtllm"),
)


TASKS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "convert without calibration, plan, check, triton-repo, generate": (),
        "convert with calibration (fp8, nvfp4, *-awq, FP8 KV caches)": (
            "torch",
            "nvidia-modelopt",
        ),
        "serve checkpoints, on the reference runtime": ("tritonserver", "torch", "tokenizers"),
        "build engines for ampere, ada and blackwell-rtx without a GPU": ("tensorrt-rtx",),
        "build TensorRT-LLM engines here": ("NVIDIA GPU", TRTLLM_PACKAGE),
        "build and serve TensorRT-LLM engines in docker": ("docker", "docker with GPUs"),
    }
)
"""What one may want to do, and the capabilities that it takes."""


def capabilities() -> list[Capability]:
    """Look at this machine."""
    return [*(check() for check in CHECKS), *_docker()]


@cloup.command()
@console_options
def doctor(console: Console) -> None:
    """Say what this machine can do, and how to get the rest.

    Example: minitron-trt doctor --json
    """
    looked_for = capabilities()
    absent = {one.name for one in looked_for if one.found is None}
    lacking = {task: [name for name in names if name in absent] for task, names in TASKS.items()}
    record = {
        "python": sys.executable,
        "tasks": lacking,
        "findings": [asdict(one) for one in looked_for],
    }
    lines = (*_summary(lacking), *(line for one in looked_for for line in _lines(one)))
    console.result(record, folded("\n".join(lines), output_width()))


def _summary(lacking: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Yield what can be done here, then what cannot and for want of what."""
    yield "This machine can:"
    yield from (f"  {task}" for task, names in lacking.items() if not names)
    if any(lacking.values()):
        yield "It cannot yet:"
        for task, names in lacking.items():
            if names:
                yield f"  {task}"
                yield f"      for want of {', '.join(names)}"
    yield "What was looked for:"


def _lines(capability: Capability) -> Iterator[str]:
    """Yield what is said of a capability; a command to get it has a line of its own."""
    gives = f" ({capability.gives})" if capability.gives else ""
    head = f"{capability.name}{gives}"
    if capability.found is not None:
        yield f"  ok  {head}: {capability.found}"
        if capability.caution:
            yield f"      {capability.caution}"
    elif capability.remedy.startswith("pip "):
        yield f"  -   {head}"
        yield f"      {capability.remedy}"
    else:
        yield f"  -   {head}: {capability.remedy}"
