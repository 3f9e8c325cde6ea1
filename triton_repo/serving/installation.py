"""Find a tritonserver on this machine and what it needs to run Python models."""

from __future__ import annotations

import ctypes
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from minitron_trt.build.containers import RECOMMENDED
from minitron_trt.errors import MissingExtraError, UnsupportedError
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, TRTLLM

SERVER: Final = "tritonserver"
EMBEDDED_PURPOSE: Final = (
    "It is Triton 2.51 of October 2024, for development, tests and trials on one machine. Whoever "
    "reaches it can end it with one request, and perhaps run code in it (CVE-2025-23310, "
    "CVE-2025-23311), which no option of it prevents. For anybody else use --runner docker or "
    f"local with NVIDIA's image {RECOMMENDED}, or put a gateway before it that reads requests to "
    "their end."
)
"""What the embedded server is for, in three sentences."""
EMBEDDED_HOLES: Final = (
    "known to end it: an HTTP request in very many chunks (CVE-2025-23310, CVE-2025-23311), and a "
    "client that leaves a unary gRPC call (triton-inference-server/server issues 7368 and 8034)"
)
_OPT: Final = Path("/opt/tritonserver")


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver binary, its environment, and its backends.

    `backends` is the folder of a whole installation; the embedded one has `backend_parts`, which
    must be gathered in a folder `python`. `release` is what NVIDIA's image says that it is.
    """

    binary: Path
    environment: Mapping[str, str]
    backends: Path | None = None
    backend_parts: tuple[Path, ...] = ()
    release: str = ""

    def backend_links(self, folder: Path) -> dict[Path, Path]:
        """Return the links that make `folder` a --backend-directory."""
        return {folder / "python" / part.name: part for part in self.backend_parts}

    def has(self, backend: str) -> bool:
        """Say whether a backend is installed."""
        return self.backends is not None and (self.backends / backend).is_dir()


def find_local() -> Installation | None:
    """Return the tritonserver on PATH or in /opt/tritonserver; None when there is none."""
    path = shutil.which(SERVER) or shutil.which(str(_OPT / "bin" / SERVER))
    if path is None:
        return None
    binary = Path(path)
    # On PATH it may be a link into an installation anywhere.
    beside = binary.resolve().parent.parent / "backends"
    backends = beside if beside.is_dir() else _OPT / "backends"
    return Installation(
        binary=binary,
        environment=dict(os.environ),
        backends=backends if backends.is_dir() else None,
        # NVIDIA's images set it; a Triton from elsewhere may be of any age.
        release=os.environ.get("NVIDIA_TRITON_SERVER_VERSION", ""),
    )


def find_embedded() -> Installation:
    """Return the tritonserver that the nvidia-pytriton wheel carries.

    MissingExtraError when the wheel is not installed; UnsupportedError when it has no stub for this
    Python, the stub's libpython is absent, or numpy is too new for it.
    """
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise MissingExtraError("nvidia-pytriton", "server", "the embedded Triton server")
    package = Path(spec.origin).parent
    server = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted(path.name for path in stub.parent.parent.iterdir())
        raise UnsupportedError(
            f"nvidia-pytriton has no Python backend for Python {version}; it has {', '.join(known)}"
        )
    python_library = _check_libpython(version)
    _check_numpy()
    libraries = [package.parent / "nvidia_pytriton.libs", python_library]
    backend = server / "backends" / "python"
    return Installation(
        binary=server / "bin" / "tritonserver",
        backend_parts=(
            backend / "libtriton_python.so",
            backend / "triton_python_backend_utils.py",
            stub,
        ),
        environment=_environment([str(path) for path in libraries if path]),
    )


_OF_TEXT: Final = (("tokenizers", "server"), ("jinja2", "server"))
# What the models import in the Python of the embedded server: package and the extra that has it.
_NEEDED: Final[Mapping[str, tuple[tuple[str, str], ...]]] = MappingProxyType(
    {
        REFERENCE: (("torch", "reference"), ("minitron_trt", "reference"), *_OF_TEXT),
        LLMAPI: (("tensorrt_llm", "trtllm"), *_OF_TEXT),
    }
)


def check_packages(runtime: str) -> None:
    """Raise MissingExtraError when this Python lacks what the models of a runtime import.

    UnsupportedError when the embedded server cannot run it whatever is installed, or does not find
    what this process finds.
    """
    if runtime == TRTLLM:
        raise UnsupportedError(
            "the embedded server has no tensorrtllm backend, which serves engines; use "
            "--runner local in NVIDIA's container, or --runner docker"
        )
    for package, extra in _NEEDED.get(runtime, ()):
        spec = importlib.util.find_spec(package)
        if spec is None:
            raise MissingExtraError(package, extra, f"the {runtime} runtime")
        _check_found_without_environment(package, spec.origin)


def _check_found_without_environment(package: str, origin: str | None) -> None:
    """Refuse a package that only PYTHONPATH leads to, which the stub's interpreter ignores."""
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if folder and origin and Path(origin).is_relative_to(Path(folder).absolute()):
            raise UnsupportedError(
                f"{package} is found through PYTHONPATH ({folder}), which Triton's Python backend "
                f"ignores; install it into the environment of {sys.executable}"
            )


def _check_libpython(version: str) -> Path | None:
    """Return the folder of libpython, None when the linker knows it by itself."""
    name = f"libpython{version}.so.1.0"
    folder = Path(sysconfig.get_config_var("LIBDIR") or "/usr/lib")
    if (folder / name).is_file():
        return folder
    try:
        ctypes.CDLL(name)
    except OSError:
        raise UnsupportedError(
            f"{name} is absent, which Triton's Python backend needs; install it "
            f"(Debian, Ubuntu: apt install libpython{version}) or use a Python built with it"
        ) from None
    return None


def _check_numpy() -> None:
    # Other packages may bring a numpy that the wheel rules out; pip only warns of that.
    version = importlib.metadata.version("numpy")
    if int(version.partition(".")[0]) > 1:
        raise UnsupportedError(
            f"numpy is {version}, with which the Python backend of nvidia-pytriton dies at the "
            "first text; run: pip install 'numpy<2', or use --runner docker or local"
        )


def _environment(libraries: list[str]) -> dict[str, str]:
    """Return the environment in which the backend's interpreter finds this Python's packages.

    The stub starts an isolated interpreter that ignores PYTHONPATH and takes its packages from the
    first `python3` on PATH.
    """
    environment = dict(os.environ)
    inherited = environment.get("LD_LIBRARY_PATH")
    if inherited:
        libraries = [*libraries, inherited]
    environment["LD_LIBRARY_PATH"] = ":".join(libraries)
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
    # Whatever a model needs lies in the repository: no library may look for more on the hub.
    environment["TRANSFORMERS_OFFLINE"] = environment["HF_HUB_OFFLINE"] = "1"
    return environment
