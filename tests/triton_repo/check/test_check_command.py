"""`minitron-trt check REPOSITORY`: its table, its JSON, its exit codes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.triton_repo.upstream import write_upstream

Command = Callable[..., Result]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A filled template."""
    return write_upstream(tmp_path / "repository", {"max_beam_width": "1"})


def spoil(folder: Path, file: str, old: str, new: str) -> None:
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_findings_are_a_table_and_the_error_says_the_first(
    repository: Path, command: Command
) -> None:
    spoil(repository, "ensemble/config.pbtxt", 'key: "runtime_top_k"', 'key: "top_k"')

    result = command("check", repository)

    assert result.exit_code == 3
    assert re.search(
        r"^error    ensemble/config\.pbtxt:\d+ +ensemble_scheduling\.step\[1\]\.input_map"
        r"\[\"top_k\"\]: tensorrt_llm/config\.pbtxt has no input 'top_k'; did you mean '",
        result.stdout,
        re.MULTILINE,
    )
    assert result.stdout.splitlines()[-1] == f"{repository}: 1 error, 49 warnings"
    assert result.stderr.startswith(f"error: {repository} has 1 error, 49 warnings; ensemble/")
    assert result.stderr.count("\n") == 1


def test_json_has_the_same_findings(repository: Path, command: Command) -> None:
    spoil(repository, "tensorrt_llm/config.pbtxt", "max_batch_size: 4", "max_batch_size: ${n}")

    result = command("check", repository, "--json")
    record = json.loads(result.stdout)

    assert (result.exit_code, record["errors"], record["engine"]) == (3, 1, None)
    assert [f for f in record["findings"] if f["severity"] == "error"] == [
        {
            "severity": "error",
            "file": "tensorrt_llm/config.pbtxt",
            "field": "max_batch_size",
            "found": "placeholder ${n} is left",
            "expected": "",
            "remedy": "fill in a number",
            "line": 12,
            "column": 17,
        }
    ]


@pytest.mark.slow
def test_the_engine_inside_is_compared_with_a_place(repository: Path, command: Command) -> None:
    fits = command("check", repository, "--gpu", "H100", "--image", "26.07", "--sm", "90")
    fails = command("check", repository, "--gpu", "A100", "--sm", "90", "--json")

    assert (fits.exit_code, fails.exit_code) == (0, 4)
    assert "ok  TensorRT-LLM: engine of 1.2.1, 26.07 has 1.2.1" in fits.stdout
    assert json.loads(fails.stdout)["engine"]["loads"] is False
    assert "will not load: engine for SM90" in fails.stderr


def test_a_repository_without_engine_cannot_be_compared(repository: Path, command: Command) -> None:
    for name in ("tensorrt_llm", "ensemble", "tensorrt_llm_bls"):
        for path in sorted((repository / name).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        (repository / name).rmdir()

    result = command("check", repository, "--gpu", "H100")

    assert result.exit_code == 2
    assert "has no engine on this machine" in result.stderr


@pytest.mark.parametrize(
    ("make", "code", "words"),
    [
        (lambda p: p / "absent", 3, "is not a folder; expected a model repository or an engine"),
        (lambda p: p, 3, "has no config.json; expected an engine folder"),
    ],
    ids=["absent", "empty"],
)
def test_what_is_neither_is_refused(
    tmp_path: Path,
    command: Command,
    make: Callable[[Path], Path],
    code: int,
    words: str,
) -> None:
    result = command("check", make(tmp_path))

    assert (result.exit_code, result.stdout) == (code, "")
    assert words in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe\x00",
        b"",
        b"{{{{{{",
        b"]" * 50,
        b'name: "x',
        b"input [ { dims: [ 99999999999999999999 ] } ]",
        b"input {" * 10000,
    ],
    ids=["binary", "empty", "braces", "brackets", "quote", "overflow", "depth"],
)
def test_damaged_text_never_ends_in_a_trace(
    repository: Path, command: Command, content: bytes
) -> None:
    (repository / "postprocessing/config.pbtxt").write_bytes(content)

    result = command("check", repository)

    assert result.exit_code == 3, result.output
    assert "postprocessing/config.pbtxt" in result.stdout
