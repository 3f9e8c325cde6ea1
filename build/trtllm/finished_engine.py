"""What `trtllm-build` wrote, checked and made an artifact, wherever it ran."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minitron_trt.build.containers import container_for, same_version
from minitron_trt.build.engine import TRTLLM, Engine, checkpoint_facts, write_engine_manifest
from minitron_trt.build.job import LOG_NAME, BuildJob
from minitron_trt.build.trtllm.compiler_process import Outcome
from minitron_trt.build.trtllm.timing_cache import TIMING_NAME, TimingCache
from minitron_trt.errors import ProcessError

log = logging.getLogger(__name__)


def finish(
    job: BuildJob,
    folder: Path,
    outcome: Outcome | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Check what the compiler wrote and make an artifact of it: tokenizer, log, manifest."""
    timing = TimingCache.of(job)
    if timing is not None:
        timing.keep(folder / TIMING_NAME)
    engine = Engine.open(folder)
    recipe, wrote = job.recipe, engine.compiler_version
    if wrote is not None and not same_version(wrote, recipe.version):
        log.warning("the engine says TensorRT-LLM %s, not %s as asked", wrote, recipe.version)
    if engine.model.parallelism != recipe.model.parallelism:
        raise ProcessError(
            f"the engine is for {engine.model.parallelism}, the checkpoint for "
            f"{recipe.model.parallelism}; it was built from another checkpoint"
        )
    # trtllm-build changes limits by rules of its own: what it built is what Triton must be told.
    for name, built in asdict(engine.limits).items():
        if built != (requested := getattr(recipe.limits, name)):
            log.warning(
                "the engine has %s %s, not %s as asked; that is recorded", name, built, requested
            )
    if job.log_file.is_file():
        shutil.move(job.log_file, folder / LOG_NAME)
    record = {
        "sm": recipe.target.sm,
        "gpu": recipe.target.gpu.name,
        "compiler": {"name": TRTLLM, "version": wrote or recipe.version},
        "recipe": recipe.to_json(),
        "limits": asdict(engine.limits),
        **checkpoint_facts(job.checkpoint),
        "parallelism": asdict(recipe.model.parallelism),
        "build_seconds": outcome.seconds if outcome else None,
        "peak_memory_bytes": outcome.peak_bytes if outcome else None,
        **(facts or {}),
    }
    write_engine_manifest(folder, job.checkpoint, record)


def image_facts(job: BuildJob) -> dict[str, Any]:
    """Return what an engine's manifest says about the image that built it."""
    if job.image:
        # What is in somebody else's image, nobody here knows.
        return {"image": job.image, "tensorrt": None, "cuda": None}
    container = container_for(job.recipe.version)
    return {"image": container.image, "tensorrt": container.tensorrt, "cuda": container.cuda}
