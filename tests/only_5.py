"""Parameters of tests of which versions of transformers before 5 make another thing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def marking_5(names: Iterable[str], *only_5: str) -> list[Any]:
    """Return names as parameters, with the mark `transformers_5` on some."""
    mark = pytest.mark.transformers_5
    return [pytest.param(name, marks=mark) if name in only_5 else name for name in names]
