"""Linear layers and KV caches of any precision, rounded where the engine rounds.

A weight is dequantized once, by the scheme that quantized it. Inputs are rounded to FP8 or FP4 at
every call and kept as float32: the engine multiplies the quantized numbers, sums in float32 and
applies both scales last, and float32 products of the scaled numbers are the same sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.executor.products import product
from minitron_trt.families import family_of
from minitron_trt.quantization.number_formats import Array
from minitron_trt.quantization.precisions import KV_SCALE, Inputs, Precision

_LARGEST_E4M3, _LARGEST_E2M1 = 448.0, 6.0
_SMALLEST_TOKEN_SCALE = 1 / (448 * 512)  # TensorRT-LLM's; a token of zeros has no scale of its own
_INPUT_SCALE, _PREQUANT = "activation_scaling_factor", "prequant_scaling_factor"


class Linear:
    """A layer's product; its input is rounded as the precision says."""

    def __init__(
        self, precision: Precision, tensors: Mapping[str, Tensor], target: torch.Tensor
    ) -> None:
        """Dequantize a layer's tensors to the device and dtype of `target`."""
        self._inputs = precision.inputs
        # A product with quantized inputs is summed in float32; the others are the GPU's usual ones.
        dtype = target.dtype if self._inputs is Inputs.UNQUANTIZED else torch.float32
        weight = tensors["weight"]
        if precision.scheme:
            arrays = {name: _array(tensor) for name, tensor in tensors.items()}
            weight = torch.from_numpy(precision.scheme.dequantize(arrays))
        self._weight = weight.to(device=target.device, dtype=dtype)
        self._scale = _moved(tensors.get(_INPUT_SCALE), target.device, torch.float32)
        self._prequant = _moved(tensors.get(_PREQUANT), target.device, dtype)

    @property
    def weight(self) -> Tensor:
        """Return the weight, [out, in], by which inputs are multiplied; AWQ's factors are in it."""
        return self._weight if self._prequant is None else self._weight * self._prequant

    def __call__(self, values: Tensor) -> Tensor:
        """Return the product with packed inputs [T, in]."""
        inner = values.to(self._weight.dtype)
        if self._prequant is not None:
            inner = inner * self._prequant
        return product(self._round(inner), self._weight).to(values.dtype)

    def _round(self, values: Tensor) -> Tensor:
        if self._inputs is Inputs.TOKEN_FP8:
            scale = values.abs().amax(-1, keepdim=True) / _LARGEST_E4M3
            return to_e4m3(values, scale.clamp(min=_SMALLEST_TOKEN_SCALE))
        if self._scale is None:
            return values
        if self._inputs is Inputs.STATIC_FP8:
            return to_e4m3(values, self._scale)
        return _to_nvfp4(values, self._scale)


class KVRounding:
    """Keys and values as a quantized KV cache keeps them."""

    def __init__(self, kind: str, scale: Tensor) -> None:
        """Take a name in KV_CACHES and the scale of a layer."""
        self._whole_numbers = kind == "int8"
        self._scale = scale

    def __call__(self, values: Tensor) -> Tensor:
        """Return the values rounded."""
        exact = values.float()
        if self._whole_numbers:
            rounded = (exact / self._scale).round().clamp(-128, 127) * self._scale
        else:
            rounded = to_e4m3(exact, self._scale)
        return rounded.to(values.dtype)


def linear_layers(
    checkpoint: Checkpoint, weights: dict[str, Tensor], target: Tensor, layers: Sequence[int]
) -> dict[str, Linear]:
    """Take the linear layers' tensors out of `weights`; return the layers by name."""
    linears = {}
    precision = checkpoint.precision
    suffixes = [stored.suffix for stored in precision.tensors] or ["weight"]
    for rule in family_of(checkpoint.spec.architecture).rules:
        for layer in layers if rule.linear else ():
            name = str(rule.linear).format(layer)
            tensors = {suffix: weights.pop(f"{name}.{suffix}") for suffix in suffixes}
            linears[name] = Linear(precision, tensors, target)
    return linears


def kv_roundings(
    checkpoint: Checkpoint, weights: dict[str, Tensor], target: Tensor, layers: Sequence[int]
) -> dict[int, KVRounding]:
    """Take the KV caches' scales out of `weights`; return each layer's rounding, if any."""
    if checkpoint.kv_cache is None:
        return {}
    return {
        layer: KVRounding(
            checkpoint.kv_cache,
            weights.pop(f"transformer.layers.{layer}.{KV_SCALE.suffix}").to(target.device),
        )
        for layer in layers
    }


def to_e4m3(values: Tensor, scale: Tensor) -> Tensor:
    """Return float32 values rounded to E4M3 numbers times a scale; what is beyond is clipped."""
    scaled = (values / scale).clamp(-_LARGEST_E4M3, _LARGEST_E4M3)
    return scaled.to(torch.float8_e4m3fn).float() * scale


def _to_nvfp4(values: Tensor, tensor_scale: Tensor) -> Tensor:
    blocks = values.reshape(*values.shape[:-1], -1, 16)
    exact = blocks.abs().amax(-1, keepdim=True) / _LARGEST_E2M1
    # A block's scale is itself stored as E4M3 times the tensor's scale.
    scale = to_e4m3(exact / tensor_scale, torch.ones_like(exact)) * tensor_scale
    size = (blocks.abs() / scale).nan_to_num(0.0).clamp(max=_LARGEST_E2M1)
    # One bit of fraction: steps of half the power of two below, and of 0.5 under 1.
    step = torch.exp2(torch.log2(size.clamp(min=1.0)).floor() - 1)
    rounded = (size / step).round() * step * scale
    return torch.copysign(rounded, blocks).flatten(-2)


def _moved(tensor: Tensor | None, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(device=device, dtype=dtype)


def _array(tensor: Tensor) -> Array:
    if tensor.dtype is torch.bfloat16:
        return np.asarray(tensor.view(torch.uint16)).view(ml_dtypes.bfloat16)
    return np.asarray(tensor)
