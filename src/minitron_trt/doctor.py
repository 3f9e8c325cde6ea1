"""`minitron-trt doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from minitron_trt.console import Console, console_options
from minitron_trt.errors import MinitronError
from minitron_trt.version import __version__

_NVIDIA_SMI: Final = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,memory.total,driver_version",
    "--format=csv,noheader",
)
_NVIDIA_SMI_S: Final = 20.0
_DOCKER: Final = ("docker", "info", "--format", "{{json .}}")
_DOCKER_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Capability:
    """One thing looked for: what was found, what it is good for, and how to get it when absent."""

    name: str
    found: str | None
    gives: str
    remedy: str


def _package(name: str, gives: str, extra: str) -> Capability:
    return Capability(name, _version(name), gives, f"pip install 'minitron-trt[{extra}]'")


def _version(package: str) -> str | None:
    # It takes longer to import than help takes to print.
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _ask(argv: tuple[str, ...], timeout_s: float) -> str | None:
    """Return what a program says; None when it is absent, fails or does not answer in time."""
    try:
        result = subprocess.run(
            argv, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout if result.returncode == 0 else None


def _gpus() -> Capability:
    said = _ask(_NVIDIA_SMI, _NVIDIA_SMI_S)
    found = "; ".join(said.split("\n")).strip("; ") if said else None
    return Capability(
        *("NVIDIA GPU", found or None),
        *("run TensorRT-LLM engines", "use a machine with an NVIDIA driver"),
    )


def _memory() -> Capability:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return Capability("memory", f"{total / 1e9:.1f} GB, {os.cpu_count()} cores", "", "")


def _triton() -> Capability:
    from minitron_trt.triton_repo.serving.installation import find_embedded

    gives = "serve --runner embedded"
    try:
        binary = find_embedded().binary
    except MinitronError as error:
        return Capability("tritonserver", None, gives, str(error))
    version = _version("nvidia-pytriton")
    return Capability("tritonserver", f"nvidia-pytriton {version}, {binary}", gives, "")


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
    found = "nvidia runtime" if "nvidia" in (engine.get("Runtimes") or {}) else None
    if found is None and any("nvidia.com/gpu" in device for device in devices):
        found = "nvidia devices by CDI"
    yield Capability(
        *("docker with GPUs", found, "engines in NVIDIA's images"),
        "install nvidia-container-toolkit and restart docker" if version else "see docker",
    )


def _docker_engine() -> dict[str, Any]:
    try:
        record = json.loads(_ask(_DOCKER, _DOCKER_S) or "{}")
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
    lambda: _package("transformers", "the tokenizer of a served model", "reference"),
    _triton,
    lambda: _package("nvidia-modelopt", "calibrated precisions", "quantize"),
    lambda: _package("tensorrt-rtx", "engines without a GPU", "rtx"),
    lambda: _package("tensorrt", "engines for this machine's GPU", "tensorrt"),
    lambda: _package("tensorrt-llm", "TensorRT-LLM engines", "trtllm"),
)


def findings() -> list[Capability]:
    """Look at this machine."""
    return [*(check() for check in CHECKS), *_docker()]


@click.command()
@console_options
def doctor(console: Console) -> None:
    """Say what this machine can do, and how to get the rest.

    Example: minitron-trt doctor --json
    """
    found = findings()
    record = {"python": sys.executable, "findings": [asdict(finding) for finding in found]}
    console.result(record, "\n".join(_line(finding) for finding in found))


def _line(finding: Capability) -> str:
    gives = f" ({finding.gives})" if finding.gives else ""
    if finding.found is None:
        return f"  -   {finding.name}{gives}: {finding.remedy}"
    return f"  ok  {finding.name}{gives}: {finding.found}"
