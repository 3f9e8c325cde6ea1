"""`doctor` asks the machine's programs, which are doubles here: small scripts on the PATH."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from minitron_trt import doctor

Command = Callable[..., Result]
ENGINE = {"ServerVersion": "29.0.1", "Runtimes": {"runc": {}, "io.containerd.runc.v2": {}}}


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Return a writer of programs, which are the only ones on the PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def write(name: str, body: str) -> None:
        path = tmp_path / name
        path.write_text(f"#!{sys.executable} -E\n{body}\n")
        path.chmod(0o755)

    return write


def finding(command: Command, name: str) -> dict[str, Any]:
    """Return one finding of the command."""
    result = command("doctor", "--json")

    assert result.exit_code == 0, result.stderr
    found: dict[str, Any] = {f["name"]: f for f in json.loads(result.stdout)["findings"]}[name]
    return found


def test_without_docker_it_is_to_be_installed(
    programs: Callable[[str, str], None], command: Command
) -> None:
    docker = finding(command, "docker")

    assert (docker["found"], docker["remedy"]) == (None, "install docker")


@pytest.mark.parametrize(
    "body",
    ["raise SystemExit(1)", "print('{}')", "print('no json')", 'print(\'{"ServerVersion": ""}\')'],
    ids=["fails", "nothing", "no_json", "no_server"],
)
def test_a_docker_whose_engine_does_not_answer_is_not_ok(
    body: str, programs: Callable[[str, str], None], command: Command
) -> None:
    programs("docker", body)
    docker, gpus = (finding(command, name) for name in ("docker", "docker with GPUs"))

    assert docker["found"] is None
    assert docker["remedy"] == "its engine does not answer; start it, or join its group"
    assert gpus["found"] is None


@pytest.mark.slow
def test_a_docker_that_hangs_is_not_waited_for(
    programs: Callable[[str, str], None], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "_DOCKER_S", 0.5)
    programs("docker", "import time; time.sleep(60)")

    assert finding(command, "docker")["found"] is None


@pytest.mark.parametrize(
    ("engine", "found"),
    [
        (ENGINE, None),
        ({**ENGINE, "Runtimes": {"runc": {}, "nvidia": {}}}, "nvidia runtime"),
        (
            {**ENGINE, "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}]},
            "nvidia devices by CDI",
        ),
        ({**ENGINE, "Runtimes": None, "DiscoveredDevices": None}, None),
    ],
    ids=["none", "runtime", "cdi", "null"],
)
def test_docker_needs_nvidias_part_for_gpus(
    engine: dict[str, Any],
    found: str | None,
    programs: Callable[[str, str], None],
    command: Command,
) -> None:
    programs("docker", f"print({json.dumps(engine)!r})")
    gpus = finding(command, "docker with GPUs")

    assert finding(command, "docker")["found"] == "29.0.1"
    assert gpus["found"] == found
    assert gpus["remedy"] == "install nvidia-container-toolkit and restart docker"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("print('NVIDIA L4, 8.9, 23034 MiB, 580.1')", "NVIDIA L4, 8.9, 23034 MiB, 580.1"),
        ("print('A, 9.0'); print('B, 9.0')", "A, 9.0; B, 9.0"),
        ("print('driver is broken'); raise SystemExit(9)", None),
        ("pass", None),
    ],
)
def test_gpus_are_those_that_the_driver_lists(
    body: str, found: str | None, programs: Callable[[str, str], None], command: Command
) -> None:
    programs("nvidia-smi", body)

    assert finding(command, "NVIDIA GPU")["found"] == found


def test_it_begins_with_what_one_can_do_and_what_for_want_of_what_not(
    programs: Callable[[str, str], None], command: Command
) -> None:
    lines = command("doctor").stdout.splitlines()
    without_gpu = lines.index("  build TensorRT-LLM engines here")

    assert lines[:2] == [
        "This machine can:",
        "  convert without calibration, plan, check, triton-repo, generate",
    ]
    assert lines.index("It cannot yet:") < without_gpu < lines.index("What was looked for:")
    assert lines[without_gpu + 1].startswith("      for want of NVIDIA GPU")


def test_every_task_names_what_is_looked_for(
    programs: Callable[[str, str], None], command: Command
) -> None:
    record = json.loads(command("doctor", "--json").stdout)
    names = {finding["name"] for finding in record["findings"]}

    assert {name for needed in doctor.TASKS.values() for name in needed} <= names
    assert record["tasks"]["build TensorRT-LLM engines here"][0] == "NVIDIA GPU"
