"""Damaged manifests and configs: every command says in one line what is wrong, whatever it is."""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import Result
from tests.build.engines import add_manifest, write_engine

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.check import model_on_disk
from minitron_trt.triton_repo.check.field_positions import outline
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

Command = Callable[..., Result]
Case = tuple[str, str]
"""A name for a failure's message, and the text of the damaged file."""


class Missing:
    """Stands for a key that is taken out."""


def nested(depth: int) -> Any:
    """Return an object of objects."""
    return {"a": nested(depth - 1)} if depth else 1


WRONG: Final[dict[str, Any]] = {
    "missing": Missing,
    "null": None,
    "true": True,
    "zero": 0,
    "negative": -1,
    "a fraction": 0.5,
    "beyond 32 bits": 2**31,
    "beyond 64 bits": 10**30,
    "beyond floats": 10**400,
    "NaN": float("nan"),
    "infinite": float("inf"),
    "empty text": "",
    "text": "text",
    "a path": "../../etc/passwd",
    "a long name": "x" * 300,
    "control characters": "a\0b\nc\x1b[31m",
    "half a character": "\ud800",
    "a list": [1, 2],
    "an empty list": [],
    "an object": {"a": 1},
    "an empty object": {},
    "nested": nested(60),
}
EVERY: Final = int(os.environ.get("DAMAGE_EVERY", "5"))  # 1 takes minutes
WHOLE: Final = ("", "{", "[]", "7", "null", '"text"', "[" * 100_000, "\ufeff{}", "{}", "{} {}")


def places(record: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where every value of a JSON object lies, the first two of lists and of the files."""
    items: list[tuple[Any, Any]] = []
    if isinstance(record, dict):
        items = list(record.items())[: 2 if at == ("files",) else None]
    elif isinstance(record, list):
        items = list(enumerate(record[:2]))
    for key, value in items:
        yield (*at, key)
        yield from places(value, (*at, key))


def with_value(record: Any, place: tuple[Any, ...], value: Any) -> str:
    """Return the JSON of a record with another value in a place."""
    record = copy.deepcopy(record)
    parent = record
    for key in place[:-1]:
        parent = parent[key]
    if value is Missing:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return json.dumps(record)


def damaged(text: str) -> Iterator[Case]:
    """Yield everything that may be wrong with a file: values, its text, and where it ends."""
    record = json.loads(text)
    for place in places(record):
        for name, value in WRONG.items():
            yield f"{place} {name}", with_value(record, place, value)
    for whole in WHOLE:
        yield repr(whole[:9]), whole
    for end in range(0, len(text), max(1, len(text) // 20)):
        yield f"cut at {end}", text[:end]


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint, an engine of ours, one of others, and repositories of both."""
    root = tmp_path_factory.mktemp("artifacts")
    model = sample_folder("solar-llama")
    convert(str(model), root / "checkpoint", ConvertOptions())
    for name in ("engine", "foreign"):
        write_engine(root / name, size_bytes=1000, pretrained={"vocab_size": 1024})
        for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            shutil.copy(model / file, root / name / file)
    tokens = {"bos_id": 1, "eos_ids": [2], "pad_id": None}
    add_manifest(root / "engine", tokens=tokens, tensorrt="10.14.1.48")
    for name in ("checkpoint", "engine"):
        emit_repository(root / name, root / f"{name} repository", ServingRecipe())
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module", autouse=True)
def outlined_once() -> Iterator[None]:
    """No config.pbtxt is damaged here: where the fields of each stand is found once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_on_disk, "outline", functools.cache(outline))
        yield


def resign(folder: Path, name: str) -> None:
    """Let a folder's manifest know the size of a file, so that its damage is not found by that."""
    path = folder / "minitron.json"
    if path.is_file() and name != path.name:
        record = json.loads(path.read_text())
        record["files"][name] = (folder / name).stat().st_size
        path.write_text(json.dumps(record))


# What reads a folder, and one of how many inputs it gets: writing a repository takes a while.
READERS: Final[dict[str, list[tuple[int, tuple[str, ...]]]]] = {
    "checkpoint": [
        (1, ("plan", "FOLDER", "--gpu", "H100")),
        (3, ("build", "FOLDER", "--arch", "hopper", "--dry-run")),
        (7, ("triton-repo", "FOLDER", "-o", "OUTPUT")),
    ],
    "engine": [
        (1, ("check", "FOLDER", "--gpu", "H100", "--gpus", "1", "--image", "26.07")),
        (7, ("triton-repo", "FOLDER", "-o", "OUTPUT")),
    ],
    "repository": [(2, ("check", "FOLDER")), (1, ("serve", "FOLDER", "--dry-run"))],
}
READERS["foreign"] = READERS["engine"]
FILES: Final = (
    ("checkpoint", "minitron.json"),
    ("checkpoint", "config.json"),
    ("engine", "minitron.json"),
    ("engine", "config.json"),
    ("foreign", "config.json"),
    ("checkpoint repository", "minitron.json"),
    ("engine repository", "minitron.json"),
)


@pytest.mark.parametrize(("artifact", "name"), FILES, ids=map(" ".join, FILES))
def test_damage_is_one_line(
    artifact: str, name: str, artifacts: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    """Of 5,200 inputs, values of 22 kinds, cut and replaced texts, each fifth is tried."""
    folder = tmp_path / "folder"
    shutil.copytree(artifacts[artifact], folder, copy_function=shutil.copy)
    output = tmp_path / "output"
    cases = damaged((folder / name).read_text())
    for index, (case, text) in enumerate(itertools.islice(cases, 0, None, EVERY)):
        (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        resign(folder, name)
        for step, reader in READERS[artifact.rpartition(" ")[2]]:
            if index % step:
                continue
            arguments = [{"FOLDER": folder, "OUTPUT": output}.get(word, word) for word in reader]
            result = command(*arguments)
            shutil.rmtree(output, ignore_errors=True)

            assert result.exit_code in (0, 3, 4), (case, reader, result.stderr)
            if result.exit_code:
                assert result.stderr.count("error: ") == 1, (case, reader, result.stderr)
                assert result.stderr.endswith("\n"), (case, reader, result.stderr)
            assert "a fault in minitron-trt" not in result.stderr
            assert sorted(p.name for p in tmp_path.iterdir()) == ["folder"], case
