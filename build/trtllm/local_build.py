"""`--runner local`: the `trtllm-build` of this machine builds the engine."""

from __future__ import annotations

import logging

from minitron_trt.build.job import BuildJob
from minitron_trt.build.trtllm.compiler_process import Outcome, run_job
from minitron_trt.build.trtllm.finished_engine import finish
from minitron_trt.build.trtllm.timing_cache import TIMING_NAME, TimingCache
from minitron_trt.errors import UnsupportedError
from minitron_trt.host.machine import (
    cuda_version,
    find_builder,
    local_gpus,
    memory_bytes,
    package_version,
)
from minitron_trt.outputs import staged

log = logging.getLogger(__name__)


def check_local(job: BuildJob) -> None:
    """Raise when this machine has no builder or not the target's GPUs; warn of little memory."""
    find_builder()
    gpus, target = local_gpus(), job.recipe.target
    fitting = [gpu for gpu in gpus if gpu.sm == target.sm]
    # TensorRT compiles for the GPU that it runs on, and rank 0 runs on the first.
    if len(fitting) < job.workers or gpus[0].sm != target.sm:
        names = ", ".join(f"{gpu.name} (SM{gpu.sm})" for gpu in gpus) or "no GPU"
        raise UnsupportedError(
            f"an engine for SM{target.sm} needs {job.workers} GPU(s) of SM{target.sm} to be built "
            f"on; this machine has {names}: use --runner docker, slurm or kubernetes there"
        )
    if job.host_bytes > memory_bytes():
        log.warning("this may run out of memory: %s", job.memory_words)


def build_local(job: BuildJob) -> Outcome:
    """Build with the `trtllm-build` of this machine; an error says what it lacks."""
    check_local(job)
    with staged(job.output, overwrite=job.overwrite) as scratch:
        argv = job.recipe.argv(job.checkpoint.folder.resolve(), scratch)
        # By its path, as `check_local` found it: the recipe has the bare name.
        argv[0] = find_builder().path
        timing = TimingCache.of(job)
        if timing is not None:
            argv += timing.arguments(timing.path, scratch / TIMING_NAME)
        outcome = run_job(job, argv)
        stack = {"tensorrt": package_version("tensorrt"), "cuda": cuda_version("tensorrt")}
        finish(job, scratch, outcome, stack)
    return outcome
