"""`minitron-trt convert`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import cloup

from minitron_trt.console import (
    BYTES,
    PATH,
    Advance,
    Console,
    ShowProgress,
    console_options,
    size_text,
)
from minitron_trt.hub_options import HUB_OPTIONS
from minitron_trt.option_types import Count
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS, Precision

if TYPE_CHECKING:
    from minitron_trt.convert.conversion_plan import ConversionPlan


@cloup.command()
@cloup.argument("source")
@cloup.option_group(
    "Checkpoint",
    cloup.option("-o", "--output", type=PATH, help="Folder to write the checkpoint to"),
    cloup.option(
        "--precision",
        type=click.Choice(list(PRECISIONS)),
        help="Number format of the weights  [default: the source's if that is FP8, else bf16]",
    ),
    cloup.option(
        "--format",
        "form",
        type=click.Choice(["trtllm", "hf"]),
        default="trtllm",
        show_default=True,
        help="TensorRT-LLM's checkpoint, or the Hugging Face folder that its PyTorch runtime, vLLM "
        "and SGLang load",
    ),
    cloup.option(
        "--kv-cache",
        type=click.Choice(["auto", "none", *KV_CACHES]),
        default="auto",
        show_default=True,
        help="Number format of the KV cache; auto keeps the source's, none is as wide as the model",
    ),
    cloup.option(
        "--tp", type=click.IntRange(1), default=1, show_default=True, help="Tensor-parallel ranks"
    ),
    cloup.option(
        "--pp", type=click.IntRange(1), default=1, show_default=True, help="Pipeline-parallel ranks"
    ),
    cloup.option("--dry-run", is_flag=True, help="Print the plan and write nothing"),
    cloup.option("--overwrite", is_flag=True, help="Replace a checkpoint that is already there"),
    cloup.option(
        "--verify",
        is_flag=True,
        help="Compare the checkpoint with its source, layer by layer, before it appears",
    ),
    cloup.option("--digest", is_flag=True, help="Record the SHA-256 of every file in the manifest"),
)
@cloup.option_group(
    "Calibration",
    cloup.option(
        "--calib-data", help="Text file, JSONL or hub data set  [default: a text of ours]"
    ),
    cloup.option(
        "--calib-samples",
        type=Count(),
        default=64,
        show_default=True,
        help="Pieces of text to calibrate with",
    ),
    cloup.option(
        "--calib-length",
        type=Count(2),
        default=512,
        show_default=True,
        help="Tokens in a piece",
    ),
    cloup.option(
        "--calib-batch",
        type=Count(),
        default=4,
        show_default=True,
        help="Pieces that run together",
    ),
)
@HUB_OPTIONS
@console_options
def convert(
    console: Console, source: str, output: Path | None, dry_run: bool, **options: Any
) -> None:
    """Convert a Hugging Face model to a checkpoint.

    SOURCE is a model folder, a GGUF file, a NeMo archive or a hub id like nvidia/Minitron-4B-Base;
    the checkpoint is TensorRT-LLM's. Needs no GPU. The precisions fp8, nvfp4 and *-awq and a
    narrow KV cache run text through the model first, which needs minitron-trt[quantize]; the
    others need no torch, nor do folders that are FP8 already, whose scales are kept.

    Example: minitron-trt convert nvidia/Minitron-8B-Base -o checkpoint --tp 2
    """
    # numpy and the hub's library are not needed to print help.
    from minitron_trt.convert.calibration.text import CalibrationText
    from minitron_trt.convert.conversion import ConvertOptions, open_and_plan
    from minitron_trt.convert.conversion import convert as run
    from minitron_trt.convert.conversion_memory import peak_memory_bytes

    about_text = [key for key in options if key.startswith("calib_")]
    text = CalibrationText(**{key.removeprefix("calib_"): options.pop(key) for key in about_text})
    kv_cache = options.pop("kv_cache")
    # `auto` and `none` are words of the command line: further in, None is the model's own dtype.
    requested = ConvertOptions(
        **options,
        kv_cache=kv_cache if kv_cache in KV_CACHES else None,
        keep_kv_cache=kv_cache == "auto",
        calibration=text,
    )
    if dry_run:
        with open_and_plan(source, requested) as (model, plan):
            record = {**plan.to_json(), "peak_memory_bytes": peak_memory_bytes(model, plan)}
        console.result(record, "\n".join((describe(record), *_later(plan.precision))))
        return
    # Not click's `required`: a dry run writes nothing.
    if output is None:
        raise click.UsageError("Missing option '-o' / '--output'.")
    stages: dict[str, float] = {}
    start = time.monotonic()
    plan = run(source, output, requested, _timed(console, stages))
    seconds = time.monotonic() - start
    record = {
        "checkpoint": str(output),
        "seconds": round(seconds, 3),
        "stage_seconds": {label: round(taken, 3) for label, taken in stages.items()},
        **plan.to_json(),
    }
    console.result(record, _summary(output, plan, seconds))


def _summary(output: Path, plan: ConversionPlan, seconds: float) -> str:
    """Return what is said of a conversion that was carried out."""
    rate = size_text(plan.output_bytes / seconds)
    lines = [
        f"{output}: {size_text(plan.output_bytes)} in {seconds:.1f} s ({rate}/s), "
        f"{plan.parallelism.world_size} rank(s), {plan.precision.name}"
    ]
    for rounding in plan.roundings:
        # Numbers of fp16 have 11 significant bits, of which bf16 keeps 8.
        kept = rounding.changed and rounding.source == "float16" and plan.precision.name == "bf16"
        lines.append(f"  {rounding}" + ("; --precision fp16 keeps them all" if kept else ""))
    return "\n".join((*lines, *_later(plan.precision)))


def _later(precision: Precision) -> tuple[str, ...]:
    """Return what is said of a precision whose weights trtllm-build quantizes, not convert."""
    if not precision.built_in:
        return ()
    return (f"  its weights are {precision.dtype}: trtllm-build makes {precision.name} of them",)


def _timed(console: Console, stages: dict[str, float]) -> ShowProgress:
    """Return the console's progress, which also notes the seconds of each stage."""

    @contextmanager
    def progress(label: str, total: int, unit: str = BYTES) -> Iterator[Advance]:
        """Show a stage, and note how long it took."""
        start = time.monotonic()
        with console.progress(label, total, unit) as advance:
            yield advance
        stages[label] = time.monotonic() - start

    return progress


def describe(record: dict[str, Any]) -> str:
    """Return a plan's summary as text."""
    lines = [
        f"{record['architecture']}  {record['precision']}  tp {record['tp']}  pp {record['pp']}",
        *(
            f"  {rank['file']:<20} {rank['tensors']:>5} tensors  {size_text(rank['bytes']):>9}"
            for rank in record["ranks"]
        ),
        f"writes {size_text(record['output_bytes'])} with about "
        f"{size_text(record['peak_memory_bytes'])} of memory",
    ]
    return "\n".join(lines)
