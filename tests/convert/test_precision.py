"""Number formats: what conversion between them keeps, rounds and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

torch = pytest.importorskip("torch")

MakeModel = Callable[..., Path]
Tensors = dict[str, Any]
NORM, DOWN = "model.layers.1.input_layernorm.weight", "model.layers.1.mlp.down_proj.weight"


def set_values(folder: Path, name: str, values: list[float]) -> None:
    """Overwrite the first values of a tensor, keeping its dtype."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name].reshape(-1)[: len(values)] = values
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    "dtype", [ml_dtypes.bfloat16, np.float16, np.float32], ids=["bf16", "fp16", "fp32"]
)
@pytest.mark.parametrize("tp", [1, 2])
def test_values_round_as_torch_rounds_them(
    precision: str,
    dtype: Any,
    tp: int,
    make_model: MakeModel,
    ranks_of: Callable[..., list[Tensors]],
) -> None:
    folder = make_model("llama", dtype)
    # Ties, subnormals of fp16 and of bf16, signed zero.
    set_values(folder, DOWN, [1.00390625, 1.01171875, 1.00048828125, 6e-8, -3e-8, 9e-41, -0.0])
    down = load_file(folder / "model.safetensors")[DOWN]
    exact = torch.from_numpy(down.astype(np.float32))
    wanted = exact.to({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
    ranks = ranks_of(folder, precision=precision, tp=tp)
    name = DOWN.replace("model.layers", "transformer.layers").replace("down_proj", "proj")
    found = np.concatenate([rank[name] for rank in ranks], axis=1)

    assert found.view(np.int16).tolist() == wanted.view(torch.int16).tolist()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_layernorm_1p_weights_get_their_one_in_the_precision_of_the_checkpoint(
    precision: str, make_model: MakeModel, ranks_of: Callable[..., list[Tensors]]
) -> None:
    folder = make_model("nemotron")
    set_values(folder, NORM, [0.0, -1.0, 0.001, 0.00390625, -0.0009765625, 300.0])
    weight = load_file(folder / "model.safetensors")[NORM].view(np.int16)
    stored = torch.from_numpy(weight).view(torch.bfloat16)
    wanted = stored + 1 if precision == "bf16" else (stored.float() + 1).half()
    (rank,) = ranks_of(folder, precision=precision)
    found = rank["transformer.layers.1.input_layernorm.weight"]

    assert found.view(np.int16).tolist() == wanted.view(torch.int16).tolist()


def test_a_value_beyond_fp16_is_refused(make_model: MakeModel, refusal: Callable[..., str]) -> None:
    folder = make_model("llama")
    set_values(folder, DOWN, [70000.0])

    assert refusal(folder, 3, "--precision", "fp16") == (
        "tensor transformer.layers.1.mlp.proj.weight has a value of 7.014e+04, which is beyond "
        "float16; convert with --precision bf16"
    )


def test_a_value_beyond_bf16_is_refused(make_model: MakeModel, refusal: Callable[..., str]) -> None:
    folder = make_model("llama", np.float32)
    set_values(folder, DOWN, [3.4e38])

    assert refusal(folder, 3) == (
        "tensor transformer.layers.1.mlp.proj.weight has a value of 3.4e+38, which is beyond "
        "bfloat16"
    )
