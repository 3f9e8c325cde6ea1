"""FP8: the checkpoint's own scales in the network, and TensorRT-RTX compiling it."""

from __future__ import annotations

import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.torch
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

pytest.importorskip("tensorrt_rtx", reason="the network needs: pip install 'minitron-trt[rtx]'")

from tests.build.tensorrt import interpreter
from tests.build.tensorrt.edges import SameAtEdges, record_rounding
from tests.build.tensorrt.interpreter_model import InterpretedModel
from tests.build.tensorrt.test_network import LIMITS, SAME, logits_of

from minitron_trt.artifacts import CHECKPOINT, CONFIG_NAME, Manifest
from minitron_trt.build.tensorrt.api import RTX, make_logger
from minitron_trt.build.tensorrt.engine_compiler import compile_engine
from minitron_trt.build.tensorrt.mapped_weights import map_weights
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import UnsupportedError
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.families import family_of
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.samples import NAMES, sample_folder

pytestmark = pytest.mark.slow

LARGEST = 448.0
Pair = tuple[Checkpoint, Checkpoint]


def quantized(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """Write a checkpoint again in FP8, one scale per tensor, by nothing but numpy."""
    shutil.copytree(checkpoint.folder, folder)
    rules = family_of(checkpoint.spec.architecture).rules
    linear = {
        rule.target.format(layer)
        for rule in rules
        if rule.linear
        for layer in range(checkpoint.spec.layers)
    }
    tensors = load_file(folder / "rank0.safetensors")
    amaxes: dict[str, int] = {}
    for name in sorted(linear):
        wide, layer = tensors[name].astype(np.float32), name.removesuffix(".weight")
        scale = np.array([np.abs(wide).max() / LARGEST], np.float32)
        tensors[name] = (wide / scale).astype(ml_dtypes.float8_e4m3fn)
        tensors[f"{layer}.weights_scaling_factor"] = scale
        # Different for every layer, and the largest inputs of some saturate. The branches of an
        # MLP have the same input, hence the same scale, but for one layer of somebody's file.
        same = layer if ".layers.2." in layer else layer.replace("mlp.gate", "mlp.fc")
        tensors[f"{layer}.activation_scaling_factor"] = np.array(
            [(2 + amaxes.setdefault(same, len(amaxes) % 5)) / LARGEST], np.float32
        )
    save_file(tensors, folder / "rank0.safetensors")
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["quantization"] = PRECISIONS["fp8"].quantization()
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    manifest = Manifest.read(checkpoint.folder, CHECKPOINT)
    replace(manifest, facts={**manifest.facts, "precision": "fp8"}).write(folder)
    return Checkpoint.open(folder)


@pytest.fixture(scope="module", params=NAMES)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Return a sample's checkpoint, and the same in FP8."""
    folder = tmp_path_factory.mktemp("fp8")
    convert(str(sample_folder(request.param)), folder / "wide", ConvertOptions())
    wide = Checkpoint.open(folder / "wide")
    return wide, quantized(wide, folder / "fp8")


def reference(pair: Pair, dtype: torch.dtype | None) -> NDArray[np.float32]:
    """Return the reference model's logits of the FP8 checkpoint."""
    return logits_of(ReferenceModel(pair[1], slots=3, max_seq_len=48, dtype=dtype))


def test_in_float32_the_network_is_the_reference_model_in_fp8(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = record_rounding(monkeypatch)
    expected = reference(pair, torch.float32)
    model = SameAtEdges(pair[1], LIMITS, rounded, monkeypatch)

    actual = logits_of(model)

    assert np.abs(actual - expected).max() < SAME * np.abs(expected).max()
    assert model.taken_over < model.values / 1000


@pytest.mark.parametrize("scale", ["weights_scaling_factor", "activation_scaling_factor"])
def test_the_comparison_notices_a_doubled_scale(
    pair: Pair, scale: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = record_rounding(monkeypatch)
    reference(pair, torch.float32)
    shutil.copytree(pair[1].folder, tmp_path / "doubled")
    file = tmp_path / "doubled" / "rank0.safetensors"
    tensors = safetensors.torch.load_file(file)
    tensors[f"transformer.layers.1.attention.qkv.{scale}"] *= 2
    safetensors.torch.save_file(tensors, file)
    model = SameAtEdges(Checkpoint.open(tmp_path / "doubled"), LIMITS, rounded, monkeypatch)

    with pytest.raises(AssertionError, match="other values"):
        logits_of(model)


def test_the_comparison_notices_another_rounding(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded = record_rounding(monkeypatch)
    reference(pair, torch.float32)
    nearest = interpreter.to_fp8
    monkeypatch.setattr(interpreter, "to_fp8", lambda scaled: nearest(scaled * 0.99))
    model = SameAtEdges(pair[1], LIMITS, rounded, monkeypatch)

    with pytest.raises(AssertionError, match="other codes"):
        logits_of(model)


def test_fp8_shows_in_the_logits(pair: Pair) -> None:
    wide = logits_of(ReferenceModel(pair[0], slots=3, max_seq_len=48, dtype=torch.float32))

    fp8 = logits_of(InterpretedModel(pair[1], LIMITS, exact=True))

    assert np.abs(fp8 - wide).max() > 0.02 * np.abs(wide).max()


def test_as_typed_fp8_rounds_no_worse_than_the_reference_model(pair: Pair) -> None:
    exact = reference(pair, torch.float32)
    usual = np.square(reference(pair, None) - exact).mean() ** 0.5

    actual = logits_of(InterpretedModel(pair[1], LIMITS, exact=False))

    assert 0 < np.square(actual - exact).mean() ** 0.5 < 1.25 * usual


@pytest.mark.parametrize("sm", [89, 120])
def test_fp8_weights_stay_fp8_in_the_engine(
    pair: Pair, sm: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "minitron_trt")
    for name, checkpoint in zip(("wide", "fp8"), pair, strict=True):
        compile_engine(checkpoint, tmp_path / name, sm=sm, limits=LIMITS)
    facts = Manifest.read(tmp_path / "fp8", "engine").facts

    wide, fp8 = map(int, re.findall(r"Total Weights Memory: (\d+)", caplog.text))

    # One byte less for each value of a linear layer; tables and scales come on top.
    spec = pair[0].spec
    vocabulary = 2 * 2 * spec.vocab * spec.hidden
    assert fp8 < vocabulary + 0.6 * (wide - vocabulary)
    assert facts["precision"] == "fp8"


@pytest.mark.parametrize("sm", [80, 86])
def test_fp8_is_refused_where_the_gpu_has_none(pair: Pair, sm: int, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match=f"SM{sm}.* cannot run fp8: .* or bf16"):
        compile_engine(pair[1], tmp_path / "engine", sm=sm, limits=LIMITS)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"precision": PRECISIONS["w4a16-awq"]}, "tensorrt builds .*; the checkpoint is w4a16-awq"),
        ({"kv_cache": "fp8"}, "has no fp8 KV cache: .* --kv-cache auto"),
    ],
    ids=["precision", "kv_cache"],
)
def test_what_the_network_cannot_compute_is_refused(
    pair: Pair, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(UnsupportedError, match=said):
        map_weights(replace(pair[1], **change))


def test_the_cache_layer_takes_no_fp8_which_is_why_such_a_cache_is_refused() -> None:
    """When this fails, TensorRT has learnt it: an FP8 KV cache can then be supported."""
    trt = RTX.load()
    logger, errors = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    shapes = {"cache": (1, 2, 8, 16), "update": (1, 2, 1, 16)}
    cache, update = (network.add_input(name, trt.fp8, shape) for name, shape in shapes.items())
    starts = network.add_input("starts", trt.int32, (1,))
    layer = network.add_kv_cache_update(cache, update, starts, trt.KVCacheMode.LINEAR)

    with pytest.raises(RuntimeError, match="Could not get tensor shape"):
        assert layer.get_output(0).shape
    assert "cache has type FP8 but must have type Float, Half, or BFloat16" in errors[0]
