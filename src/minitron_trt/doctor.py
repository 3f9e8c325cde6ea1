"""`minitron-trt doctor`: what this machine can do, and what to install for the rest."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import click

from minitron_trt import __version__
from minitron_trt.console import Console, console_options
from minitron_trt.errors import MinitronError

_NVIDIA_SMI: Final = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,memory.total,driver_version",
    "--format=csv,noheader",
)
_NVIDIA_SMI_TIMEOUT_S = 20


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked for: what was found, what it is good for, and how to get it when absent."""

    name: str
    found: str | None
    gives: str
    remedy: str


def _package(name: str, gives: str, extra: str) -> Finding:
    return Finding(name, _version(name), gives, f"pip install 'minitron-trt[{extra}]'")


def _version(package: str) -> str | None:
    # It takes longer to import than help takes to print.
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _gpus() -> Finding:
    found = None
    if shutil.which(_NVIDIA_SMI[0]):
        result = subprocess.run(
            _NVIDIA_SMI, capture_output=True, text=True, timeout=_NVIDIA_SMI_TIMEOUT_S, check=False
        )
        found = "; ".join(result.stdout.split("\n")).strip("; ") if not result.returncode else None
    return Finding(
        "NVIDIA GPU", found, "run TensorRT-LLM engines", "use a machine with an NVIDIA driver"
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return Finding("memory", f"{total / 1e9:.1f} GB, {os.cpu_count()} cores", "", "")


def _triton() -> Finding:
    from minitron_trt.triton_repo.installation import find_embedded

    gives = "serve --runner embedded"
    try:
        binary = find_embedded().binary
    except MinitronError as error:
        return Finding("tritonserver", None, gives, str(error))
    version = _version("nvidia-pytriton")
    return Finding("tritonserver", f"nvidia-pytriton {version}, {binary}", gives, "")


def _program(name: str, gives: str) -> Finding:
    return Finding(name, shutil.which(name), gives, f"install {name}")


CHECKS: Final[tuple[Callable[[], Finding], ...]] = (
    lambda: Finding(
        "minitron-trt", f"{__version__}, Python {platform.python_version()}", "convert bf16", ""
    ),
    _memory,
    _gpus,
    lambda: _package("torch", "the reference runtime", "reference"),
    lambda: _package("transformers", "the tokenizer of a served model", "reference"),
    _triton,
    lambda: _package("nvidia-modelopt", "calibrated precisions", "quantize"),
    lambda: _package("tensorrt-rtx", "engines without a GPU", "rtx"),
    lambda: _package("tensorrt-llm", "TensorRT-LLM engines", "trtllm"),
    lambda: _program("docker", "NVIDIA's containers"),
)


def findings() -> list[Finding]:
    """Look at this machine."""
    return [check() for check in CHECKS]


@click.command()
@console_options
def doctor(console: Console) -> None:
    """Say what this machine can do, and how to get the rest.

    Example: minitron-trt doctor --json
    """
    found = findings()
    record = {"python": sys.executable, "findings": [asdict(finding) for finding in found]}
    console.result(record, "\n".join(_line(finding) for finding in found))


def _line(finding: Finding) -> str:
    gives = f" ({finding.gives})" if finding.gives else ""
    if finding.found is None:
        return f"  -   {finding.name}{gives}: {finding.remedy}"
    return f"  ok  {finding.name}{gives}: {finding.found}"
