"""Files with anything in them: exit codes 0, 3 and 4, one line, nothing left, and no hang.

A few examples of each kind run always; `FUZZ_EXAMPLES=2000` tries that many.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.build.engines import add_manifest, write_engine

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

Command = Callable[..., Result]
EXAMPLES: Final = int(os.environ.get("FUZZ_EXAMPLES", "12"))
PATIENCE_SECONDS: Final = 60
bounded = settings(
    max_examples=EXAMPLES,
    derandomize="FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)

SCALARS: Final = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 300),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from(["", "auto", "../../etc/passwd", "\0", "\ud800", "x" * 300, "llama3", "BF16"]),
)
VALUES: Final = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)
    ),
    max_leaves=12,
)


def places(record: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return where every value of a JSON record lies."""
    items = record.items() if isinstance(record, dict) else enumerate(record)
    found = []
    for key, value in items:
        found.append((*at, key))
        if isinstance(value, dict | list):
            found += places(value, (*at, key))
    return found


@st.composite
def altered(draw: st.DrawFn, text: str) -> bytes:
    """Return the text of a JSON file with some values changed, or some bytes of it."""
    record = json.loads(text)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(places(record) or [()]))
        if not place:
            break
        parent = record
        for key in place[:-1]:
            parent = parent[key]
        what = draw(st.sampled_from(["value", "value", "value", "gone", "more"]))
        if what == "gone":
            del parent[place[-1]]
        elif what == "more" and isinstance(parent, dict):
            parent[draw(st.text(max_size=12))] = draw(VALUES)
        else:
            parent[place[-1]] = draw(VALUES)
    data = json.dumps(record).encode(errors="surrogatepass")
    return draw(st.one_of(st.just(data), st.just(data), bytes_of(data)))


def bytes_of(data: bytes) -> st.SearchStrategy[bytes]:
    """Return changes of bytes: some replaced, a piece gone, put in, or all of it."""
    place = st.integers(0, max(len(data) - 1, 0))
    return st.one_of(
        st.builds(lambda at: data[:at], place),
        st.builds(lambda at, new: data[:at] + new + data[at + len(new) :], place, st.binary()),
        st.builds(lambda at, new: data[:at] + new + data[at:], place, st.binary(max_size=40)),
        st.builds(lambda at, n: data[:at] + data[at + n :], place, st.integers(1, 40)),
        st.binary(max_size=200),
    )


@st.composite
def altered_header(draw: st.DrawFn, data: bytes) -> bytes:
    """Return a safetensors file with another header, its length true or not."""
    length = int.from_bytes(data[:8], "little")
    header = draw(altered(data[8 : 8 + length].decode()))
    stated = draw(st.one_of(st.just(len(header)), st.integers(0, 2**64 - 1)))
    return struct.pack("<Q", stated) + header + data[8 + length :]


@st.composite
def altered_archive(draw: st.DrawFn, path: Path) -> bytes:
    """Return a file of torch.save with other bytes in its pickle, or in its zip."""
    with zipfile.ZipFile(path) as archive:
        records = {info.filename: archive.read(info) for info in archive.infolist()}
    if draw(st.booleans()):
        return draw(bytes_of(path.read_bytes()))
    name = draw(st.sampled_from(sorted(records)))
    what = st.one_of(bytes_of(records[name]), st.builds(pickle.dumps, VALUES))
    records[name] = draw(what)
    target = path.with_suffix(".altered")
    with zipfile.ZipFile(target, "w") as archive:
        for record, content in records.items():
            archive.writestr(record, content)
    return target.read_bytes()


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one of each: a model in three forms, and what is made of it."""
    root = tmp_path_factory.mktemp("fuzz")
    model = sample_folder("solar-nemotron")
    shutil.copytree(model, root / "model", copy_function=shutil.copy)
    convert(str(model), root / "checkpoint", ConvertOptions())
    emit_repository(root / "checkpoint", root / "repository", ServingRecipe())
    write_engine(root / "engine", size_bytes=1000, pretrained={"vocab_size": 1024})
    for file in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(model / file, root / "engine" / file)
    add_manifest(root / "engine", tokens={"bos_id": 1, "eos_ids": [2], "pad_id": None})
    names = json.loads(header_of(model / "model.safetensors"))
    shutil.copytree(root / "model", root / "indexed")
    (root / "indexed" / "model.safetensors").rename(root / "indexed" / "a.safetensors")
    index = {"weight_map": {n: "a.safetensors" for n in names if n != "__metadata__"}}
    (root / "indexed" / "model.safetensors.index.json").write_text(json.dumps(index))
    return root


def header_of(path: Path) -> bytes:
    """Return the header of a safetensors file."""
    data = path.read_bytes()
    return data[8 : 8 + int.from_bytes(data[:8], "little")]


@pytest.fixture
def tried(
    artifacts: Path, command: Command, tmp_path: Path
) -> Callable[[str, str, bytes, tuple[str, ...]], None]:
    """Return a run of a command on an artifact whose one file has other bytes."""
    folder, output = tmp_path / "folder", tmp_path / "output"

    def run(artifact: str, name: str, data: bytes, arguments: tuple[str, ...]) -> None:
        if not folder.exists():
            shutil.copytree(artifacts / artifact, folder, copy_function=shutil.copy)
        (folder / name).write_bytes(data)
        manifest = folder / "minitron.json"
        if manifest.is_file() and name != manifest.name:
            record = json.loads(manifest.read_text())
            record["files"][name] = len(data)
            manifest.write_text(json.dumps(record))
        words = [{"FOLDER": folder, "OUTPUT": output}.get(word, word) for word in arguments]
        start = time.monotonic()
        result = command(*words)
        seconds = time.monotonic() - start
        made = output.exists()
        shutil.rmtree(output, ignore_errors=True)

        assert seconds < PATIENCE_SECONDS
        assert result.exit_code in (0, 3, 4), (result.exit_code, result.stderr, data[:2000])
        assert result.exit_code == 0 or not made
        assert result.stderr.count("error: ") == (1 if result.exit_code else 0) or not (
            result.stderr
        ), result.stderr
        assert "a fault in minitron-trt" not in result.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == ["folder"]

    return run


CONVERT: Final = ("convert", "FOLDER", "-o", "OUTPUT")
JSON_FILES: Final = (
    ("model", "config.json", CONVERT),
    ("model", "generation_config.json", CONVERT),
    ("model", "tokenizer_config.json", CONVERT),
    ("model", "tokenizer.json", CONVERT),
    ("indexed", "model.safetensors.index.json", CONVERT),
    (
        "checkpoint",
        "minitron.json",
        ("plan", "FOLDER", "--gpu", "H100", "--input-len", "100", "--output-len", "100"),
    ),
    ("checkpoint", "config.json", ("build", "FOLDER", "--arch", "hopper", "--dry-run")),
    ("engine", "minitron.json", ("check", "FOLDER", "--gpu", "H100")),
    ("engine", "config.json", ("triton-repo", "FOLDER", "-o", "OUTPUT")),
    ("repository", "minitron.json", ("serve", "FOLDER", "--dry-run")),
    ("repository", "minitron.json", ("check", "FOLDER")),
)
Tried = Callable[[str, str, bytes, tuple[str, ...]], None]


@pytest.mark.parametrize(
    ("artifact", "name", "arguments"), JSON_FILES, ids=lambda value: str(value).split("'")[-1]
)
def test_a_json_file_may_hold_anything(
    artifact: str, name: str, arguments: tuple[str, ...], artifacts: Path, tried: Tried
) -> None:
    text = (artifacts / artifact / name).read_text()

    @bounded
    @given(altered(text))
    def try_one(data: bytes) -> None:
        tried(artifact, name, data, arguments)

    try_one()


@pytest.mark.parametrize(
    ("artifact", "name", "arguments"),
    [
        ("model", "model.safetensors", CONVERT),
        ("checkpoint", "rank0.safetensors", ("triton-repo", "FOLDER", "-o", "OUTPUT")),
    ],
    ids=["source", "rank"],
)
def test_a_header_of_safetensors_may_hold_anything(
    artifact: str, name: str, arguments: tuple[str, ...], artifacts: Path, tried: Tried
) -> None:
    whole = (artifacts / artifact / name).read_bytes()

    @bounded
    @given(altered_header(whole))
    def try_one(data: bytes) -> None:
        tried(artifact, name, data, arguments)

    try_one()


def test_a_bin_file_may_hold_anything(artifacts: Path, tried: Tried, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    model, whole = artifacts / "model", artifacts / "whole.bin"
    shutil.copytree(model, tmp_path / "folder", copy_function=shutil.copy)
    (tmp_path / "folder" / "model.safetensors").unlink()
    torch.save(load_file(model / "model.safetensors"), whole)

    @bounded
    @given(altered_archive(whole))
    def try_one(data: bytes) -> None:
        tried("model", "pytorch_model.bin", data, CONVERT)

    try_one()
