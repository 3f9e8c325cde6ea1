"""A network under the interpreter as a StepModel, so that it runs the reference model's batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tests.build.tensorrt.interpreter import Interpreter
from torch import Tensor

from minitron_trt.build.tensorrt.api import RTX, make_logger
from minitron_trt.build.tensorrt.network_definition import NetworkLimits, define_network
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.executor.step import Floats, StepBatch


def new_network() -> tuple[Any, Any]:
    """Return an empty network, and the builder that must outlive it."""
    trt = RTX.load()
    builder = trt.Builder(make_logger(trt)[0])
    flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    return builder.create_network(flags), builder


def network_inputs(batch: StepBatch, padding: int) -> dict[str, Tensor]:
    """Return a step's tokens, positions and lengths as the network takes them: padded rows."""
    stops = np.cumsum(batch.lengths)
    starts = torch.from_numpy(batch.positions[stops - batch.lengths].astype(np.int64))
    chunks = np.split(batch.input_ids, stops[:-1])
    length = int(batch.lengths.max())
    rows = [np.pad(c, (0, length - len(c)), constant_values=padding) for c in chunks]
    return {
        "input_ids": torch.from_numpy(np.stack(rows)),
        "positions": starts[:, None] + torch.arange(length),
        "key_value_lengths": (starts + torch.from_numpy(batch.lengths)).to(torch.int32),
    }


class InterpretedModel:
    """A checkpoint's TensorRT network, computed in torch.

    What must not matter is made ugly: padding is the last token of the vocabulary, and the caches
    begin with large numbers in every place.
    """

    def __init__(self, checkpoint: Checkpoint, limits: NetworkLimits, *, exact: bool) -> None:
        self.slots = limits.max_batch_size
        self.max_seq_len = limits.max_seq_len
        self.vocab = checkpoint.spec.vocab
        self._network, self._builder = new_network()
        self._graph = define_network(RTX.load(), self._network, checkpoint, limits)
        self._interpreter = Interpreter(self._network, exact=exact)
        spec = checkpoint.spec
        shape = (self.slots, spec.kv_heads, limits.max_seq_len, spec.head_size)
        self._caches: dict[str, Tensor] = {
            f"{part}_{layer}": torch.full(shape, 1000.0)
            for layer in range(spec.layers)
            for part in ("key", "value")
        }

    def step(self, batch: StepBatch) -> Floats:
        """Return the logits [S, vocab] that follow the last token of each chunk."""
        slots = torch.from_numpy(batch.slots.astype(np.int64))
        caches = {f"cache_{name}": cache[slots] for name, cache in self._caches.items()}
        outputs = self._interpreter.run({**network_inputs(batch, self.vocab - 1), **caches})
        for name, cache in self._caches.items():
            cache[slots] = outputs[f"updated_{name}"].float()
        logits: Floats = outputs["logits"].numpy()
        return logits
