"""`minitron-trt eval`."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import cloup

from minitron_trt.console import PATH, Console, console_options
from minitron_trt.errors import MissingExtraError, UsageError
from minitron_trt.evaluate.evaluation_options import (
    SERVER,
    device_option,
    dtype_option,
    server_settings,
    tokenizer_option,
)
from minitron_trt.evaluate.tasks.command import tasks
from minitron_trt.option_types import Count

log = logging.getLogger(__name__)


@cloup.group("eval")
def evaluate() -> None:
    """Measure how good a model is, and what precisions take away."""


evaluate.add_command(tasks)


@evaluate.command()
@click.argument("models", nargs=-1, required=True)
@click.option("--text", required=True, type=PATH, help="Text to be scored by")
@click.option(
    "--context",
    type=Count(),
    default=512,
    show_default=True,
    help="Tokens that a model sees at once",
)
@click.option(
    "--stride",
    type=Count(),
    help="Let chunks overlap: each begins so many tokens after the last, and as many are scored",
)
@click.option("--chunks", type=Count(), help="Score so many chunks; the default is all")
@dtype_option
@device_option
@cloup.option_group("A model on a server", tokenizer_option(default="the first model's"), *SERVER)
@click.option("--state", type=PATH, help="Keep what is done here, and go on from there")
@click.option("--markdown", type=PATH, help="Write the table here, too")
@click.option("--plot", type=PATH, help="Write a chart of size and quality (PNG, SVG)")
@console_options
def perplexity(
    console: Console,
    models: tuple[str, ...],
    text: Path,
    context: int,
    stride: int | None,
    chunks: int | None,
    dtype: str,
    device: str,
    state: Path | None,
    markdown: Path | None,
    plot: Path | None,
    **options: Any,
) -> None:
    """Score models by a text: perplexity, and how far each is from the first.

    MODELS are checkpoints, model folders, GGUF files, NeMo archives, hub ids or URLs of Triton
    (grpc://, http://) with one tokenizer; the first is the baseline. The figures are defined as
    llama-perplexity defines them. Served models are asked for context logits, which engines give
    that were built with --gather-logits context; all others are computed by the reference model.

    Example: minitron-trt eval perplexity bf16 fp8 w4a16 --text wiki.test.raw
    """
    # Only this needs torch and matplotlib.
    from minitron_trt.evaluate.chart import chart
    from minitron_trt.evaluate.scoring import Evaluation
    from minitron_trt.evaluate.table import as_json, as_markdown, as_text
    from minitron_trt.evaluate.text_tokens import read_text
    from minitron_trt.outputs import write_output
    from minitron_trt.pictures import picture

    if plot is not None:
        _check_plot(plot, models)
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as temporary:
        evaluation = Evaluation(
            text=read_text(text),
            context=context,
            chunks=chunks,
            dtype=dtype,
            device=device,
            state=state or Path(temporary),
            stride=stride,
            server=server_settings(options),
        )
        results = evaluation.run(models, console.progress)
    if markdown is not None:
        write_output(markdown, as_markdown(results))
    if plot is not None:
        write_output(plot, picture(chart(results), plot))
    console.result({"models": as_json(results)}, as_text(results))


def _check_plot(path: Path, models: Sequence[str]) -> None:
    """Refuse, before the work that it is of, a chart that could not be drawn."""
    from minitron_trt.evaluate.evaluated_model import is_server
    from minitron_trt.pictures import check_picture

    check_picture(path)
    if all(map(is_server, models)):
        raise UsageError("--plot is over sizes, which servers do not say; add what they serve")


@evaluate.command()
@click.argument("results", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Write the page here")
@click.option("--title", help="Its title  [default: Quality of the model that was planned]")
@console_options
def report(console: Console, results: tuple[Path, ...], output: Path, title: str | None) -> None:
    """Join results of one model in a page of HTML that loads nothing from elsewhere.

    RESULTS are files of what plan, verify, eval perplexity, eval tasks (or lm-eval itself) and
    bench (or aiperf) print with --json, and folders that bench -o wrote, of each as many as you
    like.

    Example: minitron-trt eval report plan.json perplexity.json bench/ -o report.html
    """
    # Only this needs matplotlib.
    from minitron_trt.evaluate.report.quality_report import FileOfReport, report_page
    from minitron_trt.evaluate.report.result_records import PlanResult, read_results
    from minitron_trt.evaluate.report.sections import sections
    from minitron_trt.outputs import write_output

    found = [(path, result) for path in results for result in read_results(path)]
    parts = sections([result for _, result in found], draw=_can_draw(output))
    planned = [result.model for _, result in found if isinstance(result, PlanResult)]
    title = title or (f"Quality of {planned[0]}" if planned else "Quality of a model")
    write_output(output, report_page(title, parts, [FileOfReport.of(path) for path in results]))
    record = {
        "report": str(output),
        "sections": [{"title": part.title, "summary": part.summary} for part in parts],
    }
    lines = [f"{part.title}: {part.summary}" for part in parts]
    console.result(record, "\n".join([*lines, "", f"report: {output}"]))


def _can_draw(output: Path) -> bool:
    """Say whether there is a library for pictures, without which a page has tables alone."""
    from minitron_trt.pictures import check_picture

    try:
        check_picture(output.with_suffix(".svg"))
    except MissingExtraError as error:
        log.warning("the page is without its pictures: %s", error)
        return False
    return True
