"""What a change of number formats has lost is counted once, and said in all three places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

Command = Callable[..., Result]
MakeModel = Callable[..., Path]
BF16: Final = ml_dtypes.bfloat16
DOWN: Final = "model.layers.1.mlp.down_proj.weight"
FORMATS: Final = {np.float32: "float32", np.float16: "float16", BF16: "bfloat16"}


def with_values(folder: Path, values: list[float]) -> Path:
    """Overwrite the first values of a tensor, keeping its dtype."""
    tensors = load_file(folder / "model.safetensors")
    tensors[DOWN].reshape(-1)[: len(values)] = values
    save_file(tensors, folder / "model.safetensors")
    return folder


def recorded(command: Command, folder: Path, output: Path, *options: Any) -> Any:
    """Return what a conversion says of roundings, in its manifest and in its JSON alike."""
    result = command("convert", folder, "-o", output, "--json", *options)
    assert result.exit_code == 0, result.stderr
    manifest = json.loads((output / "minitron.json").read_text())
    said = json.loads(result.stdout).get("rounding", [])
    assert manifest.get("rounding", []) == said
    return said


def counted(folder: Path, source: Any, stored: Any, *, plus_one: bool) -> dict[str, Any]:
    """Count the same by numpy, tensor by tensor."""
    record: dict[str, Any] = {"from": FORMATS[source], "to": FORMATS[stored], "values": 0}
    record |= {"changed": 0, "became_zero": 0, "largest_relative_change": 0.0, "largest_in": ""}
    for name, tensor in sorted(load_file(folder / "model.safetensors").items()):
        before = tensor.astype(np.float32)
        if plus_one and name.endswith("norm.weight"):
            before = before + np.float32(1)
        after = before.astype(stored).astype(np.float32)
        changed = before != after
        record["values"] += before.size
        record["changed"] += int(changed.sum())
        record["became_zero"] += int((changed & (after == 0)).sum())
        shares = np.abs(after[changed] / before[changed] - 1)
        if shares.size and shares.max() > record["largest_relative_change"]:
            record |= {"largest_relative_change": float(shares.max()), "largest_in": name}
    return record


# Ties, a number below all of bfloat16's that is 0 then, and one that loses most of itself.
VALUES: Final = {
    np.float32: [1.00390625, 1.01171875, 4e-41, -1e-42, 0.0, -0.0],
    np.float16: [1.0009765625, 6e-8, 0.0],
    BF16: [1e-9, 7e-8, 0.5, 0.0],
}


@pytest.mark.parametrize("kind", ["llama", "nemotron"])
@pytest.mark.parametrize("options", [(), ("--tp", 2), ("--pp", 3)], ids=str)
@pytest.mark.parametrize(
    ("source", "stored"), [(np.float32, BF16), (np.float16, BF16), (BF16, np.float16)], ids=str
)
def test_values_are_counted_once_as_numpy_counts_them(
    source: Any,
    stored: Any,
    options: tuple[Any, ...],
    kind: str,
    make_model: MakeModel,
    command: Command,
    tmp_path: Path,
) -> None:
    folder = with_values(make_model(kind, source), VALUES[source])
    precision = {BF16: "bf16", np.float16: "fp16"}[stored]
    found = recorded(command, folder, tmp_path / "out", "--precision", precision, *options)
    expected = counted(folder, source, stored, plus_one=kind == "nemotron")

    assert found == [expected]


def test_numbers_that_fit_the_smaller_format_lose_nothing(
    make_model: MakeModel, command: Command, tmp_path: Path
) -> None:
    folder = make_model("llama")
    tensors = load_file(folder / "model.safetensors")
    wide = {name: values.astype(np.float32) for name, values in tensors.items()}
    save_file(wide, folder / "model.safetensors")
    values = sum(tensor.size for tensor in tensors.values())
    result = command("convert", folder, "-o", tmp_path / "out")

    assert result.stdout.splitlines()[1] == (
        f"  float32 to bfloat16: all {values:,} values are as they were"
    )


@pytest.mark.slow
def test_the_summary_says_how_much_and_where(
    make_model: MakeModel, command: Command, tmp_path: Path
) -> None:
    folder = make_model("llama", np.float32)
    tensors = {
        name: values.astype(BF16).astype(np.float32)
        for name, values in load_file(folder / "model.safetensors").items()
    }
    tensors[DOWN].reshape(-1)[:3] = [1.00390625, 1.01171875, -1e-42]
    save_file(tensors, folder / "model.safetensors")
    values = sum(tensor.size for tensor in tensors.values())
    result = command("convert", folder, "-o", tmp_path / "out")

    assert result.stdout.splitlines()[1:] == [
        f"  float32 to bfloat16: 3 of {values:,} values rounded, by at most 1 of themselves "
        f"({DOWN}), 1 became 0"
    ]


def test_a_conversion_that_keeps_the_format_says_nothing(
    make_model: MakeModel, command: Command, tmp_path: Path
) -> None:
    assert recorded(command, make_model("nemotron"), tmp_path / "out") == []
    assert (
        len(command("convert", make_model("llama"), "-o", tmp_path / "b").stdout.split("\n")) == 2
    )
