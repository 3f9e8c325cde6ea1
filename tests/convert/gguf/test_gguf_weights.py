"""The weights of a GGUF file: what the `gguf` package dequantizes, in transformers' order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf.quants import quant_shape_to_byte_shape
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file
from transformers import AutoConfig
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.file import GGUF_TYPES, GgufFile
from minitron_trt.convert.gguf.tensor_origins import GgufModel
from minitron_trt.convert.gguf.unpack import GgufFolder, restore_rows

MakeModel = Callable[..., Path]
WriteGguf = Callable[..., Path]
Array = NDArray[Any]
CausalLM: Any = AutoModelForCausalLM  # its methods have no types
load_with_transformers: Any = load_gguf_checkpoint

# Rows of 256 and 512 values hold blocks of every type; six heads of 64 do not fit 256.
WIDE: dict[str, int] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 128,
}
QUERY, KEY, VALUE = (f"model.layers.0.self_attn.{part}_proj.weight" for part in "qkv")


def unpacked(path: Path, folder: Path, storage: str = "F32") -> dict[str, Array]:
    """Return the tensors that the folder of a GGUF file holds, read by safetensors itself."""
    folder.mkdir()
    GgufFolder.lay_out(GgufModel.read(GgufFile.open(path)), folder, storage).fill()
    return load_file(folder / "model.safetensors")


def row_by_row(interleaved: Array, head_size: int) -> Array:
    """Undo llama.cpp's order of rows, one row at a time."""
    rows = np.empty_like(interleaved)
    for index, row in enumerate(interleaved):
        head, place = divmod(index, head_size)
        pair, part = divmod(place, 2)
        rows[head * head_size + part * (head_size // 2) + pair] = row
    return rows


def bits(values: Array) -> Array:
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def random_blocks(shape: tuple[int, int], kind: str, seed: int) -> Array:
    """Return blocks of any bytes at all that stand for finite numbers."""
    quantized = gguf.GGMLQuantizationType[kind]
    size = quant_shape_to_byte_shape(shape, quantized)
    data = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    blocks = data.reshape(-1, gguf.GGML_QUANT_SIZES[quantized][1])
    with np.errstate(all="ignore"):
        blocks[~np.isfinite(gguf.dequantize(blocks, quantized)).all(axis=1)] = 0
    return data


@pytest.mark.parametrize("kind", GGUF_TYPES)
def test_each_type_gives_what_the_gguf_package_gives(
    kind: str, make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = make_model("llama", **WIDE)
    shapes = {"q": (768, 256), "k": (256, 256), "v": (256, 256)}
    blocks = {
        f"blk.0.attn_{part}.weight": (kind, random_blocks(shape, kind, seed))
        for seed, (part, shape) in enumerate(shapes.items())
    }
    if kind in ("F32", "F16", "BF16"):
        plain = {"F32": np.float32, "F16": np.float16, "BF16": np.uint8}[kind]
        blocks = {name: (own, data.view(plain)) for name, (own, data) in blocks.items()}
    path = write_gguf(source, tmp_path / "model.gguf", blocks=blocks)
    tensors = unpacked(path, tmp_path / "folder")
    with np.errstate(all="ignore"):
        theirs = {
            tensor.name: gguf.dequantize(np.asarray(tensor.data), tensor.tensor_type)
            for tensor in gguf.GGUFReader(path).tensors
            if tensor.name in blocks
        }
        ours = {name: tensors[name].astype(np.float32) for name in (QUERY, KEY, VALUE)}

    same = np.array_equal
    assert same(bits(ours[QUERY]), bits(row_by_row(theirs["blk.0.attn_q.weight"], 128)))
    assert same(bits(ours[KEY]), bits(row_by_row(theirs["blk.0.attn_k.weight"], 128)))
    assert same(bits(ours[VALUE]), bits(theirs["blk.0.attn_v.weight"]))


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_wide_types_keep_their_format_and_give_the_model_back_exactly(
    kind: str, make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = make_model("llama", **WIDE)
    tensors = unpacked(write_gguf(source, tmp_path / "m.gguf", kind), tmp_path / "f", "BF16")
    names = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

    assert {t.dtype.name for t in tensors.values() if t.ndim == 2} == {names[kind]}
    for name, tensor in load_file(source / "model.safetensors").items():
        assert np.allclose(tensors[name].astype("f4"), tensor.astype("f4"), rtol=2**-11, atol=6e-8)


@pytest.mark.parametrize("kind", ["llama", "mistral", "nemotron"])
@pytest.mark.parametrize("options", [{}, {"tp": 4, "pp": 2}], ids=["whole", "tp4-pp2"])
def test_a_file_of_bf16_gives_the_checkpoint_of_the_model_it_was_made_of(
    kind: str,
    options: dict[str, Any],
    make_model: MakeModel,
    write_gguf: WriteGguf,
    tmp_path: Path,
) -> None:
    source = make_model(kind)
    path = write_gguf(source, tmp_path / "model.gguf", "BF16")
    convert(str(source), tmp_path / "a", ConvertOptions(**options))
    convert(str(path), tmp_path / "b", ConvertOptions(**options))

    for rank in (tmp_path / "a").glob("*.safetensors"):
        assert (tmp_path / "b" / rank.name).read_bytes() == rank.read_bytes()


@pytest.mark.parametrize(("storage", "digits"), [("BF16", 8), ("F16", 11)])
def test_quantized_weights_are_rounded_once_to_the_format_of_the_checkpoint(
    storage: str, digits: int, make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    path = write_gguf(make_model("llama", **WIDE), tmp_path / "model.gguf")
    exact = unpacked(path, tmp_path / "exact")
    rounded = unpacked(path, tmp_path / "rounded", storage)

    for name in (QUERY, KEY, VALUE):
        assert np.array_equal(rounded[name], exact[name].astype(rounded[name].dtype))
        assert rounded[name].dtype.itemsize == 2
        off = np.abs(rounded[name].astype("f4") - exact[name])
        assert (off <= 2.0**-digits * np.abs(exact[name]) + 2.0**-25).all()


@pytest.mark.slow
def test_tensors_larger_than_a_block_are_whole(
    make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    # A block of two million values is no whole number of these heads.
    large = {"num_attention_heads": 96, "head_dim": 96, "vocab_size": 9001}
    source = make_model("llama", **{**WIDE, **large})
    tensors = unpacked(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "f")

    for name, tensor in load_file(source / "model.safetensors").items():
        step = np.abs(tensor.astype("f4")).max() / 127
        assert np.abs(tensors[name] - tensor.astype("f4")).max() <= step, name


@given(heads=st.integers(1, 6), half=st.integers(1, 20), width=st.integers(1, 5))
def test_the_order_of_rows_is_restored_for_any_shape(heads: int, half: int, width: int) -> None:
    rows = np.arange(heads * 2 * half * width).reshape(-1, width)
    # As the converter does it: a head's halves become the inner of two axes.
    written = rows.reshape(heads, 2, half, width).swapaxes(1, 2).reshape(rows.shape)

    assert np.array_equal(restore_rows(written, 2 * half), rows)
    assert np.array_equal(row_by_row(written, 2 * half), rows)


def test_the_norms_of_nemotron_lose_the_one_that_was_added(
    make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = make_model("nemotron", **{**WIDE, "num_hidden_layers": 2})
    tensors = unpacked(write_gguf(source, tmp_path / "m.gguf"), tmp_path / "f")
    norms = {n: t for n, t in load_file(source / "model.safetensors").items() if "norm" in n}

    assert len(norms) == 2 * (2 * 2 + 1)
    for name, tensor in norms.items():
        assert np.allclose(tensors[name], tensor.astype("f4"), rtol=0, atol=2**-24), name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_transformers_own_reader_finds_the_same_tensors(
    kind: str, make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    # transformers refuses a Llama whose heads do not divide its hidden size.
    source = make_model(kind, **{**WIDE, "num_attention_heads": 8})
    path = write_gguf(source, tmp_path / "m.gguf")
    ours = unpacked(path, tmp_path / "f")
    model = CausalLM.from_config(AutoConfig.from_pretrained(tmp_path / "f"))
    theirs = load_with_transformers(str(path), return_tensors=True, model_to_load=model)["tensors"]

    assert {name for name in theirs if "rope_freqs" not in name} == ours.keys()
    for name, tensor in ours.items():
        assert np.array_equal(theirs[name].numpy(), tensor), name
