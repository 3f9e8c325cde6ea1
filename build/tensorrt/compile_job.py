"""A build job for TensorRT itself: whether it can compile it here, its sizes, and the compilation.

Light enough for a dry run: numpy and TensorRT come with the compilation only.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from minitron_trt.build.job import BuildJob
from minitron_trt.build.recipe.engine_limits import Limits
from minitron_trt.build.recipe.engine_recipe import EngineRecipe, choose_recipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.build.tensorrt.api import choose_library
from minitron_trt.build.tensorrt.supported import check_supported
from minitron_trt.console import ShowProgress, size_text
from minitron_trt.errors import UnsupportedError
from minitron_trt.spec import Parallelism

if TYPE_CHECKING:
    from minitron_trt.build.tensorrt.engine_compiler import CompiledEngine


def check_tensorrt(recipe: EngineRecipe) -> None:
    """Raise UnsupportedError when TensorRT cannot compile a recipe on this machine."""
    model = recipe.model
    choose_library(recipe.target.sm)
    check_supported(model.precision, model.kv_cache, model.parallelism)


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
    return Limits(
        max_batch_size=batch,
        max_seq_len=limits.max_seq_len,
        max_input_len=prompt,
        max_num_tokens=batch * prompt,
    )


def build_tensorrt(job: BuildJob, progress: ShowProgress) -> CompiledEngine:
    """Compile with TensorRT on this machine, in a process of its own."""
    from minitron_trt.build.tensorrt.engine_compiler import compile_engine, default_limits

    limits = tensorrt_limits(job.recipe, job.request)
    return compile_engine(
        job.checkpoint,
        job.output,
        sm=job.recipe.target.sm,
        limits=default_limits(
            job.checkpoint,
            max_batch_size=limits.max_batch_size,
            max_seq_len=limits.max_seq_len,
            # Not the recipe's: where the user is silent, a step is shorter than a prompt.
            max_input_len=job.request.max_input_len,
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
