"""`--cache`: the same request is a copy, another is a build, a damaged engine is built again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.build.doubles import Doubles

from minitron_trt.build import cache
from minitron_trt.outputs import copy_tree, staged

pytestmark = pytest.mark.slow

Build = Callable[..., dict[str, Any]]


@pytest.fixture
def build(
    doubles: Doubles, checkpoint: Path, tmp_path: Path, command: Callable[..., Result]
) -> Build:
    """Return a build of one checkpoint with a cache; its value is what --json prints."""

    def run(name: str, *options: object, log: str = "") -> dict[str, Any]:
        common = ("--arch", "H100", "--cache", tmp_path / "cache", "--json")
        result = command("build", checkpoint, "-o", tmp_path / name, *common, *options)

        assert result.exit_code == 0, result.stderr
        assert log in result.stderr
        record: dict[str, Any] = json.loads(result.stdout)
        return record

    return run


def test_the_same_request_is_answered_by_a_copy(
    build: Build, doubles: Doubles, tmp_path: Path
) -> None:
    first = build("one")
    doubles.tell(does="fail")
    second = build("two")

    assert (first["cached"], second["cached"]) == (False, True)
    assert first["key"] == second["key"]
    assert len(first["key"]) == 64
    for name in ("config.json", "rank0.engine", "tokenizer.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


@pytest.mark.parametrize(
    "options",
    [("--max-batch-size", 4), ("--profile", "latency"), ("--trtllm-version", "1.1.0")],
    ids=str,
)
def test_another_request_is_another_build(build: Build, options: tuple[object, ...]) -> None:
    first, second = build("one"), build("two", *options)

    assert not second["cached"]
    assert first["key"] != second["key"]


def test_other_weights_of_the_same_size_are_another_build(build: Build, tmp_path: Path) -> None:
    build("one")
    path = tmp_path / "checkpoint" / "rank0.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)

    assert not build("two")["cached"]


def test_where_the_checkpoint_lies_does_not_matter(
    build: Build, doubles: Doubles, tmp_path: Path
) -> None:
    build("one")
    shutil.move(tmp_path / "checkpoint", tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", tmp_path / "checkpoint")
    doubles.tell(does="fail")

    assert build("two")["cached"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda entry: (entry / "rank0.engine").write_bytes(b"ENGINE" * 1000),
        lambda entry: (entry / "rank0.engine").write_bytes(b"short"),
        lambda entry: (entry / "rank0.engine").unlink(),
        lambda entry: (entry / "minitron.json").write_text("{"),
    ],
    ids=["other bytes", "cut off", "missing", "no manifest"],
)
def test_a_damaged_engine_is_built_again_and_said(
    damage: Callable[[Path], object], build: Build, tmp_path: Path
) -> None:
    key = build("one")["key"]
    damage(tmp_path / "cache" / key)
    again = build("two", log="the cached engine is damaged and is built again")

    assert not again["cached"]
    assert build("three")["cached"]


def test_a_cache_that_cannot_be_written_is_a_warning(build: Build, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    built = build("one", log="warning: the engine is not kept in the cache (cannot write ")

    assert not built["cached"]
    assert (tmp_path / "one" / "rank0.engine").is_file()


def test_a_cache_that_another_build_stores_into_is_a_warning(build: Build, tmp_path: Path) -> None:
    key = build("one")["key"]
    shutil.rmtree(tmp_path / "cache" / key)
    with staged(tmp_path / "cache" / key):
        again = build("two", log="(another minitron-trt is writing ")

    assert not again["cached"]


def test_a_cached_engine_that_vanishes_is_built_again(
    build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = build("one")["key"]

    def vanish(source: Path, target: Path) -> None:
        if source.name != key:
            copy_tree(source, target)
            return
        shutil.rmtree(source)
        shutil.copyfile(source / "rank0.engine", target / "rank0.engine")

    monkeypatch.setattr(cache, "copy_tree", vanish)

    assert not build("two", log="the cached engine is not used")["cached"]
