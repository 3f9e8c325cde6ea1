"""GEMM plugins, fusions and profiles: what TensorRT-LLM offers for a precision and architecture."""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType
from typing import Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_limits import SAFE_NUM_TOKENS, Limits
from minitron_trt.build.recipe.request import BuildRequest, Setting, switch
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.families import family_of
from minitron_trt.gpus import Target, check_support
from minitron_trt.quantization.precisions import PRECISIONS

_AS_ASKED: Final = "as asked"
_GEMM_REASONS: Final = MappingProxyType(
    {
        "auto": "in the model's dtype; builds fast and runs as well",
        "disable": "for large FP8 batches TensorRT's own GEMMs are better",
        "nvfp4": "what TensorRT-LLM sets for NVFP4 weights",
    }
)
_GEMM_CHOICES: Final = ("auto", "disable", "float16", "bfloat16", "float32", "fp8", "nvfp4")


def plugin_settings(
    model: EngineModel, target: Target, request: BuildRequest, limits: Limits
) -> tuple[Setting, ...]:
    """Return the plugin arguments; UnsupportedError when an explicit one is not for this build."""
    gemm = _gemm(model, target, request)
    return (
        Setting("gpt_attention_plugin", "auto", "in the model's dtype"),
        Setting("remove_input_padding", "enable", "packed input; in-flight batching needs it"),
        Setting("context_fmha", "enable", "fused attention; paged and FP8 attention need it"),
        gemm,
        *_fp8_kernels(model, target, request),
        *_fusions(model, request),
        *_profiles(model, request, limits, gemm),
    )


def _gemm(model: EngineModel, target: Target, request: BuildRequest) -> Setting:
    name, plugin, precision = "gemm_plugin", request.gemm_plugin, PRECISIONS[model.precision]
    own = precision.own_gemm_plugin
    if plugin is not None:
        if plugin not in _GEMM_CHOICES:
            raise UsageError(f"gemm_plugin {plugin!r} is not one of {', '.join(_GEMM_CHOICES)}")
        if plugin != own and any(plugin == other.own_gemm_plugin for other in PRECISIONS.values()):
            raise UnsupportedError(
                f"gemm_plugin {plugin} needs {plugin} weights; the checkpoint has {model.precision}"
            )
        return Setting(name, plugin, _AS_ASKED)
    if request.weight_streaming:
        return Setting(name, "disable", "weight streaming works on TensorRT's own GEMMs")
    # FP8 has GEMMs of two kinds: the plugin's for small batches, TensorRT's own for large ones.
    if own and own != precision.gemm_plugin and request.profile == "latency":
        check_support(f"{own}-gemm-plugin", target)
        return Setting(name, own, f"{own.upper()} kernels for small batches")
    return Setting(name, precision.gemm_plugin, _GEMM_REASONS[precision.gemm_plugin])


def _fp8_kernels(model: EngineModel, target: Target, request: BuildRequest) -> Iterator[Setting]:
    if request.low_latency_gemm:
        yield _fp8_plugin("low_latency_gemm_plugin", "--low-latency-gemm", model, target)
    if request.gemm_swiglu:
        setting = _fp8_plugin("gemm_swiglu_plugin", "--gemm-swiglu", model, target)
        if not family_of(model.spec.architecture).gated:
            raise UnsupportedError(
                f"--gemm-swiglu fuses a gate, which {model.spec.architecture} does not have"
            )
        yield setting
    if "fp8_rowwise_gemm_plugin" in PRECISIONS[model.precision].own_flags:
        yield Setting("fp8_rowwise_gemm_plugin", "auto", "what rowwise FP8 weights need")


def _fp8_plugin(flag: str, option: str, model: EngineModel, target: Target) -> Setting:
    if flag not in PRECISIONS[model.precision].own_flags:
        having = " or ".join(p.name for p in PRECISIONS.values() if flag in p.own_flags)
        raise UnsupportedError(
            f"{option} needs {having} weights; the checkpoint has {model.precision}"
        )
    check_support(flag.replace("_", "-"), target)
    return Setting(flag, "fp8", _AS_ASKED)


def _fusions(model: EngineModel, request: BuildRequest) -> Iterator[Setting]:
    tp, family = model.parallelism.tp, family_of(model.spec.architecture)
    flags = PRECISIONS[model.precision].own_flags
    # TensorRT-LLM passes over it for other quantizations, and knows gates of SiLU and GELU only.
    fused = family.gated and "use_fused_mlp" in flags
    why = "gate and up projection in one GEMM" if fused else "only for gated FP8 MLPs"
    yield Setting("use_fused_mlp", switch(fused), why)
    # TensorRT-LLM goes by the architecture's name: Mistral's, of the same graph, is not on its
    # list.
    is_llama = model.spec.architecture == "LlamaForCausalLM"
    possible = is_llama and tp > 1
    if request.reduce_fusion and not possible:
        raise UnsupportedError(
            "--reduce-fusion is for LlamaForCausalLM on several GPUs; this is "
            f"{model.spec.architecture} with --tp {tp}"
        )
    wanted = (
        request.profile == "latency" if request.reduce_fusion is None else request.reduce_fusion
    )
    if possible and wanted:
        why = _AS_ASKED if request.reduce_fusion else "all-reduce and norm in one kernel"
        yield Setting("reduce_fusion", "enable", why)
        if "user_buffer" in flags:
            yield Setting("user_buffer", "enable", "saves a copy per all-reduce")
    elif is_llama and "norm_quant_fusion" in flags:
        # Beside reduce_fusion, whose kernel quantizes too, TensorRT-LLM switches it off.
        yield Setting("norm_quant_fusion", "enable", "norm and FP4 quantization in one kernel")


def _profiles(
    model: EngineModel, request: BuildRequest, limits: Limits, gemm: Setting
) -> Iterator[Setting]:
    requested = request.multiple_profiles
    useful = (
        "multiple_profiles" in PRECISIONS[model.precision].own_flags
        and request.profile == "throughput"
        # TensorRT chooses kernels by profile for its own GEMMs; a plugin chooses them by itself.
        and gemm.value == "disable"
        and not request.opt_num_tokens
        and limits.max_num_tokens <= SAFE_NUM_TOKENS
    )
    on = useful if requested is None else requested
    if on and limits.max_num_tokens > SAFE_NUM_TOKENS:
        raise UsageError(
            f"multiple profiles with max_num_tokens {limits.max_num_tokens} were seen to fail; "
            f"lower it to {SAFE_NUM_TOKENS} or drop one of them"
        )
    if requested is not None:
        why = _AS_ASKED
    elif on:
        why = "TensorRT's GEMMs get tuned for several step sizes"
    elif request.opt_num_tokens:
        why = "opt_num_tokens is what the kernels are tuned for"
    else:
        why = "one is enough"
    yield Setting("multiple_profiles", switch(on), why)
    if request.opt_num_tokens:
        yield Setting("opt_num_tokens", request.opt_num_tokens, _AS_ASKED)
