"""Calibrations that are run once: how a checkpoint is sharded does not change what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from minitron_trt.convert.calibration import calibrate as calibration
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.conversion_plan import ConversionPlan
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.writing.quantize import Calibration

_MEASURED: Final[dict[object, Calibration]] = {}


@pytest.fixture(scope="module")
def calibrate_once() -> Iterator[None]:
    """Have each precision and KV cache of a model calibrated by the first conversion alone."""
    calibrate: Callable[..., Calibration] = calibration.calibrate

    def once(
        model: ModelSource, plan: ConversionPlan, text: CalibrationText, advance: Any
    ) -> Calibration:
        what = (model.folder, plan.precision.name, plan.kv_cache, plan.form, text)
        if what not in _MEASURED:
            _MEASURED[what] = calibrate(model, plan, text, advance)
        return _MEASURED[what]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "calibrate", once)
        yield
