"""A source that is not a usable model folder: one line, the right exit code, nothing left."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

MakeModel = Callable[..., Path]
Refusal = Callable[..., str]
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00002.safetensors"
HEAD, QUERY = "lm_head.weight", "model.layers.0.self_attn.q_proj.weight"


def test_a_missing_folder_is_named(refusal: Refusal, tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent", 3) == (
        "SOURCE is not a folder; expected a Hugging Face model folder, a GGUF file, a .nemo "
        "archive or a hub id like nvidia/Minitron-4B-Base"
    )


def test_a_file_is_not_a_source(refusal: Refusal, tiny_llama: Path) -> None:
    assert refusal(tiny_llama / "config.json", 3) == (
        "SOURCE is not a folder; expected a Hugging Face model folder, a GGUF file, a .nemo "
        "archive or a hub id like nvidia/Minitron-4B-Base"
    )


@pytest.mark.parametrize(
    ("files", "message", "exit_code"),
    [
        ({}, "SOURCE is empty; expected a Hugging Face model folder", 3),
        (
            {"notes.txt": "hello"},
            "SOURCE has no config.json; expected a Hugging Face model folder",
            3,
        ),
        ({"config.json": "[]"}, "SOURCE/config.json is not a JSON object", 3),
        (
            {"config.json": "{"},
            "SOURCE/config.json is not JSON (Expecting property name enclosed in double quotes: "
            "line 1 column 2 (char 1))",
            3,
        ),
        (
            {"config.json": "{}"},
            "config.json has neither architectures nor model_type; expected a model folder",
            3,
        ),
        (
            {"config.json": '{"architectures": ["Phi3ForCausalLM"]}'},
            "architecture 'Phi3ForCausalLM' is not supported; known are LlamaForCausalLM, "
            "MistralForCausalLM, NemotronForCausalLM",
            4,
        ),
        (
            {"config.json": '{"model_type": "llama"}'},
            "SOURCE has neither model.safetensors nor model.safetensors.index.json",
            3,
        ),
        (
            {"config.json": '{"model_type": "llama"}', "pytorch_model-00001-of-00002.bin": ""},
            "SOURCE holds pytorch_model-00001-of-00002.bin but no pytorch_model.bin.index.json: "
            "download it",
            3,
        ),
    ],
    ids=[
        "empty folder",
        "no config",
        "config is a list",
        "config is not JSON",
        "config says nothing",
        "unknown architecture",
        "no weights",
        "a shard without its index",
    ],
)
def test_a_folder_without_a_model_is_refused(
    files: dict[str, str], message: str, exit_code: int, refusal: Refusal, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name, text in files.items():
        (source / name).write_text(text)

    assert refusal(source, exit_code) == message


@pytest.mark.parametrize(
    ("blob", "problem"),
    [
        (b"[" * 100_000, "not JSON (nested too deep)"),
        (b"\xff{}", "not UTF-8 (invalid start byte at byte 0)"),
        (b"", "not JSON (Expecting value: line 1 column 1 (char 0))"),
        (b"\x00", "not JSON (Expecting value: line 1 column 1 (char 0))"),
    ],
    ids=["nested", "not UTF-8", "empty", "a zero byte"],
)
def test_a_config_of_any_bytes_is_refused(
    blob: bytes, problem: str, refusal: Refusal, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_bytes(blob)

    assert refusal(source, 3) == f"SOURCE/config.json is {problem}"


def change_tensors(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop(HEAD),
            "the source lacks tensor lm_head.weight; expected by its config.json",
        ),
        (
            lambda t: [t.pop(name) for name in list(t) if ".2." in name],
            "the source lacks 9 tensors: model.layers.2.input_layernorm.weight, "
            "model.layers.2.mlp.down_proj.weight, model.layers.2.mlp.gate_proj.weight, "
            "model.layers.2.mlp.up_proj.weight and 5 more; expected by its config.json",
        ),
        (lambda t: t.pop(QUERY), f"tensor {QUERY} is missing; expected a LlamaForCausalLM"),
        (
            lambda t: t.update({"model.layers.0.self_attn.q_proj.bias": t["model.norm.weight"]}),
            "the source has tensor model.layers.0.self_attn.q_proj.bias, which its architecture "
            "does not know",
        ),
        (
            lambda t: t.update({HEAD: t[HEAD][:-1].copy()}),
            "tensor lm_head.weight is [130, 40]; config.json implies [131, 40]",
        ),
        (
            lambda t: t.update({QUERY: t[QUERY][:-1].copy()}),
            f"{QUERY} has 95 rows, which 12 attention heads do not divide evenly",
        ),
        (
            lambda t: t.update({QUERY: np.zeros((), ml_dtypes.bfloat16)}),
            f"{QUERY} has 0 rows, which 12 attention heads do not divide evenly",
        ),
        (
            lambda t: t.update({HEAD: t[HEAD].astype(np.int32)}),
            "tensor lm_head.weight is I32; expected one of BF16, F16, F32",
        ),
    ],
    ids=[
        "no head",
        "no third layer",
        "no query",
        "a bias",
        "a short head",
        "a short query",
        "a scalar query",
        "whole numbers",
    ],
)
def test_tensors_that_do_not_fit_the_config_are_refused(
    change: Callable[[dict[str, Any]], object],
    message: str,
    make_model: MakeModel,
    refusal: Refusal,
) -> None:
    folder = make_model("llama")
    change_tensors(folder, change)

    assert refusal(folder, 3) == message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": math.nan}, "config.json: hidden_size is nan; expected a finite number"),
        (
            {"num_attention_heads": 0},
            "config.json: num_attention_heads is 0; expected at least 1",
        ),
        (
            {"num_attention_heads": -12},
            "config.json: num_attention_heads is -12; expected at least 1",
        ),
        (
            {"num_hidden_layers": 10**12},
            "layers is 1000000000000; expected at most 10000",
        ),
        ({"eos_token_id": [None]}, "a special token's id is None; expected a whole number"),
        ({"eos_token_id": "2"}, "a special token's id is '2'; expected a whole number"),
        ({"bos_token_id": True}, "a special token's id is True; expected a whole number"),
        ({"head_dim": "8"}, "config.json: head_dim is '8'; expected a finite number"),
    ],
    ids=str,
)
def test_numbers_of_the_config_that_cannot_be_right_are_refused(
    changes: dict[str, Any], message: str, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama")
    (folder / "generation_config.json").unlink()
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))

    assert refusal(folder, 3) == message


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([], f"SOURCE/{INDEX} is not a JSON object"),
        ({}, f"SOURCE/{INDEX} has no weight_map"),
        ({"weight_map": {}}, f"SOURCE/{INDEX} has no weight_map"),
        ({"weight_map": [SHARD]}, f"SOURCE/{INDEX} has no weight_map"),
        (
            {"weight_map": {HEAD: "absent.safetensors"}},
            f"{INDEX} names absent.safetensors, which is absent: download it",
        ),
        (
            {"weight_map": {HEAD: "../x.safetensors"}},
            f"{INDEX} names '../x.safetensors'; expected the name of a file in the folder itself",
        ),
        (
            {"weight_map": {HEAD: "/etc/passwd"}},
            f"{INDEX} names '/etc/passwd'; expected the name of a file in the folder itself",
        ),
        (
            {"weight_map": {HEAD: ["x"]}},
            f"{INDEX} names ['x']; expected the name of a file in the folder itself",
        ),
        (
            {"weight_map": {HEAD: 7}},
            f"{INDEX} names 7; expected the name of a file in the folder itself",
        ),
        ({"weight_map": {HEAD: ".."}}, f"{INDEX} names .., which is absent: download it"),
    ],
    ids=str,
)
def test_an_index_that_does_not_lead_to_the_weights_is_refused(
    index: object, message: str, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama", shards=2)
    (folder / INDEX).write_text(json.dumps(index))

    assert refusal(folder, 3) == message


@pytest.mark.parametrize("wrong", ["unlisted", "elsewhere", "imagined"])
def test_an_index_that_disagrees_with_the_files_is_refused(
    wrong: str, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama", shards=2)
    weight_map = json.loads((folder / INDEX).read_text())["weight_map"]
    if wrong == "unlisted":
        del weight_map[HEAD]
    elif wrong == "elsewhere":
        weight_map[HEAD] = next(file for file in weight_map.values() if file != weight_map[HEAD])
    else:
        weight_map["extra.weight"] = SHARD
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    name = "extra.weight" if wrong == "imagined" else HEAD

    assert refusal(folder, 3) == (
        f"{INDEX} and the files disagree about tensor {name}; download them again"
    )


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", INDEX, SHARD]
)
def test_a_link_out_of_the_folder_is_refused(
    name: str, make_model: MakeModel, refusal: Refusal, tmp_path: Path
) -> None:
    folder = make_model("llama", shards=2)
    outside = (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(outside)

    assert refusal(folder, 3) == (
        f"SOURCE/{name} leads to {outside}, outside the model folder; copy the file in"
    )


def test_a_link_within_the_folder_is_followed(
    make_model: MakeModel, command: Callable[..., Result]
) -> None:
    folder = make_model("llama", shards=2)
    (folder / SHARD).rename(folder / "shard")
    (folder / SHARD).symlink_to("shard")

    assert command("convert", folder, "--dry-run").exit_code == 0


def run_without_hub(source: str, output: Path, **environment: str) -> tuple[int, str, str]:
    """Run the command in a process of its own: the hub's library reads its environment once."""
    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "convert", source, "-o", str(output)],
        env={**os.environ, "HF_HOME": str(output.parent / "hub"), **environment},
        capture_output=True,
        text=True,
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "environment",
    [{"HF_HUB_OFFLINE": "1"}, {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}],
    ids=["offline", "unreachable"],
)
def test_a_hub_id_without_a_hub_is_refused(environment: dict[str, str], tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"

    assert run_without_hub("nvidia/Minitron-4B-Base", output, **environment) == (
        3,
        "",
        "error: nvidia/Minitron-4B-Base is not a folder here and the hub cannot be reached "
        "(LocalEntryNotFoundError); go online, or pass a folder\n",
    )
    assert not output.exists()


def test_what_cannot_be_a_hub_id_is_refused_as_such(refusal: Refusal) -> None:
    assert refusal("nvidia/Minitron..", 3) == "SOURCE is neither a folder here nor a valid hub id"


@pytest.mark.slow
def test_a_snapshot_in_the_hub_cache_is_found_offline(tiny_llama: Path, tmp_path: Path) -> None:
    cache = tmp_path / "hub" / "hub" / "models--some--model"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("0" * 40)
    (cache / "snapshots").mkdir()
    tiny_copy = cache / "snapshots" / ("0" * 40)
    tiny_copy.mkdir()
    for path in tiny_llama.iterdir():
        (tiny_copy / path.name).write_bytes(path.read_bytes())
    output = tmp_path / "checkpoint"
    exit_code, _, stderr = run_without_hub("some/model", output, HF_HUB_OFFLINE="1")

    assert (exit_code, stderr) == (0, "")
    assert json.loads((output / "minitron.json").read_text())["source"] == {
        "path": str(tiny_copy),
        "repo": "some/model",
        "revision": "0" * 40,
    }
