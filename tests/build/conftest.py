"""What the tests of builds share: doubles on the PATH, a checkpoint, a place for the engine."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.build.doubles import Doubles, make_doubles

from minitron_trt.convert.conversion import ConvertOptions, convert


@pytest.fixture
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    """Return the doubles of trtllm-build and nvidia-smi, on the PATH."""
    found = make_doubles(tmp_path, monkeypatch)
    found.install("trtllm-build", "nvidia-smi")
    return found


@pytest.fixture
def checkpoint(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a checkpoint to read."""
    convert(str(tiny_llama), tmp_path / "checkpoint", ConvertOptions())
    return tmp_path / "checkpoint"


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """Return where an engine goes, in a folder of its own."""
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "engine"
