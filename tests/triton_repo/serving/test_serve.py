"""`minitron-trt serve` ends as it should, and takes everything with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S
from tests.triton_repo.ticker import (
    END,
    group_of,
    ports,
    serve,
    stream,
    wait_until_gone,
    write_ticker,
)

from minitron_trt.triton_repo.serving.server_options import free_endpoints

pytestmark = pytest.mark.server

STOPS = pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
PROTOCOLS = pytest.mark.parametrize("protocol", ["grpc", "http"])


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of a model that counts."""
    return write_ticker(tmp_path / "repository")


@STOPS
def test_serve_stops_cleanly(repository: Path, stop: signal.Signals) -> None:
    with serve(repository) as (process, record):
        pid = int(record["pid"])
        assert len(group_of(pid)) > 1
        process.send_signal(stop)
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, stderr) == (0, "stopping\n")
    assert group_of(pid) == []


@PROTOCOLS
def test_a_running_stream_is_finished_before_the_end(repository: Path, protocol: str) -> None:
    with serve(repository) as (process, record):
        running = stream(record[protocol], 30)
        assert running.next() == 0
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        assert process.stderr.readline() == "stopping\n"
        rest = running.rest()
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert rest == [*range(1, 30), END]
    # Of a decoupled model's gRPC streams Triton does not say that it waits.
    told = "waiting up to 20 s for requests: 1 over HTTP; a second Ctrl-C cuts them\n"
    assert (process.returncode, stderr) == (0, told if protocol == "http" else "")


def test_a_server_that_drains_takes_no_new_request(repository: Path) -> None:
    with serve(repository) as (process, record):
        running = stream(record["grpc"], 30)
        assert running.next() == 0
        process.send_signal(signal.SIGTERM)
        while running.next() < 15:
            pass
        refused = stream(record["grpc"], 1).next()

    assert isinstance(refused, Exception)


@PROTOCOLS
def test_what_outlasts_the_drain_time_is_cut_with_an_error(repository: Path, protocol: str) -> None:
    with serve(repository, "--drain=1") as (process, record):
        running = stream(record[protocol], 600)
        assert running.next() == 0
        process.send_signal(signal.SIGTERM)
        rest = running.rest()
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert isinstance(rest[-1], Exception)
    assert len(rest) < 300
    assert process.returncode == 0
    assert "stopping\n" in stderr
    assert wait_until_gone(int(record["pid"])) == []


def test_a_second_interrupt_ends_it_at_once(repository: Path) -> None:
    with serve(repository, "--drain=600") as (process, record):
        running = stream(record["grpc"], 600)
        assert running.next() == 0
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.readline() == "stopping\n"
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert isinstance(running.rest()[-1], Exception)
    assert (process.returncode, stderr) == (
        0,
        "warning: requests or streams were open at the end; they were cut\n",
    )
    assert wait_until_gone(int(record["pid"])) == []


@PROTOCOLS
def test_a_server_killed_in_mid_stream_gives_its_clients_an_error(
    repository: Path, protocol: str
) -> None:
    with serve(repository) as (process, record):
        running = stream(record[protocol], 600)
        assert running.next() == 0
        os.kill(int(record["pid"]), signal.SIGKILL)
        rest = running.rest()
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert isinstance(rest[-1], Exception)
    assert process.returncode == 5
    assert stderr.startswith("error: tritonserver ended by itself with status -9")
    assert len(stderr.splitlines()) == 1
    assert wait_until_gone(int(record["pid"])) == []


@PROTOCOLS
def test_a_model_whose_process_dies_ends_the_server(repository: Path, protocol: str) -> None:
    with serve(repository, "--drain=600") as (process, record):
        running = stream(record[protocol], 600)
        assert running.next() == 0
        (model,) = (pid for pid in group_of(int(record["pid"])) if "ticker/1" in command_of(pid))
        os.kill(model, signal.SIGKILL)
        rest = running.rest()
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert isinstance(rest[-1], Exception)
    assert process.returncode == 5
    assert stderr.startswith("error: the process of model ticker died")
    assert len(stderr.splitlines()) == 1
    assert wait_until_gone(int(record["pid"])) == []


def command_of(pid: int) -> str:
    """Return the command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_text()


def test_a_killed_serve_takes_the_server_with_it(repository: Path) -> None:
    with serve(repository) as (process, record):
        with urllib.request.urlopen(f"{record['http']}/v2/health/ready", timeout=5) as answer:
            assert answer.status == 200
        process.kill()
        process.wait()

    assert wait_until_gone(int(record["pid"])) == []


def test_the_log_is_kept(repository: Path, tmp_path: Path) -> None:
    log = tmp_path / "triton.log"
    with serve(repository, f"--log-file={log}") as (process, _):
        process.terminate()
        process.wait()

    assert "successfully loaded 'ticker'" in log.read_text()


def test_a_log_that_cannot_be_written_is_said_before_the_start(repository: Path) -> None:
    options = (*ports(free_endpoints()), "--log-file=/no/such/log")
    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository), *options],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (result.returncode, len(result.stderr.splitlines())) == (1, 1)
    assert "/no/such/log" in result.stderr
