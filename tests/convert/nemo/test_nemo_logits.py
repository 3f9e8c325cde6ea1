"""A converted archive computes what megatron-core computed from the model that it saved.

megatron-core is an independent writer: names, stacking, places and order of the weights are its
own, and so is the forward pass, in float32 on a CPU. `write_archives.py` wrote both.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.convert.nemo.packing import FORMS, GRAPHS, archive, expected_logits, members

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.executor import StepBatch
from minitron_trt.executor.reference import ReferenceModel

PARALLEL = ConvertOptions(tp=2, pp=2)


@pytest.mark.parametrize("options", [ConvertOptions(), PARALLEL], ids=["one rank", "four ranks"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_logits_are_those_of_megatron_core(
    graph: str, form: str, options: ConvertOptions, tmp_path: Path
) -> None:
    tokens, expected = expected_logits(graph)
    convert(str(archive(graph, form)), tmp_path / "checkpoint", options)

    logits = logits_of(tmp_path / "checkpoint", tokens)
    assert logits.shape == (len(tokens), 45)
    torch.testing.assert_close(logits, torch.tensor(expected), atol=1e-5, rtol=0)


def logits_of(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return the reference model's logits in float32, of every position."""
    model = ReferenceModel(
        Checkpoint.open(folder), slots=1, max_seq_len=len(tokens), dtype=torch.float32
    )
    parts = (tokens, range(len(tokens)), [0], [len(tokens)])
    batch = StepBatch(*(np.array(part, dtype=np.int32) for part in parts))
    return model.forward(batch, all_logits=True).float()


@pytest.mark.skipif(
    "MEGATRON_PYTHON" not in os.environ,
    reason="MEGATRON_PYTHON names no Python with megatron-core (see write_archives.py)",
)
def test_megatron_core_writes_the_archives_again(tmp_path: Path) -> None:
    python, script = os.environ["MEGATRON_PYTHON"], Path(__file__).with_name("write_archives.py")
    forms = os.environ.get("MEGATRON_FORMS", "zarr single ranks stages").split()
    subprocess.run([python, str(script), str(tmp_path), *forms], check=True, timeout=280)

    for graph in GRAPHS:
        logits = json.loads((tmp_path / f"{graph}.json").read_text())["logits"]
        np.testing.assert_allclose(logits, expected_logits(graph)[1], atol=1e-5)
        for form in forms:
            written, committed = tmp_path / f"{graph}_{form}.nemo", archive(graph, form)
            assert members(written).keys() == members(committed).keys()
            convert(str(written), tmp_path / "written", ConvertOptions(overwrite=True))
            convert(str(committed), tmp_path / "committed", ConvertOptions(overwrite=True))
            weights = "rank0.safetensors"
            assert (tmp_path / "written" / weights).read_bytes() == (
                tmp_path / "committed" / weights
            ).read_bytes()
