"""Measure quantized conversions of a full-size model against `cp` and ModelOpt's exporter.

    python benchmarks/bench_quantize.py MODEL_DIR --runs 3

The rounds, the cache and the disk are those of bench_convert.py. A calibrated precision is given
ready token ids, few of them, and is compared by its writing alone: ours is the stage `convert` of
the command's JSON, ModelOpt's is export_tensorrt_llm_checkpoint. Both end in the page cache; what
follows, fsync, is ours only and left out.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click
from bench_convert import Sample, cleared, machine, measure, spread, table, warm

EXPORTER: Final = Path(__file__).with_name("modelopt_export.py")
ROWWISE: Final = "fp8-rowwise"
CALIBRATED: Final = {"fp8": 0.5, "nvfp4": 0.7}
"""The target of each: our writing as a share of ModelOpt's export."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One precision's round: seconds of writing and private memory, ours and ModelOpt's."""

    ours_s: float
    theirs_s: float
    ours_bytes: int
    theirs_bytes: int


def conversion(model: Path, output: Path, ids: Path, precision: str) -> list[str]:
    """Return the command of our conversion."""
    convert = [sys.executable, "-m", "minitron_trt", "convert", str(model), "-o", str(output)]
    text = ["--calib-data", str(ids), "--calib-samples", "1", "--calib-length", "128"]
    return [*convert, "--json", "-q", "--precision", precision, *text, "--calib-batch", "1"]


def write_ids(path: Path, vocab: int) -> None:
    """Write one row of random tokens."""
    ids = [random.Random(1).randrange(vocab) for _ in range(128)]
    path.write_text(json.dumps({"input_ids": ids}) + "\n")


def stage(sample: Sample, *keys: str) -> float:
    """Return a number of the JSON that a command ended with."""
    record = json.loads(sample.printed.splitlines()[-1])
    for key in keys:
        record = record[key]
    return float(record)


def compare(model: Path, output: Path, ids: Path, precision: str) -> Turn:
    """Write one calibrated precision, ModelOpt first."""
    theirs_argv = [sys.executable, str(EXPORTER), str(model), str(output), precision, str(ids)]
    with cleared(output):
        theirs = measure(theirs_argv)
    with cleared(output):
        ours = measure(conversion(model, output, ids, precision))
    return Turn(
        stage(ours, "stage_seconds", "convert"),
        stage(theirs, "export"),
        ours.private_bytes,
        theirs.private_bytes,
    )


def comparison(turns: Mapping[str, Sequence[Turn]]) -> list[str]:
    """Return the Markdown table of our writing against ModelOpt's."""
    lines = [
        "| precision | our writing | ModelOpt's export | ours / theirs | target "
        "| peak private memory, ours | theirs |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for precision, rounds in turns.items():
        ours, theirs = [turn.ours_s for turn in rounds], [turn.theirs_s for turn in rounds]
        ratios = [turn.ours_s / turn.theirs_s for turn in rounds]
        lines.append(
            f"| {precision} | {spread(ours, 1, ' s')} | {spread(theirs, 1, ' s')} | "
            f"{spread(ratios, 2)} | ≤ {CALIBRATED[precision]} | "
            f"{max(turn.ours_bytes for turn in rounds) / 1e6:.0f} MB | "
            f"{max(turn.theirs_bytes for turn in rounds) / 1e9:.2f} GB |"
        )
    return lines


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), help="Where outputs go  [default: beside]")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Rounds")
def main(model: Path, work: Path | None, runs: int) -> None:
    """Measure conversions of MODEL; a MODEL that is absent is made first."""
    if not model.exists():
        maker = Path(__file__).with_name("make_model.py")
        subprocess.run([sys.executable, maker, "llama-width-4b", model], check=True)
    folder = work or model.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    ids, output = folder / "bench-ids.jsonl", folder / "bench-output"
    write_ids(ids, json.loads((model / "config.json").read_text())["vocab_size"])
    plain = {
        "cp": ["cp", "-r", str(model), str(output)],
        ROWWISE: conversion(model, output, ids, ROWWISE),
    }
    samples: dict[str, list[Sample]] = {name: [] for name in plain}
    turns: dict[str, list[Turn]] = {precision: [] for precision in CALIBRATED}
    size, loads = warm(model), [os.getloadavg()[0]]
    # Blocks of a virtual disk are slow when they are first touched.
    with cleared(output):
        measure(plain["cp"])
    for number in range(1, runs + 1):
        for name, argv in plain.items():
            with cleared(output):
                samples[name].append(measure(argv))
            click.echo(f"{number}/{runs} {name} {samples[name][-1].seconds:.2f} s", err=True)
        for precision, rounds in turns.items():
            rounds.append(compare(model, output, ids, precision))
            click.echo(f"{number}/{runs} {precision} {rounds[-1]}", err=True)
        loads.append(os.getloadavg()[0])
    ids.unlink()
    click.echo(f"{size / 1e9:.2f} GB, {runs} rounds, median (range); {machine(folder)},")
    click.echo(f"load average {min(loads):.1f}–{max(loads):.1f}\n")
    click.echo("\n".join([*table(samples), "", *comparison(turns)]))


if __name__ == "__main__":
    main()
