"""The arithmetic of the precisions: a linear layer's weight to its tensors on disk, and back.

FP8 in one paragraph. E4M3 has a sign, four bits of exponent and three of fraction: about one
significant decimal digit, from 2**-9 to 448. A weight matrix lies near 0.02, so it is divided by a
scale that carries its largest value to 448, rounded there, and the scale is stored beside it; the
product of two such matrices is multiplied by both scales. One scale per tensor is cheapest and lets
one outlier push everything else towards the coarse end; one per row (`fp8-rowwise`) confines an
outlier to its row. Inputs need a scale too: either calibrated on text and fixed, or computed for
each token as the engine runs. Dividing first matters: rounding is relative except below 2**-6,
where the steps stop shrinking, so a scale too large by 2 loses the small values and one too small
by 2 clips the large. With four bits (E2M1, largest 6) a single scale is hopeless: NVFP4 gives each
16 neighbours an E4M3 scale of their own, and the tensor one float32 scale that brings those into
E4M3's range.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Final, Protocol

import ml_dtypes
import numpy as np

from minitron_trt.quantization.number_formats import (
    E2M1,
    E4M3,
    EVERY_BFLOAT16,
    Array,
    Codes,
    Floats,
    look_up,
    pack_columns,
    pack_rows,
    unpack_columns,
    unpack_rows,
    widen,
)
from minitron_trt.quantization.precisions import AWQ_GROUP, NVFP4_BLOCK

Tensors = dict[str, Array]
_F32 = np.float32
_LARGEST_E4M3 = _F32(E4M3.largest)
_BLOCKS = 4096  # of NVFP4_BLOCK numbers, looked up at a time, so that the index stays in the cache


@dataclass(frozen=True, slots=True)
class Ranges:
    """The amax (largest absolute value) of a layer's weight and input, and AWQ's input factors."""

    weight: float = 0.0
    input: float = 0.0
    prequant: Array | None = None  # [in]


class Scheme(Protocol):
    """How a precision stores a linear layer, [out, in]; 1-byte floats are arrays of their codes.

    A weight is quantized some rows at a time, so what must be known of all of it comes in ranges.
    """

    def constants(self, ranges: Ranges) -> Tensors:
        """Return the tensors that do not grow with the weight's rows."""
        ...

    def rows(self, rows: Array, ranges: Ranges) -> Tensors:
        """Return the other tensors, for some rows of the weight, which are bfloat16."""
        ...

    def dequantize(self, tensors: Mapping[str, Array]) -> Floats:
        """Return the weight that the engine computes with, [out, in]."""
        ...


def amax_of(rows: Array, prequant: Array | None = None) -> float:
    """Return the largest absolute value, NaN if there is one, of rows divided by AWQ's factors."""
    if prequant is None and rows.dtype.name == "bfloat16":
        # Without their sign, bfloat16 numbers are ordered as their bits are, NaN last.
        bits = (rows.view(np.uint16) & np.uint16(0x7FFF)).max(initial=0)
        return float(np.array(bits, np.uint16).view(ml_dtypes.bfloat16).item())
    return float(np.abs(_smoothed(rows, prequant)).max(initial=0))


def _smoothed(rows: Array, prequant: Array | None) -> Floats:
    weight = widen(rows)
    return weight if prequant is None else weight / widen(prequant)


class Fp8:
    """One scale for the whole weight, one calibrated scale for its input."""

    def constants(self, ranges: Ranges) -> Tensors:
        """Return both scales."""
        return {
            "weights_scaling_factor": np.array([ranges.weight], _F32) / _LARGEST_E4M3,
            "activation_scaling_factor": np.array([ranges.input], _F32) / _LARGEST_E4M3,
        }

    def rows(self, rows: Array, ranges: Ranges) -> Tensors:
        """Return the codes of the scaled weight."""
        (scale,) = self.constants(ranges)["weights_scaling_factor"].tolist()
        return {"weight": look_up(_e4m3_codes(scale), rows.view(np.uint16))}

    def dequantize(self, tensors: Mapping[str, Array]) -> Floats:
        """Return the numbers of the codes, times the scale."""
        weight: Floats = E4M3.decode(tensors["weight"]) * tensors["weights_scaling_factor"]
        return weight


@lru_cache(maxsize=8)
def _e4m3_codes(scale: float) -> Codes:
    """Return the code of every bfloat16 number under a scale: a weight has more than there are."""
    with np.errstate(all="ignore"):
        return E4M3.encode(widen(EVERY_BFLOAT16) / _F32(scale))


class Fp8Rowwise:
    """One scale per row of the weight; each token's is computed as the engine runs."""

    def constants(self, ranges: Ranges) -> Tensors:
        """Return nothing: every tensor grows with the rows."""
        return {}

    def rows(self, rows: Array, ranges: Ranges) -> Tensors:
        """Return codes and scales; the smallest scale is TensorRT-LLM's."""
        weight = widen(rows)
        # The same as abs().max(), without a copy of the rows.
        row_amax = np.maximum(weight.max(axis=1), -weight.min(axis=1))
        scale = np.maximum(row_amax / _LARGEST_E4M3, _F32(1 / (448 * 512)))
        return {"weight": E4M3.encode(weight / scale[:, None]), "per_channel_scale": scale}

    def dequantize(self, tensors: Mapping[str, Array]) -> Floats:
        """Return the numbers of the codes, times the scale of their row."""
        weight: Floats = E4M3.decode(tensors["weight"]) * tensors["per_channel_scale"][:, None]
        return weight


@dataclass(frozen=True)
class WeightOnly:
    """Whole numbers times one scale per row, made by trtllm-build from the plain weight."""

    bits: int

    def constants(self, ranges: Ranges) -> Tensors:
        """Return nothing: the weight is stored as it is."""
        return {}

    def rows(self, rows: Array, ranges: Ranges) -> Tensors:
        """Return the rows as they are."""
        return {"weight": rows}

    def dequantize(self, tensors: Mapping[str, Array]) -> Floats:
        """Return what the engine makes of the weight: the scale is stored in the model's dtype."""
        stored = tensors["weight"]
        weight, limit = widen(stored), _F32(1 << (self.bits - 1))
        scale = np.abs(weight).max(axis=1, keepdims=True) / limit
        steps = np.divide(weight, scale, out=np.zeros_like(weight), where=scale > 0)
        # C's round: halves away from zero.
        steps = np.trunc(steps + np.copysign(_F32(0.5), steps))
        rounded: Floats = np.clip(steps, -limit, limit - 1) * widen(scale.astype(stored.dtype))
        return rounded


class _E2m1Codes:
    """The code of every bfloat16 number under each block scale, worked out when first met."""

    def __init__(self, tensor_scale: float) -> None:
        self._tensor_scale = _F32(tensor_scale)
        self._table = np.empty((len(E4M3.values), len(EVERY_BFLOAT16)), np.uint8)
        self._known = np.zeros(len(E4M3.values), np.bool_)

    def of(self, bits: Array, scales: Codes) -> Codes:
        """Return the codes of bfloat16 numbers by their bits; each 16 of them have one scale."""
        for scale in np.flatnonzero(np.bincount(scales.reshape(-1)) > 0):
            if not self._known[scale]:
                self._fill(scale)
        blocks, table = bits.reshape(-1, NVFP4_BLOCK), self._table.reshape(-1)
        rows = scales.reshape(-1, 1).astype(np.uint32) << np.uint32(16)
        codes = np.empty(blocks.shape, np.uint8)
        for start in range(0, len(blocks), _BLOCKS):
            some = slice(start, start + _BLOCKS)
            codes[some] = look_up(table, rows[some] | blocks[some])
        return codes.reshape(bits.shape)

    def _fill(self, scale: int) -> None:
        with np.errstate(all="ignore"):
            numbers = widen(EVERY_BFLOAT16) / (E4M3.values[scale] * self._tensor_scale)
            # Minus zero is stored as zero, minus a little as minus zero.
            self._table[scale] = E2M1.encode(numbers + _F32(0))
        self._known[scale] = True


_e2m1_codes = lru_cache(maxsize=4)(_E2m1Codes)


class Nvfp4:
    """Four-bit floats; each 16 neighbours share an E4M3 scale, the tensor a float32 one."""

    def constants(self, ranges: Ranges) -> Tensors:
        """Return the scale of the weight's block scales and that of the input's."""
        # What the largest number under the largest block scale stands for.
        largest = _F32(E2M1.largest) * _LARGEST_E4M3
        return {
            "weights_scaling_factor_2": np.array(_F32(ranges.weight) / largest, _F32),
            "activation_scaling_factor": np.array(_F32(ranges.input) / largest, _F32),
        }

    def rows(self, rows: Array, ranges: Ranges) -> Tensors:
        """Return packed codes and block scales."""
        tensor_scale = _F32(self.constants(ranges)["weights_scaling_factor_2"])
        bits = rows.view(np.uint16)
        # Without their sign, bfloat16 numbers are ordered as their bits are. Halving four times
        # leaves the amax of each 16, and is some times faster than a reduction over a short axis.
        block_amax = bits & np.uint16(0x7FFF)
        for _ in range(4):
            block_amax = np.maximum(block_amax[:, 0::2], block_amax[:, 1::2])
        scales = widen(block_amax.view(rows.dtype)) / (_F32(E2M1.largest) * tensor_scale)
        scales[scales == 0] = 1
        codes = E4M3.encode(np.maximum(scales, E4M3.values[1]))
        numbers = _e2m1_codes(float(tensor_scale)).of(bits, codes)
        return {"weight": pack_columns(numbers), "weights_scaling_factor": codes}

    def dequantize(self, tensors: Mapping[str, Array]) -> Floats:
        """Return the numbers of the codes, times both scales."""
        scales = E4M3.decode(tensors["weights_scaling_factor"])
        scales = scales * tensors["weights_scaling_factor_2"]
        numbers = E2M1.decode(unpack_columns(tensors["weight"]))
        return (numbers.reshape(*scales.shape, NVFP4_BLOCK) * scales[..., None]).reshape(
            numbers.shape
        )


@dataclass(frozen=True)
class Awq:
    """Four-bit whole numbers, a scale for each 128 neighbours, inputs multiplied by factors first.

    The factors shrink the inputs that carry the largest values and the weight grows in proportion,
    so that rounding spares what matters most.
    """

    fp8_inputs: bool

    def constants(self, ranges: Ranges) -> Tensors:
        """Return the inputs' factors; with FP8 inputs, also their scale and the weight's."""
        if ranges.prequant is None:
            return {}
        tensors: Tensors = {
            "prequant_scaling_factor": ranges.prequant.astype(ml_dtypes.bfloat16),
        }
        if self.fp8_inputs:
            tensors["weights_scaling_factor_2"] = np.array(
                _F32(ranges.weight) / _LARGEST_E4M3, _F32
            )
            tensors["activation_scaling_factor"] = np.array([ranges.input], _F32) / _LARGEST_E4M3
        return tensors

    def rows(self, rows: Array, ranges: Ranges) -> Tensors:
        """Return packed whole numbers and group scales."""
        prequant = self.constants(ranges).get("prequant_scaling_factor")
        groups = _smoothed(rows, prequant).reshape(len(rows), -1, AWQ_GROUP)
        scales = np.abs(groups).max(axis=2) / _F32(7)
        scales[scales == 0] = 1
        steps = np.clip(np.rint(groups / scales[..., None]), -8, 7).astype(np.int8)
        return {"weight": pack_rows(steps.reshape(rows.shape)), "weights_scaling_factor": scales}

    def dequantize(self, tensors: Mapping[str, Array]) -> Floats:
        """Return the numbers times their scales: what meets the inputs after their factors."""
        steps = unpack_rows(tensors["weight"]).astype(_F32)
        scales = tensors["weights_scaling_factor"]
        if not self.fp8_inputs:
            # TensorRT-LLM keeps them in the model's dtype.
            scales = widen(scales.astype(ml_dtypes.bfloat16))
        weight: Floats = steps.reshape(*scales.shape, AWQ_GROUP) * scales[..., None]
        return weight.reshape(steps.shape)


SCHEMES: Final[Mapping[str, Scheme]] = MappingProxyType(
    {
        "fp8": Fp8(),
        "fp8-rowwise": Fp8Rowwise(),
        "w8a16": WeightOnly(8),
        "w4a16": WeightOnly(4),
        "nvfp4": Nvfp4(),
        "w4a16-awq": Awq(fp8_inputs=False),
        "w4a8-awq": Awq(fp8_inputs=True),
    }
)
