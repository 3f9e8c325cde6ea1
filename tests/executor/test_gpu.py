"""The reference model computes on a GPU what it computes on a CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.executor import StepBatch
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.samples import NAMES, sample_folder

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine"),
]


@pytest.mark.parametrize("name", NAMES)
def test_logits_on_a_gpu_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    convert(str(sample_folder(name)), tmp_path / "checkpoint", ConvertOptions())
    checkpoint = Checkpoint.open(tmp_path / "checkpoint")
    ids = np.arange(5, 69, dtype=np.int32)
    batch = StepBatch(
        input_ids=ids,
        positions=np.arange(len(ids), dtype=np.int32),
        slots=np.array([1], np.int32),
        lengths=np.array([len(ids)], np.int32),
    )

    on_cpu, on_gpu = (
        ReferenceModel(
            checkpoint, slots=2, max_seq_len=128, device=device, dtype=torch.float32
        ).step(batch)
        for device in ("cpu", "cuda")
    )

    # float32 sums in another order; TF32 is off by default.
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=0, atol=1e-4 * float(np.abs(on_cpu).max()))
