"""A plan as a picture: what fills each GPU's memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from minitron_trt.build.plan.sizing import Plan

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS: Final = (
    ("weights", "#4c72b0"),
    ("activations", "#dd8452"),
    ("runtime", "#8c8c8c"),
    ("KV cache", "#55a868"),
    # Seen on a light page and on a dark one.
    ("free", "#8c8c8c33"),
)
_WIDTH_INCHES: Final = 9.0
_ROW_INCHES: Final = 0.32
_AROUND_INCHES: Final = 1.5


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """What fills one GPU's memory in a row of a plan, in bytes."""

    gpu: str
    precision: str
    tp: int
    weights_bytes: int
    activation_bytes: int
    reserve_bytes: int
    kv_pool_bytes: int
    gpu_bytes: int
    sequences: int | None

    @property
    def parts(self) -> tuple[int, ...]:
        """Return the bytes of each of _PARTS; together they are the GPU's."""
        filled = (
            *(self.weights_bytes, self.activation_bytes),
            *(self.reserve_bytes, self.kv_pool_bytes),
        )
        return (*filled, max(self.gpu_bytes - sum(filled), 0))


def bars_of(plan: Plan) -> list[MemoryBar]:
    """Return a bar for each row of a plan that fits."""
    return [
        MemoryBar(
            gpu=row.target.gpu.name,
            precision=row.precision,
            tp=row.tp,
            weights_bytes=row.recipe.forecast.weights_bytes,
            activation_bytes=row.recipe.forecast.activation_bytes,
            reserve_bytes=row.recipe.forecast.reserve_bytes,
            kv_pool_bytes=row.recipe.forecast.kv_pool_bytes,
            gpu_bytes=row.recipe.forecast.gpu_bytes,
            sequences=row.sequences,
        )
        for row in plan.rows
        if row.recipe is not None
    ]


def chart(bars: Sequence[MemoryBar], title: str | None = None) -> Figure:
    """Return the figure of a plan: one bar per row, as long as the GPU's memory."""
    from matplotlib.figure import Figure

    height = _AROUND_INCHES + _ROW_INCHES * max(len(bars), 1)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots()
    places = range(len(bars))
    ends = [0.0] * len(bars)
    for part, (name, colour) in enumerate(_PARTS):
        sizes = [bar.parts[part] / 1e9 for bar in bars]
        axes.barh(places, sizes, left=ends, color=colour, label=name)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, (bar, end) in enumerate(zip(bars, ends, strict=True)):
        if bar.sequences is not None:
            axes.annotate(
                f"{bar.sequences:,} sequences",
                (end, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
            )
    axes.set_yticks(places, [f"{bar.gpu}  {bar.precision}  tp {bar.tp}" for bar in bars])
    axes.invert_yaxis()
    # Room for the words behind the longest bar.
    axes.margins(x=0.22)
    axes.set_xlabel("GB of one GPU")
    if title:
        figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=len(_PARTS), frameon=False)
    return figure
