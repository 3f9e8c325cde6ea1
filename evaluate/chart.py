"""Size against quality as a picture, by which people choose a precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minitron_trt.evaluate.scoring import Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def chart(results: Sequence[Scored]) -> Figure:
    """Return the figure of scored models, of those that have a size."""
    return quality_chart(
        [
            (result.name, result.size_bytes, result.perplexity.value, result.perplexity.error)
            for result in results
        ]
    )


def quality_chart(models: Sequence[tuple[str, int | None, float, float]]) -> Figure:
    """Return perplexity, with its error, over size; of each model name, bytes, value and error."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sized = [(name, size / 1e6, value, error) for name, size, value, error in models if size]
    names, sizes, values, errors = zip(*sized, strict=True)
    axes.errorbar(sizes, values, yerr=errors, fmt="o", color="#4c72b0", ecolor="#bbbbbb", capsize=3)
    for name, size, value in zip(names, sizes, values, strict=True):
        axes.annotate(name, (size, value), xytext=(6, 6), textcoords="offset points")
    # The baseline's line: what lies on it has lost nothing.
    axes.axhline(models[0][2], color="#55a868", linewidth=1, linestyle="--")
    axes.set(xlabel="size, MB", ylabel="perplexity (lower is better)")
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.3)
    return figure
