"""`build` with TensorRT-LLM: local and in docker, with doubles of the programs it starts."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.build.doubles import Doubles, install_package, make_doubles
from tests.patience import PATIENCE_S

from minitron_trt.artifacts import Manifest
from minitron_trt.build.engine import Engine
from minitron_trt.convert.conversion import ConvertOptions, convert

Command = Callable[..., Result]


def ended(program: str, within_s: float = PATIENCE_S) -> bool:
    """Say whether no process has a program on its command line; the kernel may take a moment."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        lines = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                lines.append(path.read_bytes())
        if not any(program.encode() in line for line in lines):
            return True
        time.sleep(0.05)
    return False


def left(output: Path) -> list[str]:
    """Return what lies beside an output."""
    return sorted(path.name for path in output.parent.iterdir())


def test_an_engine_is_built_and_described(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "--json")
    record: dict[str, Any] = json.loads(result.stdout)
    manifest = Manifest.read(output, "engine")

    assert result.exit_code == 0
    assert {key: record[key] for key in ("engine", "compiler", "compiler_version", "sm")} == {
        "engine": str(output),
        "compiler": "trtllm",
        "compiler_version": "1.2.1",
        "sm": 90,
    }
    assert record["engine_bytes"] == 6000
    assert sorted(manifest.files) == [
        "build.log",
        "config.json",
        "rank0.engine",
        *("tokenizer.json", "tokenizer_config.json"),
    ]
    assert manifest.facts["compiler"] == {"name": "tensorrt-llm", "version": "1.2.1"}
    assert (manifest.facts["sm"], manifest.facts["gpu"]) == (90, "H100-SXM")
    assert manifest.facts["recipe"]["limits"]["max_seq_len"] == 256
    assert manifest.facts["tokens"]["eos_ids"] == [2, 3]
    assert manifest.facts["build_seconds"] > 0
    assert manifest.facts.keys() >= {"tensorrt", "cuda"}
    assert manifest.facts["peak_memory_bytes"] > 1_000_000
    assert manifest.source["checkpoint"] == str(checkpoint)
    assert left(output) == ["engine"]


@pytest.mark.slow
def test_it_runs_the_recipe_and_says_which_stage_it_is_in(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    result = command("build", checkpoint, "-o", output, "--arch", "hopper")

    assert doubles.argv[1:3] == [
        f"--checkpoint_dir={checkpoint}",
        f"--output_dir={output.parent / '.engine.partial'}",
    ]
    assert "--max_seq_len=256" in doubles.argv
    assert result.stderr.splitlines() == [
        "memory is that of H100-SXM (85.52 GB)",
        f"the compiler's log is {output}.build.log",
        "starting",
        "compiling",
        "writing the engine",
    ]
    assert result.stdout.startswith(f"{output}: 6 kB engine for SM90, built by trtllm in ")


@pytest.mark.slow
def test_the_timing_cache_is_kept_per_architecture_and_version(
    doubles: Doubles, checkpoint: Path, output: Path, tmp_path: Path, command: Command
) -> None:
    kept = tmp_path / "cache-home" / "minitron-trt" / "timing" / "sm90-trtllm-1.2.1.timing"
    build = ("build", checkpoint, "-o", output, "--arch", "H100", "--overwrite")
    assert command(*build).exit_code == 0
    first = [argument for argument in doubles.argv if "timing_cache=" in argument]
    assert command(*build).exit_code == 0

    assert [argument.partition("=")[0] for argument in first] == ["--output_timing_cache"]
    assert f"--input_timing_cache={kept}" in doubles.argv
    assert kept.read_text() == "timed timed "
    assert not (output / "model.cache").exists()


def test_a_timing_cache_that_cannot_be_kept_costs_no_engine(
    doubles: Doubles, checkpoint: Path, output: Path, tmp_path: Path, command: Command
) -> None:
    (tmp_path / "file").write_text("in the place of a folder")
    folder = tmp_path / "file" / "timing"
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "--timing-cache", folder)

    assert result.exit_code == 0
    assert f"warning: the timing cache is not kept (cannot write {folder}: Not a directory)" in (
        result.stderr.splitlines()
    )
    assert Engine.open(output).sm == 90
    assert not (output / "model.cache").exists()


@pytest.mark.parametrize(
    ("does", "message"),
    [
        (
            "killed",
            "trtllm-build was killed (signal 9), most likely out of memory: about 2.15 GB are "
            "needed, the machine has MEMORY; use a machine with more, or --workers 1",
        ),
        (
            "crash",
            "trtllm-build crashed with SIGSEGV; it said: [TRT-LLM] [I] Build TensorRT engine "
            "Unnamed Network 0",
        ),
        (
            "fail",
            "trtllm-build failed with status 1; it said: [TRT] [E] IBuilder::"
            "buildSerializedNetwork: Error Code 4: the network is invalid",
        ),
    ],
)
def test_a_failure_is_one_line_and_leaves_only_the_log(
    does: str, message: str, doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    doubles.tell(does=does)
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "-q")
    said = result.stderr.replace(str(output), "ENGINE")
    start, memory, end = said.partition("the machine has ")

    assert (result.exit_code, result.stdout) == (5, "")
    if memory:
        said = start + memory + "MEMORY" + end[end.index(";") :]
    assert said == f"error: {message} (log: ENGINE.build.log)\n"
    assert left(output) == ["engine.build.log"]


@pytest.mark.slow
def test_a_compiler_that_hangs_is_ended_with_all_its_processes(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    doubles.tell(does="hang")
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "--timeout", 4, "-q")

    assert result.exit_code == 5
    assert result.stderr.startswith(
        "error: the compiler did not finish in time (it was compiling); raise --timeout"
    )
    assert left(output) == ["engine.build.log"]
    assert ended(str(doubles.folder / "trtllm-build"))


def test_a_compiler_that_writes_nothing_has_not_built(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    doubles.tell(does="nothing")
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "-q")

    assert result.exit_code == 3
    assert "has no config.json; expected an engine folder" in result.stderr
    assert not output.exists()


def test_ranks_are_built_for_every_gpu(
    tiny_llama: Path, doubles: Doubles, output: Path, tmp_path: Path, command: Command
) -> None:
    doubles.tell(gpus=["NVIDIA H100 80GB HBM3, 9.0"] * 2)
    convert(str(tiny_llama), tmp_path / "two", ConvertOptions(tp=2))
    result = command("build", tmp_path / "two", "-o", output, "--arch", "H100", "--workers", 2)

    assert result.exit_code == 0, result.stderr
    assert len(Engine.open(output).rank_bytes) == 2
    assert "--workers=2" in doubles.argv


@pytest.mark.parametrize(
    ("gpus", "found"),
    [
        (["NVIDIA L40S, 8.9"], "NVIDIA L40S (SM89)"),
        ([], "no GPU"),
    ],
)
def test_another_gpu_cannot_build_and_the_ways_that_work_are_named(
    gpus: list[str],
    found: str,
    doubles: Doubles,
    checkpoint: Path,
    output: Path,
    command: Command,
) -> None:
    doubles.tell(gpus=gpus)
    arguments = ("build", checkpoint, "-o", output, "--arch", "hopper")
    trtllm = command(*arguments, "--compiler", "trtllm", "-q")
    auto = command(*arguments, "-q")

    assert (trtllm.exit_code, auto.exit_code) == (4, 4)
    assert trtllm.stderr == (
        "error: an engine for SM90 needs 1 GPU(s) of SM90 to be built on; this machine has "
        f"{found}: use --runner docker, slurm or kubernetes there\n"
    )
    assert auto.stderr.startswith("error: no compiler here can build for hopper (SM90). trtllm: ")
    assert auto.stderr.endswith(
        f"minitron-trt build {checkpoint} -o {output} --arch hopper --runner docker "
        "(or slurm, or kubernetes)\n"
    )
    assert left(output) == []


def test_tensorrt_without_a_gpu_refuses_hopper_with_what_would_do(
    checkpoint: Path, output: Path, command: Command
) -> None:
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--compiler", "tensorrt")
    result = command(*arguments)

    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == (
        "error: without a GPU, tensorrt-rtx compiles for SM80, SM86, SM89, SM120; SM90 needs a GPU "
        f"of hopper; elsewhere, on a machine with a GPU of SM90: minitron-trt build "
        f"{checkpoint} -o {output} --arch H100-SXM --runner docker (or slurm, or kubernetes)\n"
    )


def test_without_tensorrt_llm_it_says_how_to_get_it(
    checkpoint: Path,
    output: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_doubles(tmp_path, monkeypatch)
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--compiler", "trtllm")
    result = command(*arguments)

    assert (result.exit_code, result.stderr) == (
        4,
        "error: --compiler trtllm --runner local needs tensorrt-llm, which is not installed; run: "
        "pip install 'minitron-trt[trtllm]' --extra-index-url https://pypi.nvidia.com\n",
    )


def test_a_tensorrt_llm_without_the_engine_builder_is_answered_with_the_way_out(
    checkpoint: Path,
    output: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_doubles(tmp_path, monkeypatch).install("nvidia-smi")
    # Of the engine builder's time by its number, yet without its command.
    install_package(tmp_path, monkeypatch, "1.2.1")
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--compiler", "trtllm")
    result = command(*arguments)

    assert (result.exit_code, result.stderr) == (
        4,
        "error: TensorRT-LLM 1.2.1 is installed but has no trtllm-build: newer versions have no "
        "engine builder; build with --runner docker, or serve the model without an engine: "
        "minitron-trt triton-repo MODEL --runtime llmapi\n",
    )


def test_a_version_after_the_engine_builder_is_answered_with_the_way_out(
    checkpoint: Path,
    output: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_doubles(tmp_path, monkeypatch)
    install_package(tmp_path, monkeypatch, "1.3.0")
    result = command("build", checkpoint, "-o", output, "--arch", "H100")

    assert result.exit_code == 4
    assert "triton-repo MODEL --runtime llmapi" in result.stderr


def test_an_installed_version_is_the_one_that_is_built_for(
    doubles: Doubles,
    checkpoint: Path,
    output: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install_package(tmp_path, monkeypatch, "1.1.0")
    doubles.tell(version="1.1.0")
    record = json.loads(
        command("build", checkpoint, "-o", output, "--arch", "H100", "--json").stdout
    )

    assert record["compiler_version"] == "1.1.0"
    assert Manifest.read(output, "engine").facts["recipe"]["trtllm_version"] == "1.1.0"


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--arch", "H1000"), 2, "GPU or architecture 'H1000' is not known; did you mean H200 or"),
        (
            ("--arch", "H100", "--max-input-len", 200, "--max-seq-len", 100),
            2,
            "max_input_len 200 exceeds max_seq_len 100; lower the one or raise the other",
        ),
        (
            ("--arch", "H100", "--gemm-plugin", "fp8"),
            4,
            "gemm_plugin fp8 needs fp8 weights; the checkpoint has bf16",
        ),
        (("--arch", "H100", "--trtllm-version", "0.21"), 4, "TensorRT-LLM 0.21 is too old; known"),
        (
            ("--arch", "ada", "--compiler", "tensorrt", "--runner", "docker"),
            4,
            "--compiler tensorrt runs on this machine; drop --runner docker, or use --compiler",
        ),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_is_said_before_anything_runs(
    options: tuple[object, ...],
    code: int,
    message: str,
    checkpoint: Path,
    output: Path,
    command: Command,
) -> None:
    result = command("build", checkpoint, "-o", output, *options)

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}")
    assert left(output) == []


def test_a_checkpoint_that_was_edited_is_refused(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    text = json.dumps({**config, "num_hidden_layers": 4}, indent=2) + "\n"
    (checkpoint / "config.json").write_text(text)
    result = command("build", checkpoint, "-o", output, "--arch", "H100")

    assert result.exit_code == 3
    assert "does not fit the manifest; convert again" in result.stderr


def test_an_incomplete_checkpoint_is_refused(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    (checkpoint / "rank0.safetensors").unlink()

    assert command("build", checkpoint, "-o", output, "--arch", "H100").exit_code == 3


def test_an_output_that_exists_is_not_touched(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    output.mkdir()
    (output / "mine").write_text("text")
    result = command("build", checkpoint, "-o", output, "--arch", "H100")

    assert (result.exit_code, left(output)) == (2, ["engine"])
    assert (output / "mine").read_text() == "text"
    assert not (doubles.folder / "argv.json").exists()


def test_a_dry_run_prints_the_command_and_writes_nothing(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "--dry-run")
    lines = result.stdout.splitlines()

    assert (result.exit_code, result.stderr) == (0, "")
    assert lines[0] == "checkpoint, bf16, for H100-SXM (SM90), TensorRT-LLM 1.2.1, balanced"
    assert lines[1].startswith(f"trtllm-build --checkpoint_dir={checkpoint} --output_dir={output} ")
    assert lines[3:] == ["host: about 2.15 GB of memory", "compiler: trtllm, runner: local"]
    assert left(output) == []


def test_a_dry_run_says_what_would_stop_it_here(
    checkpoint: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_doubles(tmp_path, monkeypatch)
    record = json.loads(
        command("build", checkpoint, "--arch", "B200", "--dry-run", "--json").stdout
    )

    assert (record["compiler"], record["sm"]) == ("none", 100)
    assert record["problem"].startswith("no compiler here can build for B200 (SM100). trtllm: ")
    assert record["argv"][0] == "trtllm-build"


def test_explain_prints_the_reasons(checkpoint: Path, command: Command) -> None:
    result = command("build", checkpoint, "--arch", "L40", "--dry-run", "--explain")

    assert re.search(r"--max_seq_len=256 +all the model's positions; the balanced", result.stdout)
