"""Measure quantized conversions of a full-size model against `cp` of the same folder.

    python benchmarks/bench_quantize.py MODEL_DIR --runs 3 --precision fp8-rowwise

The rounds, the cache and the disk are those of bench_convert.py. A calibrated precision is given
ready token ids, few of them: the calibration's share of the time is then small, and the same.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import click
from bench_convert import Sample, cleared, machine, measure, table, warm


def works(
    model: Path, output: Path, ids: Path, precisions: tuple[str, ...]
) -> dict[str, list[str]]:
    """Return the command of each work, in the order of a round."""
    convert = [sys.executable, "-m", "minitron_trt", "convert", str(model), "-o", str(output)]
    convert += ["--calib-data", str(ids), "--calib-samples", "1", "--calib-length", "128"]
    return {
        "cp": ["cp", "-r", str(model), str(output)],
        **{precision: [*convert, "--precision", precision] for precision in precisions},
    }


def write_ids(path: Path, vocab: int) -> None:
    """Write one row of random tokens."""
    ids = [random.Random(1).randrange(vocab) for _ in range(128)]
    path.write_text(json.dumps({"input_ids": ids}) + "\n")


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), help="Where outputs go  [default: beside]")
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Rounds")
@click.option("--precision", multiple=True, default=["fp8-rowwise"], show_default=True)
def main(model: Path, work: Path | None, runs: int, precision: tuple[str, ...]) -> None:
    """Measure conversions of MODEL against cp; a MODEL that is absent is made first."""
    if not model.exists():
        maker = Path(__file__).with_name("make_model.py")
        subprocess.run([sys.executable, maker, "llama-width-4b", model], check=True)
    folder = work or model.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    ids, output = folder / "bench-ids.jsonl", folder / "bench-output"
    write_ids(ids, json.loads((model / "config.json").read_text())["vocab_size"])
    commands = works(model, output, ids, precision)
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    size = warm(model)
    # Blocks of a virtual disk are slow when they are first touched.
    with cleared(output):
        measure(commands["cp"])
    for turn in range(runs):
        for name, argv in commands.items():
            with cleared(output):
                samples[name].append(measure(argv))
            last = samples[name][-1]
            click.echo(f"{turn + 1}/{runs} {name} {last.seconds:.2f} s", err=True)
    ids.unlink()
    click.echo(f"{size / 1e9:.2f} GB, {runs} rounds, median (range); {machine(folder)},")
    click.echo(f"load average {os.getloadavg()[0]:.1f}\n")
    click.echo("\n".join(table(samples)))


if __name__ == "__main__":
    main()
