"""The scales that an FP8 folder keeps beside its weights, checked: a wrong one spoils a layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from minitron_trt.convert.source.quantization_config import HfQuantization
from minitron_trt.dtypes import FP8, UNQUANTIZED
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import (
    EMBEDDING,
    HEAD,
    KEY_PROJECTION,
    VALUE_PROJECTION,
    family_of,
)
from minitron_trt.quantization.precisions import PRECISIONS, Inputs
from minitron_trt.quantization.scales import check_scale, read_scale
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry

# Where the scales of the KV cache may lie in a layer: as ModelOpt has them, as compressed-tensors
# does now and did first, and as AutoFP8 did before that.
_KV_FORMS: Final = (
    ("k_proj.k_scale", "v_proj.v_scale"),
    ("k_scale", "v_scale"),
    ("k_proj.output_scale", "v_proj.output_scale"),
    ("kv_scale",),
)

Scale: TypeAlias = "float | TensorEntry"
"""What a weight's numbers are multiplied by: one number, or a tensor of one per row."""


@dataclass(frozen=True, slots=True)
class StoredScales:
    """The scales of an FP8 folder, by the name of the weight."""

    precision: str | None  # whose tensors the folder has; None: only the KV cache is quantized
    weights: Mapping[str, Scale]
    inputs: Mapping[str, float]  # empty where they are computed token by token
    kv_caches: Mapping[str, float]  # by the key's or value's projection; empty if unquantized
    unquantized: tuple[str, ...]  # linear weights that were left as they are


def take_scales(
    quantization: HfQuantization, spec: ModelSpec, tensors: dict[str, TensorEntry]
) -> StoredScales:
    """Take the scales out of a folder's tensors.

    BadInputError names the tensor that is missing, misshapen, not a usable scale, or FP8 where it
    should not be or the reverse; UnsupportedError an FP8 embedding or head.
    """
    for name in (EMBEDDING, HEAD):
        if name in tensors and tensors[name].dtype == FP8:
            raise UnsupportedError(
                f"tensor {name} is {FP8}, and TensorRT-LLM keeps it wide; convert the bf16 model"
            )
    precision = PRECISIONS[quantization.precision] if quantization.precision else None
    weights: dict[str, Scale] = {}
    inputs: dict[str, float] = {}
    unquantized = []
    for name in _linears(spec, tensors):
        module = name.removesuffix(".weight")
        if not quantization.is_quantized(module):
            _check_dtype(tensors[name], UNQUANTIZED, "is listed as not quantized")
            unquantized.append(name)
            continue
        _check_dtype(tensors[name], {FP8}, "is not listed as left in its own format")
        entry = _taken(tensors, f"{module}.weight_scale")
        if precision and precision.inputs is Inputs.STATIC_FP8:
            weights[name] = _number(entry)
            inputs[name] = _number(_taken(tensors, f"{module}.input_scale"))
        else:
            weights[name] = _per_row(entry, tensors[name])
    kv_caches = dict(_kv_caches(quantization, spec, tensors))
    return StoredScales(quantization.precision, weights, inputs, kv_caches, tuple(unquantized))


def _linears(spec: ModelSpec, tensors: Mapping[str, TensorEntry]) -> Iterator[str]:
    """Yield the linear weights that are there; the caller names those that are missing."""
    for rule in family_of(spec.architecture).rules:
        for source in rule.sources if rule.linear else ():
            for layer in range(spec.layers):
                if (name := source.name.format(layer)) in tensors:
                    yield name


def _check_dtype(entry: TensorEntry, allowed: frozenset[str] | set[str], why: str) -> None:
    if entry.dtype not in allowed:
        raise BadInputError(
            f"tensor {entry.name} is {entry.dtype} but {why} in the folder's quantization config; "
            f"expected {', '.join(sorted(allowed))}"
        )


def _taken(tensors: dict[str, TensorEntry], name: str) -> TensorEntry:
    if name not in tensors:
        raise BadInputError(
            f"the source lacks tensor {name}; expected by its quantization config: download it "
            "again or quantize it again"
        )
    # Taken out: scales that nothing calls for are left over, and refused by name.
    entry = tensors.pop(name)
    if entry.dtype not in UNQUANTIZED:
        raise BadInputError(
            f"tensor {name} is {entry.dtype}; expected one of {', '.join(sorted(UNQUANTIZED))}"
        )
    return entry


def _number(entry: TensorEntry) -> float:
    if entry.shape not in ((), (1,)):
        raise BadInputError(f"tensor {entry.name} is {list(entry.shape)}; expected one number")
    values = read_scale(entry)
    check_scale(entry, values, "quantize the model again")
    return float(values[0])


def _per_row(entry: TensorEntry, weight: TensorEntry) -> TensorEntry:
    rows = weight.shape[0] if weight.shape else 0
    if entry.shape not in ((rows,), (rows, 1)):
        raise BadInputError(
            f"tensor {entry.name} is {list(entry.shape)}; expected one number for each of the "
            f"{rows} rows of its weight"
        )
    check_scale(entry, read_scale(entry), "quantize the model again")
    return replace(entry, shape=(rows,))


def _kv_caches(
    quantization: HfQuantization, spec: ModelSpec, tensors: dict[str, TensorEntry]
) -> Iterator[tuple[str, float]]:
    """Yield the scales of each layer's keys and values."""
    layers = [f"model.layers.{layer}.self_attn." for layer in range(spec.layers)]
    forms = [f for f in _KV_FORMS if any(la + name in tensors for la in layers for name in f)]
    if forms or quantization.kv_cache:
        # Where scales are promised and none is there, the error names ModelOpt's.
        form = (forms or _KV_FORMS)[0]
        for index, layer in enumerate(layers):
            scales = [_number(_taken(tensors, layer + name)) for name in form]
            # The oldest form has one for both.
            yield KEY_PROJECTION.format(index), scales[0]
            yield VALUE_PROJECTION.format(index), scales[-1]
