"""The source links and the wheel mapping describe the same package, and lists of files files."""

from pathlib import Path

import pytest
from tests import side_by_side

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "minitron_trt"


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


@pytest.mark.parametrize("modules", ["SERVED", "SINGLE", "ONE_RESPONSE", "CALIBRATING"])
def test_modules_that_a_worker_runs_together_are_there(modules: str) -> None:
    missing = [path for path in getattr(side_by_side, modules) if not (ROOT / path).is_file()]

    assert missing == []
