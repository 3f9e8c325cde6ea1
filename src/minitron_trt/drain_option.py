"""How long whatever serves goes on with its requests when it is to end: `--drain`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import cloup

C = TypeVar("C", bound=Callable[..., Any])
DRAIN_S: Final = 20
"""Seconds, unless told otherwise."""


def drain_option(end: str) -> Callable[[C], C]:
    """Return a decorator: the command gets `drain_s`, of which help says when the time begins."""
    return cloup.option(
        "--drain",
        "drain_s",
        type=click.IntRange(0),
        default=DRAIN_S,
        show_default=True,
        help=f"Seconds that running requests may go on {end}",
    )
