"""`minitron-trt plan`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Final

import click

from minitron_trt.build.engine_model import find_model
from minitron_trt.build.plan.sizing import Plan, PlanRequest, PlanRow, make_plan, parameters
from minitron_trt.build.recipe.limits import PROFILE_SIZES
from minitron_trt.build.recipe.request import PROFILES, BuildRequest
from minitron_trt.console import Console, console_options, size_text
from minitron_trt.gpus import Sure, find_target
from minitron_trt.quantization.precisions import PRECISIONS

_PROFILE_LEN: Final = min(profile.seq_len for profile in PROFILE_SIZES.values())
_HEADER: Final = (
    "GPU",
    "precision",
    "tp",
    "weights",
    "KV cache",
    "tokens",
    "sequences",
    "prefill",
    "decode",
    "full batch",
    "batch x seq",
)


@click.command()
@click.argument("model")
@click.option("--gpu", "--arch", "gpus", multiple=True, required=True, help="GPU or architecture")
@click.option("--precision", multiple=True, type=click.Choice(list(PRECISIONS)), help="Precision")
@click.option("--tp", multiple=True, type=click.IntRange(1), help="Tensor-parallel GPUs")
@click.option("--input-len", default=1024, show_default=True, help="Tokens of a prompt")
@click.option("--output-len", default=1024, show_default=True, help="Tokens of an answer")
@click.option("--kv-cache", type=click.Choice(["auto", "fp8", "int8"]), help="KV cache format")
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default="balanced",
    show_default=True,
    help="What the recommended limits are for",
)
@click.option("--revision", help="Branch, tag or commit of a hub id")
@click.option("--token", envvar="HF_TOKEN", help="Hub token, for gated models  [env: HF_TOKEN]")
@click.option("--explain", is_flag=True, help="Print each recommended setting with its reason")
@click.option("--plot", type=click.Path(path_type=Path), help="Write a chart of the memory (SVG)")
@console_options
def plan(
    console: Console,
    model: str,
    gpus: tuple[str, ...],
    precision: tuple[str, ...],
    tp: tuple[int, ...],
    input_len: int,
    output_len: int,
    kv_cache: str | None,
    profile: str,
    revision: str | None,
    token: str | None,
    plot: Path | None,
    *,
    explain: bool,
) -> None:
    """Say what a model takes on a GPU, and how much fits beside it.

    MODEL is a model folder, a checkpoint, a hub id, of which only config.json is read, or
    llama-3.1-minitron-4b-width, minitron-4b or minitron-8b. --gpu, --precision and --tp may be
    given several times. Times and rates are bounds that no engine can beat, not predictions.

    Example: minitron-trt plan minitron-8b --gpu H100 --gpu L40 --input-len 2048
    """
    sized = find_model(model, revision=revision, token=token)
    if kv_cache not in (None, "auto") and not sized.sharded:
        sized = dataclasses.replace(sized, kv_cache=kv_cache)
    total = input_len + output_len
    # Up to there a sequence is within what every profile builds for.
    longest = total if total > _PROFILE_LEN else None
    result = make_plan(
        sized,
        PlanRequest(
            targets=tuple(find_target(name) for name in gpus),
            input_len=input_len,
            output_len=output_len,
            precisions=precision,
            tps=tp,
            build=BuildRequest(profile=profile, max_seq_len=longest),
        ),
    )
    if plot is not None:
        _write_chart(result, plot)
    console.result(result.to_json(), describe(result, explain=explain))


def _write_chart(result: Plan, path: Path) -> None:
    from minitron_trt.build.plan.chart import chart
    from minitron_trt.outputs import write_output

    write_output(path, chart(result))


def describe(result: Plan, *, explain: bool = False) -> str:
    """Return a plan as a table and its assumptions."""
    model = result.model
    kv_bytes = 2 * model.spec.layers * model.spec.kv_size * model.kv_cache_bytes
    lines = [
        f"{model.name}: {parameters(model.spec) / 1e9:.2f} B parameters, {kv_bytes:,} bytes of KV "
        f"cache per token; {result.input_len} input + {result.output_len} output tokens",
        "",
        *_table([row for row in result.rows if row.recipe is not None]),
        *(f"{_name(row)}: {row.problem}" for row in result.rows if row.recipe is None),
    ]
    if any(row.recipe for row in result.rows):
        lines += [
            "",
            "weights and KV cache are per GPU. Bounds that cannot be beaten, not predictions: "
            "prefill of one",
            "prompt, tokens/s of one sequence and of all that fit. Assumed: activations of one "
            "step, 1.5 GiB",
            "for the runtime (2 GiB on several GPUs), and 0.9 of the rest for the KV cache.",
        ]
    gpus = dict.fromkeys(row.target.gpu for row in result.rows)
    unsure = [gpu.name for gpu in gpus if gpu.sure is Sure.UNVERIFIED]
    if unsure:
        lines += ["", f"Not compared with a data sheet: bandwidth and rates of {', '.join(unsure)}"]
    if explain:
        for row in result.rows:
            if row.recipe is not None:
                lines += ["", f"{_name(row)}:", row.recipe.explain()]
    return "\n".join(lines)


def _name(row: PlanRow) -> str:
    return f"{row.target.gpu.name} {row.precision} tp {row.tp}"


def _table(rows: list[PlanRow]) -> list[str]:
    if not rows:
        return []
    cells = [_HEADER, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADER))]
    return [
        "  ".join(
            text.ljust(width) if column < 2 else text.rjust(width)
            for column, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in cells
    ]


def _cells(row: PlanRow) -> tuple[str, ...]:
    assert row.recipe is not None
    assert row.bounds is not None
    held, limits = row.recipe.forecast, row.recipe.limits
    return (
        *(row.target.gpu.name, row.precision, str(row.tp)),
        size_text(held.weights_bytes),
        size_text(held.kv_pool_bytes),
        f"{held.kv_tokens:,}",
        f"{row.sequences:,}",
        f">= {row.bounds.prefill_s * 1e3:.1f} ms",
        f"<= {row.bounds.decode_tokens_per_s:,.0f}/s",
        f"<= {row.bounds.batch_tokens_per_s:,.0f}/s",
        f"{limits.max_batch_size} x {limits.max_seq_len}",
    )
