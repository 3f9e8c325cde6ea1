"""Evaluate a TensorRT network in torch, for tests: what the documentation says each layer does.

It knows the network only through TensorRT's own objects, shares no code with what wrote it, and
fails on a layer, an option or a shape that it does not know. Two ways to compute: as typed, every
tensor rounded to the dtype that the network gives it, or `exact`, where bfloat16 and float16 stand
for float32, so that an error of the network cannot hide in rounding.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from minitron_trt.build.tensorrt.api import RTX

trt: Any = RTX.load()

DTYPES: Final[dict[Any, torch.dtype]] = {
    trt.bfloat16: torch.bfloat16,
    trt.float16: torch.float16,
    trt.float32: torch.float32,
    trt.fp8: torch.float8_e4m3fn,
    trt.int32: torch.int32,
    trt.int64: torch.int64,
    trt.bool: torch.bool,
}
_HALVES: Final = (torch.bfloat16, torch.float16)
_TYPE_CODES: Final = {int(dtype): dtype for dtype in DTYPES}


Inputs = list[Tensor]
"""The tensors of a layer; None in the place of an optional one that is not there."""
Rule = Callable[[Any, Inputs, torch.dtype], Tensor]


class UnknownLayerError(Exception):
    """The network does something whose meaning this interpreter was not taught."""


def expect(fact: bool, what: str) -> None:
    """Stop at an option that would change what a layer means."""
    if not fact:
        raise UnknownLayerError(what)


class Interpreter:
    """A network's layers in the order in which they were added, which is an order of computing."""

    def __init__(self, network: Any, *, exact: bool = False) -> None:
        self._network = network
        self._exact = exact
        self._layers = [
            _Layer(network.get_layer(i), self._dtype) for i in range(network.num_layers)
        ]
        self._constants: dict[str, Tensor] = {}

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the network's outputs by name; the inputs stay as they are."""
        network = self._network
        symbols = [network.get_input(i) for i in range(network.num_inputs)]
        expect({s.name for s in symbols} == inputs.keys(), f"inputs {sorted(inputs)}")
        values: dict[str, Tensor] = {}
        for symbol in symbols:
            self._store(values, symbol, inputs[symbol.name].to(self._dtype(symbol.dtype)))
        for layer in self._layers:
            found: list[Any] = [values[name] if name else None for name in layer.inputs]
            if layer.is_constant and layer.output.name not in self._constants:
                self._constants[layer.output.name] = layer.compute([])
            result = self._constants.get(layer.output.name)
            self._store(values, layer.output, layer.compute(found) if result is None else result)
        outputs = (network.get_output(i).name for i in range(network.num_outputs))
        return {name: values[name] for name in outputs}

    def _dtype(self, dtype: Any) -> torch.dtype:
        expect(dtype in DTYPES, f"dtype {dtype}")
        known = DTYPES[dtype]
        return torch.float32 if self._exact and known in _HALVES else known

    def _store(self, values: dict[str, Tensor], symbol: Any, value: Tensor) -> None:
        """Keep a value if TensorRT, which infers shapes and dtypes itself, agrees with it."""
        expect(symbol.name not in values, f"two tensors are named {symbol.name}")
        expect(value.dtype == self._dtype(symbol.dtype), f"{symbol.name} is {value.dtype}")
        shape = tuple(symbol.shape)
        fits = len(shape) == value.ndim and all(
            size in (-1, actual) for size, actual in zip(shape, value.shape, strict=True)
        )
        expect(fits, f"{symbol.name} is {tuple(value.shape)}, TensorRT infers {shape}")
        values[symbol.name] = value


class _Layer:
    """One layer: names of its inputs, its one output, and the function that computes it."""

    def __init__(self, layer: Any, dtype: Callable[[Any], torch.dtype]) -> None:
        expect(layer.type in RULES, f"layer {layer.name} is {layer.type}")
        expect(layer.num_outputs == 1 and layer.num_ranks == 1, f"{layer.name} has several outputs")
        kind, self._rule = RULES[layer.type]
        # The library hands out the base class; this is how its own samples see the options.
        layer.__class__ = getattr(trt, kind)
        self._layer, self._dtype = layer, dtype
        self.is_constant = layer.type == trt.LayerType.CONSTANT
        self.output = layer.get_output(0)
        symbols = (layer.get_input(i) for i in range(layer.num_inputs))
        self.inputs = [symbol.name if symbol else None for symbol in symbols]

    def compute(self, inputs: Inputs) -> Tensor:
        """Return the output of some inputs."""
        return self._rule(self._layer, inputs, self._dtype(self.output.dtype))


def _constant(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    weights = layer.weights
    if isinstance(weights, np.ndarray):
        return torch.from_numpy(weights.copy()).reshape(tuple(layer.shape)).to(dtype)
    # Python's Weights cannot show bfloat16, so read the C++ struct that it holds.
    held = ctypes.c_void_p.from_address(id(weights) + 16).value or 0
    code = ctypes.c_int32.from_address(held).value
    address, count = (ctypes.c_int64.from_address(held + at).value for at in (8, 16))
    expect(_TYPE_CODES.get(code) == weights.dtype and count == weights.size, "Weights moved")
    memory = (ctypes.c_uint8 * weights.nbytes).from_address(address)
    data = torch.from_numpy(np.frombuffer(memory, np.uint8).copy())
    return data.view(DTYPES[weights.dtype]).reshape(tuple(layer.shape)).to(dtype)


def _cast(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return inputs[0].to(dtype)


def _shape(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return torch.tensor(inputs[0].shape, dtype=dtype)


def _concatenation(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return torch.cat(inputs, dim=layer.axis)


def _shuffle(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    expect(len(inputs) == 1 and layer.zero_is_placeholder, f"{layer.name} reshapes dynamically")
    value = inputs[0]
    value = value.permute(list(layer.first_transpose)[: value.ndim])
    shape = [
        value.shape[axis] if size == 0 else size for axis, size in enumerate(layer.reshape_dims)
    ]
    value = value.reshape(shape)
    return value.permute(list(layer.second_transpose)[: value.ndim])


def _slice(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    expect(layer.mode == trt.SampleMode.STRICT_BOUNDS, f"{layer.name} wraps or fills")
    expect(len(inputs) == 3 and inputs[1] is None, f"{layer.name} starts dynamically")
    value, sizes = inputs[0], inputs[2].tolist()
    for axis, (start, size, step) in enumerate(zip(layer.start, sizes, layer.stride, strict=True)):
        expect(step == 1 and start + size <= value.shape[axis], f"{layer.name} reads beyond axis")
        value = value.narrow(axis, start, size)
    return value


def _gather(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    expect(layer.mode == trt.GatherMode.DEFAULT, f"{layer.name} gathers by {layer.mode}")
    table, indices = inputs
    expect(bool((indices >= 0).all() & (indices < table.shape[layer.axis]).all()), "index outside")
    if layer.num_elementwise_dims == 0:
        return _pick(table, indices, layer.axis)
    expect(layer.num_elementwise_dims == 1, f"{layer.name} pairs several axes")
    pairs = zip(table, indices, strict=True)
    return torch.stack([_pick(entry, index, layer.axis - 1) for entry, index in pairs])


def _pick(table: Tensor, indices: Tensor, axis: int) -> Tensor:
    shape = (*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :])
    return table.index_select(axis, indices.flatten()).reshape(shape)


def _elementwise(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    left, right = inputs
    expect(left.dtype == right.dtype and left.ndim == right.ndim, f"{layer.name} mixes operands")
    op = trt.ElementWiseOperation
    known: dict[Any, Callable[[Tensor, Tensor], Tensor]] = {
        op.SUM: torch.add,
        op.SUB: torch.sub,
        op.PROD: torch.mul,
        op.DIV: torch.div,
        op.LESS: torch.lt,
    }
    expect(layer.op in known, f"{layer.name} is {layer.op}")
    return known[layer.op](left, right)


def _unary(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    expect(layer.op == trt.UnaryOperation.SQRT, f"{layer.name} is {layer.op}")
    return torch.sqrt(inputs[0])


def _activation(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    # The base class's `type` hides which activation it is unless asked for by name.
    kind = trt.IActivationLayer.type.__get__(layer)
    known = {trt.ActivationType.RELU: torch.relu, trt.ActivationType.SIGMOID: torch.sigmoid}
    expect(kind in known, f"{layer.name} is {kind}")
    return known[kind](inputs[0])


def _reduce(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    average = trt.ReduceOperation.AVG
    expect(layer.op == average and layer.keep_dims, f"{layer.name} is {layer.op}")
    return inputs[0].mean(_axes(layer.axes), keepdim=True)


def _axes(mask: int) -> list[int]:
    return [axis for axis in range(mask.bit_length()) if mask >> axis & 1]


def _matrix_multiply(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    operation = trt.MatrixOperation
    sides = []
    for value, how in zip(inputs, (layer.op0, layer.op1), strict=True):
        expect(how in (operation.NONE, operation.TRANSPOSE), f"{layer.name} takes a {how}")
        sides.append(value.transpose(-1, -2) if how == operation.TRANSPOSE else value)
    return torch.matmul(*sides)


def _normalization(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    expect(layer.is_v2 and layer.num_groups == 1, f"{layer.name} has groups")
    values, scale, bias = inputs
    axes = _axes(layer.axes)
    centred = values - values.mean(axes, keepdim=True)
    variance = centred.square().mean(axes, keepdim=True)
    return centred / torch.sqrt(variance + layer.epsilon) * scale + bias


def _rotary(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    expect(not layer.interleaved and len(inputs) == 4, f"{layer.name} turns neighbours")
    heads, cosine, sine, positions = inputs
    size = layer.rotary_embedding_dim or heads.shape[-1]
    expect(cosine.shape[-1] == sine.shape[-1] == size // 2, f"{layer.name} has other tables")
    expect(positions.shape == (heads.shape[0], heads.shape[2]), f"{layer.name} has other positions")
    cosine, sine = cosine[positions][:, None], sine[positions][:, None]
    real, imaginary, rest = torch.tensor_split(heads, [size // 2, size], dim=-1)
    turned = [real * cosine - imaginary * sine, real * sine + imaginary * cosine, rest]
    return torch.cat(turned, dim=-1)


def _kv_cache_update(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    linear = layer.cache_mode == trt.KVCacheMode.LINEAR
    padded = layer.update_form == trt.AttentionIOForm.PADDED_BHND and len(inputs) == 3
    expect(linear and padded, f"{layer.name} is no linear cache of padded sequences")
    expect(layer.get_input(0).is_network_input, f"{layer.name}'s cache is no input")
    expect(layer.get_output(0).is_network_output, f"{layer.name}'s cache is no output")
    cache, update, starts = inputs
    result = cache.clone()
    for row, start in enumerate(starts.tolist()):
        stop = start + update.shape[2]
        expect(start >= 0 and stop <= cache.shape[2], f"{layer.name} writes beyond the cache")
        result[row, :, start:stop] = update[row]
    return result


def _attention(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Compute softmax(Q Kᵀ, masked) V; nothing is scaled, and neighbours share a key head."""
    attention, padded = layer.attention, trt.AttentionIOForm.PADDED_BHND
    expect(attention.norm_op == trt.AttentionNormalizationOp.SOFTMAX, "attention without softmax")
    expect(attention.causal_kind == trt.CausalMaskKind.NONE, "attention masks implicitly")
    expect(attention.query_form == attention.key_value_form == padded, "attention is packed")
    expect(attention.num_ranks == 1 and len(inputs) == 4, "attention has further inputs")
    query, key, value, mask = inputs
    expect(mask.dtype == torch.bool, "attention adds its mask")
    group = query.shape[1] // key.shape[1]
    key, value = (heads.float().repeat_interleave(group, dim=1) for heads in (key, value))
    scores = query.float() @ key.transpose(-1, -2)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights @ value).to(dtype)


def _quantize(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    """Divide by the scale and round."""
    expect(layer.to_type == trt.fp8 and len(inputs) == 2, f"{layer.name} is not to FP8")
    values, scale = inputs
    expect(scale.ndim == 0, f"{layer.name} has a scale per channel")
    return to_fp8(values.float() / scale)


def to_fp8(scaled: Tensor) -> Tensor:
    """Round to the nearest code, to the even one from halfway, and saturate."""
    largest = torch.finfo(torch.float8_e4m3fn).max
    return scaled.clamp(-largest, largest).to(torch.float8_e4m3fn)


def _dequantize(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    codes, scale = inputs
    if scale.ndim == 1:
        expect(scale.shape[0] == codes.shape[layer.axis], f"{layer.name} has other channels")
        scale = scale.reshape([-1 if axis == layer.axis else 1 for axis in range(codes.ndim)])
    return (codes.float() * scale).to(dtype)


def _same(layer: Any, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    return inputs[0]


RULES: Final[dict[Any, tuple[str, Rule]]] = {
    trt.LayerType.CONSTANT: ("IConstantLayer", _constant),
    trt.LayerType.CAST: ("ICastLayer", _cast),
    trt.LayerType.SHAPE: ("IShapeLayer", _shape),
    trt.LayerType.CONCATENATION: ("IConcatenationLayer", _concatenation),
    trt.LayerType.SHUFFLE: ("IShuffleLayer", _shuffle),
    trt.LayerType.SLICE: ("ISliceLayer", _slice),
    trt.LayerType.GATHER: ("IGatherLayer", _gather),
    trt.LayerType.ELEMENTWISE: ("IElementWiseLayer", _elementwise),
    trt.LayerType.UNARY: ("IUnaryLayer", _unary),
    trt.LayerType.ACTIVATION: ("IActivationLayer", _activation),
    trt.LayerType.REDUCE: ("IReduceLayer", _reduce),
    trt.LayerType.MATRIX_MULTIPLY: ("IMatrixMultiplyLayer", _matrix_multiply),
    trt.LayerType.NORMALIZATION: ("INormalizationLayer", _normalization),
    trt.LayerType.ROTARY_EMBEDDING: ("IRotaryEmbeddingLayer", _rotary),
    trt.LayerType.KV_CACHE_UPDATE: ("IKVCacheUpdateLayer", _kv_cache_update),
    trt.LayerType.QUANTIZE: ("IQuantizeLayer", _quantize),
    trt.LayerType.DEQUANTIZE: ("IDequantizeLayer", _dequantize),
    trt.LayerType.ATTENTION_INPUT: ("IAttentionInputLayer", _attention),
    # The pair of boundary layers is one attention; the first computes it.
    trt.LayerType.ATTENTION_OUTPUT: ("IAttentionOutputLayer", _same),
}
