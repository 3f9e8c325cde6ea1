"""TensorRT as this package uses it: which of its libraries compiles here, its module and its log.

    tensorrt-rtx   on any machine, for the architectures in TARGETS
    tensorrt       on a GPU, for that GPU's own architecture

Neither has types. Everything reached through the names below is Any, and they are defined here
alone, so that a reader of the other modules can tell TensorRT's objects from the others.
"""

from __future__ import annotations

import importlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, TypeAlias

from minitron_trt.errors import MissingExtraError, ProcessError, UnsupportedError
from minitron_trt.gpus import ARCHITECTURES
from minitron_trt.host.machine import LocalGpu, local_gpus, package_version

Trt: TypeAlias = Any
"""The module."""
Network: TypeAlias = Any
"""An INetworkDefinition."""
Layer: TypeAlias = Any
"""An ILayer of a network."""
Tensor: TypeAlias = Any
"""An ITensor of a network: a symbol, not values."""

# The library knows SM75 and SM121, too, of which `gpus` lists no product.
TARGETS: Final[Mapping[int, str]] = MappingProxyType({sm: f"SM{sm}" for sm in (80, 86, 89, 120)})
"""The architectures that TensorRT-RTX compiles our networks for on a CPU."""
FIRST_TENSORRT: Final = (10, 15)
"""The first version of `tensorrt` with a layer for the KV cache."""

# What the builder says, at error level, on every machine without a driver.
_NO_DRIVER: Final = "cudaError 35"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Library:
    """One of TensorRT's libraries: its package, its module, and the extra that installs it."""

    package: str
    module: str
    extra: str

    @property
    def version(self) -> str | None:
        """Return the installed version, without importing it."""
        return package_version(self.package)

    def load(self) -> Trt:
        """Return the module; MissingExtraError says how to install it."""
        try:
            return importlib.import_module(self.module)
        except ImportError as error:
            raise MissingExtraError(self.package, self.extra, "--compiler tensorrt") from error


RTX: Final = Library("tensorrt-rtx", "tensorrt_rtx", "rtx")
TENSORRT: Final = Library("tensorrt", "tensorrt", "tensorrt")
LIBRARIES: Final[Mapping[str, Library]] = MappingProxyType(
    {library.package: library for library in (RTX, TENSORRT)}
)


def choose_library(sm: int, gpus: Sequence[LocalGpu] | None = None) -> Library:
    """Return what compiles for an SM on this machine: `tensorrt` on its GPU, else `tensorrt-rtx`.

    UnsupportedError says what is missing for that.
    """
    gpus = local_gpus() if gpus is None else gpus
    # TensorRT compiles for the GPU that it runs on, which is the first.
    own = bool(gpus) and gpus[0].sm == sm
    version = TENSORRT.version
    if own and version is not None and _numbers(version) >= FIRST_TENSORRT:
        return TENSORRT
    if sm in TARGETS:
        if RTX.version is None:
            raise MissingExtraError(RTX.package, RTX.extra, "--compiler tensorrt")
        return RTX
    said = f"without a GPU, tensorrt-rtx compiles for {', '.join(TARGETS.values())}; SM{sm} needs "
    if not own:
        name = next(a.name for a in ARCHITECTURES if sm in a.sms)
        raise UnsupportedError(f"{said}a GPU of {name}")
    least = ".".join(map(str, FIRST_TENSORRT))
    has = "is not installed" if version is None else f"is {version}"
    raise UnsupportedError(
        f"{said}tensorrt {least} or newer beside its GPU, and tensorrt {has}; run: "
        f"pip install 'minitron-trt[{TENSORRT.extra}]'"
    )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def make_logger(trt: Trt) -> tuple[Any, list[str]]:
    """Return a builder's logger that writes to Python's, and the list where it keeps the errors."""
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
        """Messages at Python's levels; the library calls `log`."""

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
