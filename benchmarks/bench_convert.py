"""Measure conversions of a full-size model against `cp` of the same folder.

    python benchmarks/bench_convert.py MODEL_DIR --runs 5

The works take turns (cp, cp and sync, TP1, TP2, TP4, cp, ...), so that a slow minute of the machine
strikes all of them, and each is compared with the cp of its own round. The source is in the page
cache; nothing else is: outputs are deleted and the disk is synced before the next work begins. A
conversion ends with its files on the disk (fsync), as `cp and sync` does; cp alone ends when they
are in the page cache.
"""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

TP_SIZES: Final = (1, 2, 4)
SAMPLE_S: Final = 0.01
BLOCK_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of a work: seconds, the highest RssAnon that was seen, and what it printed."""

    seconds: float
    private_bytes: int
    printed: str


def private_bytes(process: int) -> int:
    """Return a process's anonymous memory now: without the page cache and mapped files."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


def measure(argv: Sequence[str]) -> Sample:
    """Run a command, which prints less than a pipe holds, from a synced disk."""
    os.sync()
    peak, start = 0, time.monotonic()
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak = max(peak, private_bytes(process.pid))
            time.sleep(SAMPLE_S)
        seconds = time.monotonic() - start
        printed, _ = process.communicate()
    if process.returncode:
        raise click.ClickException(f"{' '.join(argv)} ended with {process.returncode}")
    return Sample(seconds, peak, printed)


@contextlib.contextmanager
def cleared(output: Path) -> Iterator[None]:
    """Delete the output of a work, however it ends."""
    try:
        yield
    finally:
        shutil.rmtree(output, ignore_errors=True)


def works(model: Path, output: Path) -> dict[str, list[str]]:
    """Return the command of each work, in the order of a round."""
    convert = [sys.executable, "-m", "minitron_trt", "convert", "-q", str(model), "-o", str(output)]
    return {
        "cp": ["cp", "-r", str(model), str(output)],
        # sync -f: of this file system alone, whatever else the machine still has to write.
        "cp and sync": ["sh", "-c", 'cp -r "$0" "$1" && sync -f "$1"', str(model), str(output)],
        **{f"TP{tp}": [*convert, "--tp", str(tp)] for tp in TP_SIZES},
    }


def warm(folder: Path) -> int:
    """Read a folder into the page cache; return its bytes."""
    size = 0
    for path in folder.iterdir():
        with path.open("rb", buffering=0) as file:
            while block := file.read(BLOCK_BYTES):
                size += len(block)
    return size


def spread(values: Sequence[float], digits: int, unit: str = "") -> str:
    """Return a median and its range, then the range in brackets."""
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:.{digits}f}{unit} ({low:.{digits}f}–{high:.{digits}f})"


def machine(folder: Path) -> str:
    """Return cores, memory, filesystem and load in one line."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    holding = [mount for mount in mounts if folder.resolve().is_relative_to(mount[1])]
    # The innermost of the mounts that hold the folder.
    filesystem = max(holding, key=lambda mount: len(mount[1]))[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{os.cpu_count()} cores, {memory / 1e9:.0f} GB of memory, {filesystem}, Linux "
        f"{platform.release().split('-')[0]}, Python {platform.python_version()}"
    )


def table(samples: dict[str, list[Sample]]) -> list[str]:
    """Return the Markdown table of all rounds: medians and ranges."""
    lines = ["| work | wall time | of that round's cp | peak private memory |", "|---|--:|--:|--:|"]
    for name, runs in samples.items():
        seconds = [run.seconds for run in runs]
        ratios = [run.seconds / cp.seconds for run, cp in zip(runs, samples["cp"], strict=True)]
        memory = max(run.private_bytes for run in runs) / 1e6
        lines.append(
            f"| {name} | {spread(seconds, 1, ' s')} | {spread(ratios, 2)} | {memory:.0f} MB |"
        )
    return lines


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--work", type=click.Path(path_type=Path), help="Where outputs go  [default: beside]")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True, help="Rounds")
def main(model: Path, work: Path | None, runs: int) -> None:
    """Measure conversions of MODEL against cp; a MODEL that is absent is made first."""
    if not model.exists():
        maker = Path(__file__).with_name("make_model.py")
        subprocess.run([sys.executable, maker, "llama-width-4b", model], check=True)
    folder = work or model.absolute().parent
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / "bench-output"
    commands = works(model, output)
    samples: dict[str, list[Sample]] = {name: [] for name in commands}
    size = warm(model)
    # Blocks of a virtual disk are slow when they are first touched.
    with cleared(output):
        measure(commands["cp"])
    loads = [os.getloadavg()[0]]
    for turn in range(runs):
        for name, argv in commands.items():
            with cleared(output):
                sample = measure(argv)
            samples[name].append(sample)
            click.echo(f"{turn + 1}/{runs} {name} {sample.seconds:.2f} s", err=True)
        loads.append(os.getloadavg()[0])
    click.echo(f"{size / 1e9:.2f} GB, {runs} rounds, median (range); {machine(folder)},")
    click.echo(f"load average {min(loads):.1f}–{max(loads):.1f}\n")
    click.echo("\n".join(table(samples)))


if __name__ == "__main__":
    main()
