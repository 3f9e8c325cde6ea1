"""How much of a GPU's full rates an engine reaches, fitted to what NVIDIA published.

The time of any work is taken to be a sum, in which nothing overlaps:

    arithmetic at full rate / its efficiency, one per precision
    + memory at full rate / its efficiency
    + links at full rate / their efficiency
    + layers run x the time that each takes whatever it computes: launches, and gaps between kernels

Least squares of the relative errors of all figures give these few numbers. How far they can be
trusted is measured by leaving figures out: each one alone, or all that share its model or its GPU,
and predicting them from the rest.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.plan.roofline import Work
from minitron_trt.build.plan.traffic.published import Measurement, measurements
from minitron_trt.gpus import Gpu

if TYPE_CHECKING:
    import numpy as np

# Precisions that nobody published figures of, as those whose kernels do most nearly the same.
_AS: Final[Mapping[str, str]] = MappingProxyType(
    {"fp16": "bf16", "fp8-rowwise": "fp8", "w8a16": "w4a16-awq", "w4a16": "w4a16-awq"}
)


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The shares of full rates that are reached, and the seconds of a layer besides."""

    arithmetic: Mapping[str, float]  # by the precisions that figures were published of
    memory: float
    link: float | None  # None: no figure of several GPUs
    layer_s: float

    def knows(self, model: EngineModel) -> bool:
        """Return whether figures tell what a model's work takes."""
        several = model.parallelism.tp > 1
        return fitted_as(model.precision) in self.arithmetic and not (several and not self.link)

    def seconds(self, work: Work, precision: str) -> float:
        """Return how long work takes that an engine of a precision does."""
        link_s = work.link_s / self.link if self.link else 0.0
        return (
            work.arithmetic_s / self.arithmetic[fitted_as(precision)]
            + work.memory_s / self.memory
            + link_s
            + work.layers * self.layer_s
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "arithmetic": {name: round(share, 3) for name, share in self.arithmetic.items()},
            "memory": round(self.memory, 3),
            "link": None if self.link is None else round(self.link, 3),
            "layer_us": round(self.layer_s * 1e6, 2),
        }


@dataclass(frozen=True, slots=True)
class Spread:
    """Errors of predictions, relative to what was measured, of so many figures."""

    figures: int
    median: float
    ninth_decile: float

    @classmethod
    def of(cls, misses: Iterable[float | None]) -> Spread | None:
        """Return the spread of errors of either sign, without those that are None; None of none."""
        import numpy as np

        errors = [abs(miss) for miss in misses if miss is not None]
        if not errors:
            return None
        middle, ninth = np.quantile(errors, (0.5, 0.9))
        return cls(len(errors), float(middle), float(ninth))

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "figures": self.figures,
            "median": round(self.median, 3),
            "ninth_decile": round(self.ninth_decile, 3),
        }


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """How far predictions for a model on a GPU can be trusted, by figures of the same precision.

    `leave_one_out` predicts each figure from all others. `outside` predicts it from those of other
    models, other GPUs or both, whichever the model and the GPU are to the tables; it is None where
    that cannot be tried, and the same as `leave_one_out` for a model and GPU in the tables.
    """

    leave_one_out: Spread
    outside: Spread | None
    model_published: bool
    gpu_published: bool
    precision: str  # the one whose figures stand for it

    @property
    def spread(self) -> Spread:
        """Return the errors to reckon with."""
        return self.outside or self.leave_one_out

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "leave_one_out": self.leave_one_out.to_json(),
            "outside": self.outside.to_json() if self.outside else None,
            "model_published": self.model_published,
            "gpu_published": self.gpu_published,
            "figures_of_precision": self.precision,
        }


def fitted_as(precision: str) -> str:
    """Return the precision whose figures stand for one."""
    return _AS.get(precision, precision)


@functools.cache
def efficiency() -> Efficiency:
    """Return what all figures say."""
    return _fit(slice(None))


@functools.cache
def _precisions() -> tuple[str, ...]:
    return tuple(dict.fromkeys(figure.model.precision for figure in measurements()))


@functools.cache
def _parts() -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return each figure's work, a row, in parts relative to the time that was measured.

    The columns are arithmetic by precision, memory, links and layers.
    """
    import numpy as np

    rows = []
    for figure in measurements():
        work, measured_s = figure.work, figure.output_len / figure.tokens_per_s
        own = [figure.model.precision == name for name in _precisions()]
        arithmetic = [work.arithmetic_s * is_own for is_own in own]
        parts = (*arithmetic, work.memory_s, work.link_s, work.layers)
        rows.append([part / measured_s for part in parts])
    return np.array(rows)


def _fit(kept: slice | list[bool]) -> Efficiency:
    """Return the efficiencies with the least squares of relative errors of the figures kept."""
    import numpy as np

    parts = _parts()[kept]
    # Of what no figure has work, nothing can be said.
    used = parts.any(axis=0)
    factors = np.zeros(len(used))
    # Each row is divided by the time that was measured, so that every sum to reach is 1 and errors
    # are relative: else the slowest figures would outweigh all others.
    factors[used] = np.linalg.lstsq(parts[:, used], np.ones(len(parts)), rcond=None)[0]
    *arithmetic, memory, link, layer_s = (float(factor) for factor in factors)
    return Efficiency(
        arithmetic={
            name: 1 / factor
            for name, factor in zip(_precisions(), arithmetic, strict=True)
            if factor
        },
        memory=1 / memory,
        link=1 / link if link else None,
        layer_s=layer_s,
    )


def uncertainty(model: EngineModel, gpu: Gpu) -> Uncertainty:
    """Return how far predictions for a model on a GPU can be trusted."""
    figures = measurements()
    precision = fitted_as(model.precision)
    model_published = _sizes(model) in {_sizes(figure.model) for figure in figures}
    gpu_published = gpu in {figure.gpu for figure in figures}
    outside = {
        (True, True): "figure",
        (False, True): "model",
        (True, False): "gpu",
        (False, False): "model or gpu",
    }[model_published, gpu_published]
    several = model.parallelism.tp > 1
    # Of 4-bit weights on several GPUs nothing was published: those on one have to do.
    alone = _spread("figure", precision, several=several) or _spread(
        "figure", precision, several=False
    )
    assert alone is not None, precision
    tried = _spread(outside, precision, several=several)
    return Uncertainty(alone, tried, model_published, gpu_published, precision)


def _sizes(model: EngineModel) -> tuple[int, ...]:
    spec = model.spec
    return spec.layers, spec.hidden, spec.heads, spec.kv_heads, spec.intermediate, spec.vocab


def _spread(group: str, precision: str, *, several: bool) -> Spread | None:
    """Return the errors without a group, of a precision on one GPU or several; None of none."""
    return Spread.of(
        miss
        for figure, miss in zip(measurements(), errors_without(group), strict=True)
        if figure.model.precision == precision and (figure.model.parallelism.tp > 1) == several
    )


# Which figures are left out together.
_GROUPS: Final[Mapping[str, Callable[[Measurement, Measurement], bool]]] = MappingProxyType(
    {
        "figure": lambda figure, other: other is figure,
        "model": lambda figure, other: other.model.name == figure.model.name,
        "gpu": lambda figure, other: other.gpu == figure.gpu,
        "model or gpu": lambda figure, other: (
            other.model.name == figure.model.name or other.gpu == figure.gpu
        ),
    }
)


@functools.cache
def errors_without(group: str) -> tuple[float | None, ...]:
    """Return each figure's error, predicted / measured - 1, when its group is not fitted to.

    None where what remains does not say what the figure's work takes.
    """
    shared, figures = _GROUPS[group], measurements()
    fits: dict[tuple[bool, ...], Efficiency] = {}
    errors: list[float | None] = []
    for figure in figures:
        kept = tuple(not shared(figure, other) for other in figures)
        if kept not in fits:
            fits[kept] = _fit(list(kept))
        errors.append(_error(fits[kept], figure) if fits[kept].knows(figure.model) else None)
    return tuple(errors)


def _error(found: Efficiency, figure: Measurement) -> float:
    predicted_s = found.seconds(figure.work, figure.model.precision)
    return figure.output_len / predicted_s / figure.tokens_per_s - 1
