"""Calibration on a GPU finds the ranges that the CPU finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="NOT CHECKED: pip install minitron-trt[quantize]")
pytest.importorskip("modelopt", reason="NOT CHECKED: pip install minitron-trt[quantize]")

from minitron_trt.console import no_progress  # noqa: E402
from minitron_trt.convert.calibration.calibrate import calibrate  # noqa: E402
from minitron_trt.convert.calibration.text import CalibrationText  # noqa: E402
from minitron_trt.convert.conversion import ConvertOptions, open_and_plan  # noqa: E402
from minitron_trt.convert.writing.quantize import Calibration  # noqa: E402
from minitron_trt.samples import NAMES, sample_folder  # noqa: E402

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
    pytest.mark.filterwarnings("ignore"),
]


def found_on(folder: Path, options: ConvertOptions) -> Calibration:
    with open_and_plan(str(folder), options) as (source, plan):
        return calibrate(source, plan, options.calibration, no_progress)


@pytest.mark.parametrize("precision", ["fp8", "w4a16-awq"])
@pytest.mark.parametrize("name", NAMES)
def test_ranges_on_a_gpu_are_those_of_the_cpu(
    name: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CalibrationText(samples=4, length=64)
    kv_cache = "int8" if precision == "fp8" else None
    options = ConvertOptions(precision, kv_cache=kv_cache, calibration=text)
    torch.cuda.reset_peak_memory_stats()
    on_gpu = found_on(sample_folder(name), options)
    used = torch.cuda.max_memory_allocated()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = found_on(sample_folder(name), options)

    assert used > 1_000_000
    assert on_gpu.linears.keys() == on_cpu.linears.keys()
    # bfloat16 sums in another order differ by some of its steps of 1/128.
    assert on_gpu.kv_caches == pytest.approx(on_cpu.kv_caches, rel=0.05)
    for layer, ranges in on_gpu.linears.items():
        assert ranges.input == pytest.approx(on_cpu.linears[layer].input, rel=0.05)
        if ranges.prequant is not None:
            factors = [r.prequant for r in (ranges, on_cpu.linears[layer])]
            one, other = (np.asarray(f, np.float32) for f in factors)
            # The search takes its factors in steps, and may take the next one.
            assert np.median(np.abs(one / other - 1)) < 0.2
