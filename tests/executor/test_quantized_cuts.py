"""For random shapes, the ranks of a quantized checkpoint merge to the tensors of one rank."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.executor.merged_weights import read_weights

pytestmark = pytest.mark.slow


@st.composite
def legal_cuts(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """Draw sizes that some tp and pp divide legally."""
    tp, keys = draw(st.sampled_from([(1, 3), (2, 1), (2, 4), (3, 3), (4, 2), (6, 3)]))
    layers = draw(st.integers(1, 4))
    sizes = {
        "hidden_size": draw(st.integers(1, 9)),
        "intermediate_size": tp * draw(st.integers(1, 4)),
        "num_hidden_layers": layers,
        "num_attention_heads": tp * keys * draw(st.integers(1, 2)),
        "num_key_value_heads": keys,
        "head_dim": 2 * draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(1, 11)),
    }
    return sizes, tp, draw(st.integers(1, layers))


@pytest.mark.parametrize("kind", ["llama", "nemotron"])
@given(cut=legal_cuts())
@settings(max_examples=25)
def test_merged_ranks_are_the_tensors_of_one_rank(
    kind: str, make_model: Callable[..., Path], cut: tuple[dict[str, Any], int, int]
) -> None:
    sizes, tp, pp = cut
    # A turning share of a half needs heads of a multiple of 4.
    sizes |= {"head_dim": 2 * sizes["head_dim"]} if kind == "nemotron" else {}
    folder = make_model(kind, **sizes)
    with TemporaryDirectory() as scratch:
        found = []
        for name, options in (
            ("whole", ConvertOptions("fp8-rowwise")),
            ("cut", ConvertOptions("fp8-rowwise", tp=tp, pp=pp)),
        ):
            convert(str(folder), Path(scratch, name), options)
            found.append(read_weights(Checkpoint.open(Path(scratch, name))))
        whole, merged = found

        assert merged.keys() == whole.keys()
        assert [key for key in whole if not torch.equal(merged[key], whole[key])] == []
