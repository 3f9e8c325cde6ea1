"""A repository for each GPU, with an engine of two ranks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tests.deploy.repositories import repository_for

RepositoryOf = Callable[[str], Path]


@pytest.fixture(scope="session")
def repository_of(tmp_path_factory: pytest.TempPathFactory) -> RepositoryOf:
    """Return what gives the repository of a GPU, made when it is first asked for."""

    @cache
    def make(gpu: str) -> Path:
        return repository_for(tmp_path_factory.mktemp("deploy") / gpu.lower(), gpu, tp=2)

    return make
