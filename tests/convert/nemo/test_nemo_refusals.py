"""A NeMo archive that cannot be read: one line, the right exit code, nothing left, no code run."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.convert.nemo.packing import (
    CONFIG,
    TOKENIZER,
    archive,
    members,
    pack,
    unpack,
    with_config,
)

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, UnsupportedError

Refusal = Callable[..., str]
GRAPH = "which the LlamaForCausalLM graph written here does not have"
QKV = "model.decoder.layers.self_attention.linear_qkv.weight"


@pytest.mark.parametrize(
    ("changes", "exit_code", "message"),
    [
        ({"bias": True}, 4, f"model_config.yaml: bias is True, {GRAPH}"),
        ({"bias": ...}, 4, f"model_config.yaml: bias is True, {GRAPH}"),
        ({"qkv_bias": True}, 4, f"model_config.yaml: qkv_bias is True, {GRAPH}"),
        (
            {"activation": "gelu"},
            4,
            "model_config.yaml has activation 'gelu' with normalization 'rmsnorm'; converted are "
            "squared-relu with layernorm1p, swiglu with rmsnorm, fast-swiglu with rmsnorm",
        ),
        (
            {"position_embedding_type": "learned_absolute"},
            4,
            f"model_config.yaml: position_embedding_type is 'learned_absolute', {GRAPH}",
        ),
        (
            {"position_embedding_type": ...},
            4,
            f"model_config.yaml: position_embedding_type is 'learned_absolute', {GRAPH}",
        ),
        ({"window_size": [127, 0]}, 4, f"model_config.yaml: window_size is [127, 0], {GRAPH}"),
        ({"num_moe_experts": 8}, 4, f"model_config.yaml: num_moe_experts is 8, {GRAPH}"),
        (
            {"seq_len_interpolation_factor": 4},
            4,
            f"model_config.yaml: seq_len_interpolation_factor is 4, {GRAPH}",
        ),
        (
            {"rotary_interleaved": True},
            4,
            f"model_config.yaml: rotary_interleaved is True, {GRAPH}",
        ),
        ({"rotary_percentage": 0.5}, 4, f"model_config.yaml: rotary_percentage is 0.5, {GRAPH}"),
        ({"qk_layernorm": True}, 4, f"model_config.yaml: qk_layernorm is True, {GRAPH}"),
        (
            {"name": "megatron_falcon_gpt"},
            4,
            f"model_config.yaml: name is 'megatron_falcon_gpt', {GRAPH}",
        ),
        (
            {"mcore_customization_config": {"new_decoder_architecture": True}},
            4,
            "model_config.yaml: mcore_customization_config is {'new_decoder_architecture': True}, "
            + GRAPH,
        ),
        (
            {"mcore_gpt": False},
            4,
            "model_config.yaml: mcore_gpt is not set: this is a model of before Megatron Core; "
            "convert it with NeMo's convert_gpt_nemo_to_mcore.py first",
        ),
        (
            {"target": "nemo.collections.asr.models.EncDecCTCModel"},
            4,
            "model_config.yaml is of a EncDecCTCModel; converted are GPT models (MegatronGPTModel)",
        ),
        (
            {"hidden_size": ...},
            3,
            "model_config.yaml has no hidden_size; expected a GPT model's config",
        ),
        (
            {"hidden_size": "wide"},
            3,
            "model_config.yaml: hidden_size is 'wide'; expected a number",
        ),
        (
            {"hidden_size": "${.size}"},
            3,
            "model_config.yaml: hidden_size is '${.size}'; expected a number",
        ),
        (
            {"num_layers": 10**9},
            3,
            "model_config.yaml says 1000000000 layers of 16, which do not fit into SOURCE",
        ),
        (
            {"num_layers": 3},
            3,
            "tensor decoder.layers.mlp.linear_fc1.layer_norm_weight is [2, 16]; model_config.yaml "
            "says 3 layers",
        ),
        (
            {"num_query_groups": 3},
            3,
            "model_config.yaml: 4 attention heads cannot share 3 query groups evenly",
        ),
        (
            {"kv_channels": None},
            3,
            "tensor decoder.layers.0.self_attention.linear_qkv.weight is [64, 16]; "
            "model_config.yaml implies [32, 16]",
        ),
        (
            {"ffn_hidden_size": 32},
            3,
            "tensor decoder.layers.0.mlp.linear_fc1.weight is [48, 16]; model_config.yaml implies "
            "[64, 16]",
        ),
        (
            {"share_embeddings_and_output_weights": "yes"},
            3,
            "model_config.yaml: share_embeddings_and_output_weights is 'yes'; expected true or "
            "false",
        ),
        (
            {"tokenizer": {"library": "sentencepiece", "model": "nemo:gone.model"}},
            3,
            "the archive lacks gone.model, its tokenizer by its config",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_a_config_is_computed_or_refused(
    changes: dict[str, Any], exit_code: int, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    files = with_config(members(archive("llama", "zarr")), **changes)

    assert refusal(pack(tmp_path / "model.nemo", files), exit_code) == message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a: [1", "model_config.yaml is not YAML (while parsing a flow sequence"),
        (b"- 1", "model_config.yaml is not a mapping of keys"),
        (b"\xff\xfe\x00", "model_config.yaml is not YAML ("),
        (b"a: !!python/object/apply:os.system [exit]", "model_config.yaml is not YAML (could not"),
        (b"a: " + b"[" * 5000, "model_config.yaml is not YAML (values within values, more than"),
        (b" " * (1 << 21), "model_config.yaml is 2097152 bytes; expected at most 1048576"),
    ],
    ids=["unfinished", "list", "not text", "object", "deep", "large"],
)
def test_a_config_is_plain_data(
    text: bytes, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    files = {**members(archive("llama", "zarr")), CONFIG: text}

    assert refusal(pack(tmp_path / "model.nemo", files), 3).startswith(message)


def link(name: str, target: str, kind: bytes) -> tarfile.TarInfo:
    """Return a member of a tar that is no file."""
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (
            tarfile.TarInfo("../../escaped"),
            "SOURCE holds '../../escaped', which leads out of the archive; do not trust it",
        ),
        (
            tarfile.TarInfo("/tmp/escaped"),
            "SOURCE holds '/tmp/escaped', which leads out of the archive; do not trust it",
        ),
        (
            link("./tokenizer.json", "/etc/passwd", tarfile.SYMTYPE),
            "SOURCE holds './tokenizer.json', which is a link or a device; expected files only",
        ),
        (
            link("./tokenizer.json", "./model_config.yaml", tarfile.LNKTYPE),
            "SOURCE holds './tokenizer.json', which is a link or a device; expected files only",
        ),
        (
            link("./pipe", "", tarfile.FIFOTYPE),
            "SOURCE holds './pipe', which is a link or a device; expected files only",
        ),
        (tarfile.TarInfo(CONFIG), f"SOURCE holds '{CONFIG}' twice; pack it again"),
    ],
    ids=["parent", "absolute", "link", "hard link", "pipe", "twice"],
)
def test_a_tar_holds_files_inside_it_and_nothing_else(
    member: tarfile.TarInfo, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    source = pack(tmp_path / "model.nemo", members(archive("llama", "zarr")), member)

    assert refusal(source, 3) == message
    assert not (tmp_path.parent / "escaped").exists()


def test_a_folder_s_links_stay_inside_it(refusal: Refusal, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "folder", members(archive("llama", "zarr")))
    (folder / TOKENIZER).unlink()
    (folder / TOKENIZER).symlink_to("/etc/passwd")

    assert refusal(folder, 3) == (
        f"SOURCE/{TOKENIZER} leads to /etc/passwd, outside the model folder; copy the file in"
    )


def test_a_pipe_in_a_folder_is_not_waited_for(refusal: Refusal, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "folder", members(archive("llama", "zarr")))
    os.mkfifo(folder / "tokenizer.json")

    assert refusal(folder, 3) == (
        "SOURCE/tokenizer.json is not a regular file; expected an unpacked archive"
    )


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("form", ["zarr", "torch_dist", "single", "ranks"])
def test_a_truncated_archive_is_named(
    form: str, share: float, refusal: Refusal, tmp_path: Path
) -> None:
    plain = pack(tmp_path / "whole.nemo", members(archive("nemotron", form))).read_bytes()
    source = tmp_path / "model.nemo"
    # Behind its last file a tar has empty blocks, which may be missing.
    source.write_bytes(plain[: int(share * len(plain.rstrip(b"\0")))])

    line = refusal(source, 3)
    assert line.startswith(("SOURCE is truncated ", "SOURCE ends within "))
    assert line.endswith("download it again")


def test_truncated_gzip_is_named(refusal: Refusal, tmp_path: Path) -> None:
    source = tmp_path / "model.nemo"
    source.write_bytes(archive("llama", "zarr").read_bytes()[:9000])

    assert refusal(source, 3) == (
        "SOURCE is truncated or damaged gzip (Compressed file ended before the end-of-stream "
        "marker was reached); download it again"
    )


def test_a_compressed_archive_leaves_room_on_the_disk(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_trt.convert.nemo.archive._ROOM_BYTES", 1 << 60)

    line = refusal(archive("llama", "zarr"), 1)
    assert line.startswith("SOURCE decompresses to more than the disk of ")


@pytest.mark.parametrize(
    ("data", "exit_code", "message"),
    [
        (b"", 3, "SOURCE is empty; download it again"),
        (b"nothing of the kind" * 99, 3, "SOURCE is truncated or no tar (invalid header); "),
        (b"PK\x03\x04" + bytes(600), 4, "SOURCE is a zip file; expected the tar that NeMo writes"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            3,
            "SOURCE is a git-LFS pointer, not an archive; run: git lfs pull",
        ),
    ],
    ids=["empty", "text", "zip", "git-LFS"],
)
def test_what_is_no_archive_is_named(
    data: bytes, exit_code: int, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    source = tmp_path / "model.nemo"
    source.write_bytes(data)

    assert refusal(source, exit_code).startswith(message)


def test_a_checkpoint_of_nemo_2_is_named(refusal: Refusal, tmp_path: Path) -> None:
    folder = unpack(tmp_path / "m", {"context/model.yaml": b"", "weights/.metadata": b""})

    assert refusal(folder, 4) == (
        "SOURCE is a checkpoint of NeMo 2; export it to a Hugging Face folder first: "
        "nemo.collections.llm.export_ckpt(target='hf')"
    )


def without(files: dict[str, bytes], *parts: str) -> dict[str, bytes]:
    """Return the files whose names have none of some parts."""
    return {name: data for name, data in files.items() if not any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("form", "gone", "message"),
    [
        (
            "zarr",
            "linear_qkv.weight",
            "the archive lacks 2 tensors: decoder.layers.0.self_attention.linear_qkv.weight, "
            "decoder.layers.1.self_attention.linear_qkv.weight; expected by model_config.yaml",
        ),
        (
            "zarr",
            f"{QKV}/1.1.0",
            f"{QKV} lacks a chunk of its zarr array; the checkpoint is not whole: download it "
            "again",
        ),
        (
            "torch_dist",
            "__1_0.distcp",
            ".metadata places model.",
        ),
        (
            "torch_dist",
            ".metadata",
            "SOURCE has no weights; expected model_weights.ckpt, one of each rank, or "
            "model_weights/ with zarr arrays or torch's .metadata",
        ),
        (
            "ranks",
            "mp_rank_01",
            "the archive has the weights of 1 ranks; model_config.yaml says 2 tensor-parallel by "
            "1 pipeline-parallel",
        ),
        (
            "stages",
            "tp_rank_01_pp_rank_001",
            "the archive has the weights of 3 ranks; model_config.yaml says 2 tensor-parallel by "
            "2 pipeline-parallel",
        ),
        (
            "stages",
            "pp_rank_001",
            "the archive has the weights of 2 ranks; model_config.yaml says 2 tensor-parallel by "
            "2 pipeline-parallel",
        ),
        ("single", CONFIG, "SOURCE has no model_config.yaml; expected a NeMo archive"),
    ],
)
def test_what_is_missing_is_named(
    form: str, gone: str, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    files = without(members(archive("llama", form)), gone)

    assert refusal(pack(tmp_path / "model.nemo", files), 3).startswith(message)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "model.embedding.position_embeddings.weight",
            "the archive has tensor embedding.position_embeddings.weight, which the graph written "
            "here does not have",
        ),
        (
            "model.decoder.layers.self_attention.adapter_layer.lora_kqv_adapter.linear_in.weight",
            "the archive has 2 tensors: decoder.layers.0.self_attention.adapter_layer.",
        ),
    ],
    ids=["positions", "adapter"],
)
def test_what_is_left_over_is_named(
    name: str, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    files = members(archive("llama", "zarr"))
    stacked = "layers" in name
    record = json.loads(files["model_weights/model.decoder.final_layernorm.weight/.zarray"])
    shape = [2, 16] if stacked else [16]
    files[f"model_weights/{name}/.zarray"] = json.dumps(
        {**record, "shape": shape, "chunks": shape}
    ).encode()
    files[f"model_weights/{name}/{'0.0' if stacked else '0'}"] = bytes(64 if stacked else 32)

    assert refusal(pack(tmp_path / "model.nemo", files), 4).startswith(message)


@pytest.mark.parametrize(
    ("changes", "exit_code", "message"),
    [
        (
            {"compressor": {"id": "blosc"}},
            4,
            f"{QKV}: its zarr array has compressor {{'id': 'blosc'}}; expected None",
        ),
        (
            {"zarr_format": 3},
            4,
            f"{QKV}: its zarr array has zarr_format 3; expected 2",
        ),
        (
            {"order": "F"},
            4,
            f"{QKV}: its zarr array has order 'F'; expected C",
        ),
        (
            {"dtype": "|O"},
            4,
            f"{QKV}: its zarr array has dtype '|O'; expected bfloat16 or <f2 or <f4 or <f8",
        ),
        (
            {"shape": [2, 10**12, 16], "chunks": [1, 1, 16]},
            3,
            f"{QKV} lacks a chunk of its zarr array; ",
        ),
        ({"chunks": [1, 0, 16]}, 3, f"{QKV}/.zarray has no shape and chunks of a zarr array"),
        ({"chunks": [1, 16, 32]}, 3, f"{QKV} lacks a chunk of its zarr array; "),
        ({"chunks": [1, 32, 8]}, 3, f"{QKV}/0.0.0 is 1024 bytes; a chunk of [1, 32, 8] in BF16 "),
        ({"dtype": "<f4"}, 3, f"{QKV}/0.0.0 is 1024 bytes; a chunk of [1, 32, 16] in F32 is "),
    ],
    ids=["compressed", "version", "order", "objects", "huge", "empty", "few", "small", "wide"],
)
def test_zarr_is_what_nemo_writes(
    changes: dict[str, Any], exit_code: int, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    files = members(archive("llama", "zarr"))
    name = f"model_weights/{QKV}/.zarray"
    files[name] = json.dumps({**json.loads(files[name]), **changes}).encode()
    line = refusal(pack(tmp_path / "model.nemo", files), exit_code)

    assert line.removeprefix("model_weights/").startswith(message)


class Evil:
    """Make a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("form", ["single", "torch_dist", "boxes"])
def test_no_pickle_runs_anything(form: str, refusal: Refusal, tmp_path: Path) -> None:
    blob = pickle.dumps({"model.weight": Evil(tmp_path / "run")})
    files = members(archive("llama", "single" if form == "single" else "torch_dist"))
    if form == "torch_dist":
        files["model_weights/.metadata"] = blob
    else:
        name = "model_weights.ckpt" if form == "single" else "model_weights/__0_0.distcp"
        files[name] = with_pickle(files[name], blob)
    line = refusal(pack(tmp_path / "model.nemo", files), 3)

    assert not (tmp_path / "run").exists()
    if form != "boxes":
        assert line.endswith(
            "names posix.mkdir, which could run code and is refused; expected weights only"
        )


def with_pickle(data: bytes, blob: bytes) -> bytes:
    """Return a file of torch.save with another pickle; of several, the first is replaced."""
    target = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as source, zipfile.ZipFile(target, "w") as archived:
        for name in source.namelist():
            archived.writestr(name, blob if name.endswith("data.pkl") else source.read(name))
    return target.getvalue()


@pytest.mark.parametrize(
    ("data", "exit_code", "message"),
    [
        (b"\x80\x02}.", 4, "model_weights.ckpt is in the format of torch before 1.6; "),
        (b"rubbish", 3, "model_weights.ckpt is not a file of torch.save; download it again"),
        (b"PK\x03\x04" + bytes(90), 3, "model_weights.ckpt is truncated or damaged ("),
        (b"", 3, "model_weights.ckpt is not a file of torch.save; download it again"),
    ],
    ids=["old", "rubbish", "damaged", "empty"],
)
def test_a_weight_file_is_one_of_torch_save(
    data: bytes, exit_code: int, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    files = {**members(archive("llama", "single")), "model_weights.ckpt": data}

    assert refusal(pack(tmp_path / "model.nemo", files), exit_code).startswith(message)


def converted_or_refused(source: Path, folder: Path) -> list[str]:
    """Return the lines of a refusal that left nothing; none where the archive was converted."""
    try:
        convert(str(source), folder / "checkpoint", ConvertOptions())
    except (BadInputError, UnsupportedError) as error:
        left = sorted(path.name for path in folder.iterdir() if path != source)
        return [*str(error).splitlines(), *left]
    return []


@pytest.mark.slow
@settings(max_examples=150)
@given(data=st.data())
def test_no_damage_ends_in_anything_but_a_refusal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    form = data.draw(st.sampled_from(["zarr", "torch_dist", "single", "stages"]))
    files = members(archive("llama", form))
    name = data.draw(st.sampled_from(sorted(files)))
    blob = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(0, len(blob) - 1)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "zero"])):
            case "flip" if blob:
                blob[at] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del blob[at : at + data.draw(st.integers(1, 50))]
            case "insert":
                blob[at:at] = data.draw(st.binary(max_size=9))
            case "zero":
                blob[at : at + 4] = bytes(4)
    folder = tmp_path_factory.mktemp("damaged")
    source = pack(folder / "model.nemo", {**files, name: bytes(blob)})
    lines = converted_or_refused(source, folder)
    assert len(lines) <= 1


@pytest.mark.slow
@settings(max_examples=60)
@given(data=st.data())
def test_no_value_of_a_config_ends_in_anything_but_a_refusal(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = members(archive("nemotron", "zarr"))
    config = yaml.safe_load(files[CONFIG])
    values = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-3, 2**70),
        st.floats(),
        st.text(max_size=5),
        st.lists(st.integers(), max_size=2),
        st.dictionaries(st.text(max_size=2), st.integers(), max_size=2),
    )
    key = data.draw(st.sampled_from(sorted(config)))
    folder = tmp_path_factory.mktemp("odd")
    source = pack(folder / "m.nemo", with_config(files, **{key: data.draw(values)}))
    lines = converted_or_refused(source, folder)
    assert len(lines) <= 1


def test_a_tar_of_more_files_than_an_archive_has_is_named(
    refusal: Refusal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_trt.convert.nemo.archive._MEMBERS_AT_MOST", 3)

    assert refusal(pack(tmp_path / "model.nemo", members(archive("llama", "zarr"))), 3) == (
        "SOURCE holds more than 3 files; expected a NeMo archive"
    )


def test_a_bomb_of_aliases_is_not_expanded(refusal: Refusal, tmp_path: Path) -> None:
    files = members(archive("llama", "zarr"))
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 40)]
    text = "\n".join([*lines, "hidden_size: *a39"])
    # A config that has all the rest comes as far as the message that would show the value.
    bomb = {**files, CONFIG: files[CONFIG] + b"\n" + text.encode()}

    assert refusal(pack(tmp_path / "model.nemo", bomb), 3).startswith(
        "model_config.yaml is not YAML (an alias *a4; write out what it stands for in "
    )


def test_a_bomb_of_zeros_stops_at_the_disk(refusal: Refusal, tmp_path: Path) -> None:
    source = tmp_path / "model.nemo"
    source.write_bytes(gzip.compress(bytes(50_000_000)))

    assert refusal(source, 3) == "SOURCE has no model_config.yaml; expected a NeMo archive"
