"""The samples by which precisions are ranked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="pip install minitron-trt[reference]")

from minitron_trt.console import no_display
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.evaluate.scoring import Evaluation
from minitron_trt.samples import AUSTEN_NAMES, HELD_OUT_TEXT, sample_folder
from minitron_trt.tensorfile import read_header

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", AUSTEN_NAMES)
def test_rows_hold_whole_blocks_of_every_gguf_type(name: str) -> None:
    weights = sample_folder(name) / "model.safetensors"
    rows = {entry.shape[-1] % 256 for entry in read_header(weights).values()}
    tied = json.loads((sample_folder(name) / "config.json").read_text())["tie_word_embeddings"]

    assert rows == {0}
    assert weights.stat().st_size < 3_000_000
    assert tied is (name == "austen-llama")


@pytest.mark.parametrize("name", AUSTEN_NAMES)
def test_a_novel_that_was_not_read_ranks_precisions(name: str, tmp_path: Path) -> None:
    # From the best to the worst, by how many bits each keeps.
    precisions = ("bf16", "w8a16", "fp8-rowwise", "w4a16")
    for precision in precisions:
        convert(str(sample_folder(name)), tmp_path / precision, ConvertOptions(precision))
    evaluation = Evaluation(
        text=HELD_OUT_TEXT.read_text(encoding="utf-8"),
        context=256,
        chunks=6,
        dtype="float32",
        state=tmp_path / "state",
    )
    bf16, *others = evaluation.run([str(tmp_path / name) for name in precisions], no_display)
    divergences = [model.divergence.mean.value for model in others if model.divergence]

    assert 10 < bf16.perplexity.value < 100
    assert divergences == sorted(divergences)
