"""Size against quality as a picture, by which people choose a precision."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from minitron_trt.evaluate.table import QualityFigures

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def chart(models: Sequence[QualityFigures]) -> Figure:
    """Return perplexity, with its error, over size, of the models that have one."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    sized = [(model.size_bytes / 1e6, model) for model in models if model.size_bytes]
    axes.errorbar(
        [size for size, _ in sized],
        [model.perplexity.value for _, model in sized],
        yerr=[model.perplexity.error for _, model in sized],
        fmt="o",
        color="#4c72b0",
        ecolor="#bbbbbb",
        capsize=3,
    )
    for size, model in sized:
        place = (size, model.perplexity.value)
        axes.annotate(model.name, place, xytext=(6, 6), textcoords="offset points")
    # The baseline's line: what lies on it has lost nothing.
    axes.axhline(models[0].perplexity.value, color="#55a868", linewidth=1, linestyle="--")
    axes.set(xlabel="size, MB", ylabel="perplexity (lower is better)")
    axes.margins(x=0.15, y=0.2)
    axes.grid(alpha=0.3)
    return figure
