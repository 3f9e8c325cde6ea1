"""The conversion as one call: open, plan, write, publish."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import CHECKPOINT, CONFIG_NAME, HUGGING_FACE, Manifest
from minitron_trt.checkpoint import manifest_facts, trtllm_config
from minitron_trt.console import ShowProgress, no_display, size_text
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.conversion_plan import ConversionPlan, plan_conversion
from minitron_trt.convert.fp8_source import (
    resolve_kv_cache,
    resolve_precision,
    with_stored_scales,
)
from minitron_trt.convert.hf_output import HfModel, has_kv_scales, plan_hf
from minitron_trt.convert.source.locate import locate
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.source.opening import opened, unpacked
from minitron_trt.convert.writing.blocks import check_weights
from minitron_trt.convert.writing.quantize import Calibration
from minitron_trt.convert.writing.ranks import write_ranks
from minitron_trt.errors import OutputError, UsageError
from minitron_trt.outputs import check_output, output_errors, staged
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import Parallelism
from minitron_trt.verification_record import verification_facts

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert.

    `precision` is a name in PRECISIONS; None is the source's own if that is FP8, else bf16.
    `kv_cache` is a name in KV_CACHES, or None for the model's own dtype; with `keep_kv_cache` a
    source that brings a format of its own, and its scales, keeps it where none is named. With
    `verify` a checkpoint that departs from its source is an error.
    """

    precision: str | None = None
    kv_cache: str | None = None
    keep_kv_cache: bool = True
    calibration: CalibrationText = field(default_factory=CalibrationText)
    form: str = "trtllm"
    tp: int = 1
    pp: int = 1
    overwrite: bool = False
    digest: bool = False
    verify: bool = False
    revision: str | None = None
    token: str | None = None


@contextmanager
def open_and_plan(
    source: str, options: ConvertOptions, temporary: Path | None = None
) -> Iterator[tuple[ModelSource, ConversionPlan]]:
    """Open a folder, GGUF file or hub id and lay out its conversion; nothing is written.

    The source's files are there until the end of the block: those of a GGUF file are made for that
    time, in `temporary` or where the system has such files.
    """
    path = locate(source, revision=options.revision, token=options.token)
    with opened(path, _storage(options), temporary) as model:
        plan = _plan(model, options)
        _warn(model, plan)
        yield model, plan


def _plan(model: ModelSource, options: ConvertOptions) -> ConversionPlan:
    parallelism = Parallelism(options.tp, options.pp)
    precision = resolve_precision(options.precision, model.scales)
    # A form may have no place for the source's KV scales; `_warn` then says that they are left out.
    has_scales = options.form == "trtllm" or has_kv_scales(precision)
    keep = options.keep_kv_cache and has_scales
    kv_cache = resolve_kv_cache(options.kv_cache, model.scales, keep=keep)
    lay_out = plan_hf if options.form == "hf" else plan_conversion
    plan = lay_out(model, precision, parallelism, kv_cache)
    if model.scales:
        plan = with_stored_scales(plan, model.scales)
    text = options.calibration
    return replace(plan, calibration_tokens=text.batch * text.length)


def _storage(options: ConvertOptions) -> str:
    """Return the format that a GGUF file's quantized tensors are dequantized to."""
    return PRECISIONS[options.precision or "bf16"].storage


def convert(
    source: str,
    output: Path,
    options: ConvertOptions,
    progress: ShowProgress = no_display,
) -> ConversionPlan:
    """Convert a Hugging Face folder, GGUF file or hub id to a TensorRT-LLM checkpoint folder.

    Nothing is left at `output` unless everything is; MinitronError says why not. The plan that is
    returned has been carried out: it knows what rounding has changed.
    """
    kind = CHECKPOINT if options.form == "trtllm" else HUGGING_FACE
    if options.verify and kind != CHECKPOINT:
        raise UsageError("--verify is for --format trtllm: nothing here computes an hf folder")
    check_output(output, overwrite=options.overwrite, kind=kind, inputs=(Path(source),))
    with staged(output, overwrite=options.overwrite) as scratch:
        # What is opened there is swept by the next run when this one is killed.
        with open_and_plan(source, options, scratch) as (model, plan):
            if not model.has_tokenizer:
                log.warning("%s has no tokenizer; serving text will need one", source)
            with unpacked(model, scratch, _storage(options), progress) as source_model:
                # The first plan was made for its refusals, before minutes of unpacking: its byte
                # ranges are of files that nothing has filled.
                if source_model is not model:
                    plan = _plan(source_model, options)
                plan = _write(scratch, source_model, plan, options.calibration, progress)
                facts = (plan.spec, plan.precision, plan.parallelism)
                record = {**manifest_facts(*facts, model.tokens, plan.kv_cache), **plan.losses()}
                manifest = Manifest(kind, model.identity(), record)
                if options.verify:
                    # A checkpoint is opened by its manifest.
                    manifest.write(scratch)
                    record |= _verified(scratch, source_model, progress)
        # After everything else: it lists the files, and a folder without it is no checkpoint.
        manifest.write(scratch, digest=options.digest)
    return plan


def _write(
    scratch: Path,
    model: ModelSource,
    plan: ConversionPlan,
    text: CalibrationText,
    progress: ShowProgress,
) -> ConversionPlan:
    """Write everything but the manifest; return the plan as it was carried out."""
    _check_space(scratch, plan)
    calibration = _calibration(model, plan, text, progress)
    with progress("convert", plan.output_bytes) as advance:
        plan = replace(plan, roundings=write_ranks(plan, scratch, advance, calibration))
    model.write_extras(scratch)
    if plan.form == "hf":
        written = HfModel(plan.spec, plan.precision, plan.kv_cache)
        written.write_configs(scratch, model.config)
    else:
        config = trtllm_config(plan.spec, plan.precision, plan.parallelism, plan.kv_cache)
        (scratch / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    return plan


def _verified(folder: Path, source: ModelSource, progress: ShowProgress) -> dict[str, Any]:
    """Return what the manifest says of a comparison with the source; BadInputError if it fails."""
    # Only this needs torch and transformers.
    from minitron_trt.convert.verification.gate import verified

    verification = verified(folder, source, progress)
    verification.require(folder)
    return verification_facts(verification.record)


def _calibration(
    model: ModelSource, plan: ConversionPlan, text: CalibrationText, progress: ShowProgress
) -> Calibration:
    if not plan.calibrated:
        return Calibration()
    # Text that runs through a NaN would take minutes, and name no tensor.
    check_weights(model.tensors.values())
    # Its libraries are heavy, and only this needs them.
    from minitron_trt.convert.calibration.calibrate import calibrate

    with progress("calibrate", text.samples * text.length, "tokens") as advance:
        return calibrate(model, plan, text, advance)


def _warn(model: ModelSource, plan: ConversionPlan) -> None:
    for warning in model.warnings:
        log.warning("%s", warning)
    architecture = plan.spec.architecture
    if architecture in plan.precision.untried:
        log.warning(
            "%s on %s: TensorRT-LLM's code has it, its support table does not list it",
            plan.precision.name,
            architecture,
        )
    # As comments in TensorRT-LLM's own quantization say; the samples lose nothing by it
    # (docs/accuracy.md).
    if plan.kv_cache == "fp8" and architecture == "NemotronForCausalLM":
        log.warning("an FP8 KV cache lost accuracy on Nemotron models upstream; compare its text")
    stored = model.scales.precision if model.scales else None
    if stored and plan.precision.name != stored:
        log.warning(
            "the source is %s; %s holds what that left of the model, not the model it was made of",
            stored,
            plan.precision.name,
        )
    left_out = plan.form == "hf" and not has_kv_scales(plan.precision)
    if model.scales and model.scales.kv_caches and left_out:
        log.warning(
            "the scales of the source's KV cache are left out: --format hf has none beside %s",
            plan.precision.name,
        )


def _check_space(folder: Path, plan: ConversionPlan) -> None:
    with output_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < plan.output_bytes:
        raise OutputError(
            f"the checkpoint needs {size_text(plan.output_bytes)} but its disk has "
            f"{size_text(free)} free; choose another disk"
        )
