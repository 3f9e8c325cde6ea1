"""`minitron-trt plan`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import cloup

from minitron_trt.build.engine_model import HUB_IDS, PRESETS, EngineModel, find_model
from minitron_trt.build.plan.plan_text import describe, parameters_text
from minitron_trt.build.plan.recommendation import Recommendation, recommend
from minitron_trt.build.plan.sizing import Plan, PlanRequest, check_own, make_plan, parameters
from minitron_trt.build.recipe.engine_limits import PROFILE_SIZES
from minitron_trt.build.recipe.request import PROFILES, BuildRequest
from minitron_trt.console import Console, console_options, size_text
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.gpus import ARCHITECTURES, GPUS, complete_gpu, find_target, support
from minitron_trt.hub_options import HUB_OPTIONS
from minitron_trt.option_types import DURATION, POSITIVE, Count
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import ModelSpec
from minitron_trt.tables import Column, fitting, output_width, table_lines

# What only a rate needs is imported where it is used: without one a plan shall come at once.
if TYPE_CHECKING:
    from minitron_trt.build.plan.traffic.planned_traffic import PlannedTraffic

_PROFILE_LEN: Final = min(profile.seq_len for profile in PROFILE_SIZES.values())


@cloup.command()
@cloup.argument("model", required=False)
@cloup.option_group(
    "Plan",
    cloup.option(
        "--gpu",
        "--arch",
        "gpus",
        multiple=True,
        shell_complete=complete_gpu,
        help="GPU or architecture; may be repeated",
    ),
    cloup.option(
        "--precision",
        multiple=True,
        type=click.Choice(list(PRECISIONS)),
        help="Only this number format; may be repeated",
    ),
    cloup.option(
        "--tp", multiple=True, type=click.IntRange(1), help="Tensor-parallel GPUs; may be repeated"
    ),
    cloup.option(
        "--input-len",
        "--isl",
        type=Count(),
        default=1024,
        show_default=True,
        help="Tokens of a prompt",
    ),
    cloup.option(
        "--output-len",
        "--osl",
        type=Count(),
        default=1024,
        show_default=True,
        help="Tokens of an answer",
    ),
    cloup.option("--kv-cache", type=click.Choice(["auto", "fp8", "int8"]), help="KV cache format"),
    cloup.option(
        "--profile",
        type=click.Choice(PROFILES),
        help="What the recommended limits are for  [default: balanced, with --rate throughput]",
    ),
    cloup.option(
        "--max-batch-size", type=Count(), help="Sequences at once  [default: the profile's]"
    ),
    cloup.option("--explain", is_flag=True, help="Print each recommended setting with its reason"),
    cloup.option(
        "--plot",
        type=click.Path(path_type=Path),
        help="Write a chart of the memory, as PNG or SVG by its name",
    ),
)
@cloup.option_group(
    "Traffic",
    cloup.option(
        "--rate",
        "--request-rate",
        type=POSITIVE,
        help="Requests a second of all users: say how many replicas, and what requests see there",
    ),
    cloup.option(
        "--ttft",
        "ttft_s",
        type=DURATION,
        help="Time to first token of 99 of 100 requests at most: 0.2, or 200ms",
    ),
    cloup.option(
        "--itl",
        "itl_s",
        type=DURATION,
        help="Time between tokens of 99 of 100 requests at most: 0.02, or 20ms",
    ),
)
@cloup.option_group(
    "Lists",
    cloup.option("--list-gpus", is_flag=True, help="Say which GPUs are known, and stop"),
    cloup.option(
        "--list-models", is_flag=True, help="Say which models are known by name, and stop"
    ),
)
@HUB_OPTIONS
@console_options
def plan(
    console: Console,
    model: str | None,
    gpus: tuple[str, ...],
    plot: Path | None,
    *,
    explain: bool,
    list_gpus: bool,
    list_models: bool,
    **options: Any,
) -> None:
    """Say what a model takes on a GPU, and how much fits beside it.

    MODEL is a model folder, a checkpoint, a hub id, of which only config.json is read, or a name
    of --list-models. Times and rates are bounds that no engine can beat; with --rate they are
    predictions, by what engines reached that NVIDIA measured, and their errors stand beside them.
    It ends with a recommendation and the commands for it; with 4 where nothing fits.

    Example: minitron-trt plan minitron-8b --gpu H100 --gpu L40 --input-len 2K --rate 20
    """
    if list_gpus or list_models:
        _list(console, gpus=list_gpus)
        return
    if model is None or not gpus:
        missing = "argument 'MODEL'" if model is None else "option '--gpu' / '--arch'"
        raise click.UsageError(f"Missing {missing}.")
    if plot is not None:
        _check_plot(plot)
    _check_traffic_options(options)
    found = find_model(model, revision=options["revision"], token=options["token"])
    request = PlanRequest(
        targets=tuple(find_target(name) for name in gpus),
        input_len=options["input_len"],
        output_len=options["output_len"],
        precisions=options["precision"],
        tps=options["tp"],
        build=_build_request(options),
    )
    result = make_plan(_with_kv_cache(found, options["kv_cache"]), request)
    if plot is not None:
        _write_chart(result, plot)
    traffic = _traffic(result, options)
    recommended = recommend(
        result,
        HUB_IDS.get(found.name, model),
        request.build,
        traffic=traffic,
    )
    _report(console, result, recommended, traffic=traffic, explain=explain, plot=plot)


def _check_traffic_options(options: Mapping[str, Any]) -> None:
    for option in ("ttft", "itl"):
        if options["rate"] is None and options[f"{option}_s"] is not None:
            raise UsageError(f"--{option} is a deadline of requests; give their --rate, too")


def _traffic(result: Plan, options: Mapping[str, Any]) -> PlannedTraffic | None:
    """Return what each row takes at the rate, None without one."""
    if options["rate"] is None:
        return None
    from minitron_trt.build.plan.traffic.planned_traffic import planned_traffic
    from minitron_trt.build.plan.traffic.replicas import Demand

    demand = Demand(
        rate=options["rate"],
        input_len=result.input_len,
        output_len=result.output_len,
        ttft_s=options["ttft_s"],
        itl_s=options["itl_s"],
    )
    return planned_traffic(result, demand)


def _with_kv_cache(model: EngineModel, kv_cache: str | None) -> EngineModel:
    """Return a model with a KV cache as requested; that of a checkpoint is what it is."""
    if kv_cache in (None, "auto"):
        return model
    if model.sharded:
        check_own(model, "--kv-cache", model.kv_cache or "none", (kv_cache,))
    return dataclasses.replace(model, kv_cache=kv_cache)


def _build_request(options: Mapping[str, Any]) -> BuildRequest:
    """Return what an engine for sequences of the lengths is built with."""
    seq_len = options["input_len"] + options["output_len"]
    default = BuildRequest().profile if options["rate"] is None else "throughput"
    return BuildRequest(
        profile=options["profile"] or default,
        max_batch_size=options["max_batch_size"],
        # Up to there a sequence is within what every profile builds for.
        max_seq_len=seq_len if seq_len > _PROFILE_LEN else None,
    )


def _report(
    console: Console,
    result: Plan,
    recommended: list[Recommendation],
    *,
    traffic: PlannedTraffic | None,
    explain: bool,
    plot: Path | None,
) -> None:
    """Print a plan and what it comes to; UnsupportedError when that is nothing."""
    record = (traffic or result).to_json()
    record["recommended"] = [each.to_json() for each in recommended]
    text = describe(result, recommended, traffic=traffic, explain=explain, width=output_width())
    console.result(record, f"{text}\n\nchart: {plot}" if plot else text)
    if not recommended:
        late = [each.problem for each in traffic.rows if each.problem] if traffic else []
        raise UnsupportedError(late[0] if late else f"nothing fits: {result.rows[0].problem}")


def _check_plot(path: Path) -> None:
    from minitron_trt.pictures import check_picture

    check_picture(path)


def _write_chart(result: Plan, path: Path) -> None:
    from minitron_trt.build.plan.plan_chart import bars_of, chart
    from minitron_trt.outputs import write_output
    from minitron_trt.pictures import picture

    title = f"{result.model.name}, {result.input_len} + {result.output_len} tokens"
    write_output(path, picture(chart(bars_of(result), title), path))


def _list(console: Console, *, gpus: bool) -> None:
    """Print the GPUs or the models that are known by name."""
    columns = _gpu_columns() if gpus else _model_columns()
    rows = [
        dict(zip((column.title for column in columns), cells, strict=True))
        for cells in zip(*(column.cells for column in columns), strict=True)
    ]
    kept, _ = fitting(columns, output_width())
    console.result({"gpus" if gpus else "models": rows}, "\n".join(table_lines(kept)))


def _gpu_columns() -> list[Column]:
    names = {sm: architecture.name for architecture in ARCHITECTURES for sm in architecture.sms}
    return [
        Column("GPU", [gpu.name for gpu in GPUS], left=True),
        Column("architecture", [names[gpu.sm] for gpu in GPUS], left=True),
        Column("SM", [str(gpu.sm) for gpu in GPUS]),
        Column("memory", [size_text(gpu.memory_bytes) for gpu in GPUS]),
        Column("bandwidth", [f"{gpu.bandwidth_gbs:,.0f} GB/s" for gpu in GPUS]),
        Column("precisions", [_precisions(gpu.name) for gpu in GPUS], left=True, drop=1),
    ]


def _precisions(gpu: str) -> str:
    target = find_target(gpu)
    return " ".join(name for name in PRECISIONS if support(name, target).supported)


def _model_columns() -> list[Column]:
    specs: list[ModelSpec] = list(PRESETS.values())
    return [
        Column("name", list(PRESETS), left=True),
        Column("hub id", [HUB_IDS[name] for name in PRESETS], left=True),
        Column("parameters", [parameters_text(parameters(spec)) for spec in specs]),
        Column("tokens", [f"{spec.max_positions:,}" for spec in specs]),
    ]
