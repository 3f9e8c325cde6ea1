"""Weights that are NaN or infinite: refused by name, whatever they come from and become."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.convert.nemo.packing import archive, members, pack

from minitron_trt.convert.finite_values import check_finite
from minitron_trt.convert.gguf import unpack
from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import E4M3

MakeModel = Callable[..., Path]
Refusal = Callable[..., str]
DOWN: Final = "model.layers.1.mlp.down_proj.weight"
NORM: Final = "model.norm.weight"
WHAT_TO_DO: Final = (
    "expected finite numbers only: download the model again, or save it from an earlier step of "
    "its training"
)
BF16: Final = ml_dtypes.bfloat16


def with_value(folder: Path, name: str, value: float) -> Path:
    """Put a value into a tensor of [40, 48] or [40], in the sixth row."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name][5, ...] = 1
    tensors[name].reshape(40, -1)[5, -1] = value
    save_file(tensors, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (BF16, ()),
        (BF16, ("--tp", 2)),
        (BF16, ("--precision", "fp16")),
        (BF16, ("--precision", "w8a16")),
        (BF16, ("--precision", "fp8-rowwise")),
        (BF16, ("--format", "hf")),
        # Before any text runs through the model.
        (BF16, ("--precision", "fp8")),
        (BF16, ("--kv-cache", "int8")),
        (np.float16, ("--precision", "fp16")),
        (np.float32, ()),
    ],
    ids=str,
)
def test_a_weight_that_is_no_number_is_named(
    dtype: Any, options: tuple[Any, ...], value: float, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = with_value(make_model("mistral", dtype), DOWN, value)

    assert refusal(folder, 3, *options) == f"tensor {DOWN} is {value} at [5, 47]; {WHAT_TO_DO}"


def test_a_norm_that_is_no_number_is_named(make_model: MakeModel, refusal: Refusal) -> None:
    folder = with_value(make_model("nemotron"), NORM, np.nan)

    assert refusal(folder, 3) == f"tensor {NORM} is nan at [5]; {WHAT_TO_DO}"


def test_a_bin_files_weight_is_named(make_model: MakeModel, refusal: Refusal) -> None:
    torch = pytest.importorskip("torch")
    folder = with_value(make_model("llama"), DOWN, np.inf)
    tensors = {
        name: torch.from_numpy(values.view(np.int16)).view(torch.bfloat16)
        for name, values in load_file(folder / "model.safetensors").items()
    }
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()

    assert refusal(folder, 3) == f"tensor {DOWN} is inf at [5, 47]; {WHAT_TO_DO}"


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:gguf")
@pytest.mark.parametrize("kind", ["BF16", "F32", "Q8_0"])
@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "blk.1.attn_q.weight"])
def test_a_gguf_files_weight_is_named_as_the_file_does(
    name: str,
    kind: str,
    make_model: MakeModel,
    write_gguf: Callable[..., Path],
    refusal: Refusal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = make_model("llama", hidden_size=64, intermediate_size=64)
    values = np.ones((64 if "down" in name else 96, 64), np.float32)
    values[13, 7] = np.inf
    path = write_gguf(folder, tmp_path / "m.gguf", kind, tensors={name: values})
    # Eight rows are read at a time, which are a head.
    monkeypatch.setattr(unpack, "_BLOCK_VALUES", 8 * 64)

    # The 32 values of a block share a scale.
    found = "nan at [13, 0]" if kind == "Q8_0" else "inf at [13, 7]"
    assert refusal(path, 3) == f"tensor {name} is {found}; {WHAT_TO_DO}"


def test_a_nemo_archives_weight_is_named_as_transformers_does(
    refusal: Refusal, tmp_path: Path
) -> None:
    files = members(archive("llama", "zarr"))
    name = next(name for name in files if name.endswith("linear_qkv.weight/0.0.0"))
    item = 2 if b"bfloat16" in files[name.replace("0.0.0", ".zarray")] else 4
    files[name] = b"\xff" * item + files[name][item:]
    path = pack(tmp_path / "model.nemo", files)
    query = "model.layers.0.self_attn.q_proj.weight"

    assert refusal(path, 3) == f"tensor {query} is nan at [0, 0]; {WHAT_TO_DO}"


def test_an_fp8_weight_that_is_no_number_is_named() -> None:
    codes = np.array([[0x7E, 0xFE, 0xFF]], np.uint8)

    with pytest.raises(BadInputError, match=r"^tensor a is nan at \[4, 2\]; expected finite"):
        check_finite(codes, "a", first_row=4)


@pytest.mark.parametrize("dtype", [np.float16, BF16, np.uint8], ids=["fp16", "bf16", "fp8"])
def test_exactly_the_bits_that_are_no_finite_number_are_refused(dtype: Any) -> None:
    every = np.arange(1 << (8 * np.dtype(dtype).itemsize)).astype(f"u{np.dtype(dtype).itemsize}")
    numbers = E4M3.values if dtype == np.uint8 else every.view(dtype).astype(np.float32)
    finite = np.isfinite(numbers)
    refused = []
    for bits in every[~finite]:
        # Beside a number of either sign, whose bits are smaller and larger.
        with pytest.raises(BadInputError):
            check_finite(np.array([[0, bits, every[-1] // 2 + 1]], every.dtype).view(dtype), "a")
        refused.append(bits)
    check_finite(every[finite].view(dtype)[None], "a")

    assert len(refused) == {np.float16: 2 * 1024, BF16: 2 * 128, np.uint8: 2}[dtype]


@pytest.mark.parametrize("bits", [0x7F800000, 0xFF800000, 0x7F800001, 0xFFFFFFFF])
def test_the_same_of_fp32(bits: int) -> None:
    check_finite(np.array([[0x7F7FFFFF, 0xFF7FFFFF]], np.uint32).view(np.float32), "a")
    with pytest.raises(BadInputError):
        check_finite(np.array([[0, bits, 0x80000000]], np.uint32).view(np.float32), "a")
