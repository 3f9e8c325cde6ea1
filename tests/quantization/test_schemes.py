"""The arithmetic of the precisions, on random weights and against independent roundings."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_trt.quantization.number_formats import (
    E2M1,
    E4M3,
    FloatFormat,
    pack_columns,
    pack_rows,
    unpack_columns,
    unpack_rows,
)
from minitron_trt.quantization.schemes import SCHEMES, Ranges, amax_of

BF16: Any = ml_dtypes.bfloat16
THEIRS: dict[str, Any] = {"e4m3": ml_dtypes.float8_e4m3fn, "e2m1": ml_dtypes.float4_e2m1fn}
FORMATS = pytest.mark.parametrize("kind", [E4M3, E2M1], ids=lambda kind: kind.name)


@FORMATS
def test_the_codes_of_a_format_are_those_of_ml_dtypes(kind: FloatFormat) -> None:
    codes = np.arange(2 * kind.sign, dtype=np.uint8)
    theirs = codes.view(THEIRS[kind.name]).astype(np.float32)

    assert np.array_equal(kind.values, theirs, equal_nan=True)
    assert np.array_equal(np.signbit(kind.values[:-1]), np.signbit(theirs[:-1]))


@FORMATS
def test_every_float32_rounds_as_ml_dtypes_rounds_it(kind: FloatFormat) -> None:
    # A prime step through all bit patterns; then the ties, where it matters which way is even.
    floats = np.arange(0, 1 << 32, 4099, dtype=np.uint64).astype(np.uint32).view(np.float32)
    floats = floats[np.abs(floats) <= kind.largest]
    finite = np.sort(kind.values[: kind.sign][np.isfinite(kind.values[: kind.sign])])
    ties = (finite[1:] + finite[:-1]) / 2
    values = np.concatenate([floats, ties, -ties, finite, -finite])

    assert np.array_equal(kind.encode(values), values.astype(THEIRS[kind.name]).view(np.uint8))


@FORMATS
def test_what_is_beyond_a_format_becomes_its_largest(kind: FloatFormat) -> None:
    beyond = np.array([kind.largest * 1.5, -1e30, np.inf], np.float32)

    assert kind.decode(kind.encode(beyond)).tolist() == [kind.largest, -kind.largest, kind.largest]


def test_packing_is_undone_by_unpacking() -> None:
    codes = np.random.default_rng(1).integers(0, 16, (6, 8), np.uint8)
    whole = np.random.default_rng(2).integers(-8, 8, (6, 8), np.int8)

    assert np.array_equal(unpack_columns(pack_columns(codes)), codes)
    assert np.array_equal(unpack_rows(pack_rows(whole)), whole)
    assert pack_columns(np.array([[1, 2]], np.uint8)).tolist() == [[0x21]]
    assert pack_rows(np.array([[-8], [7]], np.int8)).tolist() == [[0x78]]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_the_largest_value_shows_what_is_not_finite(value: float) -> None:
    rows = np.array([[1.0, -3.0], [value, 2.0]], BF16)

    assert not np.isfinite(amax_of(rows))
    assert not np.isfinite(amax_of(rows, np.ones(2, BF16)))


@st.composite
def weights(draw: st.DrawFn) -> Any:
    """Draw a weight with outliers, zero rows and very small values."""
    rows, groups = 2 * draw(st.integers(1, 4)), draw(st.integers(1, 2))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    weight = random.standard_normal((rows, 128 * groups)) * 10.0 ** draw(st.integers(-4, 1))
    weight *= np.exp(draw(st.sampled_from([0.0, 2.0])) * random.standard_normal(weight.shape))
    if draw(st.booleans()):
        weight[random.integers(rows)] = 0
    weight[-1, -1] = 0.5
    return weight.astype(BF16)


def steps(name: str, weight: Any, tensors: dict[str, Any], prequant: Any) -> Any:
    """Return how far a value may move: half a step of its format at its size, times its scale."""
    wide = np.abs(weight.astype(np.float64))
    if name.startswith("fp8"):
        key = "per_channel_scale" if name == "fp8-rowwise" else "weights_scaling_factor"
        # Three bits of fraction; below 2**-6 the steps are 2**-9.
        return np.maximum(wide / 16, tensors[key].reshape(-1, 1) * 2.0**-10)
    if name == "nvfp4":
        block = np.repeat(E4M3.decode(tensors["weights_scaling_factor"]), 16, axis=1)
        scale = block * float(tensors["weights_scaling_factor_2"])
        # The rounded block scale may be a sixteenth too small for the largest of its block.
        return np.maximum(scale * 1.0, wide / 16)
    # Whole numbers: half a step, and a 256th for a scale kept in bfloat16.
    group = np.repeat(tensors["weights_scaling_factor"], 128, axis=1)
    return group / 2 + (np.abs(wide / prequant) + group) / 256


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "fp8-rowwise", "nvfp4", "w4a16-awq", "w4a8-awq"])
@given(weight=weights())
@settings(max_examples=40)
def test_a_value_comes_back_within_the_step_of_its_format(name: str, weight: Any) -> None:
    scheme = SCHEMES[name]
    prequant = np.linspace(0.5, 2, weight.shape[1]).astype(BF16)
    ranges = Ranges(amax_of(weight), 1.0, prequant if "awq" in name else None)
    tensors = scheme.constants(ranges) | scheme.rows(weight, ranges)
    factors = prequant.astype(np.float64) if "awq" in name else 1.0
    found = scheme.dequantize(tensors).astype(np.float64)
    allowed = steps(name, weight, tensors, factors)

    assert (np.abs(found - weight.astype(np.float64) / factors) <= allowed * (1 + 1e-5)).all()


@pytest.mark.parametrize("name", ["w8a16", "w4a16"])
@given(weight=weights())
@settings(max_examples=40)
def test_weight_only_values_come_back_within_a_step_of_their_row(name: str, weight: Any) -> None:
    found = SCHEMES[name].dequantize({"weight": weight}).astype(np.float64)
    wide = weight.astype(np.float64)
    scale = np.abs(wide).max(axis=1, keepdims=True) / (128 if name == "w8a16" else 8)

    # One step, since the largest positive value has no number of its own.
    assert (np.abs(found - wide) <= scale + np.abs(wide) / 200).all()


@pytest.mark.slow
@given(weight=weights())
@settings(max_examples=40)
def test_codes_from_tables_are_those_of_the_formulas(weight: Any) -> None:
    ranges, wide = Ranges(amax_of(weight), 1.0), weight.astype(np.float32)
    fp8, nvfp4 = SCHEMES["fp8"], SCHEMES["nvfp4"]
    scale = fp8.constants(ranges)["weights_scaling_factor"]
    tensor_scale = nvfp4.constants(ranges)["weights_scaling_factor_2"]
    made = nvfp4.rows(weight, ranges)
    block = E4M3.decode(made["weights_scaling_factor"]) * tensor_scale
    numbers = wide / np.repeat(block, 16, axis=1) + np.float32(0)
    reach = np.abs(wide).reshape(len(wide), -1, 16).max(axis=2) / (np.float32(6) * tensor_scale)

    assert np.array_equal(fp8.rows(weight, ranges)["weight"], E4M3.encode(wide / scale))
    assert np.array_equal(unpack_columns(made["weight"]), E2M1.encode(numbers))
    smallest = np.where(reach == 0, 1, np.maximum(reach, E4M3.values[1])).astype(np.float32)
    assert np.array_equal(made["weights_scaling_factor"], E4M3.encode(smallest))


@given(weight=weights(), cut=st.integers(1, 7))
@settings(max_examples=30)
def test_rows_are_quantized_alike_in_one_block_and_in_several(weight: Any, cut: int) -> None:
    cut = min(2 * cut, len(weight))
    ranges = Ranges(amax_of(weight), 1.0, np.ones(weight.shape[1], BF16))
    for scheme in SCHEMES.values():
        whole = scheme.rows(weight, ranges)
        parts = [scheme.rows(part, ranges) for part in (weight[:cut], weight[cut:]) if len(part)]

        assert all(
            np.array_equal(np.concatenate([part[key] for part in parts]), whole[key])
            for key in whole
        )
