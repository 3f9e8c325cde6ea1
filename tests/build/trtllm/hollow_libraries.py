"""A double of NVIDIA's libraries, under which TensorRT-LLM's own Python runs from its sources.

    TENSORRT_LLM_SOURCE=.../TensorRT-LLM python -m pytest tests/build/trtllm/test_upstream.py

Real are upstream's configs, model classes, layers, quantization, preprocessing of weights, loader
and the arguments and rules of `trtllm-build`. Hollow, which is to say that every name exists and
does nothing, are TensorRT, TensorRT-LLM's C++ part, what it imports and is not installed, and its
parts that serve. Two of the C++ part's operators give zeros of the shapes that the real ones give.
Only a GPU and the real libraries tell whether an engine can be built and what it computes.
"""

from __future__ import annotations

import enum
import importlib.abc
import importlib.machinery
import math
import sys
import types
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import Any, Final

PACKAGE: Final = "tensorrt_llm"
SERVING: Final = (
    *("bindings", "_torch", "inputs", "executor", "runtime", "quantization.utils.fp8_utils"),
    *(f"llmapi.{name}" for name in ("llm", "llm_args", "llm_utils", "mpi_session", "build_cache")),
)


class HollowType(type):
    """The type of a name that stands for nothing: it has any attribute, and any operator."""

    def __getattr__(cls, name: str) -> Any:
        return _made(cls, name)

    def __iter__(cls) -> Any:
        return iter(())

    def __or__(cls, other: object) -> Any:
        return cls

    __ror__ = __or__

    def __index__(cls) -> int:
        return 0

    __int__ = __index__

    def __lshift__(cls, other: object) -> int:
        return 0

    __rlshift__ = __lshift__


class Hollow(metaclass=HollowType):
    """An object that stands for nothing; it is a decorator, too."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __getattr__(self, name: str) -> Any:
        return getattr(type(self), name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return arguments[0] if len(arguments) == 1 and callable(arguments[0]) else Hollow()


class HollowModule(types.ModuleType):
    """A module that has any name."""

    __path__: MutableSequence[str] = []  # noqa: RUF012 - a module's own name
    __version__ = "10.14.1"  # TensorRT's, which upstream compares

    def __getattr__(self, name: str) -> Any:
        return _made(self, name)


def _made(owner: Any, name: str) -> Any:
    """Return a name of its own for every attribute, the same one each time."""
    if name.startswith("__"):
        raise AttributeError(name)
    made = HollowType(name, (Hollow,), {})
    setattr(owner, name, made)
    return made


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Find the hollow modules: some by name, the others when upstream's own code lacks them."""

    def __init__(self, folder: str, names: Sequence[str] = ()) -> None:
        self._folder, self._names = folder, names

    def find_spec(self, fullname: str, path: object, target: object = None) -> Any:
        """Return the spec of a module that is to be hollow."""
        if self._names:
            hollow = any(f"{fullname}.".startswith(f"{name}.") for name in self._names)
        else:
            parent = sys.modules.get(fullname.rpartition(".")[0])
            ours = fullname.partition(".")[0] == PACKAGE
            hollow = isinstance(parent, HollowModule) or (not ours and self._upstream_asks())
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True) if hollow else None

    def _upstream_asks(self) -> bool:
        frame: types.FrameType | None = sys._getframe(2)
        while frame and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        return frame is not None and frame.f_code.co_filename.startswith(self._folder)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return the module."""
        return HollowModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Do nothing: there is nothing in it."""


def install(source: Path) -> None:
    """Make `tensorrt_llm` of a checkout importable, without its own start, which loads libraries.

    The libraries that are installed are imported first, as they are: what is hollow afterwards must
    not look to them as if it were there.
    """
    import torch
    import torch._inductor.config
    import transformers

    assert transformers.__version__
    folder = source / PACKAGE
    sys.meta_path.insert(0, _Finder(str(folder), [f"{PACKAGE}.{name}" for name in SERVING]))
    sys.meta_path.append(_Finder(str(folder)))
    shell: Any = types.ModuleType(PACKAGE)
    shell.__path__ = [str(folder)]
    sys.modules[PACKAGE] = shell
    # The package of this name keeps the case of what auto() makes; Python's own does not.
    strenum: Any = types.ModuleType("strenum")
    strenum.StrEnum = _StrEnum
    sys.modules.setdefault("strenum", strenum)
    _define_operators(torch)


class _StrEnum(str, enum.Enum):  # noqa: UP042 - Python 3.10 has none of its own
    @staticmethod
    def _generate_next_value_(name: str, *_: object) -> str:
        return name

    __str__ = str.__str__


def _define_operators(torch: Any) -> None:
    library = torch.library.Library("trtllm", "FRAGMENT")
    _LIBRARIES.append(library)

    def quantized(weight: Any, kind: Any) -> tuple[Any, Any]:
        rows, columns = weight.shape
        packed = columns // 2 if kind == torch.quint4x2 else columns
        return torch.zeros(rows, packed, dtype=torch.int8), torch.zeros(columns, dtype=weight.dtype)

    def interleaved(scales: Any) -> Any:
        rows, columns = (math.ceil(n / m) * m for n, m in zip(scales.shape, (128, 4), strict=True))
        return torch.zeros(rows * columns, dtype=scales.dtype)

    library.define(
        "symmetric_quantize_last_axis_of_batched_matrix(Tensor weight, ScalarType kind)"
        " -> (Tensor, Tensor)"
    )
    library.define("block_scale_interleave(Tensor scales) -> Tensor")
    library.impl("symmetric_quantize_last_axis_of_batched_matrix", quantized, "CPU")
    library.impl("block_scale_interleave", interleaved, "CPU")


_LIBRARIES: Final[list[Any]] = []  # an operator lives as long as its library
