"""What each package offers its users: complete, sorted, loaded only when it is used."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from minitron_trt import Checkpoint, ModelRepository
from minitron_trt.build import BuildRequest, choose_recipe, find_target, model_of
from minitron_trt.convert import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo import ServingRecipe, check_repository, emit_repository

FACES = (
    "minitron_trt",
    "minitron_trt.build",
    "minitron_trt.clients",
    "minitron_trt.convert",
    "minitron_trt.convert.source",
    "minitron_trt.triton_repo",
)
# What a face may have loaded once it is imported, and nothing else of this project.
LIGHT = {*FACES, "minitron_trt.faces", "minitron_trt.version"}

each_face = pytest.mark.parametrize("name", FACES)


def path_of(package: ModuleType) -> Path:
    assert package.__file__ is not None
    return Path(package.__file__)


def names_for_type_checkers(package: ModuleType) -> list[str]:
    """Return what a package imports under `if TYPE_CHECKING`."""
    return [
        alias.name
        for node in ast.walk(ast.parse(path_of(package).read_text(encoding="utf-8")))
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    ]


@each_face
def test_every_name_is_there_for_programs_and_for_type_checkers(name: str) -> None:
    package = importlib.import_module(name)

    assert package.__all__ == sorted(package.__all__) == sorted(names_for_type_checkers(package))


@each_face
def test_every_name_can_be_imported_and_is_called_so_at_home(name: str) -> None:
    package = importlib.import_module(name)
    names = {each: getattr(package, each).__name__ for each in package.__all__}

    assert names == {each: each for each in package.__all__}
    assert set(package.__all__) <= set(dir(package))


@each_face
def test_no_name_takes_a_submodules_place(name: str) -> None:
    package = importlib.import_module(name)
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}

    assert submodules & set(package.__all__) == set()


@each_face
def test_an_unknown_name_is_pythons_own_error(name: str) -> None:
    package = importlib.import_module(name)

    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nonsense'"):
        package.nonsense  # noqa: B018 - looking is what fails


@each_face
def test_importing_a_face_loads_nothing(name: str) -> None:
    program = (
        f"import sys; before = set(sys.modules); import {name}; print(*set(sys.modules) - before)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    foreign = {
        each for each in result.stdout.split() if each.split(".")[0] not in sys.stdlib_module_names
    }

    assert result.returncode == 0, result.stderr
    assert foreign <= LIGHT


def test_a_program_walks_the_stages_by_their_faces(tmp_path: Path) -> None:
    checkpoint, repository = tmp_path / "checkpoint", tmp_path / "repository"

    plan = convert(str(sample_folder("solar-llama")), checkpoint, ConvertOptions(precision="fp16"))
    model = model_of(Checkpoint.open(checkpoint))
    recipe = choose_recipe(model, find_target("ada"), BuildRequest(max_batch_size=4))
    written = emit_repository(checkpoint, repository, ServingRecipe())

    assert (plan.precision.name, recipe.limits.max_batch_size) == ("fp16", 4)
    assert ModelRepository.open(repository) == written
    assert check_repository(repository).errors == ()
