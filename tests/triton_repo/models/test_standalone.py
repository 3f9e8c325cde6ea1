"""Repositories for TensorRT-LLM's runtimes need nothing of ours where they are served."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from tests.triton_repo.engines import engine_for

from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

IN_THE_CONTAINER: Final = frozenset(
    {
        *("jinja2", "numpy", "tokenizers", "torch", "yaml"),
        *("tensorrt_llm", "triton_python_backend_utils"),
    }
)
"""What NVIDIA's image with TensorRT-LLM has beside Python's own library."""

# The image has Python 3.12, which lacks these of 3.11.
STANDARD_LIBRARY: Final = sys.stdlib_module_names - {
    *("asynchat", "asyncore", "distutils", "imp", "smtpd")
}
TEXT_MODELS: Final = {"preprocessing", "postprocessing", "tensorrt_llm_bls"}


def write_trtllm(folder: Path) -> Path:
    """Write a repository of an engine."""
    return emit_repository(
        engine_for(folder / "engine", "H100"), folder / "repository", ServingRecipe()
    ).folder


def write_llmapi(folder: Path) -> Path:
    """Write a repository of a model folder."""
    return emit_repository(
        sample_folder("solar-llama"), folder / "repository", ServingRecipe()
    ).folder


@pytest.fixture(scope="module", params=[write_trtllm, write_llmapi], ids=["trtllm", "llmapi"])
def sources(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Path, str]:
    """The text of the repository's Python files."""
    folder: Path = request.param(tmp_path_factory.mktemp("standalone"))
    found = {
        path.relative_to(folder): path.read_text(encoding="utf-8") for path in folder.rglob("*.py")
    }
    runtime = {"tensorrt_llm"} if request.param is write_llmapi else set()
    models = {path.parts[0] for path in found if path.name == "model.py"}
    assert models == TEXT_MODELS | runtime
    return found


def imports(text: str) -> Iterator[str]:
    """Yield the modules that a file imports, those inside functions too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("__import__", "import_module", "importlib.import_module"), name


def version_folder(path: Path) -> Path:
    """Return the folder of a model's version, which Triton puts first on Python's path."""
    return Path(*path.parts[:2])


@pytest.mark.slow
def test_what_is_imported_lies_beside_it_or_is_in_the_container(sources: dict[Path, str]) -> None:
    elsewhere = {
        f"{path} imports {name}"
        for path, text in sources.items()
        for name in imports(text)
        if name.partition(".")[0] not in STANDARD_LIBRARY | IN_THE_CONTAINER
        and version_folder(path) / f"{name.replace('.', '/')}.py" not in sources
    }

    assert elsewhere == set()


def test_no_module_of_the_repository_hides_one_of_the_container(sources: dict[Path, str]) -> None:
    names = {Path(path.parts[2]).stem for path in sources}

    assert names & (STANDARD_LIBRARY | IN_THE_CONTAINER) == set()


@pytest.mark.parametrize("version", [(3, 10), (3, 12)], ids=["3.10", "3.12"])
def test_every_file_is_syntax_of_the_container(
    sources: dict[Path, str], version: tuple[int, int]
) -> None:
    """Python checks this as well as it can: the grammar, not what the library has."""
    for path, text in sources.items():
        ast.parse(text, str(path), feature_version=version)
