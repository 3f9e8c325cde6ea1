"""A conversion of an FP8 folder: what it may become, and which numbers are taken as they are.

A weight that stays FP8 keeps its bytes and its scale. Only where several become one matrix with one
scale, as q, k and v do, are those brought to it whose own scale is smaller.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from minitron_trt.convert.conversion_plan import ConversionPlan, TensorPlan
from minitron_trt.convert.source.stored_scales import StoredScales
from minitron_trt.convert.source.weight_files import tensor_names
from minitron_trt.errors import UnsupportedError
from minitron_trt.quantization.precisions import KV_SCALE, PRECISIONS, Precision
from minitron_trt.tensorfile import TensorEntry

_KV_CACHE: Final = "fp8"
_INPUT_SCALE: Final = "activation_scaling_factor"


def resolve_formats(
    precision: str | None, kv_cache: str | None, scales: StoredScales | None, *, keep_kv_cache: bool
) -> tuple[Precision, str | None]:
    """Return the precision, and the KV cache's format: None keeps it in the model's dtype.

    Without a precision it is the source's own. UnsupportedError when the formats would have to be
    computed from numbers that FP8 has rounded.
    """
    stored = _KV_CACHE if scales and scales.kv_caches else None
    if kv_cache is None and keep_kv_cache:
        kv_cache = stored
    if scales is None:
        return PRECISIONS[precision or "bf16"], kv_cache
    chosen = PRECISIONS[precision or scales.precision]
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
    if kv_cache and kv_cache != stored:
        raise UnsupportedError(
            f"--kv-cache {kv_cache} needs scales, which an FP8 source must bring along and this "
            f"one {'has for fp8' if stored else 'does not'}; convert the bf16 model"
        )
    return chosen, kv_cache


def with_stored_scales(plan: ConversionPlan, scales: StoredScales) -> ConversionPlan:
    """Return the plan with stored scales in the place of computed ones; no text need run."""
    ranks = tuple(tuple(_from_stored(tensor, scales) for tensor in rank) for rank in plan.ranks)
    return replace(plan, ranks=ranks, scales_known=True)


def _from_stored(tensor: TensorPlan, scales: StoredScales) -> TensorPlan:
    if tensor.stored is None:
        return tensor
    if tensor.stored is KV_SCALE:
        return _with_value(tensor, scales.kv_caches[str(tensor.linear)])
    names = [part.source.name for part in tensor.parts]
    own = [scales.weights[name] for name in names]
    numbers = [scale for scale in own if not isinstance(scale, TensorEntry)]
    rows = [scale for scale in own if isinstance(scale, TensorEntry)]
    if not tensor.stored.is_scale:
        # Rows have their own scales. Parts that come to share one scale get the largest, and the
        # codes of the others are rescaled to it.
        shared = max(numbers, default=1.0)
        factors = [scale / shared for scale in numbers] or [1.0] * len(rows)
        parts = [replace(p, scale=f) for p, f in zip(tensor.parts, factors, strict=True)]
    elif rows:
        parts = [
            replace(part, source=scale, columns=(0, 1), scale=1.0)
            for part, scale in zip(tensor.parts, rows, strict=True)
        ]
    else:
        inputs = [scales.inputs[name] for name in names]
        return _with_value(tensor, max(inputs if tensor.stored.suffix == _INPUT_SCALE else numbers))
    return replace(tensor, parts=tuple(parts), linear=None)


def _with_value(tensor: TensorPlan, value: float) -> TensorPlan:
    return replace(tensor, parts=(), linear=None, value=value)
