"""How near `plan --rate` comes to NVIDIA's published figures, beside NVIDIA's aiconfigurator.

    python benchmarks/bench_plan.py [--aiconfigurator PROGRAM]

The first table has errors of predictions, figures left out. The second asks aiconfigurator for the
figures of Llama-3.1-8B, with the same lengths and batches; a figure takes it some ten seconds.
"""

from __future__ import annotations

import argparse
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby
from types import MappingProxyType
from typing import Final

import click

from minitron_trt.build.plan.traffic.efficiency import Spread, efficiency, errors_without
from minitron_trt.build.plan.traffic.published import Measurement, measurements
from minitron_trt.tables import Column, table_lines

# aiconfigurator's names of GPUs.
_SYSTEMS: Final = MappingProxyType(
    {
        "H100-SXM": "h100_sxm",
        "A100-80GB": "a100_sxm",
        "A100-80GB-PCIe": "a100_pcie",
        "L40S": "l40s",
        "H200": "h200_sxm",
    }
)
_MODEL: Final = "Llama-3.1-8B"
_LEFT_OUT: Final = ("figure", "gpu", "model", "model or gpu")
_FASTEST_TOKENS: Final = re.compile(r"tokens/s:\s+([\d,.]+)")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--aiconfigurator", help="the program, of an environment of its own")
    program = parser.parse_args().aiconfigurator
    click.echo(f"efficiencies: {efficiency().to_json()}\n")
    click.echo("\n".join(table_lines(_errors())))
    if program:
        click.echo("\n".join(("", *table_lines(_beside(program)))))


def _errors() -> list[Column]:
    """Return the errors of all figures, of each precision, and of several GPUs."""
    groups: dict[str, Callable[[Measurement], bool]] = {"all": lambda _: True}
    for name in efficiency().arithmetic:
        groups[name] = lambda figure, name=name: figure.model.precision == name  # type: ignore[misc]
    groups["several GPUs"] = lambda figure: figure.model.parallelism.tp > 1
    columns = [Column("figures", list(groups), left=True)]
    for left_out in _LEFT_OUT:
        misses = list(zip(measurements(), errors_without(left_out), strict=True))
        cells = [
            _spread(miss for figure, miss in misses if chosen(figure)) for chosen in groups.values()
        ]
        columns.append(Column(f"left out: {left_out}", cells))
    return columns


def _beside(program: str) -> list[Column]:
    """Return the errors of the figures that both know, by GPU and precision."""
    misses = zip(measurements(), errors_without("figure"), errors_without("gpu"), strict=True)
    rows = []
    # Of each GPU the figures of one document: for H200 that of 1.0, for the others that of 0.15.
    chosen = [
        (figure, ours, elsewhere, _peer_error(program, figure))
        for figure, ours, elsewhere in misses
        if figure.model.name == _MODEL
        and figure.gpu.name in _SYSTEMS
        and figure.source == f"TensorRT-LLM {'1.0.0' if figure.gpu.name == 'H200' else '0.15.0'}"
    ]
    for (gpu, precision), group in groupby(
        chosen, key=lambda each: (each[0].gpu.name, each[0].model.precision)
    ):
        known = [each for each in group if each[3] is not None]
        rows.append((f"{gpu} {precision}", *_spreads(known)))
    rows.append(("all", *_spreads([each for each in chosen if each[3] is not None])))
    titles = (_MODEL, "this figure left out", "this GPU left out", "aiconfigurator")
    return [
        Column(title, cells, left=index == 0)
        for index, (title, cells) in enumerate(zip(titles, zip(*rows, strict=True), strict=True))
    ]


def _spreads(
    known: Sequence[tuple[Measurement, float | None, float | None, float | None]],
) -> tuple[str, ...]:
    if not known:
        return ("no data",) * 3
    _, *errors = zip(*known, strict=True)
    return tuple(_spread(column) for column in errors)


def _peer_error(program: str, figure: Measurement) -> float | None:
    """Return aiconfigurator's error; None where it has no data, and says so."""
    kept = "fp8" if figure.model.precision == "fp8" else "bfloat16"
    # Prompts of the requests that take the places of those that end.
    prompts = figure.batch * figure.input_len // figure.output_len
    options = {
        "--model-path": f"meta-llama/Meta-{_MODEL}",
        "--system": _SYSTEMS[figure.gpu.name],
        "--backend": "trtllm",
        "--estimate-mode": "agg",
        "--isl": figure.input_len,
        "--osl": figure.output_len,
        "--batch-size": figure.batch,
        # A step takes 8,192 tokens of prompts at most, trtllm-build's max_num_tokens, or one whole.
        "--ctx-tokens": max(figure.input_len, min(prompts, 8192)),
        "--gemm-quant-mode": kept,
        "--kvcache-quant-mode": kept,
        "--fmha-quant-mode": "bfloat16" if figure.gpu.name == "L40S" else kept,
    }
    words = [str(word) for pair in options.items() for word in pair]
    said = subprocess.run(
        (program, "cli", "estimate", *words), capture_output=True, text=True, check=False
    )
    found = _FASTEST_TOKENS.search(said.stdout)
    if found is None:
        reason = (said.stderr or said.stdout).strip().rpartition("\n")[2]
        click.echo(f"{figure.gpu.name}: no figure of aiconfigurator's: {reason}", err=True)
        return None
    return float(found[1].replace(",", "")) / figure.tokens_per_s - 1


def _spread(misses: Iterable[float | None]) -> str:
    found = Spread.of(misses)
    return f"{found.median:.1%}, {found.ninth_decile:.1%} of {found.figures}" if found else "-"


if __name__ == "__main__":
    main()
