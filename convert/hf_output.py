"""The other output: a Hugging Face folder quantized as ModelOpt's unified form has it.

TensorRT-LLM's PyTorch runtime, vLLM and SGLang load it. It has the tensors of the source, q, k and
v apart and one file for any number of GPUs, each quantized weight with its scales beside it, and it
says so twice: in hf_quant_config.json and in config.json.

Those runtimes join q, k and v, and gate and up, under one scale: TensorRT-LLM and vLLM requantize
FP8 weights to the largest as they load them. Weights that have one from the start are rounded once.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CONFIG_NAME, WEIGHTS_NAME
from minitron_trt.convert.conversion_plan import (
    ConversionPlan,
    Part,
    TensorPlan,
    check_groups,
    fused,
)
from minitron_trt.convert.source.hf_config import UNREAD_KEYS, config_record
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.source.quantization_config import QUANTIZATION_FILE, QUANTIZATION_KEYS
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.families import (
    HEAD,
    KEY_PROJECTION,
    VALUE_PROJECTION,
    Place,
    Source,
    TensorRule,
    family_of,
)
from minitron_trt.quantization.precisions import (
    KV_CACHES,
    KV_SCALE,
    PRECISIONS,
    Inputs,
    Precision,
    Side,
    Stored,
)
from minitron_trt.spec import ModelSpec, Parallelism
from minitron_trt.tensorfile import TensorEntry, lay_out
from minitron_trt.version import __version__

_PRODUCER: Final = {"name": "minitron-trt", "version": __version__}
_WINDOW: Final = "sliding_window"
_UNQUANTIZED_MODULES: Final = ["lm_head", "model.embed_tokens"]


def plan_hf(
    source: ModelSource, precision: Precision, parallelism: Parallelism, kv_cache: str | None
) -> ConversionPlan:
    """Lay out the one file; UnsupportedError when this form does not have the formats."""
    if parallelism.world_size > 1:
        raise UsageError("--format hf has one file for any number of GPUs; leave out --tp and --pp")
    if not precision.in_hf:
        known = ", ".join(name for name, known in PRECISIONS.items() if known.in_hf)
        raise UnsupportedError(f"--format hf does not have {precision.name}; it has {known}")
    precision.check(source.spec.architecture, kv_cache)
    if kv_cache:
        _check_kv_cache(kv_cache, precision)
    layout = HfModel(source.spec, precision, kv_cache).tensors()
    tensors = tuple(_planned(tensor, source, precision) for tensor in layout)
    return ConversionPlan(
        spec=source.spec,
        precision=precision,
        parallelism=parallelism,
        ranks=(tensors,),
        kv_cache=kv_cache,
        form="hf",
    )


def has_kv_scales(precision: Precision) -> bool:
    """Return whether a folder of this precision can have scales of a KV cache.

    TensorRT-LLM and vLLM read them only beside quantized weights: both refuse a folder whose
    quantization names no `quant_algo`.
    """
    return precision.algorithm is not None


def _check_kv_cache(kv_cache: str, precision: Precision) -> None:
    if not KV_CACHES[kv_cache].in_hf:
        known = " or ".join(name for name, known in KV_CACHES.items() if known.in_hf)
        raise UnsupportedError(f"--format hf has no {kv_cache} KV cache; use --kv-cache {known}")
    if not has_kv_scales(precision):
        raise UnsupportedError(
            f"--format hf has KV cache scales beside quantized weights only: its runtimes refuse "
            f"them beside {precision.name}; leave out --kv-cache, and name the cache where it is "
            "loaded (TensorRT-LLM: kv_cache_config.dtype, vLLM: --kv-cache-dtype)"
        )


@dataclass(frozen=True, slots=True)
class HfTensor:
    """A tensor of the folder, and what of a model it holds."""

    name: str
    dtype: str  # safetensors' name
    shape: tuple[int, ...]
    layer: int = 0
    rule: TensorRule | None = None  # None for the scale of a KV cache, which no rule makes
    origin: Source | None = None  # which of the rule's
    stored: Stored | None = None  # which of a quantized layer's tensors; None for a plain one

    @property
    def module(self) -> str:
        """Return the name of the layer that it belongs to."""
        return self.name.rpartition(".")[0]


@dataclass(frozen=True, slots=True)
class HfModel:
    """A model as a folder has it."""

    spec: ModelSpec
    precision: Precision
    kv_cache: str | None = None  # a name in KV_CACHES, of one that has scales

    def tensors(self) -> Iterator[HfTensor]:
        """Yield the tensors in the order of the folder's file."""
        spec = self.spec
        for rule in family_of(spec.architecture).rules:
            for layer in range(spec.layers) if rule.place is Place.LAYER else (0,):
                for origin in rule.sources:
                    if not (spec.tied and origin.name == HEAD):
                        yield from _stored_as(rule, origin, layer, spec, self.precision)
        for layer in range(spec.layers) if self.kv_cache else ():
            for projection, name in ((KEY_PROJECTION, "k_scale"), (VALUE_PROJECTION, "v_scale")):
                name = f"{projection.format(layer)}.{name}"
                yield HfTensor(name, KV_SCALE.storage, (), layer, stored=KV_SCALE)

    def lay_out(self, folder: Path) -> tuple[bytes, tuple[TensorEntry, ...]]:
        """Return the header of the folder's file, and where each of the tensors lies in it."""
        named = ((tensor.name, tensor.dtype, tensor.shape) for tensor in self.tensors())
        return lay_out(folder / WEIGHTS_NAME, named)

    def write_configs(self, folder: Path, source: Mapping[str, Any]) -> None:
        """Write config.json and hf_quant_config.json.

        The first is the source's but for its number format and the facts of the model, which are as
        the weights have them and where transformers 4.57 and 5 look for them.
        """
        replaced = ("torch_dtype", "dtype", *QUANTIZATION_KEYS, *UNREAD_KEYS)
        config = {key: value for key, value in source.items() if key not in replaced}
        facts = config_record(self.spec)
        # A window as long as the context stays as it was stated.
        config |= {key: facts[key] for key in facts if key != _WINDOW or key not in config}
        # transformers calls it `dtype` since 4.56 and reads this name still, which is the only one
        # that older versions know.
        config["torch_dtype"] = self.precision.dtype
        if self.precision.algorithm:
            config["quantization_config"] = _quantization(self.precision, self.kv_cache)
            kv_cache = KV_CACHES[self.kv_cache].algorithm if self.kv_cache else None
            record = {
                "producer": _PRODUCER,
                "quantization": {
                    "quant_algo": self.precision.algorithm,
                    "kv_cache_quant_algo": kv_cache,
                    **_group(self.precision),
                    "exclude_modules": _UNQUANTIZED_MODULES,
                },
            }
            (folder / QUANTIZATION_FILE).write_text(json.dumps(record, indent=2) + "\n")
        (folder / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n")


def _stored_as(
    rule: TensorRule, origin: Source, layer: int, spec: ModelSpec, precision: Precision
) -> Iterator[HfTensor]:
    """Yield a tensor of the model, or what a quantized layer has in its place."""
    name, shape = origin.name.format(layer), origin.shape(spec)
    if rule.linear is None or not precision.tensors:
        yield HfTensor(name, precision.storage, shape, layer, rule, origin)
        return
    rows, columns = shape
    for stored in precision.tensors:
        yield HfTensor(
            name=f"{name.removesuffix('.weight')}.{stored.hf_suffix}",
            dtype=stored.storage,
            # ModelOpt stores the one scale of a whole tensor without an axis.
            shape=() if stored.dimension(Side.ONE) is not None else stored.shape(rows, columns),
            layer=layer,
            rule=rule,
            origin=origin,
            stored=stored,
        )


def _planned(tensor: HfTensor, source: ModelSource, precision: Precision) -> TensorPlan:
    """Return a tensor with the bytes of the source that it is made of."""
    if tensor.rule is None or tensor.origin is None:
        return TensorPlan(
            name=tensor.name,
            dtype=tensor.dtype,
            shape=tensor.shape,
            parts=(),
            stored=tensor.stored,
            caches=(tensor.module,),
        )
    name = tensor.origin.name.format(tensor.layer)
    rows, *columns = tensor.origin.shape(source.spec)
    extent = (0, columns[0] if columns else 1)
    part = Part(source.tensors[name], (0, rows), extent, 0, source.scale_of(name))
    if tensor.stored is None:
        return TensorPlan(tensor.name, tensor.dtype, tensor.shape, (part,))
    check_groups(tensor.stored, name, (part,), precision, 1)
    calibrated_as = str(tensor.rule.linear).format(tensor.layer)
    return TensorPlan(
        name=tensor.name,
        dtype=tensor.dtype,
        shape=tensor.shape,
        parts=(part,),
        linear=tensor.module,
        stored=tensor.stored,
        calibrated_as=calibrated_as,
        amax_group=fused(calibrated_as),
    )


def _group(precision: Precision) -> dict[str, int]:
    size = precision.settings.get("group_size")
    return {} if size is None else {"group_size": size}


def _quantization(precision: Precision, kv_cache: str | None) -> dict[str, Any]:
    bits = 4 if precision.inputs is Inputs.BLOCK_FP4 else 8
    fixed = {"dynamic": False, "type": "float"}
    numbers = {**fixed, "num_bits": bits, **_group(precision)}
    group = {"input_activations": numbers, "weights": numbers, "targets": ["Linear"]}
    # As in ModelOpt (convert_hf_config.py), which writes none for the other formats written here.
    static = precision.inputs in (Inputs.STATIC_FP8, Inputs.BLOCK_FP4)
    return {
        **({"config_groups": {"group_0": group}} if static else {}),
        "ignore": _UNQUANTIZED_MODULES,
        "quant_algo": precision.algorithm,
        **({"kv_cache_scheme": {**fixed, "num_bits": 8}} if kv_cache else {}),
        "producer": _PRODUCER,
        "quant_method": "modelopt",
    }
