"""`--compiler tensorrt`: a checkpoint becomes an engine folder, by our own network."""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CONFIG_NAME
from minitron_trt.build.engine import PLAN_NAME, checkpoint_facts, write_engine_manifest
from minitron_trt.build.tensorrt.api import choose_library
from minitron_trt.build.tensorrt.mapped_weights import map_weights
from minitron_trt.build.tensorrt.network_definition import NetworkLimits
from minitron_trt.build.tensorrt.worker import CompileRequest
from minitron_trt.build.tensorrt.worker_process import run_worker
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import ShowProgress, no_display
from minitron_trt.errors import OutputError
from minitron_trt.gpus import check_support, find_target
from minitron_trt.host.machine import cuda_version
from minitron_trt.outputs import check_output, staged
from minitron_trt.records import read_record

DEFAULT_INPUT_TOKENS: Final = 1024
# An engine is its weights and some kernels; this much is free room for the kernels.
_KERNEL_BYTES: Final = 64 << 20

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CompiledEngine:
    """A finished engine folder and what it took; private memory leaves out the page cache."""

    folder: Path
    plan_bytes: int
    build_seconds: float
    peak_private_bytes: int
    compiler_version: str


def compile_engine(
    checkpoint: Checkpoint,
    output: Path,
    *,
    sm: int,
    limits: NetworkLimits,
    facts: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    timeout_s: float | None = None,
    progress: ShowProgress = no_display,
) -> CompiledEngine:
    """Compile a checkpoint for one GPU of an architecture, on that GPU or on none.

    `facts` go into the manifest beside those of the compilation. UnsupportedError when TensorRT
    cannot compile this checkpoint or for this architecture here, ProcessError when it tried and
    failed.
    """
    check_output(output, overwrite=overwrite)
    library = choose_library(sm)
    check_support(checkpoint.precision.name, find_target(f"sm{sm}"))
    weights_bytes = sum(tensor.nbytes for tensor in map_weights(checkpoint).values())
    with staged(output, overwrite=overwrite) as scratch:
        _check_space(scratch, weights_bytes)
        plan = scratch / PLAN_NAME
        request = CompileRequest(
            checkpoint=checkpoint.folder.resolve(),
            sm=sm,
            limits=limits,
            plan=plan,
            weights_bytes=weights_bytes,
            library=library.package,
        )
        start = time.monotonic()
        version, peak = run_worker(request, timeout_s, progress)
        engine = CompiledEngine(
            folder=output,
            plan_bytes=request.plan.stat().st_size,
            build_seconds=round(time.monotonic() - start, 2),
            peak_private_bytes=peak,
            compiler_version=version,
        )
        _describe(scratch, checkpoint, request, engine, facts or {})
    return engine


def default_limits(
    checkpoint: Checkpoint,
    *,
    max_batch_size: int,
    max_seq_len: int,
    max_input_len: int | None = None,
) -> NetworkLimits:
    """Return a checkpoint's limits; a step takes at most 1024 tokens of a sequence if not told.

    A longer prompt is computed in several steps: that bounds memory, not prompts.
    """
    if max_seq_len > checkpoint.spec.max_positions:
        log.warning(
            "max_seq_len %d is beyond the %d positions the model was trained on",
            max_seq_len,
            checkpoint.spec.max_positions,
        )
    return NetworkLimits(
        max_batch_size, max_seq_len, max_input_len or min(max_seq_len, DEFAULT_INPUT_TOKENS)
    )


def _check_space(folder: Path, weights_bytes: int) -> None:
    needed, free = weights_bytes + _KERNEL_BYTES, shutil.disk_usage(folder).free
    if free < needed:
        raise OutputError(
            f"the engine needs about {needed / 1e9:.2f} GB but its disk has {free / 1e9:.2f} GB "
            "free; choose another disk"
        )


def _describe(
    folder: Path,
    checkpoint: Checkpoint,
    request: CompileRequest,
    engine: CompiledEngine,
    facts: Mapping[str, Any],
) -> None:
    """Write config.json, the tokenizer and the manifest of a finished engine."""
    compiler = {"name": request.library, "version": engine.compiler_version}
    config = {
        "compiler": compiler,
        "sm": request.sm,
        "pretrained_config": read_record(checkpoint.folder / CONFIG_NAME, dict[str, Any]),
        "build_config": asdict(request.limits),
    }
    (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")
    own = {
        "sm": request.sm,
        "compiler": compiler,
        "cuda": cuda_version(request.library),
        "limits": asdict(request.limits),
        **checkpoint_facts(checkpoint),
        "build_seconds": engine.build_seconds,
        "peak_memory_bytes": engine.peak_private_bytes,
    }
    write_engine_manifest(folder, checkpoint, {**facts, **own})
