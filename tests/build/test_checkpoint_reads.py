"""`build` reads a checkpoint once, counted by Python's own record of what is opened."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import Result
from tests.build.doubles import Doubles

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert

_counts: list[tuple[Path, Counter[str]]] = []


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or not _counts:
        return
    folder, counted = _counts[-1]
    path = arguments[0]
    if isinstance(path, str) and Path(path).parent == folder:
        counted[Path(path).name] += 1


# A hook cannot be taken away again; it counts only inside `opens_of`.
sys.addaudithook(_count)


@contextmanager
def opens_of(folder: Path) -> Iterator[Counter[str]]:
    """Count how often this process opens each file of a folder."""
    counted: Counter[str] = Counter()
    _counts.append((folder, counted))
    try:
        yield counted
    finally:
        _counts.pop()


@pytest.fixture
def rowwise(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a checkpoint with a scale in every linear layer, in two ranks."""
    convert(str(tiny_llama), tmp_path / "rowwise", ConvertOptions("fp8-rowwise", tp=2))
    return tmp_path / "rowwise"


def scales(folder: Path, rank: int) -> int:
    """Return how many scales a rank has."""
    names = Checkpoint.open(folder).tensors(rank)
    return sum(name.endswith("per_channel_scale") for name in names)


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--dry-run",), ()], ids=["dry run", "build"])
def test_a_build_opens_its_checkpoint_once(
    options: tuple[str, ...],
    rowwise: Path,
    doubles: Doubles,
    output: Path,
    command: Callable[..., Result],
) -> None:
    with opens_of(rowwise) as opens:
        result = command("build", rowwise, "-o", output, "--arch", "H100", *options)

    assert result.exit_code == 0, result.stderr
    assert opens["config.json"] == 1
    # A built engine's manifest has the digest of the checkpoint's.
    assert opens["minitron.json"] == (1 if options else 2)
    for rank in range(2):
        assert scales(rowwise, rank) > 0
        # Its header, and each of its scales.
        assert opens[f"rank{rank}.safetensors"] == 1 + scales(rowwise, rank)
