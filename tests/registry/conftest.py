"""A repository of a sample, made once, and the places that tests pack and push it to."""

from __future__ import annotations

from pathlib import Path

import pytest

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository for the reference runtime; not to be changed."""
    folder = tmp_path_factory.mktemp("artifacts")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    emit_repository(folder / "checkpoint", folder / "repository", ServingRecipe())
    return folder / "repository"


def contents(folder: Path) -> dict[str, bytes]:
    """Return the files below a folder."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
