"""`minitron-trt bench`."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import cloup
from click.core import ParameterSource

from minitron_trt.clients.request_options import ACCESS, access, url_option
from minitron_trt.console import PATH, Console, console_options
from minitron_trt.errors import MissingExtraError, ServerError, UsageError
from minitron_trt.loadtest.load_pattern import ARRIVAL_PATTERNS, POISSON, LoadPattern
from minitron_trt.loadtest.target import ENDPOINT_TYPES
from minitron_trt.option_types import POSITIVE, Count, FiniteRange

if TYPE_CHECKING:
    from minitron_trt.loadtest.load_test import LoadResult, LoadTest, Workload
    from minitron_trt.loadtest.server_metrics import MetricsScraper
    from minitron_trt.loadtest.target import LoadTarget
    from minitron_trt.loadtest.workload import TokenCounter

log = logging.getLogger(__name__)

REPORT_NAME: Final = "report.html"
PICTURE_NAME: Final = "report.png"
# Of a load that lasts for a time: from the first again after so many.
_QUESTIONS: Final = 1000
_REQUESTS_PER_USER: Final = 10

_TARGET: Final = (
    url_option("the server", more="OpenAI's API with its path, http://127.0.0.1:9000/v1"),
    cloup.option(
        "--endpoint-type",
        type=click.Choice(ENDPOINT_TYPES),
        help="What it speaks  [default: completions where the URL ends with /v1, else triton]",
    ),
    cloup.option(
        "--model", help="Model to ask  [default: ensemble; of OpenAI's API its only model]"
    ),
    cloup.option(
        "--stream/--no-stream", default=True, help="Ask for answers piece by piece, or whole"
    ),
    cloup.option(
        "--extra-inputs",
        multiple=True,
        metavar="NAME:VALUE",
        help="Send this with every request, like temperature:0.8; may be repeated",
    ),
    cloup.option(
        "--timeout",
        "timeout_s",
        type=POSITIVE,
        default=600.0,
        show_default=True,
        help="Seconds for a whole answer",
    ),
)
_API_KEY: Final = cloup.option(
    "--api-key", envvar="OPENAI_API_KEY", help="Key of OpenAI's API  [env: OPENAI_API_KEY]"
)
_LOAD: Final = (
    cloup.option(
        "--concurrency", type=Count(), help="Closed loop: so many at a time  [default: 1]"
    ),
    cloup.option("--sweep", metavar="N,N…", help="Closed loops of these concurrencies, in turn"),
    cloup.option(
        "--request-rate",
        type=POSITIVE,
        help="Open loop: so many a second, whether answers come or not",
    ),
    cloup.option(
        "--arrival-pattern",
        "arrival",
        type=click.Choice(ARRIVAL_PATTERNS),
        default=POISSON,
        show_default=True,
        help="How the requests of an open loop follow each other",
    ),
    cloup.option(
        "--fixed-schedule", is_flag=True, help="Open loop: at the timestamps of --input-file"
    ),
    cloup.option(
        "--request-count",
        type=Count(),
        help="Requests of a run  [default: 10 for each at a time, 100 of a rate]",
    ),
    cloup.option(
        "--benchmark-duration",
        "duration_s",
        type=FiniteRange(min=0, min_open=True),
        help="Seconds of a run in which requests are sent",
    ),
    cloup.option(
        "--warmup-request-count",
        "warmup",
        type=Count(0),
        default=0,
        show_default=True,
        help="Requests before each load that are not measured",
    ),
    cloup.option(
        "--repeats",
        type=Count(),
        default=1,
        show_default=True,
        help="Runs of each load; of two or more, figures have confidence intervals",
    ),
)
_PROMPTS: Final = (
    cloup.option(
        "--input-file",
        type=PATH,
        help="Prompts as JSON lines or a JSON list: ShareGPT, Mooncake traces, or prompt and "
        "max_tokens",
    ),
    cloup.option(
        "--isl", type=Count(), default=128, show_default=True, help="Tokens of a made prompt"
    ),
    cloup.option("--isl-stddev", type=FiniteRange(0), default=0.0, help="Their deviation"),
    cloup.option(
        "--osl", type=Count(), help="Tokens of an answer at most  [default: the file's, or 64]"
    ),
    cloup.option("--osl-stddev", type=FiniteRange(0), default=0.0, help="Their deviation"),
    cloup.option(
        "--force-min-tokens", is_flag=True, help="Have no answer end before it has all its tokens"
    ),
    cloup.option(
        "--tokenizer",
        type=PATH,
        help="tokenizer.json, or its folder: makes prompts of exactly so many tokens, and counts "
        "where the server does not  [default: a word is a token]",
    ),
    cloup.option(
        "--random-seed", "seed", type=int, default=0, show_default=True, help="Of all chance here"
    ),
)
_RESULT: Final = (
    cloup.option(
        "--goodput",
        metavar="'METRIC:LIMIT …'",
        help="Count what keeps these limits, like 'time_to_first_token:200 inter_token_latency:30'",
    ),
    cloup.option(
        "--metrics-url",
        help="Prometheus metrics to read meanwhile  [default: port 8002 beside Triton's 8000 and "
        "8001, /metrics beside /v1]",
    ),
    cloup.option(
        "-o",
        "--output",
        type=PATH,
        help="Folder for aiperf's JSON, a line of JSON a request, the report and its picture",
    ),
    cloup.option("--overwrite", is_flag=True, help="Replace a folder that bench wrote before"),
    cloup.option(
        "--compare",
        nargs=2,
        type=PATH,
        metavar="A B",
        help="Send nothing: compare two results, of bench or aiperf",
    ),
)


@cloup.command()
@cloup.option_group("Server", *_TARGET)
@cloup.option_group("Load", *_LOAD)
@cloup.option_group("Prompts", *_PROMPTS)
@cloup.option_group("Result", *_RESULT)
@cloup.option_group("Access", *ACCESS, _API_KEY)
@console_options
def bench(
    console: Console,
    output: Path | None,
    overwrite: bool,
    compare: tuple[Path, Path] | None,
    **options: Any,
) -> None:
    """Put load on a server and measure its answers.

    Figures have the names and definitions of NVIDIA's aiperf. Ctrl-C ends the load: what was
    measured by then is shown and written.

    Example: minitron-trt bench --url grpc://127.0.0.1:8001 --sweep 1,2,4,8 --osl 64 -o results
    """
    if compare is not None:
        if output is not None:
            raise UsageError("--compare writes no folder; leave -o out, --json prints what differs")
        _compare(console, compare)
        return
    from minitron_trt.artifacts import LOAD_TEST
    from minitron_trt.host.async_termination import run_terminable
    from minitron_trt.loadtest.aiperf_files import summary_record
    from minitron_trt.loadtest.result_tables import result_text
    from minitron_trt.outputs import check_output

    # Asked before the load, which may take hours.
    if output is not None:
        check_output(output, overwrite=overwrite, kind=LOAD_TEST)
    target, settings = _target(options)
    test = _load_test(console, target, options)
    with _interrupted() as interruption:
        run_terminable(test.run())
    # Where nobody named it, the service's only one, which it was asked for as the test began.
    settings["model"] = target.model
    # A load that was cut before its first answer has nothing to show.
    results = [result for result in test.results if result.records]
    test.count_tokens()
    _check_success(results, interruption)
    records = [summary_record(result, settings=settings) for result in results]
    if output is not None:
        _write(results, records, output, settings=settings, overwrite=overwrite)
    record = records[0] if len(records) == 1 else {"loads": records}
    console.result(record, result_text(results))
    interruption.go_on()


@dataclass(slots=True)
class _Interruption:
    """Ctrl-C, held back until what was measured is told."""

    error: KeyboardInterrupt | None = None

    def go_on(self) -> None:
        """End as Ctrl-C does, if there was one."""
        if self.error is not None:
            raise self.error


@contextlib.contextmanager
def _interrupted() -> Iterator[_Interruption]:
    held = _Interruption()
    try:
        yield held
    except KeyboardInterrupt as error:
        held.error = error


def _check_success(results: Sequence[LoadResult], interruption: _Interruption) -> None:
    """Raise the server's error where no request succeeded, and Ctrl-C where none was done."""
    records = [record for result in results for record in result.records]
    if any(record.is_valid for record in records):
        return
    interruption.go_on()
    errors = [record.error for record in records if record.error is not None]
    raise errors[0] if errors else UsageError("no request was due; give --request-count")


def _target(options: dict[str, Any]) -> tuple[LoadTarget, dict[str, Any]]:
    """Return the target, and what to tell of a test in its files: no secrets."""
    api_key, allowed = options.pop("api_key"), access(options)
    from minitron_trt.loadtest.target import (
        TRITON,
        TargetOptions,
        endpoint_type_of,
        extra_inputs,
    )

    url = options["url"]
    target = TargetOptions(
        url=url,
        endpoint_type=endpoint_type_of(url, options["endpoint_type"]),
        extra_inputs=extra_inputs(options["extra_inputs"]),
        access=allowed,
        api_key=api_key,
        **{name: options[name] for name in ("model", "stream", "force_min_tokens", "timeout_s")},
    )
    told = {
        name: str(value) if isinstance(value, Path) else value for name, value in options.items()
    }
    told["endpoint_type"] = target.endpoint_type
    if target.endpoint_type == TRITON:
        from minitron_trt.loadtest.triton_target import TritonTarget

        return TritonTarget(target), told
    from minitron_trt.loadtest.openai_target import OpenAiTarget

    return OpenAiTarget(target), told


def _load_test(console: Console, target: LoadTarget, options: Mapping[str, Any]) -> LoadTest:
    from minitron_trt.loadtest.load_test import LoadTest
    from minitron_trt.loadtest.metrics import GoodputLimits
    from minitron_trt.loadtest.workload import TokenizerCounter

    counter = TokenizerCounter(options["tokenizer"]) if options["tokenizer"] else None
    patterns = _patterns(options)
    return LoadTest(
        target=target,
        workload=_workload(options, patterns, counter),
        patterns=patterns,
        repeats=options["repeats"],
        warmup=options["warmup"],
        seed=options["seed"],
        streams=options["stream"],
        limits=GoodputLimits.parse(options["goodput"]) if options["goodput"] is not None else None,
        counter=counter,
        scraper=_scraper(options),
        progress=console.progress,
    )


def _patterns(options: Mapping[str, Any]) -> list[LoadPattern]:
    """Return the loads that options ask for, of which only one kind can be."""
    kinds = ("concurrency", "sweep", "request_rate", "fixed_schedule")
    named = [f"--{kind.replace('_', '-')}" for kind in kinds if options[kind]]
    if len(named) > 1:
        raise UsageError(f"{' and '.join(named)} are loads of their own; give one of them")
    ends = {"request_count": options["request_count"], "duration_s": options["duration_s"]}
    is_endless = all(end is None for end in ends.values())
    if options["fixed_schedule"]:
        if options["input_file"] is None:
            raise UsageError("--fixed-schedule needs timestamps; give --input-file FILE with them")
        return [LoadPattern(**ends)]
    if (rate := options["request_rate"]) is not None:
        if is_endless:
            ends["request_count"] = 100
        return [LoadPattern(request_rate=rate, arrival=options["arrival"], **ends)]
    # It has a default, so that its value does not tell whether somebody gave it.
    source = click.get_current_context().get_parameter_source("arrival")
    if source is not ParameterSource.DEFAULT:
        raise UsageError("--arrival-pattern is of an open loop; give --request-rate, too")
    patterns = []
    for users in _users(options["sweep"]) if options["sweep"] else [options["concurrency"] or 1]:
        own = {**ends, "request_count": _REQUESTS_PER_USER * users} if is_endless else ends
        patterns.append(LoadPattern(concurrency=users, **own))
    return patterns


def _users(text: str) -> list[int]:
    try:
        users = [int(word) for word in text.split(",")]
    except ValueError:
        users = []
    if not users or min(users) < 1 or len(set(users)) < len(users):
        raise UsageError(f"--sweep is {text!r}; expected different concurrencies, like 1,2,4,8")
    return users


def _workload(
    options: Mapping[str, Any], patterns: Sequence[LoadPattern], counter: TokenCounter | None
) -> Workload:
    """Return where questions come from: the same of a file for each run, else new ones."""
    from minitron_trt.loadtest.workload import (
        Lengths,
        WordCounter,
        file_questions,
        scheduled,
        synthetic_questions,
    )

    counter = counter or WordCounter()
    seed, path = options["seed"], options["input_file"]
    if path is not None:
        questions = file_questions(path, output_tokens=options["osl"], seed=seed, counter=counter)
        if options["fixed_schedule"]:
            questions = scheduled(questions)
        return lambda run: questions
    # Without --osl the default of Lengths holds.
    own = {} if options["osl"] is None else {"osl": options["osl"]}
    lengths = Lengths(
        isl=options["isl"],
        isl_stddev=options["isl_stddev"],
        osl_stddev=options["osl_stddev"],
        **own,
    )
    most = max(pattern.request_count or _QUESTIONS for pattern in patterns)
    return partial(synthetic_questions, lengths, most, seed, counter)


def _scraper(options: Mapping[str, Any]) -> MetricsScraper | None:
    """Return what reads the server's metrics; those that nobody named may be missing."""
    from minitron_trt.host.async_termination import run_terminable
    from minitron_trt.loadtest.server_metrics import MetricsScraper, usual_metrics_url

    url = options["metrics_url"] or usual_metrics_url(options["url"])
    if url is None:
        return None
    try:
        scraper = MetricsScraper(url)
        run_terminable(scraper.check())
    except (MissingExtraError, ServerError) as error:
        if options["metrics_url"]:
            raise
        log.info("the server's own metrics are left out: %s", error)
        return None
    return scraper


def _write(
    results: Sequence[LoadResult],
    records: Sequence[Mapping[str, Any]],
    output: Path,
    *,
    settings: Mapping[str, Any],
    overwrite: bool,
) -> None:
    """Write the files of each load, a folder each of several, and the report."""
    from minitron_trt.artifacts import LOAD_TEST, Manifest
    from minitron_trt.loadtest.aiperf_files import write_files
    from minitron_trt.loadtest.html_report import html_report
    from minitron_trt.outputs import staged

    pictures = _pictures(results)
    with staged(output, overwrite=overwrite) as folder:
        for result, record in zip(results, records, strict=True):
            own = folder if len(results) == 1 else folder / result.pattern.label.replace(" ", "_")
            own.mkdir(exist_ok=True)
            write_files(result, record, own)
        if pictures is not None:
            (folder / PICTURE_NAME).write_bytes(pictures[0])
        chart = pictures and pictures[1]
        report = html_report(results, settings=settings, chart=chart)
        (folder / REPORT_NAME).write_text(report, encoding="utf-8")
        source = {"url": settings["url"], "model": settings["model"]}
        Manifest(LOAD_TEST, source=source, facts={}).write(folder)
    log.info("%s has the figures, the requests and %s", output, REPORT_NAME)


def _pictures(results: Sequence[LoadResult]) -> tuple[bytes, str] | None:
    """Return the chart as a PNG and for a page; None, with a note, where matplotlib is missing."""
    from minitron_trt.loadtest.curves import curves
    from minitron_trt.pictures import check_picture, inline_svg, picture

    path = Path(PICTURE_NAME)
    try:
        check_picture(path)
    except MissingExtraError as error:
        log.warning("%s", error)
        return None
    figure = curves(results)
    return picture(figure, path), inline_svg(figure, "Curves")


def _compare(console: Console, paths: tuple[Path, Path]) -> None:
    from minitron_trt.loadtest.result_comparison import compare_results, read_loads
    from minitron_trt.loadtest.result_tables import comparison_text

    a, b = map(read_loads, paths)
    differences = compare_results(a, b)
    record = {
        "a": str(paths[0]),
        "b": str(paths[1]),
        "differences": [difference.as_record() for difference in differences],
    }
    console.result(record, comparison_text(differences))
