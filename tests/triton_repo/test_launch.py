"""A server is started with one deadline, fails in words, and is never left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import ProcessError, UsageError
from minitron_trt.triton_repo.installation import find_embedded
from minitron_trt.triton_repo.launch import Endpoints, TritonServer, argv, free_endpoints
from minitron_trt.triton_repo.repository import ServingRecipe, emit_repository


def test_the_command_line_binds_every_service_to_the_host() -> None:
    endpoints = Endpoints("127.0.0.1", 1, 2, 3)

    assert argv(Path("/bin/tritonserver"), Path("/a repo"), Path("/b"), endpoints) == [
        "/bin/tritonserver",
        "--model-repository=/a repo",
        "--backend-directory=/b",
        "--disable-auto-complete-config",
        "--http-address=127.0.0.1",
        "--http-port=1",
        "--grpc-address=127.0.0.1",
        "--grpc-port=2",
        "--metrics-address=127.0.0.1",
        "--metrics-port=3",
        "--exit-timeout-secs=10",
    ]


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(UsageError, match=f"grpc port {port} .* with --grpc-port"):
            Endpoints(http_port=port - 1, grpc_port=port, metrics_port=port - 2).check_free()


def test_equal_ports_are_refused() -> None:
    with pytest.raises(UsageError, match="must differ"):
        Endpoints(http_port=9000, grpc_port=9000).check_free()


@pytest.fixture
def repository(checkpoint: Checkpoint, tmp_path: Path) -> Path:
    """A repository for the Llama sample."""
    emit_repository(checkpoint.folder, tmp_path / "repository", ServingRecipe(max_batch_size=2))
    return tmp_path / "repository"


def processes() -> Iterator[tuple[int, list[str]]]:
    """Yield id and the fields after the name (state, parent, group ...) of what is alive."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                if fields[0] != "Z":
                    yield int(entry.name), fields


def group_of(pid: int) -> list[int]:
    """Return the processes of a group that are alive."""
    return [found for found, fields in processes() if int(fields[2]) == pid]


def children() -> list[int]:
    """Return the processes that this one started and that are alive."""
    return [found for found, fields in processes() if int(fields[1]) == os.getpid()]


def wait_until_gone(pid: int, seconds: float) -> list[int]:
    """Return what is left of a process group after at most so many seconds."""
    deadline = time.monotonic() + seconds
    while (left := group_of(pid)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return left


@pytest.mark.server
def test_a_model_that_fails_is_named_with_its_reason(repository: Path) -> None:
    (repository / "tensorrt_llm/1/checkpoint/minitron.json").unlink()

    with (
        pytest.raises(ProcessError, match=r"'tensorrt_llm'.*has no minitron.json"),
        TritonServer(find_embedded(), repository, free_endpoints()),
    ):
        pass


@pytest.mark.server
def test_a_server_that_is_too_slow_is_stopped_at_the_deadline(repository: Path) -> None:
    before = children()
    server = TritonServer(find_embedded(), repository, free_endpoints(), timeout_s=0.5)

    with pytest.raises(ProcessError, match="was not ready after"), server:
        pass

    assert children() == before


@contextmanager
def serving(repository: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """Run `minitron-trt serve` as a person would, until it says that it is ready."""
    endpoints = free_endpoints()
    arguments = [
        *("serve", str(repository), "--json", "--http-port", str(endpoints.http_port)),
        *("--grpc-port", str(endpoints.grpc_port), "--metrics-port", str(endpoints.metrics_port)),
    ]
    with subprocess.Popen(
        [sys.executable, "-m", "minitron_trt", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield process, json.loads(process.stdout.readline())
        finally:
            process.kill()


@pytest.mark.server
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_serve_stops_cleanly(repository: Path, stop: signal.Signals) -> None:
    with serving(repository) as (process, record):
        pid = int(str(record["pid"]))
        assert len(group_of(pid)) > 1
        process.send_signal(stop)
        _, stderr = process.communicate(timeout=40)

    assert (process.returncode, stderr) == (0, "stopping\n")
    assert group_of(pid) == []


@pytest.mark.server
def test_a_killed_serve_takes_the_server_with_it(repository: Path) -> None:
    with serving(repository) as (process, record):
        process.kill()
        process.wait()

    assert wait_until_gone(int(str(record["pid"])), 30) == []


@pytest.mark.server
def test_a_server_that_dies_ends_serve_with_its_status(repository: Path) -> None:
    with serving(repository) as (process, record):
        with urllib.request.urlopen(f"{record['http']}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
        pid = int(str(record["pid"]))
        os.kill(pid, signal.SIGKILL)
        _, stderr = process.communicate(timeout=40)

    assert process.returncode == 5
    assert stderr.startswith("error: tritonserver ended by itself with status -9")
    assert len(stderr.splitlines()) == 1
    assert wait_until_gone(pid, 10) == []


def test_serve_without_pytriton_says_what_to_install(repository: Path) -> None:
    """A folder of an empty package hides the wheel, as if it were not installed."""
    code = (
        "import importlib.util as u, sys; real = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'pytriton' else real(name, *a);"
        "from minitron_trt.cli import main; main(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, "serve", str(repository)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 4
    assert result.stderr == (
        "error: the embedded Triton server needs nvidia-pytriton, which is not installed; "
        "run: pip install 'minitron-trt[server]'\n"
    )


def test_serve_of_a_damaged_repository_starts_nothing(repository: Path) -> None:
    shutil.rmtree(repository / "ensemble")

    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 3
    assert "ensemble/1/.keep is missing" in result.stderr
