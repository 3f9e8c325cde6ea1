"""The reference model at every precision: close to bf16 on trained models, and not by accident.

The divergences below are what each format costs on the samples, measured and rounded up by about
half. A scale that is wrong in one layer breaks them: see the last test.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.executor import StepBatch
from minitron_trt.executor.merged_weights import read_weights
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.samples import sample_folder

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
LLAMA, NEMOTRON = "solar-llama", "solar-nemotron"
Logits = list[torch.Tensor]
# sample, precision, KV cache: KL divergence from bf16, in nats per token.
KL_AT_MOST = {
    (LLAMA, "w8a16", None): 1e-5,
    (LLAMA, "w4a16", None): 3e-4,
    (LLAMA, "fp8-rowwise", None): 5e-5,
    (LLAMA, "fp8", None): 4e-5,
    (LLAMA, "fp8", "fp8"): 6e-5,
    (LLAMA, "bf16", "int8"): 4e-5,
    (LLAMA, "nvfp4", None): 6e-4,
    (LLAMA, "w4a16-awq", None): 3e-4,
    (LLAMA, "w4a8-awq", None): 4e-4,
    (NEMOTRON, "w8a16", None): 2e-5,
    (NEMOTRON, "w4a16", None): 2.5e-4,
    (NEMOTRON, "fp8-rowwise", None): 3e-5,
    (NEMOTRON, "fp8", None): 2e-4,
    (NEMOTRON, "fp8", "fp8"): 2.5e-4,
    (NEMOTRON, "bf16", "int8"): 3e-5,
    (NEMOTRON, "w4a16-awq", None): 3e-4,
}
PERPLEXITY_RATIO = 1.002
# A weight twice as large is another weight. An input's scale is divided out again, so that twice as
# much only coarsens the smallest values: what breaks it is to clip the largest.
WRONG = {
    "fp8": {"weights_scaling_factor": 2.0, "activation_scaling_factor": 0.0625},
    "fp8-rowwise": {"per_channel_scale": 2.0},
    "nvfp4": {
        "weights_scaling_factor": 2.0,
        "weights_scaling_factor_2": 2.0,
        "activation_scaling_factor": 0.002,
    },
    "w4a16-awq": {"weights_scaling_factor": 2.0, "prequant_scaling_factor": 2.0},
    "w4a8-awq": {"weights_scaling_factor": 2.0, "activation_scaling_factor": 0.0625},
}


def needs_modelopt(precision: str, kv_cache: str | None = None) -> None:
    if PRECISIONS[precision].calibrated or kv_cache is not None:
        pytest.importorskip("modelopt", reason="NOT CHECKED: pip install minitron-trt[quantize]")


@pytest.fixture(scope="module")
def checkpoint(
    tmp_path_factory: pytest.TempPathFactory, calibrate_once: None
) -> Callable[..., Checkpoint]:
    """Return a sample's checkpoint, converted once."""

    @functools.cache
    def make(
        name: str, precision: str, kv_cache: str | None = None, tp: int = 1, pp: int = 1
    ) -> Any:
        needs_modelopt(precision, kv_cache)
        folder = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
        text = CalibrationText(samples=4, length=256)
        options = ConvertOptions(precision, kv_cache, calibration=text, tp=tp, pp=pp)
        convert(str(sample_folder(name)), folder, options)
        return Checkpoint.open(folder)

    return make


@functools.cache
def documents(name: str) -> list[list[int]]:
    tokenizer = Tokenizer.from_file(str(sample_folder(name) / "tokenizer.json"))
    corpus = (sample_folder(name).parent / "corpus.txt").read_text().split("\n\n")
    return [tokenizer.encode(text).ids for text in corpus[:6]]


def log_probabilities(checkpoint: Checkpoint, name: str) -> Logits:
    model = ReferenceModel(checkpoint, slots=1, max_seq_len=512)
    found = []
    for ids in documents(name):
        parts = (ids, range(len(ids)), [0], [len(ids)])
        batch = StepBatch(*(np.array(part, dtype=np.int32) for part in parts))
        found.append(model.forward(batch, all_logits=True).log_softmax(-1))
    return found


@pytest.fixture(scope="module")
def exact(checkpoint: Callable[..., Checkpoint]) -> Callable[[str], Logits]:
    """Return what a sample says in bf16."""
    return functools.cache(lambda name: log_probabilities(checkpoint(name, "bf16"), name))


def divergence(exact: Logits, found: Logits) -> float:
    terms = [(p.exp() * (p - q)).sum(-1) for p, q in zip(exact, found, strict=True)]
    return float(torch.cat(terms).mean())


def perplexity(found: Logits, name: str) -> float:
    losses = [
        -logits[:-1].gather(1, torch.tensor(ids[1:])[:, None])
        for logits, ids in zip(found, documents(name), strict=True)
    ]
    return float(torch.cat(losses).mean().exp())


@pytest.mark.parametrize(("name", "precision", "kv_cache"), KL_AT_MOST)
def test_a_precision_costs_no_more_than_its_format_does(
    name: str,
    precision: str,
    kv_cache: str | None,
    checkpoint: Callable[..., Checkpoint],
    exact: Callable[[str], Logits],
) -> None:
    found = log_probabilities(checkpoint(name, precision, kv_cache), name)
    measured = divergence(exact(name), found)
    ratio = perplexity(found, name) / perplexity(exact(name), name)

    assert 0 < measured <= KL_AT_MOST[name, precision, kv_cache]
    assert 1 / PERPLEXITY_RATIO <= ratio <= PERPLEXITY_RATIO


@pytest.mark.parametrize(
    "layer", ["layers.0.attention.qkv", "layers.0.mlp.fc", "layers.3.mlp.proj"]
)
@pytest.mark.parametrize(
    ("name", "precision", "suffix"),
    [
        (name, precision, suffix)
        for name, precision, kv_cache in KL_AT_MOST
        if kv_cache is None
        for suffix in WRONG.get(precision, ())
    ],
)
def test_a_wrong_scale_in_one_layer_breaks_the_bound(
    name: str,
    precision: str,
    suffix: str,
    layer: str,
    checkpoint: Callable[..., Checkpoint],
    exact: Callable[[str], Logits],
    tmp_path: Path,
) -> None:
    good = checkpoint(name, precision)
    shutil.copytree(good.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "rank0.safetensors"
    tensors = load_file(path)
    key = f"transformer.{layer}.{suffix}"
    wide = tensors[key].float() * WRONG[precision][suffix]
    tensors[key] = wide.clamp(max=448).to(tensors[key].dtype)
    save_file(tensors, path)
    found = log_probabilities(replace(good, folder=tmp_path / "copy"), name)

    assert divergence(exact(name), found) > KL_AT_MOST[name, precision, None]


SCALED = [
    (LLAMA, "fp8", "weights_scaling_factor"),
    (LLAMA, "fp8-rowwise", "per_channel_scale"),
    (LLAMA, "nvfp4", "weights_scaling_factor_2"),
    (LLAMA, "w4a16-awq", "prequant_scaling_factor"),
    (NEMOTRON, "fp8", "activation_scaling_factor"),
]


@pytest.mark.parametrize("value", [0.0, -0.5, float("nan"), float("inf"), 1e-39], ids=str)
@pytest.mark.parametrize(("name", "precision", "suffix"), SCALED)
def test_a_scale_that_cannot_be_one_is_refused_on_open(
    name: str,
    precision: str,
    suffix: str,
    value: float,
    checkpoint: Callable[..., Checkpoint],
    tmp_path: Path,
) -> None:
    good = checkpoint(name, precision)
    shutil.copytree(good.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "rank0.safetensors"
    tensors = load_file(path)
    key = f"transformer.layers.2.attention.qkv.{suffix}"
    tensors[key].view(-1)[-1] = value
    save_file(tensors, path)
    rewrite_size(path)
    with pytest.raises(BadInputError) as caught:
        Checkpoint.open(tmp_path / "copy")

    assert f"{path}: {key} is {torch.tensor(value).item():.4g}"[:-4] in str(caught.value)
    assert str(caught.value).endswith("a scale is a finite normal number above 0: convert again")


@pytest.mark.parametrize("code", [0x00, 0x7F, 0x80, 0xB8], ids=hex)
def test_a_block_scale_that_cannot_be_one_is_refused_on_open(
    code: int, checkpoint: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    good = checkpoint(LLAMA, "nvfp4")
    shutil.copytree(good.folder, tmp_path / "copy")
    path = tmp_path / "copy" / "rank0.safetensors"
    tensors = load_file(path)
    key = "transformer.layers.0.mlp.proj.weights_scaling_factor"
    tensors[key].view(torch.uint8)[3, 1] = code
    save_file(tensors, path)
    rewrite_size(path)
    with pytest.raises(BadInputError, match=f"{key} is .* at 73; a scale is"):
        Checkpoint.open(tmp_path / "copy")


def rewrite_size(path: Path) -> None:
    """Tell the manifest the new size of a rank file."""
    manifest = json.loads((path.parent / "minitron.json").read_text())
    manifest["files"][path.name] = path.stat().st_size
    (path.parent / "minitron.json").write_text(json.dumps(manifest))


CUTS = [(2, 1), (4, 1), (1, 3), (2, 2), (4, 4)]


@pytest.mark.parametrize(("tp", "pp"), CUTS)
@pytest.mark.parametrize(
    ("name", "precision", "kv_cache"),
    [
        *((LLAMA, name, None) for name in PRECISIONS if not name.startswith("w4a")),
        (LLAMA, "fp8", "fp8"),
        (NEMOTRON, "fp8", "int8"),
        (NEMOTRON, "fp8-rowwise", None),
    ],
)
def test_every_cut_reads_back_to_the_tensors_of_one_rank(
    name: str,
    precision: str,
    kv_cache: str | None,
    tp: int,
    pp: int,
    checkpoint: Callable[..., Checkpoint],
) -> None:
    whole = read_weights(checkpoint(name, precision, kv_cache))
    found = read_weights(checkpoint(name, precision, kv_cache, tp, pp))

    assert found.keys() == whole.keys()
    assert [key for key in whole if not torch.equal(found[key], whole[key])] == []


@pytest.mark.parametrize("precision", ["w4a16-awq", "w4a8-awq"])
def test_groups_of_128_that_ranks_would_split_are_refused(precision: str, tmp_path: Path) -> None:
    needs_modelopt(precision)
    options = ConvertOptions(precision, tp=2)
    with pytest.raises(UnsupportedError) as caught:
        convert(str(sample_folder(LLAMA)), tmp_path / "out", options)

    assert str(caught.value) == (
        f"--precision {precision} groups 128 columns, which do not divide the 192 of "
        "transformer.layers.0.mlp.proj.weight with --tp 2"
    )
    assert list(tmp_path.iterdir()) == []


def test_weight_only_rounding_is_that_of_the_engine() -> None:
    scheme = PRECISIONS["w8a16"].scheme
    rows = [[1.0, 0.5 / 128, -1.0, -1.5 / 128, 1.4 / 128], [0.0] * 5, [1.6, 0.1, 0.0, 0.0, 0.0]]
    weight = torch.tensor(rows, dtype=torch.bfloat16)
    array = weight.view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    assert scheme is not None
    found = scheme.dequantize({"weight": array})

    # 128 is one more than an INT8 can be; halves go away from zero.
    assert (128 * found[0]).tolist() == [127.0, 1.0, -128.0, -2.0, 1.0]
    assert found[1].tolist() == [0.0] * 5
    # The scale is stored in bfloat16, after the rounding.
    assert found[2, 0] == 127 * float((weight[2, 0].float() / 128).to(torch.bfloat16))
