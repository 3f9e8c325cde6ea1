"""Products of packed tokens with a weight, by whichever kernel is quick for so many tokens."""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

_NARROW: Final = (torch.bfloat16, torch.float16)
# Without AVX-512 torch multiplies 16-bit matrices element by element: for 256 tokens six times
# slower than in float32, for a few tokens as fast as memory is read.
_IS_SLOW: Final = torch.backends.cpu.get_cpu_capability() == "AVX2"
_FEW_TOKENS: Final = 16
_BLOCK_ROWS: Final = 2048  # widened at a time: they stay in the cache until they are multiplied


def product(values: Tensor, weight: Tensor) -> Tensor:
    """Return inputs [T, in] times a weight [out, in], of one dtype, summed in float32.

    Sums of many tokens may be rounded otherwise than those of a few, by a last bit.
    """
    is_slow = _IS_SLOW and weight.dtype in _NARROW and weight.device.type == "cpu"
    if not is_slow or len(values) < _FEW_TOKENS:
        return F.linear(values, weight)
    exact = values.float()
    result = values.new_empty(len(values), len(weight))
    for start in range(0, len(weight), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        result[:, rows] = F.linear(exact, weight[rows].float())
    return result
