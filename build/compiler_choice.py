"""Which compiler builds an engine: TensorRT-LLM's where it can run, else TensorRT itself."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Final

from minitron_trt.build.job import BuildJob
from minitron_trt.build.runner_names import LOCAL
from minitron_trt.build.tensorrt.compile_job import check_tensorrt
from minitron_trt.build.trtllm.local_build import check_local
from minitron_trt.errors import MinitronError, UnsupportedError

TRTLLM: Final = "trtllm"
TENSORRT: Final = "tensorrt"
AUTO: Final = "auto"
COMPILERS: Final = (AUTO, TRTLLM, TENSORRT)


def choose_compiler(job: BuildJob, requested: str, runner: str) -> str:
    """Return `trtllm` or `tensorrt`; UnsupportedError names the ways that would work."""
    if runner != LOCAL:
        if requested == TENSORRT:
            raise UnsupportedError(
                f"--compiler tensorrt runs on this machine; drop --runner {runner}, or use "
                "--compiler trtllm"
            )
        return TRTLLM
    if requested == TRTLLM:
        # What it lacks here, the build says.
        return requested
    tensorrt = _problem(lambda: check_tensorrt(job.recipe))
    if requested == TENSORRT:
        if tensorrt:
            raise UnsupportedError(f"{tensorrt}; elsewhere, {ways(job)}")
        return requested
    trtllm = _problem(lambda: check_local(job))
    if not trtllm:
        return TRTLLM
    if not tensorrt:
        return TENSORRT
    raise UnsupportedError(
        f"no compiler here can build for {job.recipe.target.label}. trtllm: {trtllm}. tensorrt: "
        f"{tensorrt}. Elsewhere, {ways(job)}"
    )


def ways(job: BuildJob) -> str:
    """Return the commands that would build the engine elsewhere."""
    words = ("build", str(job.checkpoint.folder), "-o", str(job.output))
    command = shlex.join((*words, "--arch", job.recipe.target.name, "--runner", "docker"))
    return (
        f"on a machine with a GPU of SM{job.recipe.target.sm}: minitron-trt {command} (or slurm, "
        "or kubernetes)"
    )


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except MinitronError as error:
        return str(error)
    return ""
