"""The options of `minitron-trt build` that go into a BuildRequest, one per field."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

import click
import cloup

from minitron_trt.build.recipe.request import (
    BLOCK_SIZES,
    GATHERED,
    PROFILES,
    SPECULATION,
    BuildRequest,
)
from minitron_trt.option_types import Count

R = TypeVar("R")

_SIZES: Final = (
    cloup.option(
        "--profile",
        type=click.Choice(PROFILES),
        default="balanced",
        show_default=True,
        help="What the sizes and kernels are chosen for",
    ),
    cloup.option("--max-batch-size", type=Count(), help="Sequences at once"),
    cloup.option("--max-seq-len", type=Count(), help="Tokens of a prompt and its answer"),
    cloup.option("--max-input-len", type=Count(), help="Tokens of a prompt"),
    cloup.option(
        "--max-num-tokens", type=Count(), help="Tokens of one step, all sequences together"
    ),
    cloup.option("--opt-num-tokens", type=Count(), help="Tokens of a usual step"),
    cloup.option("--max-beam-width", type=int, default=1, show_default=True, help="Beams"),
)
_KERNELS: Final = (
    cloup.option(
        "--kv-cache-type",
        type=click.Choice(["paged", "continuous"]),
        default="paged",
        show_default=True,
        help="How the KV cache lies in memory",
    ),
    cloup.option(
        "--tokens-per-block",
        type=int,
        default=32,
        show_default=True,
        help=f"Tokens of a KV cache block ({', '.join(map(str, BLOCK_SIZES))})",
    ),
    cloup.option(
        "--kv-cache-reuse/--no-kv-cache-reuse",
        default=None,
        help="Paged context attention: reuse of blocks, prompts in chunks",
    ),
    cloup.option(
        "--fp8-context-fmha/--no-fp8-context-fmha", default=None, help="Context attention in FP8"
    ),
    cloup.option("--gemm-plugin", help="TensorRT-LLM's GEMM plugin: auto, disable or a dtype"),
    cloup.option("--low-latency-gemm", is_flag=True, help="FP8 GEMM for small batches"),
    cloup.option("--gemm-swiglu", is_flag=True, help="FP8 GEMM and gate in one kernel (Hopper)"),
    cloup.option(
        "--multiple-profiles/--no-multiple-profiles",
        default=None,
        help="Kernels tuned for several step sizes",
    ),
    cloup.option(
        "--reduce-fusion/--no-reduce-fusion", default=None, help="All-reduce and norm in one kernel"
    ),
    cloup.option("--weight-streaming", is_flag=True, help="Let weights stream from host memory"),
    cloup.option(
        "--gather-logits",
        type=click.Choice(GATHERED),
        default="none",
        show_default=True,
        help="Which logits the engine returns besides the last",
    ),
    cloup.option(
        "--logits-dtype", type=click.Choice(["float32", "float16"]), help="Dtype of the logits"
    ),
)
_SPECULATION: Final = (
    cloup.option(
        "--speculation",
        type=click.Choice(SPECULATION),
        default="none",
        show_default=True,
        help="Speculative decoding",
    ),
    cloup.option("--max-draft-len", type=int, default=0, show_default=True, help="Draft tokens"),
)
_OPTIONS: Final = (
    cloup.option_group("Sizes", *_SIZES),
    cloup.option_group("Cache and kernels", *_KERNELS),
    cloup.option_group("Speculative decoding", *_SPECULATION),
)


def request_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of a BuildRequest, which comes as its argument `request`."""

    @functools.wraps(command)
    def with_request(*args: Any, **kwargs: Any) -> R:
        """Call the command with a request in place of its options."""
        # What to build for is the command's to say: it depends on where the build runs.
        names = {field.name for field in fields(BuildRequest)} - {"version"}
        request = BuildRequest(**{name: kwargs.pop(name) for name in names})
        return command(*args, request=request, **kwargs)

    wrapped: Callable[..., R] = with_request
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
