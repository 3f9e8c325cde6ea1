"""Context attention: paged (for KV reuse and chunks) and FP8, which exclude each other at times.

TensorRT-LLM switches one or the other off by itself, silently. Its rules are applied here instead,
so that what is printed is what is built:

    weights     KV cache   paged context FMHA          FP8 context FMHA
    FP8 kind    FP8        requested, or on             on; forced when paged
    FP8 kind    other      requested, or on             off when paged
    other       FP8        off                         off
    any         INT8       off                         off
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.request import BuildRequest, Setting, switch
from minitron_trt.errors import UsageError
from minitron_trt.gpus import Target, check_support, support
from minitron_trt.quantization.precisions import PRECISIONS

_REUSE: Final = "KV cache blocks can be reused and long prompts come in chunks"


@dataclass(frozen=True, slots=True)
class ContextAttention:
    """Which context attention is built, and why."""

    paged: bool
    fp8: bool
    why_paged: str
    why_fp8: str

    @property
    def settings(self) -> tuple[Setting, ...]:
        """Return the arguments."""
        return (
            Setting("use_paged_context_fmha", switch(self.paged), self.why_paged),
            Setting("use_fp8_context_fmha", switch(self.fp8), self.why_fp8),
        )


def choose_attention(model: EngineModel, target: Target, request: BuildRequest) -> ContextAttention:
    """Apply the rules of the module; UsageError when an explicit option breaks one."""
    if request.fp8_context_fmha:
        check_support("fp8-context-fmha", target)
    fp8_weights = PRECISIONS[model.precision].fp8_attention
    barred = _paged_is_barred(model, request, fp8_weights)
    if barred:
        _refuse(request.kv_cache_reuse, "--kv-cache-reuse", barred)
        paged, why = False, f"{barred}: no KV reuse, no chunks"
    elif request.fp8_context_fmha and model.kv_cache != "fp8":
        both = "FP8 context attention beside paged blocks needs an FP8 KV cache"
        _refuse(request.kv_cache_reuse, "--kv-cache-reuse", both)
        paged, why = False, f"FP8 context attention was asked for; {both}"
    else:
        paged = request.kv_cache_reuse is not False
        why = _REUSE if paged else "as asked"
    fp8, why_fp8 = _choose_fp8(model, target, request, fp8_weights, paged)
    return ContextAttention(paged, fp8, why, why_fp8)


def _paged_is_barred(model: EngineModel, request: BuildRequest, fp8_weights: bool) -> str:
    if request.kv_cache_type != "paged":
        return f"the KV cache is {request.kv_cache_type}"
    if model.kv_cache == "int8":
        return "an INT8 KV cache has no paged context attention"
    if model.kv_cache == "fp8" and not fp8_weights:
        return f"an FP8 KV cache with {model.precision} weights has no paged context attention"
    return ""


def _choose_fp8(
    model: EngineModel, target: Target, request: BuildRequest, fp8_weights: bool, paged: bool
) -> tuple[bool, str]:
    requested = request.fp8_context_fmha
    barred = ""
    if not fp8_weights:
        barred = f"{model.precision} weights have no FP8 context attention"
    elif model.kv_cache == "int8":
        barred = "an INT8 KV cache has no FP8 context attention"
    elif not support("fp8-context-fmha", target).supported:
        barred = f"{target.label} has no FP8 context attention"
    elif paged and not model.kv_cache:
        barred = "beside paged blocks it needs an FP8 KV cache"
    if barred:
        _refuse(requested, "--fp8-context-fmha", barred)
        return False, barred
    if paged:
        if requested is False:
            raise UsageError(
                "TensorRT-LLM forces FP8 context attention on with paged blocks and an FP8 KV "
                "cache; add --no-kv-cache-reuse or leave --no-fp8-context-fmha out"
            )
        return True, "TensorRT-LLM forces it on with paged blocks and an FP8 KV cache"
    why = "FP8 weights, no paged blocks" if requested is None else "as asked"
    return requested is not False, why


def _refuse(requested: bool | None, option: str, why: str) -> None:
    if requested:
        raise UsageError(f"{option} cannot be met: {why}")
