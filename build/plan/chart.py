"""A plan as a picture: what fills each GPU's memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from minitron_trt.build.plan.sizing import Plan, PlanRow

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PARTS: Final = (
    ("weights", "#4c72b0"),
    ("activations", "#dd8452"),
    ("runtime", "#8c8c8c"),
    ("KV cache", "#55a868"),
    ("free", "#eeeeee"),
)
_WIDTH_INCHES: Final = 9.0
_ROW_INCHES: Final = 0.32
_AROUND_INCHES: Final = 1.5


def chart(plan: Plan) -> Figure:
    """Return the figure of a plan: one bar per row, as long as the GPU's memory."""
    from matplotlib.figure import Figure

    rows = [row for row in plan.rows if row.recipe is not None]
    height = _AROUND_INCHES + _ROW_INCHES * max(len(rows), 1)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    axes = figure.subplots()
    names = [f"{row.target.gpu.name}  {row.precision}  tp {row.tp}" for row in rows]
    places = range(len(rows))
    ends = [0.0] * len(rows)
    for part, (name, colour) in enumerate(_PARTS):
        sizes = [_parts(row)[part] / 1e9 for row in rows]
        axes.barh(places, sizes, left=ends, color=colour, label=name)
        ends = [end + size for end, size in zip(ends, sizes, strict=True)]
    for place, (row, end) in enumerate(zip(rows, ends, strict=True)):
        axes.annotate(
            f"{row.sequences:,} sequences",
            (end, place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.set_yticks(places, names)
    axes.invert_yaxis()
    axes.margins(x=0.22)
    axes.set_xlabel("GB of one GPU")
    figure.suptitle(f"{plan.model.name}, {plan.input_len} + {plan.output_len} tokens")
    figure.legend(loc="outside lower center", ncols=len(_PARTS), frameon=False)
    return figure


def _parts(row: PlanRow) -> tuple[int, ...]:
    """Return the bytes of each part of a GPU's memory, in the order of _PARTS."""
    assert row.recipe is not None
    held = row.recipe.forecast
    filled = (held.weights_bytes, held.activation_bytes, held.reserve_bytes, held.kv_pool_bytes)
    return (*filled, max(held.gpu_bytes - sum(filled), 0))
