"""Calibration: which text is read, what it must hold, and what a run that fails says and leaves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.patience import until

from minitron_trt.convert.calibration.text import DEFAULT_TEXT, CalibrationText
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.errors import BadInputError
from minitron_trt.samples import sample_folder

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
MakeModel = Callable[..., Path]
Refusal = Callable[..., str]
LLAMA, NEMOTRON = sample_folder("solar-llama"), sample_folder("solar-nemotron")
IDS = '{"input_ids": [1, 5, 7, 9, 11]}\n{"input_ids": [1, 6, 8]}\n'


@pytest.fixture
def needs_modelopt() -> None:
    """Skip, loudly, where calibration cannot run."""
    pytest.importorskip("modelopt", reason="NOT CHECKED: pip install minitron-trt[quantize]")


def scales(folder: Path, suffix: str) -> dict[str, list[float]]:
    pytest.importorskip("torch")
    from safetensors.torch import load_file as load

    tensors = load(folder / "rank0.safetensors")
    return {k: v.tolist() for k, v in tensors.items() if k.endswith(suffix)}


def batches(text: CalibrationText, folder: Path = LLAMA) -> list[list[list[int]]]:
    found = text.batches(ModelSource.open(folder))
    return [batch.tolist() for batch in found]


def test_the_default_text_ships_and_every_piece_begins_as_a_text_does() -> None:
    found = batches(CalibrationText(samples=8, length=64, batch=3))

    assert DEFAULT_TEXT.is_file()
    assert [(len(batch), len(batch[0])) for batch in found] == [(3, 64), (3, 64), (2, 64)]
    assert {row[0] for batch in found for row in batch} == {ModelSource.open(LLAMA).tokens.bos_id}


def test_the_same_seed_draws_the_same_pieces() -> None:
    first, again, other = (
        batches(CalibrationText(samples=4, length=32, seed=seed)) for seed in (3, 3, 4)
    )

    assert first == again != other


def test_ready_ids_are_cut_and_need_no_tokenizer(make_model: MakeModel, tmp_path: Path) -> None:
    folder = make_model("llama")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    path = tmp_path / "ids.jsonl"
    path.write_text(IDS)
    found = batches(CalibrationText(str(path), samples=9, length=3), folder)

    assert sorted(row for batch in found for row in batch) == [[1, 5, 7], [1, 6, 8], [9, 11]]


def test_text_and_lines_of_text_are_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "plain.txt").write_text("The Sun is a star.\n")
    (tmp_path / "lines.jsonl").write_text('{"text": "The Sun is a star.\\n"}\n\n')
    plain, lines = (
        batches(CalibrationText(str(tmp_path / name), samples=1, length=4))
        for name in ("plain.txt", "lines.jsonl")
    )

    assert plain == lines


BAD_TEXT = {
    "empty.txt": ("", " tokenizes to nothing; calibrate with some text"),
    "empty.jsonl": ("\n", " tokenizes to nothing; calibrate with some text"),
    "none.jsonl": ('{"input_ids": []}', " tokenizes to nothing; calibrate with some text"),
    "blank.jsonl": ('{"text": ""}', " tokenizes to nothing; calibrate with some text"),
    "broken.jsonl": (
        '{"text": "a"}\n{"text"',
        ":2 is not a JSON object (Expecting ':' delimiter: line 1 column 8 (char 7))",
    ),
    "list.jsonl": ("[1]", ":1 is not a JSON object ('list' object has no attribute 'get')"),
    "key.jsonl": ('{"body": "a"}', ":1 has neither `text` nor `input_ids`"),
    "float.jsonl": ('{"input_ids": [1.5]}', ":1: input_ids are not a list of whole numbers"),
    "large.jsonl": ('{"input_ids": [4096]}', " has the token id 4096; the model knows 0 to 1023"),
    "below.jsonl": ('{"input_ids": [-1]}', " has the token id -1; the model knows 0 to 1023"),
}


@pytest.mark.parametrize("name", BAD_TEXT)
def test_a_text_that_cannot_calibrate_is_refused(
    name: str, refusal: Refusal, tmp_path: Path
) -> None:
    content, message = BAD_TEXT[name]
    path = tmp_path / name
    path.write_text(content)

    assert refusal(LLAMA, 3, "--precision", "fp8", "--calib-data", path) == f"{path}{message}"


def test_bytes_that_are_no_text_are_refused(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(b"\xff\xfe\x00")

    assert refusal(LLAMA, 3, "--precision", "fp8", "--calib-data", path) == (
        f"{path} is not UTF-8 text (invalid start byte)"
    )


def test_text_for_a_model_without_a_tokenizer_is_refused(
    refusal: Refusal, make_model: MakeModel
) -> None:
    folder = make_model("llama")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()

    assert refusal(folder, 3, "--precision", "fp8") == (
        "SOURCE has no tokenizer; calibrate with JSONL of ready `input_ids`"
    )


def test_a_hub_data_set_without_a_hub_is_refused(
    refusal: Refusal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refusal(LLAMA, 3, "--precision", "fp8", "--calib-data", "someone/some-text")

    assert line == (
        "--calib-data someone/some-text is not a file here and the hub cannot be reached "
        "(OfflineModeIsEnabled); go online, or pass a file"
    )


def test_less_text_than_asked_is_said(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    path = tmp_path / "ids.jsonl"
    path.write_text(IDS)
    batches(CalibrationText(str(path), samples=7, length=8))

    assert [record.getMessage() for record in caplog.records] == [
        f"{path} gives 2 pieces of 8 tokens, not 7; calibrating with those"
    ]


@pytest.mark.usefixtures("needs_modelopt")
def test_layers_without_a_range_are_named_and_nothing_is_written(
    refusal: Refusal, make_model: MakeModel, tmp_path: Path
) -> None:
    # With a norm of zeros, a layer's inputs are zeros.
    folder = make_model("llama", hidden_size=48, num_attention_heads=12)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.input_layernorm.weight"] *= 0
    save_file(tensors, folder / "model.safetensors")
    path = tmp_path / "ids.jsonl"
    path.write_text(IDS)

    assert refusal(folder, 3, "--precision", "fp8", "--calib-data", path) == (
        "calibration on 8 tokens found no finite range above 0 for transformer.layers.1.attention."
        "qkv, transformer.layers.1.attention.dense; calibrate with more text, or check the model"
    )


@pytest.mark.usefixtures("needs_modelopt")
def test_a_weight_of_zeros_is_named(
    refusal: Refusal, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = make_model("nemotron")
    name = "model.layers.2.mlp.up_proj.weight"
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, folder / "model.safetensors")
    path = tmp_path / "ids.jsonl"
    path.write_text(IDS)
    line = refusal(folder, 3, "--precision", "fp8", "--calib-data", path)

    assert "transformer.layers.2.mlp.proj" in line


@pytest.mark.usefixtures("needs_modelopt")
@pytest.mark.parametrize(("kind", "algorithm"), [("fp8", "FP8"), ("int8", "INT8")])
@pytest.mark.parametrize("folder", [LLAMA, NEMOTRON], ids=lambda path: path.name)
def test_a_quantized_kv_cache_has_its_scale_in_every_layer(
    folder: Path, kind: str, algorithm: str, tmp_path: Path
) -> None:
    text = CalibrationText(samples=2, length=64)
    convert(str(folder), tmp_path / "out", ConvertOptions(kv_cache=kind, calibration=text))
    found = scales(tmp_path / "out", "kv_cache_scaling_factor")
    block = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]

    assert block == {"quant_algo": None, "kv_cache_quant_algo": algorithm}
    assert sorted(found) == [
        f"transformer.layers.{layer}.attention.kv_cache_scaling_factor" for layer in range(4)
    ]
    assert all(len(scale) == 1 for scale in found.values())
    if kind == "fp8":
        assert set(map(tuple, found.values())) == {(1.0,)}
    else:
        assert all(0 < scale[0] < 1 for scale in found.values())


@pytest.mark.usefixtures("needs_modelopt")
def test_an_fp8_cache_on_nemotron_is_warned_about(
    command: Callable[..., Any], tmp_path: Path
) -> None:
    options = ("--kv-cache", "fp8", "--calib-samples", 1, "--calib-length", 16)
    result = command("convert", NEMOTRON, "-o", tmp_path / "out", *options)

    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert "warning: an FP8 KV cache lost accuracy on Nemotron models upstream" in result.stderr


@pytest.mark.usefixtures("needs_modelopt")
def test_a_calibrated_conversion_is_reproducible(tmp_path: Path) -> None:
    text = CalibrationText(samples=3, length=64)
    for name in ("first", "second"):
        convert(str(LLAMA), tmp_path / name, ConvertOptions("fp8", calibration=text))

    assert (tmp_path / "first" / "rank0.safetensors").read_bytes() == (
        tmp_path / "second" / "rank0.safetensors"
    ).read_bytes()


@pytest.mark.usefixtures("needs_modelopt")
def test_a_calibration_that_is_killed_leaves_no_output(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "minitron_trt", "convert", str(LLAMA), "-o"]
    output = tmp_path / "out"
    with subprocess.Popen(
        [*argv, str(output), "--precision", "w4a16-awq", "--calib-samples", "500"],
        stderr=subprocess.DEVNULL,
    ) as process:
        until((tmp_path / ".out.partial").exists)
        time.sleep(0.5)  # a while into it
        os.kill(process.pid, signal.SIGKILL)

    assert not output.exists()
    convert(str(LLAMA), output, ConvertOptions("fp8-rowwise"))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.usefixtures("needs_modelopt")
def test_a_refused_text_is_an_error_of_the_library_too(tmp_path: Path) -> None:
    text = CalibrationText(str(tmp_path / "empty.txt"))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(BadInputError):
        convert(str(LLAMA), tmp_path / "out", ConvertOptions("fp8", calibration=text))
