"""A GGUF file that cannot be read: one line, the right exit code, nothing left and no traceback."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.convert.plans import plan_of

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.errors import MinitronError

MakeModel = Callable[..., Path]
WriteGguf = Callable[..., Path]
Refusal = Callable[..., str]
HERE = "which the LlamaForCausalLM graph written here does not have"
QUERY = "blk.0.attn_q.weight"
PASS = "pass the model's own GGUF file"


@pytest.fixture
def file(write_gguf: WriteGguf, tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a good GGUF file to spoil."""
    return write_gguf(tiny_llama, tmp_path / "model.gguf", "F16")


@pytest.mark.parametrize(
    ("start", "exit_code", "message"),
    [
        (b"GGML", 3, "SOURCE is not a GGUF file; it begins with b'GGML'"),
        (b"", 3, "SOURCE is empty; download it again"),
        (
            b"GGUF",
            4,
            "SOURCE is GGUF version 0; versions 2 and 3 are read: convert the model again ",
        ),
        (b"GGUF\x01\0\0\0", 4, "SOURCE is GGUF version 1; versions 2 and 3 are read: convert the "),
        (b"GGUF\x04\0\0\0", 4, "SOURCE is GGUF version 4; versions 2 and 3 are read: convert the "),
        (b"GGUF\0\0\0\x03", 4, "SOURCE is a big-endian GGUF file; get the little-endian one"),
        (b"GGUF\x03\0\0\0", 3, "SOURCE ends within its header (8 bytes); download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            3,
            "SOURCE is a git-LFS pointer, not weights; run: git lfs pull",
        ),
    ],
    ids=["magic", "empty", "only magic", "old", "new", "big-endian", "only version", "git-LFS"],
)
def test_a_wrong_start_is_named(
    start: bytes, exit_code: int, message: str, refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(start)

    assert refusal(path, exit_code).startswith(message)


def test_a_truncated_tail_is_refused(refusal: Refusal, file: Path) -> None:
    blob = file.read_bytes()
    file.write_bytes(blob[:-100])
    line = refusal(file, 3)

    assert line.startswith(f"SOURCE is {len(blob) - 100} bytes but tensor '")
    assert line.endswith("; it is truncated: download it again")


@pytest.mark.slow
def test_any_cut_or_changed_byte_of_the_header_is_refused_or_harmless(
    file: Path, tmp_path: Path
) -> None:
    blob, random = file.read_bytes(), np.random.default_rng(5)
    header = min(tensor.offset for tensor in GgufFile.open(file).tensors.values())
    copies = [blob[: int(n)] for n in random.integers(1, header, 100)]
    for place, mask in zip(
        random.integers(0, header, 400), random.integers(1, 256, 400), strict=True
    ):
        changed = bytearray(blob)
        changed[place] ^= int(mask)
        copies.append(bytes(changed))
    refused = 0
    for copy in copies:
        file.write_bytes(copy)
        try:
            plan_of(file)
        except MinitronError:
            refused += 1

    assert refused > 200


@pytest.mark.parametrize(
    ("facts", "exit_code", "message"),
    [
        (
            {"general.architecture": "phi3"},
            4,
            "SOURCE has architecture 'phi3'; GGUF files are read of llama, nemotron",
        ),
        (
            {"llama.embedding_length": None},
            3,
            "SOURCE has no llama.embedding_length; it is no complete model",
        ),
        (
            {"llama.attention.layer_norm_rms_epsilon": None},
            3,
            "SOURCE has no llama.attention.layer_norm_rms_epsilon; it is no complete model",
        ),
        (
            {"llama.attention.head_count_kv": [2, 2, 0]},
            4,
            "SOURCE: llama.attention.head_count_kv differs between layers, 2 here and 0 there; "
            "only models whose layers are alike are read",
        ),
        (
            {"llama.feed_forward_length": [48, 48]},
            3,
            "SOURCE: llama.feed_forward_length has 2 values for 3 layers; download it again",
        ),
        (
            {"llama.block_count": [3, 3, 3]},
            3,
            "SOURCE: llama.block_count is a list; expected a whole number",
        ),
        (
            {"llama.attention.head_count": 0},
            3,
            "SOURCE: llama.attention.head_count is 0; expected at least 1",
        ),
        *(
            ({"general.type": kind, **more}, 3, f"SOURCE holds {held}")
            for kind, more, held in (
                (
                    "adapter",
                    {},
                    "an adapter; merge it into its model first: llama-export-lora",
                ),
                (
                    None,
                    {"adapter.type": "lora"},
                    "an adapter; merge it into its model first: llama-export-lora",
                ),
                (
                    "imatrix",
                    {"imatrix.chunk_count": 1},
                    "an importance matrix, which only llama-quantize reads; " + PASS,
                ),
                ("mmproj", {}, "the projector of images or sound for a model; " + PASS),
                (
                    None,
                    {"general.architecture": "clip"},
                    "the projector of images or sound for a model; " + PASS,
                ),
                (None, {"general.architecture": "controlvector"}, "a control vector; " + PASS),
            )
        ),
        (
            {"general.type": "dictionary"},
            3,
            "SOURCE: general.type is 'dictionary'; expected 'model'",
        ),
        (
            {"llama.attention.key_length": 16},
            3,
            "SOURCE: blk.0.attn_q.weight has 96 rows for 12 heads but llama.attention.key_length "
            "is 16; download it again",
        ),
        ({"llama.expert_count": 8}, 4, f"SOURCE: llama.expert_count is 8, {HERE}"),
        (
            {"llama.rope.scaling.type": "yarn"},
            4,
            f"SOURCE: llama.rope.scaling.type is 'yarn', {HERE}",
        ),
        # What has a factor and no type, llama.cpp scales linearly.
        (
            {"llama.rope.scaling.factor": 4.0},
            4,
            f"SOURCE: llama.rope.scaling.factor is 4.0, {HERE}",
        ),
        (
            {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
            4,
            f"SOURCE: llama.rope.scaling.factor is 4.0, {HERE}",
        ),
        ({"llama.rope.scale_linear": 2.0}, 4, f"SOURCE: llama.rope.scale_linear is 2.0, {HERE}"),
        (
            {"llama.rope.scaling.type": "none", "llama.rope.scaling.attn_factor": 1.5},
            4,
            f"SOURCE: llama.rope.scaling.attn_factor is 1.5, {HERE}",
        ),
        (
            {"llama.rope.dimension_count": 4},
            4,
            "SOURCE: llama.rope.dimension_count is 4 but a head has 8 values; partial rotary "
            "embedding is not in llama's graph",
        ),
        (
            {"llama.attention.sliding_window": 64},
            4,
            f"config.json: sliding_window is 64, {HERE}",
        ),
        (
            {"llama.rope.freq_base": float("nan")},
            3,
            "SOURCE: llama.rope.freq_base is nan; expected a finite number",
        ),
        (
            {"llama.block_count": 4},
            3,
            "the source lacks 9 tensors: model.layers.3.input_layernorm.weight, "
            "model.layers.3.mlp.down_proj.weight, model.layers.3.mlp.gate_proj.weight, "
            "model.layers.3.mlp.up_proj.weight and 5 more; expected by its config.json",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_facts_that_do_not_fit_are_named(
    facts: dict[str, Any],
    exit_code: int,
    message: str,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "model.gguf", "F16", facts=facts)

    assert refusal(path, exit_code) == message


@pytest.mark.parametrize(
    ("name", "shape", "exit_code", "message"),
    [
        (
            "blk.0.attn_q.bias",
            (96,),
            3,
            "the source has tensor model.layers.0.self_attn.q_proj.bias,",
        ),
        (
            "blk.0.attn_q_norm.weight",
            (8,),
            4,
            f"SOURCE has tensor 'blk.0.attn_q_norm.weight', {HERE}",
        ),
        (
            "rope_freqs.weight",
            (5,),
            4,
            "SOURCE: rope_freqs.weight holds F32 [5] that no llama3 scal",
        ),
        (
            "rope_freqs.weight",
            (4,),
            4,
            "SOURCE: rope_freqs.weight holds F32 [4] that no llama3 scal",
        ),
        (QUERY, (95, 40), 3, "SOURCE: blk.0.attn_q.weight has 95 rows for 12 heads but llama.att"),
        ("blk.1.attn_k.weight", (15, 40), 3, "SOURCE: tensor 'blk.1.attn_k.weight' has 15 rows; "),
        (
            "blk.1.attn_v.weight",
            (24, 40),
            3,
            "tensor model.layers.1.self_attn.v_proj.weight is [24",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str,
    shape: tuple[int, ...],
    exit_code: int,
    message: str,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    odd = {name: np.linspace(0.5, 3, int(np.prod(shape)), dtype=np.float32).reshape(shape)}
    path = write_gguf(tiny_llama, tmp_path / "model.gguf", "F16", tensors=odd)

    assert refusal(path, exit_code).startswith(message)


def with_type(path: Path, name: str, code: int) -> None:
    """Write another type into the header's record of a matrix."""
    blob = bytearray(path.read_bytes())
    at = type_at(blob, name)
    blob[at : at + 4] = code.to_bytes(4, "little")
    path.write_bytes(blob)


def type_at(blob: bytearray, name: str) -> int:
    """Return where a matrix's record has its type, before its offset."""
    # The record: the name's length and the name, the number of axes, two axes, then the type.
    return blob.index(len(name).to_bytes(8, "little") + name.encode()) + 8 + len(name) + 4 + 16


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        (1, "SOURCE: tensor 'blk.0.attn_q.weight' begins at "),
        (32, "SOURCE: tensor 'blk."),
        (-32, "SOURCE: tensor 'blk.0.attn_q.weight' overlaps the one before it; download it again"),
    ],
    ids=["misaligned", "over the next", "over the one before"],
)
def test_tensors_that_share_bytes_or_lie_odd_are_refused(
    moved: int, message: str, refusal: Refusal, file: Path
) -> None:
    blob = bytearray(file.read_bytes())
    at = type_at(blob, QUERY) + 4
    offset = int.from_bytes(blob[at : at + 8], "little") + moved
    blob[at : at + 8] = offset.to_bytes(8, "little")
    file.write_bytes(blob)

    assert refusal(file, 3).startswith(message)


def test_a_file_of_a_vocabulary_only_is_named(refusal: Refusal, tmp_path: Path) -> None:
    path = tmp_path / "vocab.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_token_list(["<unk>", "a"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    assert refusal(path, 3) == f"SOURCE has no tensors, at most a vocabulary; {PASS}"


def test_frequencies_that_only_llamas_graph_divides_are_refused_elsewhere(
    write_gguf: WriteGguf, refusal: Refusal, tiny_nemotron: Path, tmp_path: Path
) -> None:
    factors = {"rope_freqs.weight": np.ones(4, np.float32)}
    path = write_gguf(tiny_nemotron, tmp_path / "m.gguf", "BF16", tensors=factors)

    assert refusal(path, 4) == (
        "SOURCE has tensor 'rope_freqs.weight', which the NemotronForCausalLM graph written here "
        "does not have"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.00.attn_q.weight", "SOURCE has tensor 'blk.00.attn_q.weight', which the Llama"),
        (f"blk.{'9' * 40}.attn_q.weight", "SOURCE has tensor 'blk.9999999999999999999999999999"),
    ],
)
def test_a_second_spelling_of_a_layer_is_refused(
    name: str,
    message: str,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    odd = {name: np.ones((96, 40), np.float32)}
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "BF16", tensors=odd)

    assert refusal(path, 4).startswith(message)


@pytest.mark.parametrize(
    ("place", "exit_code", "message"),
    [
        ("m-00001-of-00002.gguf", 3, "SOURCE is not a folder; expected a Hugging Face model "),
        ("m-00002-of-00002.gguf", 3, "is not a regular file; expected a GGUF file"),
        ("tokenizer.json", 4, "SOURCE has a tokenizer of type 'rwkv'; read are "),
    ],
)
def test_a_pipe_in_a_files_place_is_not_waited_for(
    place: str,
    exit_code: int,
    message: str,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    tokens = {"tokenizer.ggml.model": "rwkv", "tokenizer.ggml.tokens": ["a"]}
    path = write_gguf(tiny_llama, folder / "m.gguf", "BF16", facts=tokens, tensors_in_part=20)
    (folder / place).unlink(missing_ok=True)
    os.mkfifo(folder / place)

    assert message in refusal(path, exit_code)


@pytest.mark.parametrize(
    "claim",
    [
        pytest.param(bytes(8) + bytes(13) * 2, id="facts without names"),
        pytest.param(
            (1).to_bytes(8, "little")
            + b"a"
            + (9).to_bytes(4, "little")
            + (8).to_bytes(4, "little")
            + (1 << 62).to_bytes(8, "little"),
            id="texts without end",
        ),
        pytest.param(
            (1).to_bytes(8, "little")
            + b"a"
            + (8).to_bytes(4, "little")
            + (1 << 38).to_bytes(8, "little"),
            id="a text without end",
        ),
    ],
)
def test_a_sparse_file_of_any_size_is_refused_at_once(
    claim: bytes, refusal: Refusal, tmp_path: Path
) -> None:
    path = tmp_path / "m.gguf"
    counts = (1 << 40).to_bytes(8, "little") * 2
    path.write_bytes(b"GGUF\x03\0\0\0" + counts + claim)
    os.truncate(path, 1 << 40)

    assert refusal(path, 3).startswith("SOURCE has a")


@pytest.mark.parametrize(
    ("code", "exit_code", "message"),
    [
        (
            77,
            4,
            f"SOURCE: tensor '{QUERY}' has type 77, which is not known; upgrade the gguf package, "
            "or download the file again",
        ),
        (
            26,
            4,
            f"SOURCE: tensor '{QUERY}' is I32; read are F32, F16, BF16, Q8_0, Q6_K, Q5_0, Q5_1, ",
        ),
        (
            34,
            4,
            f"SOURCE: tensor '{QUERY}' is TQ1_0; read are F32, F16, BF16, Q8_0, Q6_K, Q5_0, Q5_",
        ),
        (12, 3, f"SOURCE: tensor '{QUERY}' is [96, 40]; Q4_K needs rows of a multiple of 256"),
        *(
            (
                code,
                4,
                f"SOURCE: tensor '{QUERY}' is {name}, a type that llama.cpp has removed; take the "
                f"{taken} file of this model",
            )
            for code, name, taken in (
                (4, "Q4_2", "Q4_0"),
                (31, "Q4_0_4_4", "Q4_0"),
                (32, "Q4_0_4_8", "Q4_0"),
                (33, "Q4_0_8_8", "Q4_0"),
                (36, "IQ4_NL_4_4", "IQ4_NL"),
            )
        ),
    ],
)
def test_types_that_are_not_read_are_named(
    code: int, exit_code: int, message: str, refusal: Refusal, file: Path
) -> None:
    with_type(file, QUERY, code)

    assert refusal(file, exit_code).startswith(message)


def test_values_beyond_fp16_are_refused_where_fp16_is_asked_for(
    write_gguf: WriteGguf, refusal: Refusal, make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model("llama", hidden_size=64, intermediate_size=64)
    large = {"blk.1.attn_v.weight": np.full((16, 64), 1e5, np.float32)}
    path = write_gguf(source, tmp_path / "model.gguf", "Q8_0", tensors=large)

    assert refusal(path, 3, "--precision", "fp16") == (
        "tensor blk.1.attn_v.weight has values beyond fp16; convert with --precision bf16"
    )
    convert(str(path), tmp_path / "out", ConvertOptions())


def test_without_the_gguf_package_the_extra_is_named(
    refusal: Refusal, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)

    assert refusal(file, 4) == (
        "reading model.gguf needs gguf, which is not installed; "
        "run: pip install 'minitron-trt[quantize]'"
    )


def test_a_folder_of_several_files_asks_for_one(refusal: Refusal, file: Path) -> None:
    folder = file.parent / "several"
    folder.mkdir()
    for name in ("b.Q4_K_M.gguf", "a.Q8_0.gguf"):
        shutil.copyfile(file, folder / name)

    assert refusal(folder, 3) == (
        "SOURCE holds 2 GGUF files; name one of them, for example SOURCE/a.Q8_0.gguf"
    )


@pytest.mark.parametrize("path", ["models/absent.gguf", "absent.gguf", "/absent/model.gguf"])
def test_a_path_to_no_file_is_not_taken_for_a_hub_id(path: str, refusal: Refusal) -> None:
    assert refusal(path, 3) == (
        "SOURCE is not a folder; expected a Hugging Face model folder, a GGUF file, a .nemo "
        "archive or a hub id like nvidia/Minitron-4B-Base"
    )
