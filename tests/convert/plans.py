"""The plan of a conversion alone, for tests that write nothing or write it themselves."""

from __future__ import annotations

from pathlib import Path

from minitron_trt.convert.conversion import ConvertOptions, open_and_plan
from minitron_trt.convert.conversion_plan import ConversionPlan


def plan_of(source: Path, options: ConvertOptions | None = None) -> ConversionPlan:
    """Return the plan of a source; what was opened for it is closed."""
    with open_and_plan(str(source), options or ConvertOptions()) as (_, plan):
        return plan
