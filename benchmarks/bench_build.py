"""Measure TensorRT-RTX compiling a full-size model without a GPU, against `cp` of the engine.

    python benchmarks/bench_build.py MODEL_DIR --precision bf16 --sm 89

MODEL_DIR is a Hugging Face folder, converted first and not measured, or a checkpoint. A build ends
on the disk (fsync); `cp` of its engine, right after, ends in the page cache.
Memory is private memory: the weights are mapped files and not counted. Needs about 30 GB of disk
for the 9 GB model; what was written is deleted.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import click
from bench_convert import machine, measure, warm
from bench_quantize import write_ids

from minitron_trt.artifacts import CHECKPOINT, kind_of
from minitron_trt.build.engine import PLAN_NAME
from minitron_trt.build.tensorrt.api import TARGETS
from minitron_trt.build.tensorrt.engine_compiler import (
    CompiledEngine,
    compile_engine,
    default_limits,
)
from minitron_trt.build.tensorrt.network_definition import NetworkLimits
from minitron_trt.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Round:
    """One build, all of it, and cp of its engine."""

    engine: CompiledEngine
    build_s: float
    cp_s: float

    def row(self) -> str:
        """Return the round as a row of the table."""
        size, peak = self.engine.plan_bytes, self.engine.peak_private_bytes
        return (
            f"| {size / 1e9:.2f} GB | {self.build_s:.1f} s | {self.cp_s:.1f} s | "
            f"{self.build_s / self.cp_s:.1f} | {peak / 1e9:.2f} GB | {peak / size:.2f} |"
        )


def checkpoint_of(model: Path, precision: str, folder: Path) -> Checkpoint:
    """Return a model folder's checkpoint, or the folder itself if it is one."""
    if kind_of(model) == CHECKPOINT:
        return Checkpoint.open(model)
    output, ids = folder / "checkpoint", folder / "ids.jsonl"
    # Ranges matter to the engine's numbers, not to the time its build takes: random tokens will do.
    write_ids(ids, json.loads((model / "config.json").read_text())["vocab_size"])
    command = [sys.executable, "-m", "minitron_trt", "convert", "-q", str(model)]
    options = ["--precision", precision, "--calib-data", str(ids), "--calib-samples", "1"]
    subprocess.run([*command, "-o", str(output), *options], check=True)
    return Checkpoint.open(output)


def run(checkpoint: Checkpoint, folder: Path, sm: int, limits: NetworkLimits) -> Round:
    """Build and copy once."""
    output, copy = folder / "engine", folder / "copy"
    os.sync()
    start = time.monotonic()
    engine = compile_engine(checkpoint, output, sm=sm, limits=limits)
    build_s = time.monotonic() - start
    cp = measure(["cp", str(output / PLAN_NAME), str(copy)])
    copy.unlink()
    shutil.rmtree(output)
    return Round(engine, build_s, cp.seconds)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--precision", default="bf16", show_default=True, help="Of the conversion")
@click.option("--sm", type=click.Choice([str(sm) for sm in TARGETS]), default="89")
@click.option("--work", type=click.Path(path_type=Path), help="Where outputs go  [default: beside]")
@click.option("--runs", type=click.IntRange(1), default=1, show_default=True, help="Rounds")
@click.option("--max-batch-size", type=click.IntRange(1), default=8, show_default=True)
@click.option("--max-seq-len", type=click.IntRange(1024), default=4096, show_default=True)
def main(
    model: Path,
    precision: str,
    sm: str,
    work: Path | None,
    runs: int,
    max_batch_size: int,
    max_seq_len: int,
) -> None:
    """Measure builds of MODEL for one architecture; a MODEL that is absent is made first."""
    if not model.exists():
        maker = Path(__file__).with_name("make_model.py")
        subprocess.run([sys.executable, maker, "llama-width-4b", model], check=True)
    base = work or model.absolute().parent
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-build-", dir=base) as name:
        folder = Path(name)
        checkpoint = checkpoint_of(model, precision, folder)
        limits = default_limits(checkpoint, max_batch_size=max_batch_size, max_seq_len=max_seq_len)
        size = warm(checkpoint.folder)
        loads = [os.getloadavg()[0]]
        rounds = []
        for _ in range(runs):
            rounds.append(run(checkpoint, folder, int(sm), limits))
            loads.append(os.getloadavg()[0])
    version = rounds[0].engine.compiler_version
    click.echo(
        f"{size / 1e9:.2f} GB of {checkpoint.precision.name} for SM{sm}, tensorrt-rtx {version}; "
        f"{machine(base)}, load average {min(loads):.1f}–{max(loads):.1f}\n"
    )
    click.echo("| engine | build | cp | of cp | peak private memory | of the engine |")
    click.echo("|--:|--:|--:|--:|--:|--:|")
    click.echo("\n".join(turn.row() for turn in rounds))


if __name__ == "__main__":
    main()
