"""What our network needs of TensorRT's Python API, and that both of its libraries have it.

`tensorrt` compiles only beside a GPU. Without one, its module can still be asked for names and
signatures, which is what these tests do where it is installed.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

pytest.importorskip("tensorrt_rtx", reason="this needs: pip install 'minitron-trt[rtx]'")

from tests.build.tensorrt.interpreter_model import new_network
from tests.build.tensorrt.test_network import LIMITS
from tests.build.tensorrt.test_network_fp8 import quantized

from minitron_trt.build.tensorrt.api import LIBRARIES, RTX, TENSORRT, Library, choose_library
from minitron_trt.build.tensorrt.network_definition import define_network
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import MissingExtraError, UnsupportedError
from minitron_trt.host.machine import LocalGpu
from minitron_trt.samples import NAMES, sample_folder

NETWORK: Final = {
    "module": {"ActivationType", "AttentionNormalizationOp", "CausalMaskKind"}
    | {"ElementWiseOperation", "KVCacheMode", "MatrixOperation", "ReduceOperation"}
    | {"UnaryOperation", "Weights", "bfloat16", "float32", "fp8", "int32", "int64"},
    "ActivationType": {"RELU", "SIGMOID"},
    "AttentionNormalizationOp": {"SOFTMAX"},
    "CausalMaskKind": {"NONE"},
    "ElementWiseOperation": {"DIV", "LESS", "PROD", "SUB", "SUM"},
    "KVCacheMode": {"LINEAR"},
    "MatrixOperation": {"NONE", "TRANSPOSE"},
    "ReduceOperation": {"AVG"},
    "UnaryOperation": {"SQRT"},
    "INetworkDefinition": {"add_activation", "add_attention_v2", "add_cast", "add_concatenation"}
    | {"add_constant", "add_dequantize", "add_elementwise", "add_gather", "add_input"}
    | {"add_kv_cache_update", "add_matrix_multiply", "add_normalization_v2", "add_quantize"}
    | {"add_reduce", "add_rotary_embedding", "add_shape", "add_shuffle", "add_slice"}
    | {"add_unary", "mark_output"},
    "IAttention": {"decomposable", "get_output", "mask", "name"},
    "IDequantizeLayer": {"axis", "get_output"},
    "IGatherLayer": {"get_output", "num_elementwise_dims"},
    "IMatrixMultiplyLayer": {"get_output", "name"},
    "INormalizationLayer": {"epsilon", "get_output", "name"},
    "IRotaryEmbeddingLayer": {"get_output", "set_input"},
    "IShuffleLayer": {"first_transpose", "get_output", "reshape_dims", "second_transpose"},
    "ISliceLayer": {"get_output", "set_input"},
    "ITensor": {"name", "set_dimension_name", "shape"},
    **{
        f"I{layer}Layer": {"get_output"}
        for layer in (
            *("Activation", "Cast", "Concatenation", "Constant", "ElementWise"),
            *("KVCacheUpdate", "Quantize", "Reduce", "Shape", "Unary"),
        )
    },
}
"""Everything that defining a network asks of the library, by the class that has it."""
WORKER: Final = {
    "module": {"Builder", "ILogger", "IStreamWriter", "NetworkDefinitionCreationFlag"},
    "Builder": {"build_serialized_network_to_stream", "create_builder_config", "create_network"}
    | {"create_optimization_profile"},
    "IBuilderConfig": {"add_optimization_profile"},
    "ILogger": {"log", "Severity"},
    "INetworkDefinition": {"get_input", "num_inputs"},
    "IOptimizationProfile": {"set_shape"},
    "IStreamWriter": {"write"},
    "ITensor": {"get_dimension_name", "name", "shape"},
    "NetworkDefinitionCreationFlag": {"STRONGLY_TYPED"},
}
"""What the worker asks beside that, whichever the library."""
NOT_IN_10: Final = {("module", "CausalMaskKind"), ("INetworkDefinition", "add_attention_v2")}
"""Where TensorRT 10 has another call, which Graph.attention knows."""


class Recorded:
    """An object of the library that notes which of its names are used; a double of nothing."""

    def __init__(self, real: Any, used: dict[str, set[str]], kind: str = "") -> None:
        name = real.__name__ if isinstance(real, type) else type(real).__name__
        object.__setattr__(self, "_parts", (real, used, kind or name))

    def __getattr__(self, name: str) -> Any:
        real, used, kind = object.__getattribute__(self, "_parts")
        value = getattr(real, name)
        used.setdefault(kind, set()).add(name)
        return recorded(value, used)

    def __setattr__(self, name: str, value: Any) -> None:
        real, used, kind = object.__getattribute__(self, "_parts")
        setattr(real, name, plain(value))
        used.setdefault(kind, set()).add(name)

    def __call__(self, *arguments: Any) -> Any:
        real, used, _ = object.__getattribute__(self, "_parts")
        return recorded(real(*map(plain, arguments)), used)


def recorded(value: Any, used: dict[str, set[str]]) -> Any:
    """Wrap what belongs to the library, but for shapes and dtypes, which are read as values."""
    home = type(value) if not isinstance(value, type) else value
    ours = str(home.__module__).startswith("tensorrt") and home.__name__ not in ("Dims", "DataType")
    return Recorded(value, used) if ours or callable(value) else value


def plain(value: Any) -> Any:
    """Return what a wrapper holds."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return object.__getattribute__(value, "_parts")[0] if isinstance(value, Recorded) else value


@pytest.fixture(params=LIBRARIES.values(), ids=lambda library: library.package)
def library(request: pytest.FixtureRequest) -> Library:
    """Return a library whose module is there; loudly skip the other."""
    found: Library = request.param
    try:
        importlib.import_module(found.module)
    except ImportError:
        pytest.skip(f"{found.package} is not installed: its API was not compared with our network")
    return found


def test_the_list_is_what_a_network_uses(tmp_path: Path) -> None:
    used: dict[str, set[str]] = {}
    for name in NAMES:
        convert(str(sample_folder(name)), tmp_path / name, ConvertOptions())
        checkpoint = quantized(Checkpoint.open(tmp_path / name), tmp_path / f"{name}-fp8")
        network, builder = new_network()
        trt, wrapped = Recorded(RTX.load(), used, "module"), Recorded(network, used)
        graph = define_network(trt, wrapped, checkpoint, LIMITS)
        del graph, builder

    assert used == NETWORK


def needs() -> Iterator[tuple[str, str]]:
    """Yield every class and name that both libraries must have."""
    for table in (NETWORK, WORKER):
        for kind, names in table.items():
            yield from ((kind, name) for name in sorted(names))


def test_the_library_has_every_name(library: Library) -> None:
    trt = library.load()
    first = hasattr(trt, "CausalMaskKind")
    missing = [
        (kind, name)
        for kind, name in needs()
        if not hasattr(trt if kind == "module" else getattr(trt, kind, None), name)
    ]

    assert set(missing) <= (set() if first else NOT_IN_10 | {("CausalMaskKind", "NONE")})
    assert first or hasattr(trt.INetworkDefinition, "add_attention")


def signatures(method: Any) -> set[tuple[str, ...]]:
    """Return the names of a method's parameters, one entry per overload, from its docstring."""
    lines = re.findall(rf"^(?:\d+\. )?{method.__name__}\(self: (.*)\) ->", method.__doc__, re.M)
    return {tuple(re.findall(r"(?:^|, )(\w+): ", line)) for line in lines}


@pytest.mark.parametrize("name", sorted(NETWORK["INetworkDefinition"]))
def test_the_calls_take_the_same_arguments(name: str, library: Library) -> None:
    ours = getattr(RTX.load().INetworkDefinition, name)
    theirs = getattr(library.load().INetworkDefinition, name, None)

    assert signatures(ours)
    assert theirs is None or signatures(ours) <= signatures(theirs)


@pytest.mark.parametrize(
    ("sm", "gpus", "installed", "package"),
    [
        (89, [], {"tensorrt-rtx": "1.7.1"}, "tensorrt-rtx"),
        (89, [90], {"tensorrt-rtx": "1.7.1", "tensorrt": "11.4.0"}, "tensorrt-rtx"),
        (89, [89], {"tensorrt-rtx": "1.7.1", "tensorrt": "10.14.1"}, "tensorrt-rtx"),
        (89, [89], {"tensorrt-rtx": "1.7.1", "tensorrt": "10.15.1"}, "tensorrt"),
        (90, [90], {"tensorrt": "11.4.0"}, "tensorrt"),
        (100, [100, 90], {"tensorrt": "11.4.0"}, "tensorrt"),
    ],
)
def test_a_gpu_of_the_target_is_compiled_on_by_tensorrt(
    sm: int,
    gpus: list[int],
    installed: dict[str, str],
    package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minitron_trt.build.tensorrt.api.package_version", installed.get)

    assert choose_library(sm, [LocalGpu("some GPU", found) for found in gpus]).package == package


@pytest.mark.parametrize(
    ("sm", "gpus", "installed", "said"),
    [
        (90, [], {"tensorrt": "11.4.0"}, "SM90 needs a GPU of hopper"),
        (90, [89, 90], {"tensorrt": "11.4.0"}, "SM90 needs a GPU of hopper"),
        (
            90,
            [90],
            {},
            r"SM90 needs tensorrt 10.15 .* is not installed; .*minitron-trt\[tensorrt\]",
        ),
        (90, [90], {"tensorrt": "10.14.1"}, "needs tensorrt 10.15 or newer .* tensorrt is 10.14.1"),
        (89, [], {}, r"needs tensorrt-rtx, which is not installed; .*minitron-trt\[rtx\]"),
    ],
)
def test_what_is_missing_for_a_target_is_said(
    sm: int,
    gpus: list[int],
    installed: dict[str, str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("minitron_trt.build.tensorrt.api.package_version", installed.get)

    with pytest.raises(UnsupportedError, match=said):
        choose_library(sm, [LocalGpu("some GPU", found) for found in gpus])


def test_a_module_that_cannot_be_imported_is_named_with_its_extra() -> None:
    absent = Library(TENSORRT.package, "no_such_module", TENSORRT.extra)

    with pytest.raises(MissingExtraError, match=r"pip install 'minitron-trt\[tensorrt\]'"):
        absent.load()
