"""A conversion of a folder with scales of its own: what it may become, and what is taken as it is.

A weight that stays FP8 keeps its bytes and its scale. Only where several become one matrix with one
scale, as q, k and v do, are those brought to it whose own scale is smaller. Runtimes of the Hugging
Face form do the same to what they join when they load it, so there it is done to gate and up, too.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import Final

from minitron_trt.convert.conversion_plan import ConversionPlan, TensorPlan
from minitron_trt.convert.source.stored_scales import StoredScales
from minitron_trt.convert.source.weight_files import tensor_names
from minitron_trt.errors import UnsupportedError
from minitron_trt.quantization.precisions import PRECISIONS, Precision
from minitron_trt.tensorfile import TensorEntry

_KV_CACHE: Final = "fp8"
_INPUT_SCALE: Final = "activation_scaling_factor"


def resolve_precision(name: str | None, scales: StoredScales | None) -> Precision:
    """Return the precision; without a name it is the source's own.

    UnsupportedError when it would have to be computed from numbers that FP8 has rounded.
    """
    if scales is None or scales.precision is None:
        return PRECISIONS[name or "bf16"]
    chosen = PRECISIONS[name or scales.precision]
    if chosen.name == scales.precision and scales.unquantized:
        raise UnsupportedError(
            f"the source is {chosen.name} except {tensor_names(list(scales.unquantized))}, and a "
            "checkpoint has all linear layers in one precision; use --precision bf16, or convert "
            "the bf16 model"
        )
    if chosen.algorithm and chosen.name != scales.precision:
        raise UnsupportedError(
            f"--precision {chosen.name} would round a second time what the source has rounded to "
            f"{scales.precision}; convert the bf16 model, or use --precision {scales.precision}, "
            "bf16 or fp16"
        )
    return chosen


def resolve_kv_cache(name: str | None, scales: StoredScales | None, *, keep: bool) -> str | None:
    """Return the KV cache's format; None keeps it in the model's dtype.

    Without a name it is the source's own where `keep` says so. UnsupportedError when its scales
    would have to be measured with weights that are FP8.
    """
    stored = _KV_CACHE if scales and scales.kv_caches else None
    if name is None and keep:
        return stored
    if name and name != stored and scales and scales.precision:
        raise UnsupportedError(
            f"--kv-cache {name} needs scales, which an FP8 source must bring along and this "
            f"one {'has for fp8' if stored else 'does not'}; convert the bf16 model"
        )
    return name


def with_stored_scales(plan: ConversionPlan, scales: StoredScales) -> ConversionPlan:
    """Return the plan with the source's scales in place of those that text would have to show."""
    joined: dict[str, set[str]] = defaultdict(set)
    for tensor in (tensor for rank in plan.ranks for tensor in rank):
        joined[_matrix(plan, tensor)].update(part.source.name for part in tensor.parts)
    ranks = tuple(
        tuple(_from_stored(t, scales, plan.kv_cache, joined[_matrix(plan, t)]) for t in rank)
        for rank in plan.ranks
    )
    return replace(plan, ranks=ranks)


def _matrix(plan: ConversionPlan, tensor: TensorPlan) -> str:
    """Return the name of the matrix with one scale that a weight becomes part of.

    In a checkpoint fc and gate are two until an engine is built of it.
    """
    return tensor.amax_group if plan.form == "hf" else str(tensor.linear)


def _from_stored(
    tensor: TensorPlan, scales: StoredScales, kv_cache: str | None, joined: set[str]
) -> TensorPlan:
    """Return a tensor made of what is stored; `joined` are the weights that share its scale."""
    if tensor.caches and kv_cache == _KV_CACHE and scales.kv_caches:
        # TensorRT-LLM has one scale for keys and values: the larger clips neither.
        value = max(scales.kv_caches[name] for name in tensor.caches)
        return replace(tensor, caches=(), value=value)
    if tensor.stored is None or tensor.caches or scales.precision is None:
        return tensor
    own = [scales.weights[part.source.name] for part in tensor.parts]
    rows = [scale for scale in own if isinstance(scale, TensorEntry)]
    numbers = {n: s for n in joined if not isinstance(s := scales.weights[n], TensorEntry)}
    if rows and not tensor.stored.is_scale:
        # Rows have their own scales.
        parts = [replace(part, scale=1.0) for part in tensor.parts]
    elif rows:
        parts = [
            replace(part, source=scale, columns=(0, 1), scale=1.0)
            for part, scale in zip(tensor.parts, rows, strict=True)
        ]
    elif tensor.stored.is_scale:
        is_input = tensor.stored.suffix == _INPUT_SCALE
        return _with_value(
            tensor, max(scales.inputs[n] if is_input else numbers[n] for n in joined)
        )
    else:
        # The codes of those whose own scale is smaller are rescaled to the largest.
        shared = max(numbers.values())
        parts = [replace(part, scale=numbers[part.source.name] / shared) for part in tensor.parts]
    # Without a layer's name it is moved as bytes: nothing measures or quantizes it.
    return replace(tensor, parts=tuple(parts), linear=None)


def _with_value(tensor: TensorPlan, value: float) -> TensorPlan:
    return replace(tensor, parts=(), linear=None, value=value)
