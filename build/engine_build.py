"""The build that runs here: from the cache, by TensorRT-LLM, in docker, or by TensorRT itself."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import ENGINE
from minitron_trt.build.cache import EngineCache, content_key
from minitron_trt.build.compiler_choice import AUTO, TENSORRT, choose_compiler
from minitron_trt.build.engine import Engine
from minitron_trt.build.job import BuildJob
from minitron_trt.build.runner_names import DOCKER, LOCAL
from minitron_trt.build.tensorrt.api import choose_library
from minitron_trt.build.tensorrt.compile_job import build_tensorrt, tensorrt_limits
from minitron_trt.build.trtllm.docker_build import build_docker
from minitron_trt.build.trtllm.local_build import build_local
from minitron_trt.console import ShowProgress, no_display, size_text
from minitron_trt.outputs import check_output

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Built:
    """A finished engine and what it took; `key` is its content key when a cache is used."""

    engine: Engine
    compiler: str
    seconds: float
    peak_bytes: int
    key: str | None = None
    cached: bool = False

    @property
    def text(self) -> str:
        """Return the result as a line."""
        size, sm = size_text(sum(self.engine.rank_bytes)), self.engine.sm
        how = "from the cache" if self.cached else f"built by {self.compiler}"
        peak = f", {size_text(self.peak_bytes)} of memory" if self.peak_bytes else ""
        return (
            f"{self.engine.folder}: {size} engine for SM{sm}, {how} in {self.seconds:.1f} s{peak}\n"
            f"{self.engine.next_step}"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "engine": str(self.engine.folder),
            "compiler": self.compiler,
            "compiler_version": self.engine.compiler_version,
            "sm": self.engine.sm,
            "engine_bytes": sum(self.engine.rank_bytes),
            "seconds": round(self.seconds, 3),
            "peak_memory_bytes": self.peak_bytes,
            "limits": asdict(self.engine.limits),
            "key": self.key,
            "cached": self.cached,
            "next": self.engine.next_step,
        }


def build_engine(
    job: BuildJob,
    *,
    compiler: str = AUTO,
    runner: str = LOCAL,
    cache: Path | None = None,
    progress: ShowProgress = no_display,
) -> Built:
    """Build, or copy what a cache has of the same request, and return what lies at the output."""
    start = time.monotonic()
    check_output(job.output, overwrite=job.overwrite, kind=ENGINE, inputs=(job.checkpoint.folder,))
    compiler = choose_compiler(job, compiler, runner)
    for note in job.recipe.notes:
        log.info("%s", note)
    engines = None if cache is None else EngineCache(cache)
    key = None
    if engines is not None:
        key = content_key(job.checkpoint, _what_decides(job, compiler))
        if engines.fetch(key, job.output, overwrite=job.overwrite):
            seconds = time.monotonic() - start
            return Built(Engine.open(job.output), compiler, seconds, 0, key, cached=True)
    peak = _compile(job, compiler, runner, progress)
    if engines is not None and key is not None:
        engines.store(key, job.output)
    return Built(Engine.open(job.output), compiler, time.monotonic() - start, peak, key)


def _compile(job: BuildJob, compiler: str, runner: str, progress: ShowProgress) -> int:
    """Build the engine and return the peak of private memory."""
    if compiler == TENSORRT:
        return build_tensorrt(job, progress).peak_private_bytes
    return (build_docker(job) if runner == DOCKER else build_local(job)).peak_bytes


def _what_decides(job: BuildJob, compiler: str) -> dict[str, Any]:
    """Return everything about a build, besides the checkpoint, that changes the engine."""
    recipe = job.recipe
    # Not the GPU's name: kernels are for an SM, and what its memory decided is in the limits.
    common = {"compiler": compiler, "sm": recipe.target.sm}
    if compiler == TENSORRT:
        library, limits = choose_library(recipe.target.sm), tensorrt_limits(recipe, job.request)
        return {**common, **asdict(library), "version": library.version, "limits": asdict(limits)}
    # trtllm-build takes its arguments in any order.
    settings = sorted(setting.argument for setting in recipe.settings)
    return {**common, "version": recipe.version, "settings": settings}
