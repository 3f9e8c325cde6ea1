"""Attention of packed tokens over a KV cache with one row of memory per slot.

A step has two kinds of rows: single tokens of sequences that generate, and chunks of prompts. The
single ones go through one padded call for all slots, each chunk through a call of its own; padding
a chunk to the others' lengths would multiply far more than is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from minitron_trt.errors import UnsupportedError
from minitron_trt.executor.step import StepBatch
from minitron_trt.spec import ModelSpec

SlotIndex = slice | Tensor


@dataclass(frozen=True, slots=True)
class SlotChunk:
    """Several tokens of one sequence: rows of the packed batch, and their place in their slot."""

    rows: slice
    slot: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Layout:
    """Which rows of a packed batch are computed together: single tokens in one padded call."""

    slots: Tensor  # [tokens]
    positions: Tensor  # [tokens]
    logit_rows: Tensor  # [wanted], rows whose logits are wanted
    single_rows: Tensor  # [singles], rows of the packed batch
    single_slots: SlotIndex  # [singles]
    single_mask: Tensor  # [singles, 1, 1, longest]
    chunks: tuple[SlotChunk, ...]

    @classmethod
    def of(cls, batch: StepBatch, device: torch.device) -> Layout:
        """Lay out a batch on a device."""
        stops = np.cumsum(batch.lengths)
        starts = stops - batch.lengths
        single = batch.lengths == 1
        held = batch.positions[starts[single]]  # tokens before each single one
        mask = np.arange(held.max(initial=-1) + 1) <= held[:, None]
        chunks = tuple(
            SlotChunk(
                slice(int(row), int(stop)), int(slot), int(position), int(position + stop - row)
            )
            for row, stop, slot, position in zip(
                starts[~single],
                stops[~single],
                batch.slots[~single],
                batch.positions[starts[~single]],
                strict=True,
            )
        )

        def to_device(array: npt.NDArray[Any]) -> Tensor:
            return torch.from_numpy(np.ascontiguousarray(array)).to(device)

        return cls(
            slots=to_device(np.repeat(batch.slots, batch.lengths).astype(np.int64)),
            positions=to_device(batch.positions.astype(np.int64)),
            logit_rows=to_device(
                (stops - 1 if batch.logit_rows is None else batch.logit_rows).astype(np.int64)
            ),
            single_rows=to_device(starts[single]),
            single_slots=_slot_index(batch.slots[single].tolist(), device),
            single_mask=to_device(mask[:, None, None, :]),
            chunks=chunks,
        )


def _slot_index(slots: list[int], device: torch.device) -> SlotIndex:
    # Neighbouring slots are a view of the cache; others have to be gathered, a copy per layer.
    if slots and slots == list(range(slots[0], slots[0] + len(slots))):
        return slice(slots[0], slots[0] + len(slots))
    return torch.tensor(slots, dtype=torch.int64, device=device)


class KVCache:
    """Keys and values of every slot, [layers, 2, slots, kv_heads, max_seq_len, head_size]."""

    def __init__(
        self,
        spec: ModelSpec,
        slots: int,
        max_seq_len: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (spec.layers, 2, slots, spec.kv_heads, max_seq_len, spec.head_size)
        size_bytes = math.prod(shape) * dtype.itemsize
        try:
            if device.type == "cpu":
                # numpy's zeros take no memory before they are written to; torch's do.
                data = torch.from_numpy(np.zeros(size_bytes, np.uint8))
                self._data = data.view(dtype).view(shape)
            else:
                self._data = torch.zeros(shape, dtype=dtype, device=device)
        except (MemoryError, torch.OutOfMemoryError) as error:
            raise UnsupportedError(
                f"a KV cache of {slots} slots × {max_seq_len} tokens takes "
                f"{size_bytes / 1e9:.2f} GB, more than {device} has left; "
                "lower the slots or max_seq_len"
            ) from error
        self._used = [0] * slots  # tokens that each slot has held since it was last cleared
        self._group = spec.heads // spec.kv_heads

    def begin(self, batch: StepBatch) -> None:
        """Forget what an earlier sequence left in the slots where a sequence begins.

        A padded call multiplies masked values by 0, and 0 times NaN is NaN: without this, a
        sequence whose values overflowed would spoil the next one in its slot.
        """
        stops = np.cumsum(batch.lengths)
        ends = batch.positions[stops - 1] + 1
        for slot, length, end in zip(batch.slots.tolist(), batch.lengths, ends, strict=True):
            if end == length:
                self._data[:, :, slot, :, : self._used[slot]] = 0
                self._used[slot] = 0
            self._used[slot] = max(self._used[slot], int(end))

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, at: Layout) -> Tensor:
        """Store keys and values of packed tokens [T, heads, size]; return what each attends to."""
        keys, values = self._data[layer]
        keys[at.slots, :, at.positions] = key
        values[at.slots, :, at.positions] = value
        result = torch.empty_like(query)
        if len(at.single_rows):
            result[at.single_rows] = self._singles(query[at.single_rows], keys, values, at)
        for chunk in at.chunks:
            result[chunk.rows] = _attend_chunk(query[chunk.rows], keys, values, chunk)
        return result

    def _singles(self, query: Tensor, keys: Tensor, values: Tensor, at: Layout) -> Tensor:
        longest = at.single_mask.shape[-1]
        # The query heads that share a key/value head stand where query positions usually do,
        # so nothing is repeated.
        grouped = query.view(len(query), -1, self._group, query.shape[-1])
        attended = F.scaled_dot_product_attention(
            grouped,
            keys[at.single_slots, :, :longest],
            values[at.single_slots, :, :longest],
            attn_mask=at.single_mask,
        )
        return attended.flatten(1, 2)


def _attend_chunk(query: Tensor, keys: Tensor, values: Tensor, chunk: SlotChunk) -> Tensor:
    mask = None
    if chunk.start:
        # torch's own causal mask would align a chunk with the cache's beginning.
        seen = torch.arange(chunk.stop, device=query.device)
        mask = seen <= seen[chunk.start :, None]
    attended = F.scaled_dot_product_attention(
        query.transpose(0, 1)[None],
        keys[None, chunk.slot, :, : chunk.stop],
        values[None, chunk.slot, :, : chunk.stop],
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=True,
    )
    return attended[0].transpose(0, 1)
