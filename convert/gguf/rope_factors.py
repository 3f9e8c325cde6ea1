"""llama3's rope scaling, read back from the factors that llama.cpp divides the frequencies by.

Wave lengths up to original / high keep their frequency, those from original / low on are divided
by the factor, and between the two the inverse of what they are divided by is linear in the
frequency. Only original / low and original / high can be told from the factors, so low is 1, as in
every published model.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.errors import UnsupportedError
from minitron_trt.spec import Llama3Scaling

ROPE_FACTORS: Final = "rope_freqs.weight"
_TOLERANCE = 1e-4  # of factors in float32, computed from frequencies in float32
# As in Llama 3.1 to 3.3.
_LOW, _USUAL_HIGH = 1.0, 4.0


def read_scaling(file: GgufFile, theta: float, head_size: int) -> Llama3Scaling | None:
    """Return the scaling of a file, or None when no frequency is changed.

    UnsupportedError when the factors are not those of llama3's scaling.
    """
    tensor = file.tensors.get(ROPE_FACTORS)
    if tensor is None:
        return None
    factors = np.fromfile(tensor.path, "<f4", head_size // 2, offset=tensor.offset).astype(
        np.float64
    )
    if tensor.kind == "F32" and tensor.shape == (head_size // 2,):
        if (factors == 1).all():
            return None
        # Of a damaged file's numbers nothing fits, which the result says.
        with np.errstate(all="ignore"):
            scaling = recover_scaling(factors, theta)
        if scaling is not None:
            return scaling
    raise UnsupportedError(
        f"{file.path}: {ROPE_FACTORS} holds {tensor.kind} {list(tensor.shape)} that no llama3 "
        f"scaling of {head_size // 2} frequencies gives; other scalings are not supported"
    )


def recover_scaling(factors: NDArray[Any], theta: float) -> Llama3Scaling | None:
    """Return the scaling whose factors these are, or None when there is no such."""
    turns = theta ** (-np.arange(len(factors)) / len(factors)) / (2 * math.pi)
    factor = float(factors.max())
    if not np.isfinite(factors).all() or factors.min() < 1 or factor <= 1:
        return None
    between = (factors > 1) & (factors < factor)
    smooth = (1 / factors - 1 / factor) / (1 - 1 / factor)  # 1 at high, 0 at low
    original, high = _line(turns[between], smooth[between], turns, factors)
    high = _plain(high, 1e-4)
    if not 1 <= original < 2**40 or high <= _LOW:
        return None
    scaling = Llama3Scaling(_plain(factor, 1e-6), _LOW, high, round(original))
    same = np.allclose(scaling_factors(scaling, turns), factors, rtol=_TOLERANCE, atol=0)
    return scaling if same else None


def scaling_factors(scaling: Llama3Scaling, turns: NDArray[Any]) -> NDArray[Any]:
    """Return what each frequency, in turns per position, is divided by."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    smooth = np.clip((scaling.original_max_positions * turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - smooth) / scaling.factor + smooth))


def _line(
    turns: NDArray[Any], smooth: NDArray[Any], all_turns: NDArray[Any], factors: NDArray[Any]
) -> tuple[float, float]:
    """Return (original, high) from the points between, where smooth = slope * turns - rest."""
    if len(turns) >= 2:
        slope = float((smooth[0] - smooth[-1]) / (turns[0] - turns[-1]))
        rest = slope * float(turns[0]) - float(smooth[0])
        return (slope / rest, 1 + 1 / rest) if rest > 0 else (0.0, 0.0)
    rest = 1 / (_USUAL_HIGH - 1)
    if len(turns) == 1:
        return (float(smooth[0]) + rest) / float(turns[0]) / rest, _USUAL_HIGH
    # No frequency lies in the blended part, so the lengths are not determined: any that fall
    # between the last unchanged wave length and the first divided one give the same factors.
    unchanged = 1 / float(all_turns[factors == 1].min()) if (factors == 1).any() else 1.0
    return math.sqrt(_USUAL_HIGH * unchanged / float(all_turns[factors > 1].max())), _USUAL_HIGH


def _plain(value: float, noise: float) -> float:
    """Return a number without the noise of float32 where a short one is meant."""
    short = round(value, 3)
    return short if math.isclose(short, value, rel_tol=noise) else value
