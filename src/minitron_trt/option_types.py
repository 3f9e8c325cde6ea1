"""What options of several commands take: counts as people write them, names with a suggestion."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any, Final

import click

_COUNT: Final = re.compile(r"(\d+(?:\.\d+)?)([kKmM])")
# As vLLM reads them: a small letter is a power of ten, a capital one of two.
_FACTORS: Final = {"k": 1000, "K": 1 << 10, "m": 1_000_000, "M": 1 << 20}

_DURATION: Final = re.compile(r"([-+.\de]+)\s*(ms|s|)")


class FiniteRange(click.FloatRange):
    """A finite number of a range; click's own has infinity in it, and NaN in every range."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; a usage error for what is none."""
        converted: float = super().convert(value, param, ctx)
        if not math.isfinite(converted):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return converted


class _Positive(click.FloatRange):
    """A number above 0; an infinite rate is one without a limit."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the number; a usage error for what is none, NaN among it."""
        converted: float = super().convert(value, param, ctx)
        if math.isnan(converted):
            self.fail(f"{value!r} is not a valid float.", param, ctx)
        return converted


class _Duration(_Positive):
    """Seconds above 0, such as 0.2, 0.2s or 200ms."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Return the seconds; a usage error for what is none."""
        match = _DURATION.fullmatch(str(value).strip())
        if match is None:
            self.fail(f"{value!r} is no time; expected 0.2, 0.2s or 200ms", param, ctx)
        seconds = super().convert(match[1], param, ctx)
        return seconds / 1000 if match[2] == "ms" else seconds


POSITIVE: Final = _Positive()
"""Seconds, a rate or another number above 0."""
DURATION: Final = _Duration()
"""Seconds, or milliseconds with their unit."""


class Count(click.IntRange):
    """A number of things, such as 8192, 32k (32,000) or 32K (32,768)."""

    name = "integer"

    def __init__(self, least: int = 1) -> None:
        super().__init__(least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number; a usage error for what is none."""
        match = _COUNT.fullmatch(str(value))
        if match is not None:
            number = float(match[1]) * _FACTORS[match[2]]
            if not number.is_integer():
                self.fail(f"{value!r} is no whole number", param, ctx)
            value = int(number)
        converted: int = click.INT.convert(value, param, ctx)
        if self.min is not None and converted < self.min:
            self.fail(f"{converted} is not in the range {super()._describe_range()}", param, ctx)
        return converted

    def _describe_range(self) -> str:
        # The help says what is counted; that it is at least one goes without saying.
        return ""


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean …?` for a name that is nearly a known one, else nothing."""
    # Only a mistake needs it.
    from difflib import get_close_matches

    close = get_close_matches(name.lower(), list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
