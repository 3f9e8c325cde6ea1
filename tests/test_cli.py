"""The command line: help that is light, one JSON object, one line for an error."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
import pytest
from click.testing import Result
from tests.patience import until

from minitron_trt import __version__
from minitron_trt.cli import COMMANDS, SECTIONS
from minitron_trt.config_file import read_config
from minitron_trt.console import Console
from minitron_trt.option_types import Count
from minitron_trt.progress import progress_line
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.tables import folded

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
    "tomllib",
    # What reads the weights of an archive.
    "minitron_trt.convert.nemo.megatron_tensors",
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("--help",), ("--version",), ("convert", "--help")], ids=" ".join
)
def test_help_is_light(arguments: tuple[str, ...]) -> None:
    assert loaded_by(*arguments) == []


@pytest.mark.slow
def test_a_conversion_needs_no_torch(tiny_llama: Path, tmp_path: Path) -> None:
    loaded = loaded_by("convert", str(tiny_llama), "-o", str(tmp_path / "checkpoint"))

    assert loaded == ["numpy"]


def test_help_lists_every_command_once_in_sections(command: Command) -> None:
    text = command("--help").stdout
    titles = [f"{title}:" for title in (*SECTIONS, "More") if f"{title}:" in text]
    listing = text[text.index(titles[0]) :]
    names = re.findall(r"^  ([a-z-]+)  ", listing, re.MULTILINE)

    assert titles[:2] == ["From a model to an answer:", "To begin with:"]
    assert sorted(names) == sorted(COMMANDS)
    assert "..." not in listing


def test_long_lines_are_folded_for_a_terminal_below_where_their_text_begins() -> None:
    text = "  ok  torch: some words\n  ok  docker: the words of a long line\nshort\n"

    assert folded(text, 26) == (
        "  ok  torch: some words\n  ok  docker: the words of\n      a long line\nshort\n"
    )
    assert folded(text, None) == text
    assert folded("run: docker pull nvcr.io/nvidia/tritonserver", 20).count("\n") == 0
    assert folded("a-path-that-is-longer and more", 12) == "a-path-that-is-longer\nand more"


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
    assert command("-V").stdout == command("--version").stdout


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
        (["convrt"], "No such command 'convrt'. Did you mean 'convert'?"),
        (
            ["plan", "--precison", "fp8"],
            "No such option '--precison'. (Did you mean one of: '--json', '--precision', "
            "'--revision'?)",
        ),
        (
            ["build", ".", "--arch", "H100", "--max-seq-len", "1.5001k"],
            "Invalid value for '--max-seq-len': '1.5001k' is no whole number",
        ),
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
    assert "\nTraceback (most recent call last):\n" in result.stderr
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

    # As one that SIGPIPE ended.
    assert (result.returncode, result.stderr) == (141, "")


def test_a_checkpoint_says_when_trtllm_build_quantizes_it(
    command: Command, tiny_llama: Path
) -> None:
    said = command("convert", tiny_llama, "--precision", "w8a16", "--dry-run").stdout

    assert said.splitlines()[-1] == "  its weights are bfloat16: trtllm-build makes w8a16 of them"
    assert "trtllm-build" not in command("convert", tiny_llama, "--dry-run").stdout


@pytest.mark.parametrize(
    ("text", "number"),
    [("8192", 8192), ("32k", 32_000), ("32K", 32_768), ("1.5K", 1536), ("2m", 2_000_000)],
)
def test_a_count_is_written_as_vllm_reads_it(text: str, number: int) -> None:
    assert Count().convert(text, None, None) == number


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("nan", "'nan' is not a finite number"),
        ("inf", "inf is not in the range 1<=x<=2147483647"),
        ("1e300", "1e+300 is not in the range 1<=x<=2147483647"),
    ],
)
def test_a_time_to_wait_is_one_that_clusters_take(
    text: str, problem: str, command: Command, tmp_path: Path
) -> None:
    result = command("build", tmp_path, "--arch", "H100", "--timeout", text)

    assert result.exit_code == 2
    assert f"Invalid value for '--timeout': {problem}" in result.stderr


CONFIGS = {
    "options.yaml": "arch: H100\nmax-batch-size: 8\nmax_seq_len: 0.25K\ndry-run: true\n",
    "options.toml": 'arch = "H100"\nmax_batch_size = 8\nmax-seq-len = "0.25K"\ndry-run = true\n',
}

# Written out, its values would fill any memory.
BOMB = "a0: &a0 [x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize("name", CONFIGS)
def test_options_may_come_from_a_file_and_those_typed_win(
    name: str, command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(CONFIGS[name])
    checkpoint = tmp_path / "checkpoint"
    assert command("convert", tiny_llama, "-o", checkpoint).exit_code == 0
    arguments = ("build", checkpoint, "--config", tmp_path / name, "--runner", "docker", "--json")
    record = json.loads(command(*arguments).stdout)
    typed = json.loads(command(*arguments, "--max-batch-size", 4).stdout)

    assert {"--max_batch_size=8", "--max_seq_len=256"} <= set(record["argv"])
    assert "--max_batch_size=4" in typed["argv"]


@pytest.mark.parametrize(
    ("text", "code", "message"),
    [
        ("max-batchsize: 8", 2, "which is no option of build; did you mean 'max-batch-size'?"),
        ("- a\n- b", 3, "is no list of options; expected lines `option: value`"),
        ("a: [", 3, "is damaged: "),
        ("arch: H100\nrunner: dockr", 2, "Invalid value for '--runner': 'dockr' is not one of"),
        ("arch: H100\nworkers: 1.5", 2, "Invalid value for '--workers': '1.5' is not a valid "),
        ("arch: H100\nworkers: [1, 2]", 2, "options.yaml: workers has several values; expected"),
        ("arch: H100\nworkers: {a: 1}", 2, "options.yaml: workers has several values; expected"),
        (BOMB, 3, "options.yaml is damaged: an alias *"),
        ("arch: &a [*a]", 3, "options.yaml is damaged: an alias *a; write out what it stands for"),
        ("workers: 1" + 5000 * ":1", 3, "options.yaml is damaged: a number of 10001 characters"),
        ('output: "a\\0b"', 2, "output has a NUL character, which no option can have"),
    ],
    ids=[
        *("unknown", "list", "damaged", "value", "fraction", "several", "object"),
        *("bomb", "within itself", "endless number", "NUL"),
    ],
)
def test_a_file_of_options_is_read_with_care(
    text: str, code: int, message: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "options.yaml").write_text(text)
    result = command("build", "checkpoint", "--config", tmp_path / "options.yaml")

    assert (result.exit_code, result.stdout) == (code, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "time: 2:00:00\nversion: 1.10\nrate: -.inf\nverbose: true"),
        ("a.toml", "time = 02:00:00\nrate = inf\n"),
    ],
)
def test_what_a_file_says_is_what_would_be_typed(name: str, text: str, tmp_path: Path) -> None:
    """To YAML 1.1 the time is 7200, which Slurm would take for minutes, and the version 1.1."""
    (tmp_path / name).write_text(text)
    options = [click.Option([f"--{name}"]) for name in ("time", "version", "rate")]
    command = click.Command("build", params=[*options, click.Option(["--verbose"], count=True)])
    context = click.Context(command)
    read_config(context, options[0], tmp_path / name)

    assert context.default_map == (
        {"time": "2:00:00", "version": "1.10", "rate": "-inf", "verbose": "1"}
        if name == "a.yaml"
        else {"time": "02:00:00", "rate": "inf"}
    )


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.yaml", "set: {a.b: 0.50, a.c: [1, 0.5], a.d: {e: [x]}, a.f: null}"),
        ("a.toml", 'set = {"a.b" = 0.50, "a.c" = [1, 0.5], "a.d" = {e = ["x"]}}'),
    ],
)
def test_lists_and_objects_in_a_file_are_typed_as_json(
    name: str, text: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    option = click.Option(["--set"], multiple=True)
    context = click.Context(click.Command("build", params=[option]))
    read_config(context, option, tmp_path / name)

    expected = ["a.b=0.50", "a.c=[1, 0.5]", 'a.d={"e": ["x"]}']
    assert context.default_map == {"set": expected + ["a.f=null"] * (name == "a.yaml")}


def test_a_device_is_no_file_of_options(command: Command) -> None:
    result = command("plan", "minitron-8b", "--gpu", "H100", "--config", "/dev/zero")

    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        "error: --config /dev/zero is longer than 1048576 characters; expected lines "
        "`option: value`\n"
    )


@pytest.mark.parametrize("text", ["precision: null\nprofile: null\n", "# precision: bf16\n"])
def test_null_and_comments_in_a_file_are_silence(
    text: str, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    plan = ("plan", "minitron-8b", "--gpu", "H100", "--json")
    result = command(*plan, "--config", tmp_path / "c.yaml")

    assert (result.exit_code, result.stdout) == (0, command(*plan).stdout)


def test_parameters_of_models_may_be_an_object_in_a_file(
    command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text("set: {tensorrt_llm.no_such: true}\nruntime: llmapi\n")
    options = ("-o", tmp_path / "repository", "--config", tmp_path / "c.yaml")
    result = command("triton-repo", tiny_llama, *options)

    assert result.exit_code == 2
    assert "tensorrt_llm has no parameter 'no_such'" in result.stderr


def test_more_is_said_of_every_command_when_asked(
    command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    result = command("convert", tiny_llama, "-o", tmp_path / "c", "-v", "--token", "secret")

    assert result.stderr.startswith(f"minitron-trt {__version__}, Python ")
    assert "precision None (default)" in result.stderr
    assert "secret" not in result.stderr
    assert re.search(r"s, [\d.]+ s of a processor, at most .* of memory$", result.stderr.strip())


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_a_script(shell: str, command: Command) -> None:
    text = command("completion", shell).stdout

    assert "_MINITRON_TRT_COMPLETE" in text
    assert json.loads(command("completion", shell, "--json").stdout)["script"] + "\n" == text


@pytest.mark.slow
def test_bash_completes_commands_options_and_gpus(tmp_path: Path, command: Command) -> None:
    (tmp_path / "script").write_text(command("completion", "bash").stdout)

    def completed(*words: str) -> list[str]:
        quoted = " ".join(f"'{word}'" for word in words)
        program = (
            f"source {tmp_path}/script; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; "
            f"_minitron_trt_completion '{words[0]}'; echo \"${{COMPREPLY[@]}}\""
        )
        argv = ["bash", "--noprofile", "--norc", "-c", program]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()

    program = str(Path(sys.executable).with_name("minitron-trt"))

    assert completed(program, "tri") == ["triton-repo"]
    assert completed(program, "build", "--max-b") == ["--max-batch-size", "--max-beam-width"]
    assert completed(program, "build", "x", "--arch", "h2") == ["H200", "H200-NVL"]


def test_progress_is_in_the_unit_of_the_work() -> None:
    def amount(number: float) -> str:
        return f"{number:,.0f} tokens"

    assert progress_line("calibrate", 0, 32768, 5, amount) == (
        "calibrate: 0 %, 0 tokens of 32,768 tokens in 5 s"
    )
    assert progress_line("calibrate", 8192, 32768, 300, amount) == (
        "calibrate: 25 %, 8,192 tokens of 32,768 tokens in 5 min, 27 tokens/s, about 15 min left"
    )


def test_on_a_pipe_progress_is_lines(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("minitron_trt.progress._LINE_S", 0.01)
    caplog.set_level(logging.INFO, "minitron_trt")
    with Console().progress("convert", 1000) as advance:
        advance(500)
        # A line of before may have come first.
        until(lambda: any("50 %" in line for line in caplog.messages))
    said = len(caplog.messages)
    with Console(quiet=True).progress("convert", 1000):
        pass

    assert any(
        line.startswith("convert: 50 %, 500 B of 1 kB in ") for line in caplog.messages[:said]
    )
    assert len(caplog.messages) == said


def test_what_the_hubs_library_says_in_passing_is_not_on_the_screen(tmp_path: Path) -> None:
    program = (
        "from minitron_trt.cli import main\n"
        "main(['doctor'], standalone_mode=False)\n"
        "from huggingface_hub.utils import logging\n"
        "logging.get_logger('huggingface_hub.utils._http').warning('Retrying in 1s')\n"
    )
    environment = {**os.environ, "HF_HOME": str(tmp_path)}
    environment.pop("HF_HUB_VERBOSITY", None)
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment
    )

    assert (result.returncode, result.stderr) == (0, "")
