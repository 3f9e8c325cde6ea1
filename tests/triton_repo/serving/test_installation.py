"""What the embedded server's interpreter will not find is said before it starts."""

from __future__ import annotations

import importlib.metadata
import os
from pathlib import Path

import pytest

import minitron_trt
from minitron_trt.errors import UnsupportedError
from minitron_trt.triton_repo.runtimes.runtime_names import REFERENCE
from minitron_trt.triton_repo.serving.installation import check_packages, find_embedded
from minitron_trt.triton_repo.serving.served_repository import OTHER


def test_packages_that_only_pythonpath_leads_to_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Triton's stub starts an isolated interpreter: `pip install --target` is nothing to it.
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    check_packages(REFERENCE)

    folder = Path(minitron_trt.__file__).parent.parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(folder))))
    with pytest.raises(
        UnsupportedError, match=r"PYTHONPATH .* which Triton's Python backend ignores"
    ):
        check_packages(REFERENCE)
    # Models of others need nothing of ours.
    check_packages(OTHER)


def test_a_numpy_that_ends_the_python_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    find_embedded()
    # Seen with 2.5.2: "unpack_from requires a buffer of at least 589505319 bytes".
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.5.2")

    with pytest.raises(UnsupportedError, match=r"numpy is 2.5.2, .* run: pip install 'numpy<2'"):
        find_embedded()
