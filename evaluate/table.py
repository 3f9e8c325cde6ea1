"""The figures of several models as a table, in the columns of published GGUF pages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from minitron_trt.evaluate.perplexity import Estimate
from minitron_trt.evaluate.scoring import Scored
from minitron_trt.tables import Column, table_lines

_HEADER: Final = ("model", "size MB", "PPL", "±", "size %", "accuracy %", "KL", "top-1 %")


def rows_of(results: Sequence[Scored]) -> list[tuple[str, ...]]:
    """Return the header and a row for each model; shares are of the first, the baseline."""
    return [_HEADER, *(_row(result, results[0]) for result in results)]


def _row(result: Scored, baseline: Scored) -> tuple[str, ...]:
    beside, size, whole = result.divergence, result.size_bytes, baseline.size_bytes
    return (
        result.name,
        "" if size is None else f"{size / 1e6:.1f}",
        f"{result.perplexity.value:.4f}",
        f"{result.perplexity.error:.4f}",
        "" if size is None or whole is None else f"{100 * size / whole:.1f}",
        f"{100 * baseline.perplexity.value / result.perplexity.value:.2f}",
        f"{beside.mean.value:z.6f}" if beside else "",
        f"{100 * beside.same_top.value:.2f}" if beside else "",
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
