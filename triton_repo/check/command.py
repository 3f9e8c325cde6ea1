"""`minitron-trt check`."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
import cloup

from minitron_trt.build.compatibility import (
    LoadFault,
    LoadReport,
    check_engine,
    refuse_misfits,
)
from minitron_trt.build.containers import RECOMMENDED, Container, find_container
from minitron_trt.build.engine import Engine
from minitron_trt.console import PATH, Console, coloured, console_options
from minitron_trt.errors import BadInputError, UsageError, one_line
from minitron_trt.gpus import SMS, Target, find_target
from minitron_trt.option_types import Count
from minitron_trt.triton_repo.check.report import RepositoryReport, Severity

EDGE: Final = "edge"
DEFAULT_LENGTH: Final = 4096
_MARKS: Final = {True: "ok", False: "no", None: "??"}
_COLOURS: Final = {Severity.ERROR: "red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}


@dataclasses.dataclass(frozen=True, slots=True)
class EngineDestination:
    """Where an engine should load; None leaves a question out."""

    target: Target | None
    gpus: int | None
    container: Container | None
    sm: int | None

    @property
    def is_named(self) -> bool:
        """Say whether there is anything to compare with."""
        return (self.target, self.gpus, self.container) != (None, None, None)

    def compare(self, engine: Engine) -> LoadReport:
        """Return how an engine fits."""
        if self.sm is not None:
            engine = _with_sm(engine, self.sm)
        return check_engine(engine, self.target, self.gpus, self.container)


@cloup.command()
@click.argument("folder", type=PATH)
@click.option("--gpu", "--arch", "gpu", help="GPU or architecture that the engine should load on")
@click.option("--gpus", type=click.IntRange(1), help="How many of them there are")
@click.option(
    "--image", help=f"Tag or name of the Triton image that should load it, like {RECOMMENDED}"
)
@click.option("--sm", type=click.IntRange(1), help="What the engine was built for, if unknown")
@click.option(
    "--runtime",
    type=click.Choice([EDGE]),
    help="Ask of a Hugging Face folder whether TensorRT Edge-LLM will run it",
)
@click.option(
    "--length",
    type=Count(),
    help="Tokens of a sequence that the GPU must hold, with --runtime  "
    f"[default: {DEFAULT_LENGTH}]",
)
@console_options
def check(
    console: Console,
    folder: Path,
    gpu: str | None,
    gpus: int | None,
    image: str | None,
    sm: int | None,
    runtime: str | None,
    length: int | None,
) -> None:
    """Check a model repository, or whether an engine will load.

    FOLDER is a Triton model repository, of ours or anybody's: every config.pbtxt, the ensemble's
    wires, the engine, its limits and the tokenizers are checked without a server or a GPU. Exits
    with 3 when something will not work.

    Or FOLDER is an engine, of ours or of trtllm-build: it is compared with --gpu, --gpus and
    --image, which a repository with an engine takes too. Exits with 4 when it will not load there,
    and names what would.

    With --runtime edge FOLDER is a Hugging Face folder, as convert --format hf writes it: exits
    with 4 when TensorRT Edge-LLM will not export and run it, on --gpu where that is given.

    Example: minitron-trt check repository

    Example: minitron-trt check engine --gpu H100 --image 26.07
    """
    from minitron_trt.triton_repo.check.repository_check import is_repository

    if runtime == EDGE:
        if (gpus, image, sm) != (None, None, None):
            raise UsageError("--runtime edge runs on one GPU; leave out --gpus, --image and --sm")
        _check_edge(console, folder, find_target(gpu) if gpu else None, length or DEFAULT_LENGTH)
        return
    if length is not None:
        raise UsageError("--length goes with --runtime edge; leave it out")

    destination = EngineDestination(
        target=find_target(gpu) if gpu else None,
        gpus=gpus,
        container=find_container(image) if image else None,
        sm=sm,
    )
    if not folder.is_dir():
        raise BadInputError(f"{folder} is not a folder; expected a model repository or an engine")
    if is_repository(folder):
        _check_repository(console, folder, destination)
    else:
        _check_engine(console, folder, destination)


def _check_engine(console: Console, folder: Path, destination: EngineDestination) -> None:
    engine = Engine.open(folder)
    if not destination.is_named:
        raise UsageError("nothing to check against; give --gpu, --gpus or --image")
    report = destination.compare(engine)
    console.result(report.to_json(), describe(report))
    refuse_misfits(report.findings, f"{engine.folder} will not load")


def _check_edge(console: Console, folder: Path, target: Target | None, length: int) -> None:
    from minitron_trt.build.edge_runtime import check_edge

    report = check_edge(folder, target, length)
    record = report.to_json()
    title = f"{folder}: {report.spec.architecture}, {report.precision}, {record['runtime']}"
    console.result(record, "\n".join([title, *_described(report.findings)]))
    refuse_misfits(report.findings, f"{folder} will not run in {record['runtime']}")


def _check_repository(console: Console, folder: Path, destination: EngineDestination) -> None:
    from minitron_trt.triton_repo.check.repository_check import check_repository, engine_of

    report = check_repository(folder)
    # An engine is of no use in a repository that does not load.
    engine = (
        destination.compare(engine_of(folder))
        if destination.is_named and not report.errors
        else None
    )
    record = report.to_json() | {"engine": engine.to_json() if engine else None}
    text = describe_repository(report)
    console.result(record, f"{text}\n{describe(engine)}" if engine else text)
    if report.errors:
        first = report.errors[0]
        raise BadInputError(f"{folder} has {report.summary}; {first.place} {first.message}")
    if engine:
        refuse_misfits(engine.findings, f"{engine.engine.folder} will not load")


def _with_sm(engine: Engine, sm: int) -> Engine:
    if sm not in SMS:
        raise UsageError(f"--sm {sm} is not known; expected one of {', '.join(map(str, SMS))}")
    if engine.sm not in (None, sm):
        raise UsageError(f"--sm {sm} contradicts the engine, which is for SM{engine.sm}")
    return dataclasses.replace(engine, sm=sm)


def describe_repository(report: RepositoryReport) -> str:
    """Return the findings as a table, worst colours on a terminal, and their numbers."""
    width = max((len(finding.place) for finding in report.findings), default=0)
    lines = [
        f"{coloured(f'{finding.severity:7}', _COLOURS[finding.severity])}  "
        + one_line(f"{finding.place:{width}}  {finding.message}")
        for finding in report.findings
    ]
    if report.verification:
        lines.append(f"{report.folder}: {report.verification}")
    return "\n".join([*lines, f"{report.folder}: {report.summary}"])


def describe(report: LoadReport) -> str:
    """Return a report on an engine as text."""
    engine, limits = report.engine, report.engine.limits
    sm = "unknown SM" if engine.sm is None else f"SM{engine.sm}"
    lines = [
        f"{engine.folder}: {engine.model.spec.architecture}, {engine.model.precision}, {sm}, "
        f"{engine.compiler} {engine.compiler_version or 'of unknown version'}, "
        f"{limits.max_batch_size} x {limits.max_seq_len} tokens",
    ]
    if engine.verification:
        lines.append(f"  its checkpoint was {engine.verification}")
    lines += _described(report.findings)
    if report.holes:
        lines.append(f"warning: {report.holes}")
    if report.images:
        lines.append(f"images that fit: {', '.join(report.images)}")
    return "\n".join(lines)


def _described(findings: Iterable[LoadFault]) -> Iterator[str]:
    for finding in findings:
        yield f"  {_MARKS[finding.fits]}  {finding.name}: {finding.found}"
        if finding.remedy:
            yield f"      {finding.remedy}"
