"""The source links and the wheel mapping describe the same package, and lists of files files."""

import ast
from collections import Counter
from pathlib import Path

import pytest
from tests import side_by_side

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "minitron_trt"
STAGES = tuple(path.resolve() for path in PACKAGE.iterdir() if path.is_symlink())
# What Python, this tool's commands and Triton's Python backend call a file or a class.
SHARED_NAMES = {"__init__", "__main__", "command", "model", "TritonPythonModel"}
LONGEST_FUNCTION = 50


@pytest.fixture(scope="module")
def modules() -> dict[Path, ast.Module]:
    """The package's modules, each once."""
    return {
        path: ast.parse(path.read_text(encoding="utf-8"))
        for folder in (PACKAGE, *STAGES)
        for path in folder.rglob("*.py")
        # Whether a search follows links depends on Python's version.
        if path.resolve() == path
    }


def test_the_links_are_the_mapping_of_the_wheel() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    sources = config["tool"]["hatch"]["build"]["targets"]["wheel"]["sources"]
    links = {
        path.name: str(path.resolve().relative_to(ROOT))
        for path in PACKAGE.iterdir()
        if path.is_symlink()
    }

    assert links == {
        target.removeprefix("minitron_trt/"): source
        for source, target in sources.items()
        if target != "minitron_trt"
    }


@pytest.mark.parametrize("group", ["SERVED", "SINGLE", "ONE_RESPONSE", "CALIBRATING"])
def test_modules_that_a_worker_runs_together_are_there(group: str) -> None:
    missing = [path for path in getattr(side_by_side, group) if not (ROOT / path).is_file()]

    assert missing == []


@pytest.mark.slow
def test_no_two_modules_and_no_two_classes_have_one_name(modules: dict[Path, ast.Module]) -> None:
    classes = [
        node.name
        for module in modules.values()
        for node in ast.walk(module)
        if isinstance(node, ast.ClassDef)
    ]
    counts = Counter(path.stem for path in modules), Counter(classes)
    several = {name for names in counts for name, count in names.items() if count > 1}

    assert several == SHARED_NAMES


@pytest.mark.slow
def test_no_function_is_longer_than_a_screen(modules: dict[Path, ast.Module]) -> None:
    long = [
        f"{path.name}: {node.name}"
        for path, module in modules.items()
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= LONGEST_FUNCTION
    ]

    assert long == []
