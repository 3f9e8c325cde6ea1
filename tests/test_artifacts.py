"""Folders that pass between stages: staging, locking and the manifest."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_trt import __version__
from minitron_trt.artifacts import Manifest, kind_of
from minitron_trt.errors import BadInputError, OutputError, UsageError
from minitron_trt.outputs import _exchange, check_output, staged


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_appears_when_the_block_ends(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with staged(output) as scratch:
        (scratch / "file").write_text("text")
        during = output.exists()

    assert not during
    assert names(tmp_path) == ["output"]
    assert names(output) == ["file"]


@pytest.mark.parametrize("fault", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_is_left_when_the_block_fails(fault: type[BaseException], tmp_path: Path) -> None:
    with pytest.raises(fault), staged(tmp_path / "output") as scratch:  # noqa: PT012
        (scratch / "deep").mkdir()
        (scratch / "deep" / "file").write_text("text")
        raise fault

    assert names(tmp_path) == []


def test_what_a_killed_run_left_is_swept_first(tmp_path: Path) -> None:
    partial = tmp_path / ".output.partial"
    (partial / "deep").mkdir(parents=True)
    (partial / "deep" / "file").write_text("old")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "kept").write_text("kept")
    (partial / "link").symlink_to(tmp_path / "elsewhere")
    with staged(tmp_path / "output") as scratch:
        swept = names(scratch)

    assert swept == []
    assert names(tmp_path) == ["elsewhere", "output"]
    assert names(tmp_path / "elsewhere") == ["kept"]


def test_two_runs_cannot_write_the_same_output(tmp_path: Path) -> None:
    with staged(tmp_path / "output") as scratch:
        with pytest.raises(UsageError, match="another minitron-trt is writing"):
            staged(tmp_path / "output").__enter__()
        (scratch / "file").write_text("text")

    assert names(tmp_path / "output") == ["file"]


def test_an_output_that_appears_during_the_work_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "output"
    with pytest.raises(UsageError, match="already exists"), staged(output):
        output.mkdir()

    assert names(tmp_path) == ["output"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.ENOSPC, "no space left for"),
        (errno.EDQUOT, "no space left for"),
        (errno.EROFS, "cannot write .*: Read-only file system"),
        (errno.EACCES, "cannot write .*: Permission denied"),
    ],
    ids=errno.errorcode.get,
)
def test_a_refusal_of_the_disk_is_an_output_error(code: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=message), staged(tmp_path / "output"):
        raise OSError(code, os.strerror(code))

    assert names(tmp_path) == []


def test_everything_is_on_the_disk_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    sync = os.fsync

    def record(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    with staged(tmp_path / "output") as scratch:
        (scratch / "deep").mkdir()
        (scratch / "deep" / "file").write_text("text")

    assert sorted(synced[:-1]) == [".output.partial", "deep", "file"]
    assert synced[-1] == tmp_path.name


def replace_often(output: Path, times: int) -> set[bool]:
    """Replace a folder again and again; return whether another thread saw it there meanwhile."""
    seen: set[bool] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(output.is_dir())

    looker = threading.Thread(target=look)
    for index in range(times):
        with staged(output, overwrite=True) as scratch:
            (scratch / "file").write_text("text")
            (scratch / "minitron.json").write_text("{}")
        if index == 0:
            looker.start()
    done.set()
    looker.join()
    return seen


def test_a_replaced_folder_is_there_at_every_moment(tmp_path: Path) -> None:
    assert replace_often(tmp_path / "output", 50) == {True}
    assert names(tmp_path) == ["output"]
    assert names(tmp_path / "output") == ["file", "minitron.json"]


def test_an_exchange_leaves_both_names_with_a_folder(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()

    assert _exchange(tmp_path / "one", tmp_path / "other")
    assert (names(tmp_path / "one"), names(tmp_path / "other")) == (["other"], ["one"])


def test_where_names_cannot_be_exchanged_the_old_one_steps_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_trt.outputs._exchange", lambda one, other: False)
    replace_often(tmp_path / "output", 3)

    assert names(tmp_path) == ["output"]


def test_names_that_do_not_exist_cannot_be_exchanged(tmp_path: Path) -> None:
    assert not _exchange(tmp_path / "one", tmp_path / "other")


@pytest.mark.parametrize(
    ("output", "relation"),
    [("model", "is"), ("model/deep", "lies in"), (".", "holds"), ("link", "is")],
)
def test_an_output_that_would_destroy_an_input_is_refused(
    output: str, relation: str, tmp_path: Path
) -> None:
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("model")
    path, model = tmp_path / output, tmp_path / "model"
    with pytest.raises(UsageError) as caught:
        check_output(path, overwrite=True, inputs=(model,))

    assert str(caught.value) == (
        f"{path} {relation} the input {model}, so it is not replaced; choose another folder"
    )


def test_another_kind_is_not_replaced(tmp_path: Path) -> None:
    write(tmp_path)
    check_output(tmp_path, overwrite=True, kind="engine")
    with pytest.raises(UsageError, match="is an engine, not a checkpoint, so it is not replaced"):
        check_output(tmp_path, overwrite=True, kind="checkpoint")


def test_what_is_damaged_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "minitron.json").write_text("{")

    check_output(tmp_path, overwrite=True, kind="checkpoint")


def write(folder: Path, *, digest: bool = False) -> Manifest:
    (folder / "deep").mkdir()
    (folder / "deep" / "b.txt").write_text("bee")
    (folder / "a.txt").write_text("a")
    manifest = Manifest("engine", {"path": "here"}, {"gpu": "H100"})
    manifest.write(folder, digest=digest)
    return manifest


def test_a_manifest_reads_back_with_the_sizes_of_its_files(tmp_path: Path) -> None:
    write(tmp_path)

    assert Manifest.read(tmp_path, "engine") == Manifest(
        kind="engine",
        source={"path": "here"},
        facts={"gpu": "H100"},
        files={"a.txt": 1, "deep/b.txt": 3},
        digests={},
        tool_version=__version__,
    )


def test_digests_are_those_of_the_files(tmp_path: Path) -> None:
    write(tmp_path, digest=True)

    assert Manifest.read(tmp_path, "engine").digests == {
        "a.txt": hashlib.sha256(b"a").hexdigest(),
        "deep/b.txt": hashlib.sha256(b"bee").hexdigest(),
    }


def with_changes(**changes: Any) -> Callable[[Path], object]:
    """Return a change of a manifest's keys; None removes one."""

    def change(folder: Path) -> None:
        path = folder / "minitron.json"
        record = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))

    return change


def with_text(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "minitron.json").write_text(text)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda folder: (folder / "minitron.json").unlink(),
            "FOLDER has no minitron.json; expected an engine written by this tool",
        ),
        (
            with_changes(kind="checkpoint"),
            "FOLDER is a checkpoint; expected an engine",
        ),
        (
            with_changes(schema_version=2, files=None),
            "FOLDER/minitron.json has schema version 2, this tool reads 1; make the engine again "
            "or upgrade",
        ),
        (
            lambda folder: (folder / "a.txt").unlink(),
            "FOLDER/a.txt is missing; the manifest says 1 bytes: make the engine again",
        ),
        (
            lambda folder: (folder / "deep" / "b.txt").write_text("b"),
            "FOLDER/deep/b.txt is 1 bytes; the manifest says 3 bytes: make the engine again",
        ),
    ],
    ids=["missing", "another kind", "newer", "file missing", "file of another size"],
)
def test_a_folder_that_is_not_as_its_manifest_says_is_refused(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write(tmp_path)
    damage(tmp_path)
    with pytest.raises(BadInputError) as caught:
        Manifest.read(tmp_path, "engine")

    assert str(caught.value).replace(str(tmp_path), "FOLDER") == message


@pytest.mark.parametrize(
    "damage",
    [
        with_text(""),
        with_text("{"),
        with_text("[]"),
        with_text("7"),
        with_text("[" * 100_000),
        with_changes(schema_version=None),
        with_changes(kind=None),
        with_changes(files=None),
        with_changes(files=["a.txt"]),
        with_changes(files={"a.txt": "large"}),
        with_changes(files={"a.txt": None}),
    ],
    ids=[
        "empty",
        "cut off",
        "a list",
        "a number",
        "too deep",
        "no schema",
        "no kind",
        "no files",
        "files without sizes",
        "size is text",
        "size is null",
    ],
)
def test_a_manifest_that_is_not_one_is_called_damaged(
    damage: Callable[[Path], object], tmp_path: Path
) -> None:
    write(tmp_path)
    damage(tmp_path)

    with pytest.raises(BadInputError, match=r"minitron\.json is damaged .* make the engine again$"):
        Manifest.read(tmp_path, "engine")


def test_a_manifest_needs_a_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="is not a folder; expected an engine"):
        Manifest.read(tmp_path / "absent", "engine")


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"minitron.json": '{"kind": "engine"}', "config.json": "{}"}, "engine"),
        ({"config.json": "{}"}, "huggingface"),
    ],
    ids=["manifest", "model folder"],
)
def test_a_folder_says_what_it_is(files: dict[str, str], kind: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)

    assert kind_of(tmp_path) == kind


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "FOLDER is neither an artifact of this tool nor a model folder"),
        (
            {"minitron.json": "{}"},
            "FOLDER/minitron.json is damaged (Object missing required field `kind`)",
        ),
        (
            {"minitron.json": "[]"},
            "FOLDER/minitron.json is damaged (Expected `object`, got `array`)",
        ),
    ],
    ids=["empty", "no kind", "a list"],
)
def test_a_folder_that_is_nothing_is_refused(
    files: dict[str, str], message: str, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInputError) as caught:
        kind_of(tmp_path)

    assert str(caught.value).replace(str(tmp_path), "FOLDER") == message
