"""The conversion as one call: open, plan, write, publish."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from minitron_trt.artifacts import Manifest, check_output, output_errors, staged
from minitron_trt.checkpoint import CONFIG_NAME, KIND, manifest_facts, trtllm_config
from minitron_trt.console import Advance, no_progress
from minitron_trt.convert.hub import locate
from minitron_trt.convert.plan import ConversionPlan, plan_conversion
from minitron_trt.convert.source import ModelSource
from minitron_trt.convert.write import write_ranks
from minitron_trt.errors import OutputError
from minitron_trt.spec import PRECISIONS, Parallelism

log = logging.getLogger(__name__)

ShowProgress = Callable[[str, int], AbstractContextManager[Advance]]
"""Open a progress display for a label and a number of bytes."""


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert; `precision` is a name in PRECISIONS."""

    precision: str = "bf16"
    tp: int = 1
    pp: int = 1
    overwrite: bool = False
    digest: bool = False
    revision: str | None = None
    token: str | None = None


def open_and_plan(source: str, options: ConvertOptions) -> tuple[ModelSource, ConversionPlan]:
    """Open a folder or hub id and lay out its conversion; nothing is written."""
    model = ModelSource.open(locate(source, revision=options.revision, token=options.token))
    parallelism = Parallelism(options.tp, options.pp)
    return model, plan_conversion(model, PRECISIONS[options.precision], parallelism)


def convert(
    source: str,
    output: Path,
    options: ConvertOptions,
    progress: ShowProgress = lambda label, total: nullcontext(no_progress),
) -> ConversionPlan:
    """Convert a Hugging Face folder or hub id to a TensorRT-LLM checkpoint folder.

    Nothing is left at `output` unless everything is; MinitronError says why not.
    """
    check_output(output, overwrite=options.overwrite)
    model, plan = open_and_plan(source, options)
    with staged(output, overwrite=options.overwrite) as scratch:
        _check_space(scratch, plan)
        if not model.has_tokenizer:
            log.warning("%s has no tokenizer; serving text will need one", model.folder)
        with progress("convert", plan.output_bytes) as advance:
            write_ranks(plan, scratch, advance)
        for path in model.extras:
            shutil.copyfile(path, scratch / path.name)
        config = trtllm_config(plan.spec, plan.precision, plan.parallelism)
        (scratch / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
        facts = manifest_facts(plan.spec, plan.precision, plan.parallelism, model.tokens)
        Manifest(KIND, model.identity(), facts).write(scratch, digest=options.digest)
    return plan


def _check_space(folder: Path, plan: ConversionPlan) -> None:
    with output_errors(folder):
        free = shutil.disk_usage(folder).free
    if free < plan.output_bytes:
        raise OutputError(
            f"the checkpoint needs {plan.output_bytes / 1e9:.2f} GB but its disk has "
            f"{free / 1e9:.2f} GB free; choose another disk"
        )
