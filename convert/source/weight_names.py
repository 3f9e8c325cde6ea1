"""What tensors' names tell: wrappers to take off, and quantization that no config mentions."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Final

from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.tensorfile import TensorEntry

log = logging.getLogger(__name__)

# Of torch.compile, of data-parallel training, and of a merged adapter. The whole model is in them.
_WRAPPERS: Final = ("_orig_mod.", "module.", "base_model.model.")
_ADAPTER_PARTS: Final = (".lora_", ".base_layer.")
_BITSANDBYTES: Final = (".quant_map", ".SCB")


def unwrapped(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return tensors by the model's own names, without the prefix of what it was wrapped in.

    BadInputError where only some have the prefix, or an adapter is not merged.
    """
    named = dict(tensors)
    for name in named:
        if any(part in name for part in _ADAPTER_PARTS):
            raise BadInputError(
                f"the source has tensor {name} of an adapter; merge it first (peft: "
                "merge_and_unload, then save_pretrained) and convert the merged model"
            )
    while wrapper := next((w for w in _WRAPPERS if any(name.startswith(w) for name in named)), ""):
        bare = next((name for name in named if not name.startswith(wrapper)), None)
        if bare is not None:
            raise BadInputError(
                f"the names of some tensors begin with {wrapper!r} and that of {bare} does not; "
                "save the model itself, without what it was wrapped in"
            )
        log.warning("the names of the tensors begin with %r, which is taken off", wrapper)
        named = {name.removeprefix(wrapper): entry for name, entry in named.items()}
    return named


def refuse_quantized(tensors: Mapping[str, TensorEntry]) -> None:
    """Raise UnsupportedError, naming the method, for weights that are packed and say not how."""
    for name in tensors:
        method = _packed_by(name, tensors)
        if method:
            raise UnsupportedError(
                f"tensor {name} is of a model quantized by {method}, though config.json has no "
                "quantization_config; convert the bf16 model instead"
            )


def _packed_by(name: str, tensors: Mapping[str, TensorEntry]) -> str | None:
    if name.endswith(_BITSANDBYTES):
        return "bitsandbytes"
    module, dot, part = name.rpartition(".")
    if (dot, part) != (".", "qweight"):
        return None
    scales = tensors.get(f"{module}.scales")
    # GPTQ packs eight inputs into a number, and AWQ eight outputs; each output has its scales.
    whole = scales is not None and scales.shape[-1:] == tensors[name].shape[-1:]
    return "GPTQ" if whole or f"{module}.g_idx" in tensors else "AWQ"
