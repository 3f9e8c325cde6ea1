"""Damaged safetensors files: each is refused before a byte of output is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from minitron_trt.errors import BadInputError
from minitron_trt.tensorfile import TensorEntry, read_header

MakeModel = Callable[..., Path]
TWO: dict[str, Any] = {
    "a": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]},
}


def safetensors(header: object, data: bytes = bytes(16)) -> bytes:
    blob = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(blob).to_bytes(8, "little") + blob + data


def changed(name: str, **changes: Any) -> bytes:
    """Return a file of two tensors with some keys of one changed."""
    return safetensors({**TWO, name: TWO[name] | changes})


def read(path: Path, blob: bytes) -> dict[str, TensorEntry]:
    path.write_bytes(blob)
    return read_header(path)


def test_a_header_tells_where_each_tensor_lies(tmp_path: Path) -> None:
    path = tmp_path / "file"
    blob = safetensors({"__metadata__": {"format": "pt"}, **TWO})
    base = len(blob) - 16

    assert read(path, blob) == {
        "a": TensorEntry(path, "a", "BF16", (2, 3), base),
        "b": TensorEntry(path, "b", "F32", (1,), base + 12),
    }


def test_empty_tensors_and_an_order_other_than_the_headers_are_fine(tmp_path: Path) -> None:
    empty = {"dtype": "F32", "shape": [0, 4], "data_offsets": [12, 12]}
    header = {"b": TWO["b"], "empty": empty, "a": TWO["a"]}

    assert set(read(tmp_path / "file", safetensors(header))) == {"a", "b", "empty"}


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4456138272\n",
            "FILE is a git-LFS pointer of 75 bytes, not weights; run: git lfs pull",
        ),
        (
            b"",
            "FILE is 0 bytes but its header claims 0; it is truncated or not safetensors: "
            "download it again",
        ),
        (
            b"PK\x03\x04",
            "FILE is 4 bytes but its header claims 67324752; it is truncated or not safetensors: "
            "download it again",
        ),
        (
            (1000).to_bytes(8, "little") + b"{}",
            "FILE is 10 bytes but its header claims 1000; it is truncated or not safetensors: "
            "download it again",
        ),
        (
            b"\xff" * 8 + b"{}",
            "FILE is 10 bytes but its header claims 18446744073709551615; it is truncated or not "
            "safetensors: download it again",
        ),
        (
            safetensors(TWO, bytes(15)),
            "FILE is 152 bytes but its tensors need 153; it is truncated or damaged: "
            "download it again",
        ),
        (
            safetensors(TWO, bytes(17)),
            "FILE is 154 bytes but its tensors need 153; it is truncated or damaged: "
            "download it again",
        ),
        (
            changed("b", data_offsets=[8, 12]),
            "FILE: tensor 'b' overlaps the one before it; download the file again",
        ),
        (
            changed("b", data_offsets=[13, 17]),
            "FILE: tensor 'b' leaves a gap before it; download the file again",
        ),
        (
            changed("b", data_offsets=[0, 4]),
            "FILE: tensor 'a' overlaps the one before it; download the file again",
        ),
        (
            changed("b", data_offsets=[16, 12]),
            "FILE: tensor 'b' spans -4 bytes but F32 [1] needs 4",
        ),
        (
            changed("a", shape=[2, 4]),
            "FILE: tensor 'a' spans 12 bytes but BF16 [2, 4] needs 16",
        ),
        (
            changed("a", shape=[-2, -3]),
            "FILE: tensor 'a' has shape [-2, -3] at offset 0; neither may be negative",
        ),
        (
            changed("a", data_offsets=[-12, 0]),
            "FILE: tensor 'a' has shape [2, 3] at offset -12; neither may be negative",
        ),
        (changed("a", dtype="F4"), "FILE: tensor 'a' has dtype 'F4', which is not known"),
    ],
    ids=[
        "git-LFS pointer",
        "empty",
        "shorter than a length",
        "header longer than the file",
        "absurd length",
        "truncated",
        "too long",
        "overlap",
        "gap",
        "overlap at the start",
        "backwards",
        "wrong span",
        "negative shape",
        "negative offset",
        "unknown dtype",
    ],
)
def test_a_damaged_file_is_refused_with_what_is_wrong(
    blob: bytes, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "file"
    with pytest.raises(BadInputError) as caught:
        read(path, blob)

    assert str(caught.value).replace(str(path), "FILE") == message


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b"[" * 100_000,
        b"\xff\xfe",
        [],
        7,
        None,
        {"a": None},
        {"a": []},
        {"a": {}},
        TWO | {"b": {"dtype": "F32", "shape": [1]}},
        TWO | {"b": TWO["b"] | {"shape": None}},
        TWO | {"b": TWO["b"] | {"shape": ["x"]}},
        TWO | {"b": TWO["b"] | {"dtype": ["F32"]}},
        TWO | {"b": TWO["b"] | {"data_offsets": [12]}},
        TWO | {"b": TWO["b"] | {"data_offsets": [12, 16, 20]}},
        TWO | {"b": TWO["b"] | {"data_offsets": [12, float("inf")]}},
        TWO | {"b": TWO["b"] | {"data_offsets": [12, float("nan")]}},
    ],
    ids=lambda header: repr(header)[-60:],
)
def test_a_header_that_is_not_one_is_called_malformed(header: object, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="has a malformed safetensors header"):
        read(tmp_path / "file", safetensors(header))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=8,
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8"]) | VALUES,
        "shape": st.lists(st.integers(-2, 9), max_size=3) | VALUES,
        "data_offsets": st.lists(st.integers(-9, 40), min_size=2, max_size=2) | VALUES,
    }
)


@pytest.mark.slow
@given(
    st.binary(max_size=60)
    | st.dictionaries(st.text(max_size=3), ENTRY | VALUES, max_size=4).map(safetensors)
)
@example(safetensors({"a": TWO["a"] | {"shape": [10**400, 0], "data_offsets": [0, 0]}}, b""))
def test_whatever_the_bytes_a_file_is_read_or_refused(blob: bytes) -> None:
    with TemporaryDirectory() as folder:
        try:
            entries = read(Path(folder, "file"), blob)
        except BadInputError:
            return
    covered = sum(entry.size_bytes for entry in entries.values())

    assert 8 + int.from_bytes(blob[:8], "little") + covered == len(blob)


@pytest.mark.parametrize("damage", ["truncated", "pointer"])
def test_a_damaged_shard_ends_a_conversion_with_one_line(
    damage: str, make_model: MakeModel, refusal: Callable[..., str]
) -> None:
    folder = make_model("llama", shards=2)
    shard = folder / "model-00002-of-00002.safetensors"
    size = shard.stat().st_size
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
        problem = (
            f"is {size - 100} bytes but its tensors need {size}; it is truncated or damaged: "
            "download it again"
        )
    else:
        shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        problem = "is a git-LFS pointer of 43 bytes, not weights; run: git lfs pull"

    assert refusal(folder, 3) == f"SOURCE/{shard.name} {problem}"


def test_headers_agree_with_the_library_that_wrote_them(tmp_path: Path) -> None:
    path = tmp_path / "file"
    tensors: dict[str, Any] = {
        "x": np.arange(6, dtype=np.float32).reshape(2, 3),
        "y": np.ones(5, np.float16),
    }
    save_file(tensors, path, metadata={"format": "pt"})
    blob = path.read_bytes()

    assert {
        name: blob[entry.offset : entry.offset + entry.size_bytes]
        for name, entry in read_header(path).items()
    } == {name: tensor.tobytes() for name, tensor in tensors.items()}
