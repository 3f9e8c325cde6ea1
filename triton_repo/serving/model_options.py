"""The options of `serve` for a model, which a repository does not take."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import click
import cloup

from minitron_trt.errors import UsageError
from minitron_trt.hub_options import HUB_OPTIONS
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.triton_repo.runtimes.runtime_names import RUNTIMES

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """How a model is to be served; None is what suits it and this machine."""

    precision: str | None = None
    tp: int | None = None
    runtime: str | None = None
    revision: str | None = None
    token: str | None = None

    def refuse_for(self, source: str) -> None:
        """Raise UsageError when something was requested of a source that is a repository."""
        # Not the token, which people have in a variable for everything.
        for name in ("precision", "tp", "runtime", "revision"):
            if getattr(self, name) is not None:
                raise UsageError(
                    f"--{name} is for a model, and {source} is a repository: leave it out, or name "
                    "what it was made from"
                )


_MODEL = cloup.option_group(
    "Model",
    cloup.option(
        "--precision",
        type=click.Choice(list(PRECISIONS)),
        help="What to convert a model to  [default: the source's if that is FP8, else bf16]",
    ),
    cloup.option(
        "--tp",
        type=click.IntRange(1),
        help="Tensor-parallel ranks, a GPU each  [default: 1]",
    ),
    cloup.option(
        "--runtime",
        type=click.Choice(RUNTIMES),
        help="What generates the tokens  [default: trtllm, where an engine can be built here and "
        "served, else reference]",
    ),
)


def model_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of a model, as `model`."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> R:
        values = {item.name: kwargs.pop(item.name) for item in fields(ModelOptions)}
        return command(*args, model=ModelOptions(**values), **kwargs)

    wrapped: Callable[..., R] = _MODEL(HUB_OPTIONS(wrapper))
    return wrapped
