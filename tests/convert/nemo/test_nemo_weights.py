"""Every weight of an archive arrives once, in its place, as it is stored."""

from __future__ import annotations

import gzip
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from click.testing import Result
from safetensors.torch import load_file
from tests.convert.nemo.packing import (
    CONFIG,
    FORMS,
    GRAPHS,
    TOKENIZER,
    archive,
    members,
    pack,
    unpack,
    with_config,
)
from transformers import AutoTokenizer

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.nemo.archive import NemoArchive
from minitron_trt.convert.nemo.megatron_tensors import NemoModel
from minitron_trt.convert.nemo.rearrange import NemoFolder
from minitron_trt.convert.nemo.stored_array import StoredMatrix

Command = Callable[..., Result]
HF = ConvertOptions(form="hf")


def hugging_face_tensors(graph: str) -> dict[str, Any]:
    """Return a model's tensors as transformers names them, from the file that holds all of it.

    Read by torch itself and reordered by index, as transformers' own converter of Nemotron does.
    """
    data = members(archive(graph, "single"))["model_weights.ckpt"]
    state = torch.load(io.BytesIO(data), weights_only=True)
    state = {key.removeprefix("model."): value for key, value in state.items()}
    tensors = {
        "model.embed_tokens.weight": state["embedding.word_embeddings.weight"][:45],
        "lm_head.weight": state["output_layer.weight"][:45],
    }
    for name, target in (("decoder.final_layernorm", "model.norm"),):
        tensors |= norm(state, name, target)
    for layer in range(2):
        mine, theirs = f"decoder.layers.{layer}", f"model.layers.{layer}"
        tensors |= norm(state, f"{mine}.input_layernorm", f"{theirs}.input_layernorm")
        tensors |= norm(state, f"{mine}.pre_mlp_layernorm", f"{theirs}.post_attention_layernorm")
        qkv = state[f"{mine}.self_attention.linear_qkv.weight"].reshape(8, 8, 16)
        for part, heads in (("q", [0, 1, 4, 5]), ("k", [2, 6]), ("v", [3, 7])):
            tensors[f"{theirs}.self_attn.{part}_proj.weight"] = qkv[heads].reshape(-1, 16)
        tensors[f"{theirs}.self_attn.o_proj.weight"] = state[
            f"{mine}.self_attention.linear_proj.weight"
        ]
        first = state[f"{mine}.mlp.linear_fc1.weight"]
        if graph == "llama":
            tensors[f"{theirs}.mlp.gate_proj.weight"] = first[:24]
            first = first[24:]
        tensors[f"{theirs}.mlp.up_proj.weight"] = first
        tensors[f"{theirs}.mlp.down_proj.weight"] = state[f"{mine}.mlp.linear_fc2.weight"]
    return tensors


def manifest(folder: Path) -> Any:
    """Return a checkpoint's manifest."""
    return json.loads((folder / "minitron.json").read_text())


def norm(state: dict[str, Any], name: str, target: str) -> dict[str, Any]:
    """Return a norm's weight and, where it has one, its bias."""
    parts = [part for part in ("weight", "bias") if f"{name}.{part}" in state]
    return {f"{target}.{part}": state[f"{name}.{part}"] for part in parts}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("graph", GRAPHS)
def test_the_tensors_are_those_that_torch_reads(graph: str, form: str, tmp_path: Path) -> None:
    convert(str(archive(graph, form)), tmp_path / "hf", HF)

    written = load_file(tmp_path / "hf" / "model.safetensors")
    expected = hugging_face_tensors(graph)
    assert written.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor.bfloat16()), name


@pytest.mark.parametrize("form", FORMS)
def test_a_tar_its_compressed_form_and_its_folder_are_one_model(form: str, tmp_path: Path) -> None:
    files = members(archive("llama", form))
    plain = pack(tmp_path / "model.nemo", files)
    folder = unpack(tmp_path / "folder", files)
    weights = []
    for number, source in enumerate((archive("llama", form), plain, folder)):
        convert(str(source), tmp_path / str(number), ConvertOptions(tp=2))
        weights.append(
            [(tmp_path / str(number) / f"rank{rank}.safetensors").read_bytes() for rank in (0, 1)]
        )
        assert manifest(tmp_path / str(number))["source"]["path"] == str(source)

    assert weights[0] == weights[1] == weights[2]


def test_only_q_k_and_v_are_moved(tmp_path: Path) -> None:
    plain = pack(tmp_path / "model.nemo", members(archive("llama", "single")))
    folder = NemoFolder.lay_out(NemoModel.read(NemoArchive.open(plain, tmp_path)), tmp_path)

    moved = {tensor.name.split(".")[-2] for tensor, _ in folder.rearranged}
    assert moved == {"q_proj", "k_proj", "v_proj"}
    assert {entry.path for entry in folder.in_place.values()} == {plain}


def test_layers_may_be_tensors_of_their_own(tmp_path: Path) -> None:
    files = members(archive("nemotron", "zarr"))
    flat = {}
    for name, data in files.items():
        stacked = "model_weights/model.decoder.layers."
        if not name.startswith(stacked) or "_extra_state" in name:
            flat[name] = data
            continue
        key, chunk = name.removeprefix(stacked).split("/")
        layers = (0, 1) if chunk == ".zarray" else (int(chunk[0]),)
        for layer in layers:
            if chunk == ".zarray":
                record = json.loads(data)
                record |= {axis: record[axis][1:] for axis in ("shape", "chunks")}
                flat[f"{stacked}{layer}.{key}/.zarray"] = json.dumps(record).encode()
            else:
                flat[f"{stacked}{layer}.{key}/{chunk[2:]}"] = data
    convert(str(pack(tmp_path / "flat.nemo", flat)), tmp_path / "flat", HF)
    convert(str(archive("nemotron", "zarr")), tmp_path / "stacked", HF)

    name = "model.safetensors"
    assert (tmp_path / "flat" / name).read_bytes() == (tmp_path / "stacked" / name).read_bytes()


def test_what_is_no_weight_is_passed_over(tmp_path: Path) -> None:
    files = members(archive("nemotron", "single"))
    state = torch.load(io.BytesIO(files["model_weights.ckpt"]), weights_only=True)
    # Transformer Engine keeps the scales of training in FP8 so, and old rotary embeddings a buffer.
    state["model.decoder.layers.0.mlp.linear_fc1._extra_state"] = io.BytesIO(b"scales")
    state["model.decoder.layers.1.mlp.linear_fc1._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    state["model.rotary_pos_emb.inv_freq"] = torch.ones(4)
    wrapped = {name.replace("model.", "model.module.", 1): value for name, value in state.items()}
    target = io.BytesIO()
    torch.save(wrapped, target)
    files["model_weights.ckpt"] = target.getvalue()
    convert(str(pack(tmp_path / "model.nemo", files)), tmp_path / "hf", HF)

    assert load_file(tmp_path / "hf" / "model.safetensors").keys() == (
        hugging_face_tensors("nemotron").keys()
    )


def test_a_tied_model_has_no_head(tmp_path: Path) -> None:
    files = with_config(members(archive("llama", "zarr")), share_embeddings_and_output_weights=True)
    kept = {name: data for name, data in files.items() if "output_layer" not in name}
    convert(str(pack(tmp_path / "tied.nemo", kept)), tmp_path / "hf", HF)

    assert json.loads((tmp_path / "hf" / "config.json").read_text())["tie_word_embeddings"]
    assert "lm_head.weight" not in load_file(tmp_path / "hf" / "model.safetensors")


def test_the_config_says_what_model_config_says(tmp_path: Path) -> None:
    convert(str(archive("nemotron", "torch_dist")), tmp_path / "hf", HF)

    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = {
        "architectures": ["NemotronForCausalLM"],
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 45,
        "max_position_embeddings": 64,
        "norm_eps": 1e-5,
        "partial_rotary_factor": 0.5,
        "hidden_act": "relu2",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    assert {key: config.get(key) for key in expected} == expected


def test_llama_3_1_is_scaled_as_nemo_scales_it(tmp_path: Path) -> None:
    files = with_config(members(archive("llama", "zarr")), scale_positional_embedding=True)
    convert(str(pack(tmp_path / "model.nemo", files)), tmp_path / "checkpoint", ConvertOptions())

    assert manifest(tmp_path / "checkpoint")["spec"]["rope"]["scaling"] == {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_positions": 8192,
    }


def test_the_tokenizer_travels_along_and_becomes_a_tokenizer_json(
    command: Command, tmp_path: Path
) -> None:
    source = archive("llama", "single")
    result = command("convert", source, "-o", tmp_path / "checkpoint")

    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    assert lines[0].startswith(f"warning: {source} is compressed: it is decompressed to ")
    assert lines[1:] == []
    model = members(source)[TOKENIZER]
    assert (tmp_path / "checkpoint" / "tokenizer.model").read_bytes() == model
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "checkpoint", local_files_only=True)
    assert tokenizer("AB</s>", add_special_tokens=False)["input_ids"] == [0, 3, 4, 2]
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<s>", "</s>")


def test_without_a_tokenizer_padding_is_kept_and_said(command: Command, tmp_path: Path) -> None:
    tokenizer = {"library": "huggingface", "type": "meta-llama/Meta-Llama-3-8B", "use_fast": True}
    files = with_config(members(archive("llama", "zarr")), tokenizer=tokenizer)
    del files[TOKENIZER]
    source = pack(tmp_path / "model.nemo", files)
    result = command("convert", source, "-o", tmp_path / "checkpoint")

    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: how many tokens the tokenizer has is not in the archive: all 48 rows of the "
        "embedding are kept, the last of which may be padding to a multiple of 16",
        f"warning: {source} has no tokenizer; serving text will need one",
    ]
    assert manifest(tmp_path / "checkpoint")["spec"]["vocab"] == 48


def test_a_tokenizer_of_json_tells_the_vocabulary(tmp_path: Path) -> None:
    vocabulary = {f"token {index}": index for index in range(40)}
    tokenizer = {"model": {"vocab": vocabulary}, "added_tokens": [{"id": 40, "content": "<end>"}]}
    files = with_config(
        members(archive("llama", "zarr")), tokenizer={"library": "huggingface", "type": "here"}
    )
    files["tokenizer.json"] = json.dumps(tokenizer).encode()
    convert(str(pack(tmp_path / "model.nemo", files)), tmp_path / "checkpoint", ConvertOptions())

    assert manifest(tmp_path / "checkpoint")["spec"]["vocab"] == 41
    assert (tmp_path / "checkpoint" / "tokenizer.json").is_file()


@pytest.mark.parametrize("share", ["model", "config"])
def test_configs_of_a_whole_run_floats_without_a_point_and_aliases_are_read(
    share: str, tmp_path: Path
) -> None:
    files = members(archive("nemotron", "zarr"))
    config = yaml.safe_load(files[CONFIG])
    text = yaml.safe_dump({"trainer": {}, "model": config} if share == "model" else config)
    files[CONFIG] = (text.replace("1.0e-05", "&small 1e-5") + "again: *small\n").encode()
    convert(str(pack(tmp_path / "model.nemo", files)), tmp_path / "checkpoint", ConvertOptions())

    assert manifest(tmp_path / "checkpoint")["spec"]["norm_epsilon"] == 1e-5


def test_a_folder_with_one_archive_is_that_archive(tmp_path: Path) -> None:
    folder = tmp_path / "repository"
    folder.mkdir()
    shutil.copyfile(archive("llama", "zarr"), folder / "minitron.nemo")
    (folder / "README.md").write_text("a card")
    convert(str(folder), tmp_path / "checkpoint", ConvertOptions())

    assert manifest(tmp_path / "checkpoint")["source"]["path"] == str(folder / "minitron.nemo")


def test_blocks_of_rows_are_read_and_not_whole_tensors(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sizes = []
    read = StoredMatrix.read

    def counting(matrix: StoredMatrix, rows: tuple[int, int]) -> Any:
        sizes.append(rows[1] - rows[0])
        return read(matrix, rows)

    monkeypatch.setattr(StoredMatrix, "read", counting)
    monkeypatch.setattr("minitron_trt.convert.nemo.rearrange._BLOCK_BYTES", 3 * 16 * 4)
    convert(str(archive("llama", "single")), tmp_path / "blocks", HF)

    assert max(sizes) == 3
    written = load_file(tmp_path / "blocks" / "model.safetensors")
    expected = hugging_face_tensors("llama")
    assert all(torch.equal(written[name], expected[name].bfloat16()) for name in expected)


def test_joined_gzip_files_are_one(tmp_path: Path) -> None:
    data = gzip.decompress(archive("llama", "single").read_bytes())
    source = tmp_path / "model.nemo"
    source.write_bytes(gzip.compress(data[:5000]) + gzip.compress(data[5000:]))
    convert(str(source), tmp_path / "hf", HF)

    written = load_file(tmp_path / "hf" / "model.safetensors")["lm_head.weight"].float().numpy()
    assert np.isfinite(written).all()
