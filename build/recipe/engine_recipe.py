"""EngineRecipe: everything `trtllm-build` is told about an engine, and why."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.context_attention import ContextAttention, choose_attention
from minitron_trt.build.recipe.engine_limits import SAFE_NUM_TOKENS, LimitChoice, Limits
from minitron_trt.build.recipe.engine_memory import Forecast
from minitron_trt.build.recipe.flags import check_arguments
from minitron_trt.build.recipe.plugins import plugin_settings
from minitron_trt.build.recipe.request import BuildRequest, Setting
from minitron_trt.checkpoint_tensors import shard_shape
from minitron_trt.console import size_text
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.families import Split, family_of
from minitron_trt.gpus import Sure, Target, check_support
from minitron_trt.quantization.precisions import PRECISIONS

COMPILER: Final = "trtllm-build"


@dataclass(frozen=True, slots=True)
class EngineRecipe:
    """A build that has passed every rule: settings with reasons, limits and forecast memory."""

    model: EngineModel
    target: Target
    version: str
    profile: str
    limits: Limits
    forecast: Forecast
    attention: ContextAttention
    settings: tuple[Setting, ...]
    notes: tuple[str, ...] = ()

    def argv(self, checkpoint: Path | str, output: Path | str) -> list[str]:
        """Return the compiler's command line."""
        return [
            COMPILER,
            f"--checkpoint_dir={checkpoint}",
            f"--output_dir={output}",
            *(setting.argument for setting in self.settings),
        ]

    def explain(self) -> str:
        """Return every argument beside its reason, then the notes."""
        width = max(len(setting.argument) for setting in self.settings)
        lines = [f"  {s.argument:<{width}}  {s.reason}" for s in self.settings]
        return "\n".join((*lines, *(f"  note: {note}" for note in self.notes)))

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints and the engine's manifest keeps."""
        return {
            "model": self.model.name,
            "precision": self.model.precision,
            "kv_cache": self.model.kv_cache or "auto",
            "tp": self.model.parallelism.tp,
            "pp": self.model.parallelism.pp,
            "target": self.target.name,
            "sm": self.target.sm,
            "gpu": self.target.gpu.name,
            "trtllm_version": self.version,
            "profile": self.profile,
            "limits": asdict(self.limits),
            "settings": [asdict(setting) for setting in self.settings],
            "memory": self.forecast.to_json(),
            "notes": list(self.notes),
        }


def choose_recipe(model: EngineModel, target: Target, request: BuildRequest) -> EngineRecipe:
    """Turn a request into a recipe; an error says which rule it breaks and what to do."""
    notes = list(_check_model(model, target))
    attention = choose_attention(model, target, request)
    choice = LimitChoice(model, target, request, attention)
    limits, forecast = choice.choose()
    if limits.max_num_tokens > SAFE_NUM_TOKENS:
        notes.append(f"TensorRT-LLM warns about max_num_tokens above {SAFE_NUM_TOKENS}")
    if request.opt_num_tokens and request.opt_num_tokens > limits.max_num_tokens:
        raise UsageError(
            f"opt_num_tokens {request.opt_num_tokens} exceeds max_num_tokens "
            f"{limits.max_num_tokens}"
        )
    settings = (
        *choice.settings(limits),
        *_cache_settings(request),
        *attention.settings,
        *plugin_settings(model, target, request, limits),
        *_output_settings(request),
        *_speculation_settings(request),
        Setting("workers", _workers(model, request), "ranks built at once, one GPU each"),
    )
    check_arguments((setting.argument for setting in settings), request.version)
    return EngineRecipe(
        model=model,
        target=target,
        version=request.version,
        profile=request.profile,
        limits=limits,
        forecast=forecast,
        attention=attention,
        settings=settings,
        notes=(*notes, *choice.notes),
    )


def _check_model(model: EngineModel, target: Target) -> Iterator[str]:
    """Refuse what the architecture cannot run; note what nobody is known to have run."""
    # A checkpoint passed what is about the model when it was converted; what a plan asks about has
    # not, and no conversion knows the GPU.
    features, architecture = [model.precision], model.spec.architecture
    precision = PRECISIONS[model.precision]
    if architecture in precision.refused:
        raise UnsupportedError(
            f"{model.precision} is not available for {architecture}: "
            f"{precision.refused[architecture]}"
        )
    if architecture in precision.untried:
        yield f"TensorRT-LLM's table does not list {model.precision} for {architecture}"
    if model.kv_cache:
        features.append(f"kv-{model.kv_cache}")
        if model.kv_cache in precision.refused_kv_caches:
            raise UnsupportedError(
                "an FP8 KV cache does not build with w8a16 weights (TensorRT-LLM issue 1113); "
                "convert with --kv-cache auto or int8"
            )
    for feature in features:
        if check_support(feature, target).sure is Sure.UNVERIFIED:
            yield f"nobody is known to have built {feature} for {target.label}"
    _check_groups(model)
    if target.name != target.gpu.name:
        yield f"memory is that of {target.gpu.name} ({size_text(target.gpu.memory_bytes)})"


def _check_groups(model: EngineModel) -> None:
    """Refuse shards that would end within a group of weights of one scale."""
    size = PRECISIONS[model.precision].group_size
    if size is None:
        return
    spec, tp = model.spec, model.parallelism.tp
    for rule in family_of(spec.architecture).rules:
        if rule.split is Split.ROW and shard_shape(rule, spec, tp)[1] % size:
            raise UnsupportedError(
                f"--tp {tp} leaves {shard_shape(rule, spec, tp)[1]} inputs of "
                f"{rule.target.format(0)} per rank; {model.precision} needs a multiple of {size}"
            )


def _workers(model: EngineModel, request: BuildRequest) -> int:
    ranks = model.parallelism.world_size
    if request.workers > ranks:
        raise UsageError(f"--workers {request.workers} is more than the checkpoint's {ranks} ranks")
    return request.workers


def _cache_settings(request: BuildRequest) -> Iterator[Setting]:
    paged = request.kv_cache_type == "paged"
    why = "memory is taken block by block, as sequences grow" if paged else "as asked"
    yield Setting("kv_cache_type", request.kv_cache_type, why)
    if paged:
        default = request.tokens_per_block == 32
        yield Setting(
            "tokens_per_block",
            request.tokens_per_block,
            "TensorRT-LLM's default" if default else "as asked",
        )


def _output_settings(request: BuildRequest) -> Iterator[Setting]:
    if request.logits_dtype:
        yield Setting("logits_dtype", request.logits_dtype, "as asked; Triton must be told")
    flag = {
        "context": "gather_context_logits",
        "generation": "gather_generation_logits",
        "all": "gather_all_token_logits",
    }.get(request.gather_logits)
    if flag:
        yield Setting(flag, True, "as asked; takes memory and time at every step")
    if request.weight_streaming:
        why = "as asked; the share on the GPU is gpu_weights_percent when it runs"
        yield Setting("weight_streaming", True, why)


def _speculation_settings(request: BuildRequest) -> Iterator[Setting]:
    if request.speculation == "none":
        return
    yield Setting("speculative_decoding_mode", request.speculation, "as asked")
    yield Setting(
        "max_draft_len",
        request.max_draft_len,
        "as asked; max_seq_len grows by as many in the engine",
    )
