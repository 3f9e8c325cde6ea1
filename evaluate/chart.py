"""Size against quality as a picture, by which people choose a precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minitron_trt.evaluate.scoring import Scored

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def chart(results: Sequence[Scored]) -> Figure:
    """Return the figure: perplexity, with its error, over size, of each model that has a size."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sized = [(result, result.size_bytes / 1e6) for result in results if result.size_bytes]
    sizes = [size for _, size in sized]
    values = [result.perplexity.value for result, _ in sized]
    errors = [result.perplexity.error for result, _ in sized]
    axes.errorbar(sizes, values, yerr=errors, fmt="o", color="#4c72b0", ecolor="#bbbbbb", capsize=3)
    for result, size in sized:
        place = (size, result.perplexity.value)
        axes.annotate(result.name, place, xytext=(6, 6), textcoords="offset points")
    # The baseline's line: what lies on it has lost nothing.
    axes.axhline(results[0].perplexity.value, color="#55a868", linewidth=1, linestyle="--")
    axes.set(xlabel="size, MB", ylabel="perplexity (lower is better)")
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.3)
    return figure
