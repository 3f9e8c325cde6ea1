"""`minitron-trt check`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from minitron_trt.build.compatibility import Report, check_engine
from minitron_trt.build.containers import find_container
from minitron_trt.build.engine import Engine
from minitron_trt.console import Console, console_options
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.gpus import SMS, find_target

_MARKS = {True: "ok", False: "no", None: "??"}


@click.command()
@click.argument("engine", type=click.Path(path_type=Path))
@click.option("--gpu", "--arch", "gpu", help="GPU or architecture that it should load on")
@click.option("--gpus", type=click.IntRange(1), help="How many of them there are")
@click.option("--image", help="Tag or name of the Triton image that should load it, like 26.07")
@click.option("--sm", type=click.IntRange(1), help="What the engine was built for, if unknown")
@console_options
def check(
    console: Console,
    engine: Path,
    gpu: str | None,
    gpus: int | None,
    image: str | None,
    sm: int | None,
) -> None:
    """Say whether an engine will load on a GPU and in an image, without either.

    ENGINE is a folder with an engine of ours, or one that trtllm-build wrote. Exits with 4 when it
    will not load, and names what would.

    Example: minitron-trt check engine --gpu H100 --image 26.07
    """
    if gpu is None and gpus is None and image is None:
        raise UsageError("nothing to check against; give --gpu, --gpus or --image")
    opened = Engine.open(engine)
    if sm is not None:
        opened = _with_sm(opened, sm)
    report = check_engine(
        opened,
        find_target(gpu) if gpu else None,
        gpus,
        find_container(image) if image else None,
    )
    console.result(report.to_json(), describe(report))
    for finding in report.findings:
        if finding.fits is False:
            raise UnsupportedError(f"{engine} will not load: {finding.found}; {finding.remedy}")


def _with_sm(engine: Engine, sm: int) -> Engine:
    if sm not in SMS:
        raise UsageError(f"--sm {sm} is not known; expected one of {', '.join(map(str, SMS))}")
    if engine.sm not in (None, sm):
        raise UsageError(f"--sm {sm} contradicts the engine, which is for SM{engine.sm}")
    return dataclasses.replace(engine, sm=sm)


def describe(report: Report) -> str:
    """Return a report as text."""
    engine, limits = report.engine, report.engine.limits
    sm = "unknown SM" if engine.sm is None else f"SM{engine.sm}"
    lines = [
        f"{engine.folder}: {engine.model.spec.architecture}, {engine.model.precision}, {sm}, "
        f"{engine.compiler} {engine.compiler_version or 'of unknown version'}, "
        f"{limits.max_batch_size} x {limits.max_seq_len} tokens",
    ]
    for finding in report.findings:
        lines.append(f"  {_MARKS[finding.fits]}  {finding.name}: {finding.found}")
        if finding.remedy:
            lines.append(f"      {finding.remedy}")
    if report.images:
        lines.append(f"images that fit: {', '.join(report.images)}")
    return "\n".join(lines)
