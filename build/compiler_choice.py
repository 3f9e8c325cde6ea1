"""Which compiler builds an engine: TensorRT-LLM's where it can run, else TensorRT itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.build.recipe.engine_recipe import EngineRecipe, choose_recipe
from minitron_trt.build.recipe.limits import Limits
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.build.tensorrt.api import choose_library
from minitron_trt.build.trtllm.run import BuildJob, check_local
from minitron_trt.console import size_text
from minitron_trt.errors import MinitronError, UnsupportedError
from minitron_trt.host.machine import find_builder
from minitron_trt.quantization.precisions import TENSORRT_PRECISIONS
from minitron_trt.spec import Parallelism

if TYPE_CHECKING:
    from minitron_trt.build.tensorrt.engine_compiler import CompiledEngine
    from minitron_trt.build.tensorrt.worker_process import Progress

COMPILERS: Final = ("auto", "trtllm", "tensorrt")
RUNNERS: Final = ("local", "docker", "slurm", "kubernetes")


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
    model = recipe.model
    choose_library(recipe.target.sm)
    if model.precision not in TENSORRT_PRECISIONS:
        raise UnsupportedError(
            f"--compiler tensorrt builds {', '.join(TENSORRT_PRECISIONS)}; the checkpoint is "
            f"{model.precision}"
        )
    if model.kv_cache:
        raise UnsupportedError(
            f"--compiler tensorrt has no {model.kv_cache} KV cache: TensorRT's cache layer holds "
            "wide values only; convert with --kv-cache auto"
        )
    if model.parallelism.tp > 1:
        raise UnsupportedError(
            f"--compiler tensorrt builds for one GPU; the checkpoint is cut for "
            f"{model.parallelism.tp}: convert with --tp 1"
        )


def ways(job: BuildJob) -> str:
    """Return the commands that would build the engine elsewhere."""
    arch = job.recipe.target.name
    return (
        f"on a machine with a GPU of SM{job.recipe.target.sm}: minitron-trt build "
        f"{job.checkpoint.folder} -o {job.output} --arch {arch} --runner docker "
        "(or slurm, or kubernetes)"
    )


def tensorrt_limits(recipe: EngineRecipe, request: BuildRequest) -> Limits:
    """Return the sizes for TensorRT, whose cache is one piece with a full row per sequence."""
    if recipe.model.parallelism.pp > 1:
        # Pipeline ranks are joined: one GPU holds them all.
        whole = dataclasses.replace(recipe.model, parallelism=Parallelism())
        recipe = choose_recipe(whole, recipe.target, request)
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


def build_tensorrt(job: BuildJob, request: BuildRequest, progress: Progress) -> CompiledEngine:
    """Compile with TensorRT on this machine, in a process of its own."""
    # It brings numpy, and TensorRT's own process.
    from minitron_trt.build.tensorrt.engine_compiler import compile_engine, default_limits

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
        facts={"gpu": job.recipe.target.gpu.name, "recipe": _recipe_facts(job.recipe)},
        progress=progress,
        overwrite=job.overwrite,
        timeout_s=job.timeout_s,
    )


def _recipe_facts(recipe: EngineRecipe) -> dict[str, Any]:
    """Return what of a recipe holds for TensorRT, which takes none of trtllm-build's settings."""
    names = ("model", "precision", "tp", "pp", "target", "profile")
    return {name: value for name, value in recipe.to_json().items() if name in names}


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
