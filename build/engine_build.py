"""The build that runs here: from the cache, by TensorRT-LLM, in docker, or by TensorRT itself."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from minitron_trt.build.cache import EngineCache, content_key
from minitron_trt.build.compiler_choice import build_tensorrt, choose_compiler, tensorrt_limits
from minitron_trt.build.engine import Engine
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.build.tensorrt.api import choose_library
from minitron_trt.build.tensorrt.worker_process import Progress
from minitron_trt.build.trtllm.run import BuildJob, build_docker, build_local
from minitron_trt.console import size_text

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
            f"{self.engine.folder}: {size} engine for SM{sm}, {how} in {self.seconds:.1f} s{peak}"
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
        }


def build_engine(
    job: BuildJob, request: BuildRequest, options: Mapping[str, Any], progress: Progress
) -> Built:
    """Build, or copy from `options['cache']`, and return what there is at the output."""
    start = time.monotonic()
    compiler = choose_compiler(job, options["compiler"], options["runner"])
    for note in job.recipe.notes:
        log.info("%s", note)
    folder: Path | None = options["cache"]
    key = None
    if folder is not None:
        key = content_key(job.checkpoint, _asked(job, request, compiler))
        if EngineCache(folder).fetch(key, job.output, overwrite=job.overwrite):
            seconds = time.monotonic() - start
            return Built(Engine.open(job.output), compiler, seconds, 0, key, cached=True)
    peak = _compile(job, request, compiler, options["runner"], progress)
    if folder is not None and key is not None:
        EngineCache(folder).store(key, job.output)
    return Built(Engine.open(job.output), compiler, time.monotonic() - start, peak, key)


def _compile(
    job: BuildJob, request: BuildRequest, compiler: str, runner: str, progress: Progress
) -> int:
    """Build the engine and return the peak of private memory."""
    if compiler == "tensorrt":
        return build_tensorrt(job, request, progress).peak_private_bytes
    return (build_docker(job) if runner == "docker" else build_local(job)).peak_bytes


def _asked(job: BuildJob, request: BuildRequest, compiler: str) -> dict[str, Any]:
    """Return everything about a build, besides the checkpoint, that changes the engine."""
    recipe = job.recipe
    common = {"compiler": compiler, "sm": recipe.target.sm}
    if compiler == "tensorrt":
        library, limits = choose_library(recipe.target.sm), tensorrt_limits(recipe, request)
        return {**common, **asdict(library), "version": library.version, "limits": asdict(limits)}
    settings = sorted(setting.argument for setting in recipe.settings)
    return {**common, "version": recipe.version, "settings": settings}
