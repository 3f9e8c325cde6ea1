"""A model in several GGUF files: the first part opens them all, and what does not fit is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.file import GgufFile

WriteGguf = Callable[..., Path]
Refusal = Callable[..., str]
RANK = "rank0.safetensors"


@pytest.fixture
def parts(write_gguf: WriteGguf, tiny_llama: Path, tmp_path: Path) -> list[Path]:
    """Return the three files of a model."""
    folder = tmp_path / "parts"
    folder.mkdir()
    write_gguf(tiny_llama, folder / "m.gguf", "BF16", tensors_in_part=12)
    paths = sorted(folder.iterdir())
    assert [path.name for path in paths] == [f"m-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    return paths


@pytest.mark.parametrize("named", ["the first part", "the folder"])
def test_the_first_part_and_their_folder_are_the_whole_model(
    named: str, parts: list[Path], write_gguf: WriteGguf, tiny_llama: Path, tmp_path: Path
) -> None:
    whole = write_gguf(tiny_llama, tmp_path / "whole.gguf", "BF16")
    source = parts[0] if named == "the first part" else parts[0].parent
    convert(str(source), tmp_path / "a", ConvertOptions())
    convert(str(whole), tmp_path / "b", ConvertOptions())

    assert (tmp_path / "a" / RANK).read_bytes() == (tmp_path / "b" / RANK).read_bytes()


def test_a_tensor_is_read_where_its_own_part_has_it(parts: list[Path]) -> None:
    tensors = GgufFile.open(parts[0]).tensors

    assert {tensor.path for tensor in tensors.values()} == set(parts)
    assert len(tensors) == 31


def test_another_part_names_the_first(parts: list[Path], refusal: Refusal) -> None:
    assert refusal(parts[1], 3) == (
        "SOURCE is part 2 of 3; pass the first, m-00001-of-00003.gguf, which opens the others"
    )


def test_a_part_that_is_not_there_is_named(parts: list[Path], refusal: Refusal) -> None:
    parts[2].unlink()

    assert refusal(parts[0], 3) == (
        "SOURCE is the first of 3 parts, and m-00003-of-00003.gguf is not beside it; download "
        "that, too"
    )


def test_parts_under_other_names_are_refused(parts: list[Path], refusal: Refusal) -> None:
    path = parts[0].rename(parts[0].with_name("model.gguf"))

    assert refusal(path, 3) == (
        "SOURCE is part 1 of 3, but its name does not end in -00001-of-00003.gguf; parts find each "
        "other by their names, so give all of them those that llama-gguf-split wrote"
    )


def test_a_part_in_anothers_place_is_refused(parts: list[Path], refusal: Refusal) -> None:
    shutil.copyfile(parts[2], parts[1])

    assert refusal(parts[0], 3) == (f"{parts[1]} says that it is part 3 of 3; download it again")


def test_parts_of_two_models_are_refused(
    parts: list[Path], write_gguf: WriteGguf, tiny_llama: Path, refusal: Refusal, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_gguf(tiny_llama, other / "m.gguf", "BF16", tensors_in_part=11)
    shutil.copyfile(other / parts[1].name, parts[1])

    line = refusal(parts[0], 3)
    assert line.startswith(f"{parts[1]} has tensor '")
    assert line.endswith("', as a part before it does; download the parts again")


def test_parts_that_lack_tensors_are_refused(
    parts: list[Path], write_gguf: WriteGguf, tiny_llama: Path, refusal: Refusal, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    write_gguf(tiny_llama, other / "m.gguf", "BF16", tensors_in_part=14)
    shutil.copyfile(other / parts[2].name, parts[2])

    assert refusal(parts[0], 3) == (
        "SOURCE and the parts beside it have 27 tensors; split.tensors.count is 31: download the "
        "parts again"
    )
