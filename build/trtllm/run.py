"""A build as one call: check what is there, run the compiler, publish the engine."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import (
    ENGINE,
    MANIFEST_NAME,
    Manifest,
    sha256,
    staged,
)
from minitron_trt.build.containers import Container, container_for, same_version
from minitron_trt.build.engine import TRTLLM, Engine
from minitron_trt.build.recipe.engine_memory import checkpoint_bytes
from minitron_trt.build.recipe.engine_recipe import EngineRecipe
from minitron_trt.build.trtllm.compiler_process import Outcome, run_compiler
from minitron_trt.build.trtllm.docker_build import (
    CHECKPOINT_AT,
    OUTPUT_AT,
    TIMING_AT,
    DockerRun,
    explain_build,
)
from minitron_trt.build.trtllm.timing_cache import TimingCache
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import size_text
from minitron_trt.errors import ProcessError, UnsupportedError
from minitron_trt.host.machine import (
    cuda_version,
    find_builder,
    local_gpus,
    memory_bytes,
    package_version,
)

log = logging.getLogger(__name__)

BUILDER_BYTES: Final = 2 << 30
LOG_NAME: Final = "build.log"
_TIMING_NAME: Final = "model.cache"
_REMOVE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class BuildJob:
    """A recipe with its folders and how to run it."""

    recipe: EngineRecipe
    checkpoint: Checkpoint
    output: Path
    overwrite: bool = False
    timeout_s: float | None = None
    timing_folder: Path | None = None

    @property
    def workers(self) -> int:
        """Return how many ranks are built at once, each on a GPU of its own."""
        return next(int(s.value) for s in self.recipe.settings if s.flag == "workers")

    @property
    def timing(self) -> TimingCache | None:
        """Return the timing cache of this SM and version, if one is kept."""
        if self.timing_folder is None:
            return None
        return TimingCache(self.timing_folder, self.recipe.target.sm, self.recipe.version)

    @property
    def log_file(self) -> Path:
        """Return where the compiler's log lies while it runs, and after it failed."""
        path = self.output.resolve()
        return path.with_name(f"{path.name}.{LOG_NAME}")

    @property
    def host_bytes(self) -> int:
        """Return a forecast of the host's memory: twice the weights and the builder, per worker."""
        rank = checkpoint_bytes(self.recipe.model) // self.recipe.model.parallelism.world_size
        return self.workers * (2 * rank + BUILDER_BYTES)

    @property
    def memory_words(self) -> str:
        """Return the forecast beside what this machine has."""
        have = size_text(memory_bytes())
        return f"about {size_text(self.host_bytes)} are needed, the machine has {have}"


def build_local(job: BuildJob) -> Outcome:
    """Build with the `trtllm-build` of this machine; an error says what it lacks."""
    builder = find_builder()
    check_local(job)
    with staged(job.output, overwrite=job.overwrite) as scratch:
        argv = job.recipe.argv(job.checkpoint.folder.resolve(), scratch)
        argv[0] = builder.path
        timing = job.timing
        if timing is not None:
            argv += timing.arguments(timing.path, scratch / _TIMING_NAME)
        outcome = _run(job, argv)
        stack = {"tensorrt": package_version("tensorrt"), "cuda": cuda_version("tensorrt")}
        finish(job, scratch, outcome, stack)
    return outcome


def check_local(job: BuildJob) -> None:
    """Raise when this machine's GPUs are not the target's; warn when its memory looks short."""
    found, target = local_gpus(), job.recipe.target
    fitting = [gpu for gpu in found if gpu.sm == target.sm]
    if len(fitting) < max(job.workers, 1) or found[0].sm != target.sm:
        names = ", ".join(f"{gpu.name} (SM{gpu.sm})" for gpu in found) or "no GPU"
        raise UnsupportedError(
            f"an engine for SM{target.sm} needs {job.workers} GPU(s) of SM{target.sm} to be built "
            f"on; this machine has {names}: use --runner docker, slurm or kubernetes there"
        )
    if job.host_bytes > memory_bytes():
        log.warning("this may run out of memory: %s", job.memory_words)


def build_docker(job: BuildJob) -> Outcome:
    """Build in the image of the recipe's version; an error says what docker lacks."""
    container = container_for(job.recipe.version)
    with staged(job.output, overwrite=job.overwrite) as scratch:
        docker_run(job, scratch).check()
        try:
            ran = _run(job, docker_argv(job, scratch), docker=True)
        except BaseException:
            # The container outlives a client that was killed.
            subprocess.run(
                ("docker", "rm", "--force", container_name()),
                capture_output=True,
                timeout=_REMOVE_S,
                check=False,
            )
            raise
        # The process here is docker's client; the compiler's memory is in its log.
        outcome = Outcome(ran.seconds, ran.reported_bytes)
        finish(job, scratch, outcome, image_facts(container))
    return outcome


def docker_run(job: BuildJob, output: Path) -> DockerRun:
    """Return the container of a build that writes to `output`."""
    timing = job.timing
    known = timing.folder if timing is not None and timing.path.is_file() else None
    container = container_for(job.recipe.version)
    return DockerRun(container, job.checkpoint.folder, output, known, job.workers)


def docker_argv(job: BuildJob, output: Path) -> list[str]:
    """Return the whole command line of a build in docker."""
    command, timing = job.recipe.argv(CHECKPOINT_AT, OUTPUT_AT), job.timing
    if timing is not None:
        source, written = f"{TIMING_AT}/{timing.path.name}", f"{OUTPUT_AT}/{_TIMING_NAME}"
        command += timing.arguments(source, written)
    return docker_run(job, output).argv(command, name=container_name())


def container_name() -> str:
    """Return the name of this process's container."""
    return f"minitron-trt-{os.getpid()}"


def _run(job: BuildJob, argv: list[str], *, docker: bool = False) -> Outcome:
    log.info("the compiler's log is %s", job.log_file)
    try:
        return run_compiler(
            argv,
            log_file=job.log_file,
            memory_forecast=job.memory_words,
            timeout_s=job.timeout_s,
            explain=explain_build if docker else lambda code, tail: None,
        )
    except ProcessError as error:
        if not job.log_file.is_file():
            raise
        raise ProcessError(f"{error} (log: {job.log_file})") from error


def finish(
    job: BuildJob,
    folder: Path,
    outcome: Outcome | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Check what the compiler wrote and make an artifact of it: tokenizer, log, manifest."""
    timing = job.timing
    if timing is not None:
        timing.keep(folder / _TIMING_NAME)
    engine = Engine.open(folder)
    recipe, wrote = job.recipe, engine.compiler_version
    if wrote is not None and not same_version(wrote, recipe.version):
        log.warning("the engine says TensorRT-LLM %s, not %s as asked", wrote, recipe.version)
    if engine.model.parallelism != recipe.model.parallelism:
        raise ProcessError(
            f"the engine is for {engine.model.parallelism}, the checkpoint for "
            f"{recipe.model.parallelism}; it was built from another checkpoint"
        )
    for path in job.checkpoint.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    if job.log_file.is_file():
        shutil.move(job.log_file, folder / LOG_NAME)
    record = {
        "sm": recipe.target.sm,
        "gpu": recipe.target.gpu.name,
        "compiler": {"name": TRTLLM, "version": wrote or recipe.version},
        "recipe": recipe.to_json(),
        "limits": asdict(recipe.limits),
        **checkpoint_facts(job.checkpoint),
        "precision": recipe.model.precision,
        "parallelism": asdict(recipe.model.parallelism),
        "build_seconds": outcome.seconds if outcome else None,
        "peak_memory_bytes": outcome.peak_bytes if outcome else None,
        **(facts or {}),
    }
    Manifest(ENGINE, checkpoint_source(job.checkpoint), record).write(folder)


def image_facts(container: Container) -> dict[str, Any]:
    """Return what an engine's manifest says about the image that built it."""
    return {
        "image": container.image,
        "tensorrt": container.tensorrt,
        "cuda": container.cuda,
    }


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what an engine's manifest repeats of its checkpoint's."""
    return {"spec": checkpoint.spec.to_json(), "tokens": asdict(checkpoint.tokens)}


def checkpoint_source(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return where an engine came from, as its manifest records it."""
    return {
        "checkpoint": str(checkpoint.folder.resolve()),
        "manifest_sha256": sha256(checkpoint.folder / MANIFEST_NAME),
        "source": checkpoint.manifest.source,
    }
