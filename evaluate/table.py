"""The figures of several models as a table, in the columns of published GGUF pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from minitron_trt.evaluate.perplexity import Estimate
from minitron_trt.tables import Column, table_lines

if TYPE_CHECKING:
    from minitron_trt.evaluate.scoring import Scored

_HEADER: Final = ("model", "size MB", "PPL", "±", "size %", "accuracy %", "KL", "top-1 %")


class QualityFigures(Protocol):
    """What a table and a chart show of a model, just scored or read back; a server has no size."""

    @property
    def name(self) -> str:
        """Return what it is called."""

    @property
    def size_bytes(self) -> int | None:
        """Return the bytes of its weights."""

    @property
    def perplexity(self) -> Estimate:
        """Return its perplexity."""

    @property
    def kl(self) -> Estimate | None:
        """Return its mean divergence from the baseline, which has none."""

    @property
    def same_top(self) -> Estimate | None:
        """Return the share of tokens of which it and the baseline think the same likeliest."""


def rows_of(models: Sequence[QualityFigures]) -> list[tuple[str, ...]]:
    """Return the header and a row for each model; shares are of the first, the baseline."""
    return [_HEADER, *(_row(model, models[0]) for model in models)]


def _row(model: QualityFigures, baseline: QualityFigures) -> tuple[str, ...]:
    size, whole = model.size_bytes, baseline.size_bytes
    return (
        model.name,
        f"{size / 1e6:.1f}" if size else "",
        f"{model.perplexity.value:.4f}",
        f"{model.perplexity.error:.4f}",
        f"{100 * size / whole:.1f}" if size and whole else "",
        f"{100 * baseline.perplexity.value / model.perplexity.value:.2f}",
        # The file's rounding can make a divergence of 0 slightly negative: z prints no -0.000000.
        f"{model.kl.value:z.6f}" if model.kl else "",
        f"{100 * model.same_top.value:.2f}" if model.same_top else "",
    )


def as_text(results: Sequence[Scored]) -> str:
    """Return the table for a terminal."""
    columns = zip(*rows_of(results), strict=True)
    return "\n".join(
        table_lines(
            [Column(title, cells, left=not at) for at, (title, *cells) in enumerate(columns)]
        )
    )


def as_markdown(results: Sequence[Scored]) -> str:
    """Return the table in Markdown."""
    header, *rows = rows_of(results)
    rule = ("---", *["--:"] * (len(header) - 1))
    return "".join(f"| {' | '.join(row)} |\n" for row in (header, rule, *rows))


def as_json(results: Sequence[Scored]) -> list[dict[str, Any]]:
    """Return every figure of each model."""
    return [_record(result, results[0]) for result in results]


def _record(result: Scored, baseline: Scored) -> dict[str, Any]:
    record: dict[str, Any] = {
        "model": result.name,
        "size_bytes": result.size_bytes,
        "scored_tokens": result.tokens,
        "perplexity": _estimate(result.perplexity),
        "accuracy": baseline.perplexity.value / result.perplexity.value,
    }
    if (beside := result.divergence) is not None:
        record |= {
            "kl": {
                **_estimate(beside.mean),
                "max": beside.maximum,
                "min": beside.minimum,
                "percentiles": {str(share): value for share, value in beside.percentiles.items()},
            },
            "same_top": _estimate(beside.same_top),
            "ln_perplexity_ratio": _estimate(beside.log_ratio),
            "delta_p": {
                **_estimate(beside.change),
                "rms": _estimate(beside.change_rms),
                "percentiles": {
                    str(share): value for share, value in beside.change_percentiles.items()
                },
            },
        }
    return record


def _estimate(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "error": estimate.error}
