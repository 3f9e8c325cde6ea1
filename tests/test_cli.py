"""The command line: help that is light, one JSON object, one line for an error."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
from click.testing import Result

from minitron_trt import __version__
from minitron_trt.cli import COMMANDS
from minitron_trt.quantization.precisions import PRECISIONS

Command = Callable[..., Result]
HEAVY = (
    "torch",
    "transformers",
    "numpy",
    "rich",
    "grpc",
    "httpcore2",
    "huggingface_hub",
    "tritonclient",
)
# What a conversion of the fixture's Llama says about itself at two tensor-parallel ranks.
PLAN = {
    "architecture": "LlamaForCausalLM",
    "precision": "bf16",
    "tp": 2,
    "pp": 1,
    "output_bytes": 120_960,
    "ranks": [
        {"file": "rank0.safetensors", "tensors": 24, "bytes": 60_480},
        {"file": "rank1.safetensors", "tensors": 24, "bytes": 60_480},
    ],
}


def loaded_by(*arguments: str) -> list[str]:
    """Return which heavy packages a run of the command has loaded when it ends."""
    program = (
        "import atexit, sys\n"
        f"heavy = lambda: print(*sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)\n"
        "atexit.register(heavy)\n"
        "from minitron_trt.cli import main\n"
        f"main({list(arguments)})\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert result.returncode == 0, result.stderr
    return result.stderr.split()


@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("convert", "--help")], ids=" ".join
)
def test_help_is_light(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == []


def test_a_conversion_needs_no_torch(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = loaded_by("convert", str(tiny_llama), "-o", str(tmp_path / "checkpoint"))

    assert loaded == ["numpy"]


def test_help_lists_every_command(command: Command) -> None:
    result = command("--help")
    listing = result.stdout.split("Commands:\n")[1]

    assert [line.split()[0] for line in listing.splitlines() if line[2] != " "] == list(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, command: Command) -> None:
    result = command(name, "--help")

    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: main {name} [OPTIONS]")
    _, _, parts = result.stdout.partition("Commands:\n")
    for words in [[name, line.split()[0]] for line in parts.splitlines()] or [[name]]:
        help_text = command(*words, "--help").stdout
        assert help_text.startswith(f"Usage: main {' '.join(words)} [OPTIONS]")
        assert "--json" in help_text


def test_the_version_is_the_packages(command: Command) -> None:
    assert command("--version").stdout == f"minitron-trt, version {__version__}\n"


def test_a_dry_run_prints_the_plan_and_writes_nothing(
    command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    output = tmp_path / "checkpoint"
    result = command("convert", tiny_llama, "-o", output, "--tp", 2, "--dry-run")

    assert (result.exit_code, result.stderr) == (0, "")
    assert re.sub(r"[\d.]+ MB", "some MB", result.stdout) == (
        "LlamaForCausalLM  bf16  tp 2  pp 1\n"
        "  rank0.safetensors       24 tensors    60.5 kB\n"
        "  rank1.safetensors       24 tensors    60.5 kB\n"
        "writes 121 kB with about some MB of memory\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_needs_no_output(command: Command, tiny_llama: Path) -> None:
    result = command("convert", tiny_llama, "--tp", 2, "--dry-run", "--json")
    record: dict[str, Any] = json.loads(result.stdout)
    memory = record.pop("peak_memory_bytes")

    assert (result.exit_code, result.stderr, record) == (0, "", PLAN)
    assert 20_000_000 < memory <= 200_000_000


def test_json_prints_one_object_alone(command: Command, tiny_llama: Path, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    result = command("convert", tiny_llama, "-o", output, "--tp", 2, "--json")
    record: dict[str, Any] = json.loads(result.stdout)
    seconds, stages = record.pop("seconds"), record.pop("stage_seconds")

    assert (result.exit_code, result.stderr) == (0, "")
    assert record == {"checkpoint": str(output), **PLAN}
    assert 0 < stages.pop("convert") < seconds < 60
    assert stages == {}


def test_the_text_of_a_result_is_one_line(
    command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    result = command("convert", tiny_llama, "-o", tmp_path / "checkpoint")

    assert result.stdout.startswith(f"{tmp_path / 'checkpoint'}: 110 kB in ")
    assert result.stdout.endswith("/s), 1 rank(s), bf16\n")
    assert result.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["convert"], "Missing argument 'SOURCE'."),
        (["convert", "."], "Missing option '-o' / '--output'."),
        (["convert", ".", "--tp", "0"], "Invalid value for '--tp': 0 is not in the range x>=1."),
        (
            ["convert", ".", "--pp", "two"],
            "Invalid value for '--pp': 'two' is not a valid integer range.",
        ),
        (
            ["convert", ".", "--precision", "fp32"],
            "Invalid value for '--precision': 'fp32' is not one of "
            + ", ".join(repr(name) for name in PRECISIONS)
            + ".",
        ),
        (["unheard"], "No such command 'unheard'."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_makes_no_sense_is_a_usage_error(
    arguments: list[str], message: str, command: Command
) -> None:
    result = command(*arguments)

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize(
    ("tp", "message"),
    [
        (3, "--tp 3 neither divides nor is a multiple of the 2 key/value heads"),
        (5, "--tp 5 does not divide the 12 attention heads"),
    ],
)
def test_a_size_that_does_not_divide_exits_with_4(
    tp: int, message: str, command: Command, tiny_llama: Path
) -> None:
    result = command("convert", tiny_llama, "--dry-run", "--json", "--tp", tp)

    assert (result.exit_code, result.stdout, result.stderr) == (4, "", f"error: {message}\n")


def test_a_fault_of_ours_is_one_line_and_leaves_nothing(
    command: Command, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> NoReturn:
        raise RuntimeError("the system went mad")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    result = command("convert", tiny_llama, "-o", tmp_path / "checkpoint")

    assert (result.exit_code, result.stdout, result.stderr) == (
        1,
        "",
        "error: a fault in minitron-trt (RuntimeError: the system went mad); "
        "run again with -v and report what it prints\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flag", ["-v", "-vv"])
def test_a_fault_of_ours_shows_its_trace_when_asked(
    flag: str, command: Command, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: int) -> NoReturn:
        raise RuntimeError("the system went mad")

    monkeypatch.setattr(os, "posix_fallocate", fail)
    result = command("convert", tiny_llama, "-o", tmp_path / "checkpoint", flag)

    assert result.exit_code == 1
    assert result.stderr.startswith("Traceback (most recent call last):")
    assert result.stderr.endswith("run again with -v and report what it prints\n")


@pytest.mark.parametrize("quiet", [(), ("-q",)], ids=["usual", "quiet"])
def test_warnings_go_to_stderr_unless_quiet(
    quiet: tuple[str, ...],
    command: Command,
    make_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    folder = make_model("llama")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    result = command("convert", folder, "-o", tmp_path / "checkpoint", *quiet)
    warning = f"warning: {folder} has no tokenizer; serving text will need one\n"

    assert (result.exit_code, result.stderr) == (0, "" if quiet else warning)


def test_python_dash_m_is_the_same_command() -> None:
    argv = [sys.executable, "-m", "minitron_trt", "--version"]
    result = subprocess.run(argv, capture_output=True, text=True, check=True)

    assert result.stdout == f"minitron-trt, version {__version__}\n"


def test_a_reader_that_leaves_is_not_an_error_worth_a_word(tiny_llama: Path) -> None:
    argv = [sys.executable, "-m", "minitron_trt", "convert", str(tiny_llama), "--dry-run"]
    reader, writer = os.pipe()
    os.close(reader)
    result = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)

    assert result.stderr == ""
