"""A compiled engine as a StepModel, for tests on a GPU: TensorRT runs it on torch's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests.build.tensorrt.interpreter_model import network_inputs
from torch import Tensor

from minitron_trt.artifacts import ENGINE, Manifest
from minitron_trt.build.engine import PLAN_NAME
from minitron_trt.build.tensorrt.api import LIBRARIES, make_logger
from minitron_trt.executor.step import Floats, StepBatch
from minitron_trt.records import check_record
from minitron_trt.spec import ModelSpec


class GpuEngine:
    """An engine folder of `build` on the first GPU, its caches in memory that was zeroed."""

    def __init__(self, folder: Path) -> None:
        facts = Manifest.read(folder, ENGINE).facts
        spec, limits = check_record(facts["spec"], ModelSpec), facts["limits"]
        self.slots: int = limits["max_batch_size"]
        self.max_seq_len: int = limits["max_seq_len"]
        self.vocab = spec.vocab
        self._trt = LIBRARIES[facts["compiler"]["name"]].load()
        self._logger, self.errors = make_logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine((folder / PLAN_NAME).read_bytes())
        if self._engine is None:
            raise RuntimeError(f"the engine does not load: {self.errors}")
        self._context = self._engine.create_execution_context()
        shape = (self.slots, spec.kv_heads, self.max_seq_len, spec.head_size)
        self._caches = {
            f"{part}_{layer}": torch.zeros(shape, dtype=self._dtype(f"cache_{part}_{layer}"))
            .cuda()
            .contiguous()
            for layer in range(spec.layers)
            for part in ("key", "value")
        }

    def step(self, batch: StepBatch) -> Floats:
        """Return the logits [S, vocab] that follow the last token of each chunk."""
        logits: Floats = self.forward(batch).cpu().numpy()
        return logits

    def forward(self, batch: StepBatch) -> Tensor:
        """Return the logits on the GPU; sequences in slots 0, 1, 2 ... are updated in place."""
        rows = torch.from_numpy(batch.slots.astype(np.int64)).cuda()
        in_place = bool((batch.slots == np.arange(len(batch.slots))).all())
        caches = {
            name: cache[: len(rows)] if in_place else cache[rows].contiguous()
            for name, cache in self._caches.items()
        }
        inputs = {n: t.cuda().contiguous() for n, t in network_inputs(batch, 0).items()}
        logits = torch.empty((len(rows), self.vocab), dtype=torch.float32, device="cuda")
        held = {**inputs, "logits": logits}
        for name, cache in caches.items():
            # The updated cache lies where the old one lay.
            held |= {f"cache_{name}": cache, f"updated_{name}": cache}
        for name, tensor in held.items():
            if name in inputs or name.startswith("cache_"):
                self._ask(self._context.set_input_shape(name, tuple(tensor.shape)), name)
            self._ask(self._context.set_tensor_address(name, tensor.data_ptr()), name)
        stream = torch.cuda.current_stream()
        self._ask(self._context.execute_async_v3(stream.cuda_stream), "the step")
        # The step reads tensors of this call.
        stream.synchronize()
        if not in_place:
            for name, cache in caches.items():
                self._caches[name][rows] = cache
        return logits

    def _dtype(self, name: str) -> torch.dtype:
        known = {self._trt.bfloat16: torch.bfloat16, self._trt.float16: torch.float16}
        found: Any = known[self._engine.get_tensor_dtype(name)]
        assert isinstance(found, torch.dtype)
        return found

    def _ask(self, done: bool, what: str) -> None:
        if not done:
            raise RuntimeError(f"TensorRT refused {what}: {self.errors}")
