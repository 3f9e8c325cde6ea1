"""Checkpoints of any cut read back to the same whole tensors, and damaged ones are refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.errors import BadInputError
from minitron_trt.executor.merged_weights import read_weights

CheckpointOf = Callable[[str, ConvertOptions], Checkpoint]
QKV = "transformer.layers.0.attention.qkv.weight"
NORM = "transformer.layers.0.input_layernorm.weight"


@pytest.mark.parametrize("name", ["llama", "mistral", "nemotron"])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (4, 1), (2, 2), (1, 3), (4, 2)])
def test_every_cut_reads_back_to_the_source(
    name: str,
    tp: int,
    pp: int,
    checkpoint_of: CheckpointOf,
    hf_model: Callable[[str, str, torch.dtype], Any],
) -> None:
    found = read_weights(checkpoint_of(name, ConvertOptions(tp=tp, pp=pp)))
    source = hf_model(name, "bfloat16", torch.bfloat16).state_dict()
    gated = name != "nemotron"
    expected = {
        "transformer.vocab_embedding.weight": source["model.embed_tokens.weight"],
        "lm_head.weight": source["lm_head.weight"],
    }
    for layer in range(3):
        to, origin = f"transformer.layers.{layer}", f"model.layers.{layer}"
        heads = [source[f"{origin}.self_attn.{part}_proj.weight"] for part in "qkv"]
        expected[f"{to}.attention.qkv.weight"] = torch.cat(heads)
        expected[f"{to}.attention.dense.weight"] = source[f"{origin}.self_attn.o_proj.weight"]
        first = "gate" if gated else "up"
        expected[f"{to}.mlp.fc.weight"] = source[f"{origin}.mlp.{first}_proj.weight"]
        expected[f"{to}.mlp.proj.weight"] = source[f"{origin}.mlp.down_proj.weight"]
        if gated:
            expected[f"{to}.mlp.gate.weight"] = source[f"{origin}.mlp.up_proj.weight"]
    norms = {"transformer.ln_f": "model.norm"}
    for layer in range(3):
        at = f"layers.{layer}"
        norms[f"transformer.{at}.input_layernorm"] = f"model.{at}.input_layernorm"
        norms[f"transformer.{at}.post_layernorm"] = f"model.{at}.post_attention_layernorm"
    for to, origin in norms.items():
        expected[f"{to}.weight"] = source[f"{origin}.weight"] + (0 if gated else 1)
        if not gated:
            expected[f"{to}.bias"] = source[f"{origin}.bias"]

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_tensors_that_need_no_joining_stay_in_the_mapped_file(checkpoint_of: CheckpointOf) -> None:
    weights = read_weights(checkpoint_of("llama", ConvertOptions()))

    assert len({tensor.untyped_storage().data_ptr() for tensor in weights.values()}) == 1


def forget(tensors: dict[str, torch.Tensor]) -> None:
    del tensors[QKV], tensors["lm_head.weight"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["lm_head.bias"] = torch.zeros(3)


def cut(tensors: dict[str, torch.Tensor]) -> None:
    tensors[QKV] = tensors[QKV][:-1]


def widen(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NORM] = tensors[NORM].float()


def drift(tensors: dict[str, torch.Tensor]) -> None:
    tensors[NORM] = tensors[NORM] + 1


def drift_copy_of_head(tensors: dict[str, torch.Tensor]) -> None:
    tensors[QKV] = tensors[QKV].clone()
    tensors[QKV][-1] += 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (forget, f"rank1.safetensors lacks lm_head.weight, {QKV}; convert again"),
        (add, "has lm_head.bias, which its config.json does not call for; convert again"),
        (cut, f"{QKV} is BF16 [39, 48], expected BF16 [40, 48]; convert again"),
        (widen, f"{NORM} is F32 [48], expected BF16 [48]; convert again"),
        (drift, f"the ranks hold different copies of {NORM!r}; convert again"),
        (drift_copy_of_head, f"the ranks hold different copies of {QKV!r}; convert again"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_damaged_checkpoint_is_refused_by_tensor(
    damage: Callable[[dict[str, torch.Tensor]], None],
    message: str,
    checkpoint_of: CheckpointOf,
    tmp_path: Path,
) -> None:
    whole = checkpoint_of("llama", ConvertOptions(tp=4))
    shutil.copytree(whole.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "rank1.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    with pytest.raises(BadInputError) as caught:
        read_weights(replace(whole, folder=tmp_path / "copy"))

    assert message in str(caught.value)
