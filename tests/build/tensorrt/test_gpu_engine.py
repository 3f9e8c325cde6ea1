"""Engines on a GPU: they load, their logits are the reference model's, and how fast they decode."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tensorrt_rtx", reason="engines need: pip install 'minitron-trt[rtx]'")

from tests.build.tensorrt.gpu_engine import GpuEngine
from tests.build.tensorrt.test_network import logits_of
from tests.build.tensorrt.test_network_fp8 import quantized

from minitron_trt.build.tensorrt.api import LIBRARIES, RTX, TARGETS, Library
from minitron_trt.build.tensorrt.engine_compiler import compile_engine
from minitron_trt.build.tensorrt.network_definition import NetworkLimits
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import UnsupportedError
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.executor.step import StepBatch
from minitron_trt.samples import NAMES, sample_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]
LIMITS = NetworkLimits(max_batch_size=8, max_seq_len=512, max_input_len=128)


@pytest.fixture
def sm() -> int:
    """Return this GPU's architecture."""
    major, minor = torch.cuda.get_device_capability()
    return 10 * major + minor


@pytest.fixture(params=LIBRARIES.values(), ids=lambda library: library.package)
def library(request: pytest.FixtureRequest, sm: int, monkeypatch: pytest.MonkeyPatch) -> Library:
    """Return each library that can compile for this GPU, and let it be the one that is chosen."""
    chosen: Library = request.param
    if chosen.version is None:
        pytest.skip(f"{chosen.package} is not installed: its engines were not run")
    if chosen is RTX and sm not in TARGETS:
        pytest.skip(f"{chosen.package} does not compile for SM{sm}: its engines were not run")
    module = "minitron_trt.build.tensorrt.engine_compiler"
    monkeypatch.setattr(f"{module}.choose_library", lambda sm: chosen)
    return chosen


def engine_of(checkpoint: Checkpoint, output: Path, sm: int) -> GpuEngine:
    """Compile for this GPU and load the engine; what cannot be compiled for it is skipped."""
    try:
        return GpuEngine(compile_engine(checkpoint, output, sm=sm, limits=LIMITS).folder)
    except UnsupportedError as error:
        pytest.skip(f"SM{sm}: {error}")


@pytest.mark.parametrize("precision", ["bf16", "fp8"])
@pytest.mark.parametrize("name", NAMES)
def test_an_engines_logits_are_the_reference_models(
    name: str, precision: str, library: Library, sm: int, tmp_path: Path
) -> None:
    convert(str(sample_folder(name)), tmp_path / "wide", ConvertOptions())
    checkpoint = Checkpoint.open(tmp_path / "wide")
    if precision == "fp8":
        checkpoint = quantized(checkpoint, tmp_path / "fp8")
    engine = engine_of(checkpoint, tmp_path / "engine", sm)
    exact, usual = (
        logits_of(ReferenceModel(checkpoint, slots=3, max_seq_len=48, dtype=dtype))
        for dtype in (torch.float32, None)
    )

    # Unequal prompts, a second chunk beside single tokens, and ten tokens of each sequence.
    actual = logits_of(engine)

    error, allowed = (np.square(logits - exact).mean() ** 0.5 for logits in (actual, usual))
    assert np.isfinite(actual).all()
    assert 0 < error < 1.5 * allowed
    assert engine.errors == []


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_decodes_and_its_rate_is_printed(
    name: str, library: Library, sm: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    convert(str(sample_folder(name)), tmp_path / "checkpoint", ConvertOptions())
    engine = engine_of(Checkpoint.open(tmp_path / "checkpoint"), tmp_path / "engine", sm)
    slots, tokens = np.arange(LIMITS.max_batch_size, dtype=np.int32), np.ones(8, np.int32)
    start = 0.0
    for place in range(LIMITS.max_seq_len):
        if place == 32:
            # Kernels are compiled and loaded on the first steps.
            start = time.monotonic()
        positions = np.full(len(slots), place, np.int32)
        logits = engine.forward(StepBatch(tokens, positions, slots, np.ones(8, np.int32)))
        tokens = logits.argmax(-1).cpu().numpy().astype(np.int32)
    seconds = time.monotonic() - start

    assert bool(torch.isfinite(logits).all())
    with capsys.disabled():
        rate = len(slots) * (LIMITS.max_seq_len - 32) / seconds
        gpu = torch.cuda.get_device_name()
        print(f"\n{name}, {library.package}, {gpu}: {rate:,.0f} tokens/s, 8 sequences")  # noqa: T201
