"""`pytorch_model*.bin` as a source: the checkpoint that safetensors give, nothing executed."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.source.torch_bin import read_torch_header
from minitron_trt.errors import BadInputError, MinitronError
from minitron_trt.tensorfile import TensorEntry

MakeModel = Callable[..., Path]
Refusal = Callable[..., str]
Tensors = dict[str, torch.Tensor]
INDEX, SINGLE = "pytorch_model.bin.index.json", "pytorch_model.bin"
WEIGHT = "lm_head.weight"


def with_torch_files(source: Path, target: Path, shards: int = 1) -> Path:
    """Copy a safetensors folder, its weights saved by torch instead."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors*"))
    tensors: Tensors = {}
    for path in sorted(source.glob("*.safetensors")):
        tensors |= load_file(path)
    if shards == 1:
        torch.save(tensors, target / SINGLE)
        return target
    weight_map = {
        name: f"pytorch_model-{index % shards + 1:05d}-of-{shards:05d}.bin"
        for index, name in enumerate(tensors)
    }
    for file in set(weight_map.values()):
        torch.save({n: t for n, t in tensors.items() if weight_map[n] == file}, target / file)
    (target / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    return target


def bytes_at(entry: TensorEntry) -> bytes:
    """Read what an entry points at, without torch."""
    with entry.path.open("rb") as file:
        file.seek(entry.offset)
        return file.read(entry.size_bytes)


def bytes_of(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def converted(source: Path, output: Path, **options: Any) -> dict[str, bytes]:
    convert(str(source), output, ConvertOptions(**options))
    files = {path.name: path.read_bytes() for path in output.iterdir()}
    del files["minitron.json"]
    return files


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["llama", "mistral", "nemotron"])
@pytest.mark.parametrize("options", [{}, {"tp": 4, "pp": 2}], ids=["whole", "tp4-pp2"])
def test_a_torch_folder_gives_the_checkpoint_of_the_safetensors_folder(
    kind: str, shards: int, options: dict[str, int], make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model(kind)
    same = with_torch_files(source, tmp_path / "torch", shards)

    assert converted(same, tmp_path / "a", **options) == converted(
        source, tmp_path / "b", **options
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["f32", "f16"])
def test_wider_torch_weights_are_rounded_as_those_of_safetensors_are(
    dtype: Any, make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model("nemotron", dtype=dtype)
    same = with_torch_files(source, tmp_path / "torch")

    assert converted(same, tmp_path / "a") == converted(source, tmp_path / "b")


def test_every_entry_points_at_the_tensors_own_bytes(tmp_path: Path) -> None:
    whole = torch.arange(4096, dtype=torch.float32).reshape(64, 64)
    saved = {
        "whole": whole,
        "rows": whole[10:20],
        "row": whole[63],
        "half": torch.randn(7, 5).half(),
        "bfloat": torch.randn(129).bfloat16(),
        "fp8": torch.randn(33).to(torch.float8_e4m3fn),
        "parameter": torch.nn.Parameter(torch.randn(3, 3)),
        "scalar": torch.tensor(1.5),
        "empty": torch.empty(0, 4),
        "long": torch.arange(9),
    }
    torch.save(saved, tmp_path / SINGLE)
    entries = read_torch_header(tmp_path / SINGLE)

    assert {name: bytes_at(entry) for name, entry in entries.items()} == {
        name: bytes_of(tensor.detach()) for name, tensor in saved.items()
    }
    assert {name: entry.shape for name, entry in entries.items()} == {
        name: tuple(tensor.shape) for name, tensor in saved.items()
    }
    assert entries["rows"].offset == entries["whole"].offset + 10 * 64 * 4


def test_safetensors_go_first_where_a_folder_has_both(tiny_nemotron: Path, tmp_path: Path) -> None:
    both = tmp_path / "both"
    shutil.copytree(tiny_nemotron, both)
    (both / SINGLE).write_bytes(b"never looked at")

    assert converted(both, tmp_path / "a") == converted(tiny_nemotron, tmp_path / "b")


class _Attack:
    """Unpickled by Python itself, this would write a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.victim}",)


@pytest.mark.parametrize("hidden", [False, True], ids=["alone", "beside the tensors"])
def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(
    hidden: bool, refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source, victim = with_torch_files(tiny_llama, tmp_path / "torch"), tmp_path / "victim"
    attack: Any = _Attack(victim)
    if hidden:
        attack = {**torch.load(source / SINGLE), "model.extra": attack}
    torch.save(attack, source / SINGLE)
    # The attack is real: Python's own unpickler would be taken in.
    torch.load(source / SINGLE, weights_only=False)
    assert victim.exists()
    victim.unlink()

    assert refusal(source, 3) == (
        "SOURCE/pytorch_model.bin holds more than tensors (Trying to load unsupported GLOBAL "
        "posix.system whose module posix is blocked), which could run code and is refused; "
        "look for safetensors of the same model"
    )
    assert not victim.exists()


def test_an_attack_in_a_later_shard_is_refused_too(
    refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch", shards=3)
    torch.save(_Attack(tmp_path / "victim"), source / "pytorch_model-00003-of-00003.bin")

    assert "00003-of-00003.bin holds more than tensors (" in refusal(source, 3)
    assert not (tmp_path / "victim").exists()


@pytest.mark.parametrize(
    ("payload", "what"),
    [
        ([torch.zeros(2)], "a list; expected tensors by name"),
        (torch.zeros(2), "a Tensor; expected tensors by name"),
        ({"step": 3}, "a int under 'step'; expected tensors by name"),
        ({3: torch.zeros(2)}, "a Tensor under 3; expected tensors by name"),
        ({"state_dict": {WEIGHT: torch.zeros(2)}}, "a dict under 'state_dict'; expected tensors"),
    ],
    ids=["list", "tensor", "number", "numbered", "nested"],
)
def test_a_payload_that_is_not_tensors_by_name_is_refused(
    payload: Any, what: str, refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    torch.save(payload, source / SINGLE)

    assert refusal(source, 3).startswith(f"SOURCE/pytorch_model.bin holds {what}")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(4, 6).T,
        torch.zeros(4, 6)[:, :3],
        torch.eye(3).to_sparse(),
        torch.ones(1).expand(5),
    ],
    ids=["transposed", "columns", "sparse", "expanded"],
)
def test_a_tensor_that_does_not_lie_row_after_row_is_refused(
    tensor: torch.Tensor, refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    torch.save({**torch.load(source / SINGLE), WEIGHT: tensor}, source / SINGLE)

    assert refusal(source, 4) == (
        "SOURCE/pytorch_model.bin: tensor 'lm_head.weight' does not lie in the file row after row; "
        "save the model again with safe_serialization=True"
    )


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            torch.zeros(131, 40, dtype=torch.int8),
            "tensor lm_head.weight is I8; expected one of BF16, F16, F32",
        ),
        (
            torch.zeros(131, 40, dtype=torch.complex64),
            "SOURCE/pytorch_model.bin: tensor 'lm_head.weight' has dtype torch.complex64, which is "
            "not known",
        ),
    ],
    ids=["int8", "complex"],
)
def test_numbers_of_another_kind_are_refused(
    tensor: torch.Tensor, message: str, refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    torch.save({**torch.load(source / SINGLE), WEIGHT: tensor}, source / SINGLE)

    assert refusal(source, 3) == message


def test_the_format_before_torch_1_6_is_refused_with_what_to_do(
    refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    tensors = torch.load(source / SINGLE)
    torch.save(tensors, source / SINGLE, _use_new_zipfile_serialization=False)

    assert refusal(source, 4) == (
        "SOURCE/pytorch_model.bin is in the format of torch before 1.6, which cannot be mapped; "
        "load it with torch.load(..., weights_only=True) and torch.save it again"
    )


def rewritten(path: Path, compression: int, byteorder: bytes) -> None:
    """Write an archive again with another compression and mark of its byte order."""
    with zipfile.ZipFile(path) as old:
        records = [(info.filename, old.read(info)) for info in old.infolist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, data in records:
            new.writestr(name, byteorder if name.endswith("byteorder") else data)


@pytest.mark.parametrize(
    ("compression", "byteorder", "message"),
    [
        (zipfile.ZIP_DEFLATED, b"little", "is compressed; torch.save it again, which does not"),
        (zipfile.ZIP_STORED, b"big", "is big-endian; torch.save it again on a little-endian"),
    ],
    ids=["compressed", "big-endian"],
)
def test_an_archive_whose_bytes_are_not_the_tensors_is_refused(
    compression: int,
    byteorder: bytes,
    message: str,
    refusal: Refusal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    rewritten(source / SINGLE, compression, byteorder)

    assert refusal(source, 4).startswith(f"SOURCE/pytorch_model.bin {message}")


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (b"", "is not a file of torch.save; download it again"),
        (b"hello", "is not a file of torch.save; download it again"),
        (b"PK\x03\x04", "is truncated or damaged (File is not a zip file); download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\n",
            "is a git-LFS pointer, not weights; run: git lfs pull",
        ),
    ],
    ids=["empty", "text", "start of an archive", "git-LFS"],
)
def test_a_file_that_torch_did_not_save_is_refused(
    blob: bytes, message: str, refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    (source / SINGLE).write_bytes(blob)

    assert refusal(source, 3) == f"SOURCE/pytorch_model.bin {message}"


@pytest.mark.slow
def test_a_damaged_file_is_refused_or_points_at_what_it_holds(tmp_path: Path) -> None:
    """Cut it anywhere or change any byte: an error of ours, or tensors within the file."""
    path, saved = tmp_path / SINGLE, {"a": torch.randn(5, 3), "b": torch.randn(4).bfloat16()}
    torch.save(saved, path)
    blob, refused = path.read_bytes(), 0
    random = np.random.default_rng(3)
    cuts = (blob[: int(n)] for n in random.integers(1, len(blob), 60))
    flips = (
        blob[:n] + bytes([blob[n] ^ int(mask)]) + blob[n + 1 :]
        for n, mask in zip(
            random.integers(0, len(blob), 240), random.integers(1, 256, 240), strict=True
        )
    )
    for damaged in itertools.chain(cuts, flips):
        path.write_bytes(damaged)
        try:
            entries = read_torch_header(path)
        except MinitronError:
            refused += 1
        else:
            assert all(e.offset + e.size_bytes <= len(damaged) for e in entries.values())

    assert refused > 60


def test_a_shard_without_its_index_is_named(
    refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch", shards=2)
    (source / INDEX).unlink()

    assert refusal(source, 3) == (
        "SOURCE holds pytorch_model-00001-of-00002.bin but no pytorch_model.bin.index.json: "
        "download it"
    )


def test_an_index_that_disagrees_with_its_shards_is_refused(
    refusal: Refusal, tiny_llama: Path, tmp_path: Path
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch", shards=2)
    weight_map = json.loads((source / INDEX).read_text())["weight_map"]
    del weight_map[WEIGHT]
    (source / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    assert refusal(source, 3) == (
        "pytorch_model.bin.index.json and the files disagree about tensor lm_head.weight; "
        "download them again"
    )


def test_without_torch_the_extra_is_named(
    refusal: Refusal, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    monkeypatch.setitem(sys.modules, "torch", None)

    assert refusal(source, 4) == (
        "reading pytorch_model.bin needs torch, which is not installed; "
        "run: pip install 'minitron-trt[quantize]'"
    )


def test_a_buffer_of_old_transformers_does_not_disturb(tiny_llama: Path, tmp_path: Path) -> None:
    source = with_torch_files(tiny_llama, tmp_path / "torch")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}
    torch.save({**torch.load(source / SINGLE), **buffer}, source / SINGLE)

    assert converted(source, tmp_path / "a") == converted(tiny_llama, tmp_path / "b")


def test_a_tied_head_may_share_the_embeddings_bytes(make_model: MakeModel, tmp_path: Path) -> None:
    plain = make_model("llama", dtype=ml_dtypes.bfloat16, tie_word_embeddings=True)
    source = with_torch_files(plain, tmp_path / "torch")
    tensors = torch.load(source / SINGLE)
    tensors[WEIGHT] = tensors["model.embed_tokens.weight"]
    torch.save(tensors, source / SINGLE)

    assert converted(source, tmp_path / "a") == converted(plain, tmp_path / "b")


def test_an_address_outside_the_archives_records_is_refused(tmp_path: Path) -> None:
    """A tensor larger than its record would show its neighbour's bytes."""
    path = tmp_path / SINGLE
    torch.save({"a": torch.zeros(4), "b": torch.ones(1000)}, path)
    _forge(path, {"a": torch.zeros(400), "b": torch.ones(1000)})
    with pytest.raises(BadInputError, match="tensor 'a' does not lie in a record of the file"):
        read_torch_header(path)


def _forge(path: Path, larger: Tensors) -> None:
    """Give an archive the pickle of larger tensors."""
    other = path.with_name("larger.bin")
    torch.save(larger, other)
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other) as lie:
        records = [(i.filename, old.read(i)) for i in old.infolist()]
        pickle_of = next(lie.read(i) for i in lie.infolist() if i.filename.endswith("data.pkl"))
    with zipfile.ZipFile(path, "w") as new:
        for name, data in records:
            new.writestr(name, pickle_of if name.endswith("data.pkl") else data)
