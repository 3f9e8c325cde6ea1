"""Find a tritonserver on this machine and what it needs to run Python models."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from minitron_trt.errors import MissingExtraError, UnsupportedError


@dataclass(frozen=True, slots=True)
class Installation:
    """A tritonserver binary, the parts of its Python backend, and its environment."""

    binary: Path
    backend_parts: tuple[Path, ...]
    environment: Mapping[str, str]

    def make_backend_folder(self, folder: Path) -> Path:
        """Gather the Python backend as links below `folder`; return the --backend-directory."""
        backend = folder / "python"
        backend.mkdir(parents=True)
        for part in self.backend_parts:
            (backend / part.name).symlink_to(part)
        return folder


def find_embedded() -> Installation:
    """Return the tritonserver that the nvidia-pytriton wheel carries.

    MissingExtraError when the wheel is not installed; UnsupportedError when it has no stub for this
    Python, or the stub's libpython is absent.
    """
    found = importlib.util.find_spec("pytriton")
    if found is None or found.origin is None:
        raise MissingExtraError("nvidia-pytriton", "server", "the embedded Triton server")
    package = Path(found.origin).parent
    server = package / "tritonserver"
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = server / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.is_file():
        known = sorted(path.name for path in stub.parent.parent.iterdir())
        raise UnsupportedError(
            f"nvidia-pytriton has no Python backend for Python {version}; it has {', '.join(known)}"
        )
    python_library = _check_libpython(version)
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


def check_packages(runtime: str) -> None:
    """Raise MissingExtraError when this Python lacks what the models of a runtime import."""
    needed = ("torch", "transformers") if runtime == "reference" else ("transformers",)
    for package in needed:
        if importlib.util.find_spec(package) is None:
            raise MissingExtraError(package, "reference", f"the {runtime} runtime")


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


def _environment(libraries: list[str]) -> dict[str, str]:
    """Return the environment in which the backend's interpreter finds this Python's packages.

    The stub starts an isolated interpreter that ignores PYTHONPATH and takes its packages from the
    first `python3` on PATH.
    """
    environment = dict(os.environ)
    inherited = environment.get("LD_LIBRARY_PATH")
    environment["LD_LIBRARY_PATH"] = ":".join([*libraries, *([inherited] if inherited else [])])
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment.get('PATH', os.defpath)}"
    # Model folders are artifacts: no caches are written into them.
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    environment["TRANSFORMERS_OFFLINE"] = environment["HF_HUB_OFFLINE"] = "1"
    return environment
