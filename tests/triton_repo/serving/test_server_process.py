"""A server is started with one deadline, fails in words, and is never left behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S, longer_and_longer
from tests.triton_repo.ticker import children, group_of, processes, write_ticker

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError, ProcessError, UsageError
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving import server_options
from minitron_trt.triton_repo.serving.runners import plan, running_server
from minitron_trt.triton_repo.serving.served_repository import ServedRepository
from minitron_trt.triton_repo.serving.server import TritonServer
from minitron_trt.triton_repo.serving.server_log import ServerLog
from minitron_trt.triton_repo.serving.server_options import (
    ADMIN_PROTOCOLS,
    Endpoints,
    ServerOptions,
    Tls,
    free_endpoints,
)
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


def test_every_service_is_bound_to_its_host_and_models_are_fixed() -> None:
    options = ServerOptions(
        Endpoints("127.0.0.1", 1, 2, 3, "10.0.0.1"), drain_s=7, allowed_apis=ADMIN_PROTOCOLS
    )

    assert options.arguments() == [
        *("--http-address=127.0.0.1", "--http-port=1"),
        *("--grpc-address=127.0.0.1", "--grpc-port=2"),
        *("--metrics-address=10.0.0.1", "--metrics-port=3"),
        "--metrics-config=histogram_latencies=true",
        *("--model-control-mode=none", "--exit-timeout-secs=7"),
    ]


def test_tls_and_restrictions_become_tritons_options() -> None:
    tls = Tls(Path("/c"), Path("/k"), Path("/a"))
    options = ServerOptions(tls=tls, admin="key=value")
    protocols = "model-repository,model-config,shared-memory,statistics,trace,logging"

    assert options.arguments()[9:] == [
        *("--grpc-use-ssl=true", "--grpc-use-ssl-mutual=true"),
        *("--grpc-server-cert=/c", "--grpc-server-key=/k", "--grpc-root-cert=/a"),
        f"--http-restricted-api={protocols}:key=value",
        f"--grpc-restricted-protocol={protocols}:key=value",
    ]
    assert options.grpc_url == "grpcs://127.0.0.1:8001"


def test_without_an_admins_header_the_server_asks_for_one_that_nobody_can_send() -> None:
    closed = "model-repository,shared-memory,statistics,trace,logging"
    options, others = ServerOptions(), ServerOptions()

    assert options.arguments()[9:] == [
        f"--http-restricted-api={closed}:{options.closed}",
        f"--grpc-restricted-protocol={closed}:{options.closed}",
    ]
    header, _, value = options.closed.partition("=")
    assert header != header.lower()
    assert value != value.lstrip()
    assert options.closed != others.closed
    assert options.closed not in repr(options)


def test_apis_that_are_allowed_are_left_out_of_the_restriction() -> None:
    options = ServerOptions(allowed_apis=("statistics", "trace"), admin="key=value")

    assert options.arguments()[9:] == [
        "--http-restricted-api=model-repository,model-config,shared-memory,logging:key=value",
        "--grpc-restricted-protocol=model-repository,model-config,shared-memory,logging:key=value",
    ]


@pytest.mark.parametrize("admin", ["", "key", "key=", "=value", "key=a,b", "Key=value"])
def test_a_restriction_without_a_header_and_a_value_is_refused(admin: str) -> None:
    with pytest.raises(UsageError, match="expected header=value"):
        ServerOptions(admin=admin)


def test_a_certificate_that_is_none_is_said_before_the_start(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("not a key")

    with pytest.raises(BadInputError, match="key is not a PEM file"):
        Tls(tmp_path / "key", tmp_path / "key").check()
    with pytest.raises(BadInputError, match="absent cannot be read"):
        Tls(tmp_path / "absent", tmp_path / "key").check()


def test_an_ipv6_host_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--metrics-host is '::1'; expected an IPv4 address"):
        Endpoints(metrics_host="::1")


def test_a_port_in_use_is_named() -> None:
    free = free_endpoints()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]

        with pytest.raises(UsageError, match=f"grpc port {port} .* with --grpc-port"):
            replace(free, grpc_port=port).check_free()


RESERVE = """
import sys
from minitron_trt.triton_repo.serving import server_options as options

options._PORTS = range(19_980, 19_990)
reserved = [options.free_endpoints() for _ in range(2)]
print(*[port for e in reserved for port in (e.http_port, e.grpc_port, e.metrics_port)], flush=True)
sys.stdin.read()
"""


@pytest.mark.slow
def test_two_processes_never_get_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten ports one takes six, so for the other three are left, and then none."""
    monkeypatch.setattr(server_options, "_PORTS", range(19_980, 19_990))
    command = [sys.executable, "-c", RESERVE]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        theirs = {int(port) for port in other.stdout.readline().split()}
        mine = free_endpoints()
        ports = {mine.http_port, mine.grpc_port, mine.metrics_port}

        assert len(theirs | ports) == 9
        with pytest.raises(ProcessError, match="19980 to 19989"):
            free_endpoints()
        other.stdin.close()


def test_equal_ports_are_refused() -> None:
    with pytest.raises(UsageError, match="must differ"):
        Endpoints(http_port=9000, grpc_port=9000).check_free()


def test_the_log_says_what_loads_and_what_failed(tmp_path: Path) -> None:
    log = ServerLog(tmp_path / "log", ranks=2)
    log.open()
    for line in (
        'I1 [1,0]<stdout>:I1 model.cc:1] "loading: early:1"',
        '[1,0]<stdout>:I1 model_lifecycle.cc:472] "loading: tensorrt_llm:1"',
        "[1,1]<stdout>:I1 model_lifecycle.cc:838] \"successfully loaded 'front'\"",
        "[1,1]<stderr>:E1 model.cc:1] \"failed to load 'tensorrt_llm' version 1: no memory\"",
    ):
        log.add(line)
    log.close()

    assert log.loaded == ["front"]
    assert log.waiting_for(("front", "late", "tensorrt_llm")) == "tensorrt_llm"
    assert log.failure() == ": model 'tensorrt_llm': no memory\""
    assert (tmp_path / "log.rank1").read_text().startswith("I1 model_lifecycle.cc:838]")


def test_what_every_machine_without_a_gpu_says_is_no_reason() -> None:
    log = ServerLog(None, ranks=1)
    for line in (
        'E1126 server.cc:241] "CudaDriverHelper has not been initialized."',
        "Error: Failed to initialize NVML",
        'I1126 http_server.cc:4713] "Started HTTPService"',
    ):
        log.add(line)

    assert log.failure() == ""
    assert log.last_words() == ': I1126 http_server.cc:4713] "Started HTTPService"'
    log.add('E1126 grpc_server.cc:1] "address in use"')
    assert log.failure() == ': E1126 grpc_server.cc:1] "address in use"'
    log.begin_serving()
    assert log.failure() == ""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository of a model that counts."""
    return write_ticker(tmp_path / "repository")


@pytest.mark.server
def test_a_model_that_fails_is_named_with_its_reason(repository: Path) -> None:
    (repository / "ticker/1/model.py").write_text("raise RuntimeError('no such tokenizer')\n")

    with (
        pytest.raises(ProcessError, match=r"'ticker'.*no such tokenizer"),
        running_server(repository, ServerOptions(free_endpoints())),
    ):
        pass


@pytest.mark.server
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGSEGV, "; known to end it: an HTTP request in very many chunks (CVE-2025-23310"),
        (signal.SIGKILL, "; it was killed from outside, as for want of memory"),
    ],
)
def test_a_server_that_a_signal_ends_is_told_by_it(
    repository: Path, number: signal.Signals, words: str
) -> None:
    with running_server(repository, ServerOptions(free_endpoints())) as server:
        os.kill(server.pid, number)
        with pytest.raises(ProcessError) as caught:
            server.wait()

    ended = f"tritonserver ended by itself with status {-number} ({number.name}), serving ticker"
    assert str(caught.value).startswith(f"{ended}{words}")


@pytest.mark.server
def test_a_server_that_is_too_slow_is_stopped_at_the_deadline(repository: Path) -> None:
    (repository / "ticker/1/model.py").write_text("import time; time.sleep(10**6)\n")
    before = children()

    for seconds in longer_and_longer(2.0):
        with (
            pytest.raises(ProcessError) as caught,
            running_server(repository, ServerOptions(free_endpoints()), timeout_s=seconds),
        ):
            pass
        if "loading" in str(caught.value):
            break

    assert f"not ready after {seconds:g} s; it was loading ticker; raise" in str(caught.value)
    assert children() == before


def stubs_of(repository: Path) -> list[int]:
    """Return the processes of a repository's Python models."""
    pids = [pid for pid, _ in processes()]
    return [
        pid
        for pid in pids
        if "triton_python_backend_stub" in (command := command_of(pid))
        and str(repository) in command
    ]


def command_of(pid: int) -> str:
    """Return the command line of a process, "" for one that has gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""


BUSY = """
import threading
import time


def work():
    while True:
        sum(range(50_000))
        time.sleep(0.02)


threading.Thread(target=work, daemon=True).start()
"""


@pytest.mark.server
def test_a_start_whose_model_gets_no_processor_is_made_once_more(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stub that stands still at its beginning keeps Triton waiting for ever.

    A model beside it that is loaded goes on working, as a runtime that looks for who has left.
    """
    write_ticker(repository, "other")
    with (repository / "other/1/model.py").open("a") as model:
        model.write(BUSY)
    monkeypatch.setattr("minitron_trt.triton_repo.serving.server._STALL_S", 1.0)
    monkeypatch.setattr("minitron_trt.triton_repo.serving.server._STALL_SHARE", 0.0)
    stopped = threading.Event()

    def stop_the_first() -> None:
        while not (stubs := stubs_of(repository / "ticker")):
            time.sleep(0.005)
        os.kill(stubs[0], signal.SIGSTOP)
        stopped.set()

    threading.Thread(target=stop_the_first, daemon=True).start()
    with running_server(
        repository, ServerOptions(free_endpoints()), timeout_s=PATIENCE_S
    ) as server:
        assert stopped.is_set()
        assert len(stubs_of(repository)) == 2
        assert group_of(server.pid)


@pytest.mark.server
def test_a_killed_server_leaves_nothing_in_shared_memory(repository: Path, tmp_path: Path) -> None:
    options = ServerOptions(free_endpoints())
    served = ServedRepository.open(repository)
    launch = plan(served, options, tmp_path / "scratch", "embedded")
    with TritonServer(launch, options, timeout_s=PATIENCE_S) as server:
        assert list(Path("/dev/shm").glob(f"{launch.shm_prefix}*"))
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(ProcessError):
            server.wait()

    assert list(Path("/dev/shm").glob(f"{launch.shm_prefix}*")) == []


@pytest.mark.server
def test_configs_written_for_a_mount_are_served_from_anywhere(tmp_path: Path) -> None:
    repository = write_ticker(tmp_path / "repository", tokenizer_dir="/models/ticker/1/tokenizer")
    write_ticker(repository, "other")
    served = replace(ServedRepository.open(repository), mount=Path("/models"))
    options = ServerOptions(free_endpoints())
    launch = plan(served, options, tmp_path / "scratch", "embedded")

    with TritonServer(launch, options) as server:
        url = f"{server.endpoints.http_url}/v2/models/ticker/config"
        with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
            config = json.loads(answer.read())

    assert config["parameters"]["tokenizer_dir"]["string_value"] == str(
        repository / "ticker/1/tokenizer"
    )
    assert "/models/ticker" in (repository / "ticker/config.pbtxt").read_text()


def serve_in_words(repository: Path, *prefix: str) -> tuple[int, str]:
    """Return the exit code and the message of a serve that must not start."""
    result = subprocess.run(
        [sys.executable, *(prefix or ("-m", "minitron_trt")), "serve", str(repository)],
        capture_output=True,
        text=True,
        check=False,
    )
    return result.returncode, result.stderr


@pytest.mark.slow
def test_serve_without_any_triton_says_what_to_install(repository: Path) -> None:
    """A finder that hides the wheel stands for a machine where it is not installed."""
    code = (
        "import importlib.util as u, sys; real = u.find_spec;"
        "u.find_spec = lambda name, *a: None if name == 'pytriton' else real(name, *a);"
        "from minitron_trt.cli import main; main(sys.argv[1:])"
    )

    assert serve_in_words(repository, "-c", code) == (
        4,
        "error: the embedded Triton server needs nvidia-pytriton, which is not installed; "
        "run: pip install 'minitron-trt[server]'\n",
    )


@pytest.mark.parametrize("port", ["0", "65536", "-1", "http"])
def test_a_port_that_is_none_is_a_mistake_of_the_call(repository: Path, port: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository), f"--grpc-port={port}"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert "--grpc-port" in result.stderr


def test_a_folder_that_is_no_repository_is_refused(tmp_path: Path) -> None:
    code, message = serve_in_words(tmp_path)

    assert code == 3
    assert message == (
        f"error: {tmp_path} has no MODEL/config.pbtxt; expected a Triton repository\n"
    )


@pytest.mark.slow
def test_serve_of_a_damaged_repository_starts_nothing(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    repository = tmp_path / "repository"
    emit_repository(checkpoint.folder, repository, ServingRecipe(max_batch_size=2))
    shutil.rmtree(repository / "ensemble")

    code, message = serve_in_words(repository)

    assert code == 3
    assert "ensemble/1/.keep is missing" in message
