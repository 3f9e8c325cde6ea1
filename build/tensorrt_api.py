"""TensorRT-RTX as this package uses it: the module, its log, and what it compiles for.

The library has no types. Everything reached through the names below is Any, and they are defined
here alone, so that a reader of the other modules can tell a TensorRT object from ours.
"""

from __future__ import annotations

import functools
import importlib
import logging
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from minitron_trt.errors import MissingExtraError, ProcessError, UnsupportedError

Trt: TypeAlias = Any
"""The module."""
Network: TypeAlias = Any
"""An INetworkDefinition."""
Layer: TypeAlias = Any
"""An ILayer of a network."""
Tensor: TypeAlias = Any
"""An ITensor of a network: a symbol, not values."""

TARGETS: Final[Mapping[int, str]] = MappingProxyType(
    {80: "SM80", 86: "SM86", 89: "SM89", 120: "SM120"}
)
"""The architectures that TensorRT-RTX compiles our networks for on a CPU."""
_FIRST_WITH_FP8: Final = 89

# What the builder says, at error level, on every machine without a driver.
_NO_DRIVER: Final = "cudaError 35"

log = logging.getLogger(__name__)


@functools.cache
def tensorrt() -> Trt:
    """Return the tensorrt_rtx module; MissingExtraError says how to install it."""
    try:
        return importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise MissingExtraError("tensorrt-rtx", "rtx", "--compiler tensorrt") from error


def check_target(sm: int, precision: str) -> None:
    """Raise UnsupportedError for an architecture that cannot be compiled for on a CPU, or so."""
    if sm not in TARGETS:
        raise UnsupportedError(
            f"tensorrt-rtx compiles for {', '.join(TARGETS.values())} without a GPU, not for "
            f"SM{sm}: that needs a GPU of the same architecture; build there with "
            "--compiler trtllm (--runner docker, slurm or kubernetes)"
        )
    if precision == "fp8" and sm < _FIRST_WITH_FP8:
        raise UnsupportedError(f"SM{sm} has no FP8; convert again with --precision bf16")


def make_logger() -> tuple[Any, list[str]]:
    """Return a builder's logger that writes to ours, and the list where it keeps the errors."""
    trt = tensorrt()
    severity = trt.ILogger.Severity
    levels = {
        severity.INTERNAL_ERROR: logging.ERROR,
        severity.ERROR: logging.ERROR,
        severity.WARNING: logging.WARNING,
        severity.INFO: logging.DEBUG,
    }
    errors: list[str] = []

    base: Any = trt.ILogger

    class BuilderLog(base):  # type: ignore[misc]  # the library has no types
        """Messages at our levels; the library calls `log`."""

        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            """Pass a message on, and keep it if it is an error."""
            level = levels.get(severity)
            if level is None:
                return
            if _NO_DRIVER in message:
                level = logging.DEBUG
            if level == logging.ERROR:
                errors.append(message)
            log.log(level, "%s", message)

    return BuilderLog(), errors


def made(layer: Layer) -> Layer:
    """Return a layer that the network took; ProcessError when it did not."""
    if layer is None:
        raise ProcessError("TensorRT refused a layer of the network; its log says why")
    return layer
