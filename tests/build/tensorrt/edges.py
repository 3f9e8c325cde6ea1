"""Two models that round to FP8, compared in spite of values that lie at the edge of two codes.

Float32 sums differ in their last bits from one processor to another. Now and then such a bit
carries a value over the edge between two FP8 codes, and whatever follows is a little apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import pytest
import torch
from tests.build.tensorrt import interpreter
from tests.build.tensorrt.interpreter_model import InterpretedModel
from torch import Tensor

from minitron_trt.build.tensorrt.network_definition import NetworkLimits
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.executor import quantized_layers
from minitron_trt.executor.step import Floats, StepBatch

# What rounding of float32 comes to, as a share of the largest of a token's values.
ROUNDING: Final = 5e-6


@dataclass(frozen=True)
class Rounded:
    """What the reference model rounded to FP8: packed values over their scale, and their codes."""

    values: Tensor
    codes: Tensor


def record_rounding(monkeypatch: pytest.MonkeyPatch) -> list[Rounded]:
    """Return a list to which each input that the reference model rounds will be added, in order."""
    to_e4m3, rounded = quantized_layers.to_e4m3, list[Rounded]()

    def recorded(values: Tensor, scale: Tensor) -> Tensor:
        result, scaled = to_e4m3(values, scale), values / scale
        # The network rounds once what both branches of an MLP take.
        if not rounded or not torch.equal(rounded[-1].values, scaled):
            rounded.append(Rounded(scaled, (result / scale).to(torch.float8_e4m3fn).float()))
        return result

    monkeypatch.setattr(quantized_layers, "to_e4m3", recorded)
    return rounded


class SameAtEdges(InterpretedModel):
    """A network that takes over the reference model's codes of values at an edge, and no others.

    It fails where the two round different values to FP8, or the same value differently.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        limits: NetworkLimits,
        rounded: list[Rounded],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        super().__init__(checkpoint, limits, exact=True)
        self.values = self.taken_over = 0
        self._rounded, self._lengths = iter(rounded), list[int]()
        self._to_fp8 = interpreter.to_fp8
        monkeypatch.setattr(interpreter, "to_fp8", self._to_same)

    def step(self, batch: StepBatch) -> Floats:
        """Return the logits that follow the last token of each chunk."""
        self._lengths = batch.lengths.tolist()
        return super().step(batch)

    def _to_same(self, scaled: Tensor) -> Tensor:
        """Round padded values [batch, length, in]."""
        reference, codes = next(self._rounded), self._to_fp8(scaled).float()
        tokens = torch.arange(scaled.shape[1]) < torch.tensor(self._lengths)[:, None]
        values, own = scaled[tokens], codes[tokens]
        near = ROUNDING * reference.values.abs().amax(-1, keepdim=True)
        assert ((values - reference.values).abs() <= near).all(), "the network has other values"
        differ = own != reference.codes
        edge = (own + reference.codes) / 2
        assert ((values - edge).abs() <= near)[differ].all(), "it rounds to other codes"
        self.values += differ.numel()
        self.taken_over += int(differ.sum())
        codes[tokens] = reference.codes
        return codes.to(torch.float8_e4m3fn)
