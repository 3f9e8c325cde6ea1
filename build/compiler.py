"""Which compiler builds an engine: TensorRT-LLM's where it can run, else TensorRT itself."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.build.limits import Limits
from minitron_trt.build.machine import find_builder
from minitron_trt.build.recipe import EngineRecipe
from minitron_trt.build.request import BuildRequest
from minitron_trt.build.run import BuildJob, check_local
from minitron_trt.build.tensorrt_api import TARGETS
from minitron_trt.console import size_text
from minitron_trt.errors import MinitronError, UnsupportedError

if TYPE_CHECKING:
    from minitron_trt.build.tensorrt_compiler import CompiledEngine

COMPILERS: Final = ("auto", "trtllm", "tensorrt")
RUNNERS: Final = ("local", "docker", "slurm", "kubernetes")
TENSORRT_PRECISIONS: Final = ("bf16", "fp16", "fp8")


def choose_compiler(job: BuildJob, asked: str, runner: str) -> str:
    """Return `trtllm` or `tensorrt`; UnsupportedError names the ways that would work."""
    if runner != "local":
        if asked == "tensorrt":
            raise UnsupportedError(
                f"--compiler tensorrt runs on this machine; drop --runner {runner}, or use "
                "--compiler trtllm"
            )
        return "trtllm"
    if asked == "trtllm":
        return asked
    tensorrt = _problem(lambda: check_tensorrt(job.recipe))
    if asked == "tensorrt":
        if tensorrt:
            raise UnsupportedError(f"{tensorrt}; elsewhere, {ways(job)}")
        return asked
    trtllm = _problem(lambda: _check_trtllm(job))
    if not trtllm:
        return "trtllm"
    if not tensorrt:
        return "tensorrt"
    raise UnsupportedError(
        f"no compiler here can build for {job.recipe.target.label}. trtllm: {trtllm}. tensorrt: "
        f"{tensorrt}. Elsewhere, {ways(job)}"
    )


def check_tensorrt(recipe: EngineRecipe) -> None:
    """Raise UnsupportedError when TensorRT cannot compile a recipe on this machine."""
    model, target = recipe.model, recipe.target
    if target.sm not in TARGETS:
        raise UnsupportedError(
            f"without a GPU, tensorrt-rtx compiles for {', '.join(TARGETS.values())}; "
            f"SM{target.sm} needs a GPU of {target.architecture.name}"
        )
    if model.precision not in TENSORRT_PRECISIONS:
        raise UnsupportedError(
            f"--compiler tensorrt builds {', '.join(TENSORRT_PRECISIONS)}; the checkpoint is "
            f"{model.precision}"
        )
    if model.parallelism.tp > 1:
        raise UnsupportedError(
            f"--compiler tensorrt builds for one GPU; the checkpoint is cut for "
            f"{model.parallelism.tp}"
        )
    if importlib.util.find_spec("tensorrt_rtx") is None:
        raise UnsupportedError(
            "tensorrt-rtx is not installed; run: pip install 'minitron-trt[rtx]'"
        )


def ways(job: BuildJob) -> str:
    """Return the commands that would build the engine elsewhere."""
    arch = job.recipe.target.name
    return (
        "on a machine that has one: minitron-trt build "
        f"{job.checkpoint.folder} -o {job.output} --arch {arch} --runner docker "
        "(or slurm, or kubernetes)"
    )


def tensorrt_limits(recipe: EngineRecipe, request: BuildRequest) -> Limits:
    """Return the sizes for TensorRT, whose cache is one piece with a full row per sequence."""
    limits, pool = recipe.limits, recipe.forecast.kv_tokens
    batch = request.max_batch_size or max(min(limits.max_batch_size, pool // limits.max_seq_len), 1)
    beyond = (batch * limits.max_seq_len - pool) * recipe.forecast.kv_bytes_per_token
    if beyond > 0:
        raise UnsupportedError(
            f"{batch} sequences of {limits.max_seq_len} tokens are {size_text(beyond)} more than "
            f"the KV cache of {recipe.target.label}, and --compiler tensorrt keeps it whole; lower "
            "--max-batch-size or --max-seq-len"
        )
    prompt = request.max_input_len or limits.max_input_len
    return Limits(batch, limits.max_seq_len, prompt, batch * prompt)


def build_tensorrt(
    job: BuildJob, request: BuildRequest, facts: Mapping[str, Any] | None = None
) -> CompiledEngine:
    """Compile with TensorRT on this machine, in a process of its own."""
    # It brings numpy, and TensorRT's own process.
    from minitron_trt.build.tensorrt_compiler import compile_engine, default_limits

    limits = tensorrt_limits(job.recipe, request)
    return compile_engine(
        job.checkpoint,
        job.output,
        sm=job.recipe.target.sm,
        limits=default_limits(
            job.checkpoint,
            max_batch_size=limits.max_batch_size,
            max_seq_len=limits.max_seq_len,
            max_input_len=request.max_input_len,
        ),
        facts={"gpu": job.recipe.target.gpu.name, **(facts or {})},
        overwrite=job.overwrite,
        timeout_s=job.timeout_s,
    )


def _check_trtllm(job: BuildJob) -> None:
    find_builder()
    check_local(job)


def _problem(check: Callable[[], None]) -> str:
    try:
        check()
    except MinitronError as error:
        return str(error)
    return ""


def job_file(output: Path, runner: str) -> Path:
    """Return where a cluster's job file goes: beside the engine that it will write."""
    return output.with_name(f"{output.name}.{'sbatch' if runner == 'slurm' else 'yaml'}")
