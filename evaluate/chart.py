"""Size against quality as a picture, by which people choose a precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minitron_trt.evaluate.scoring import Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def chart(results: Sequence[Scored]) -> Figure:
    """Return the figure: each model's perplexity, with its error, over its size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sizes = [result.size_bytes / 1e6 for result in results]
    values = [result.perplexity.value for result in results]
    errors = [result.perplexity.error for result in results]
    axes.errorbar(sizes, values, yerr=errors, fmt="o", color="#4c72b0", ecolor="#bbbbbb", capsize=3)
    for size, value, result in zip(sizes, values, results, strict=True):
        axes.annotate(result.name, (size, value), xytext=(6, 6), textcoords="offset points")
    # The baseline's line: what lies on it has lost nothing.
    axes.axhline(values[0], color="#55a868", linewidth=1, linestyle="--")
    axes.set(xlabel="size, MB", ylabel="perplexity (lower is better)")
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.3)
    return figure
