"""Who can ask a server what: addresses, admin protocols, TLS, model control."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S
from tests.triton_repo.ticker import serve, wait_until_gone, write_ticker
from tritonclient.utils import InferenceServerException

from minitron_trt.triton_repo.serving.installation import EMBEDDED_PURPOSE
from minitron_trt.triton_repo.serving.server_options import ADMIN_PROTOCOLS, CLOSED_PROTOCOLS

HEADER, VALUE = "admin-key", "open-sesame"
PREFIX = "triton-grpc-protocol-"
ADMIN_PATHS = {
    "model-repository": ("POST", "v2/repository/index"),
    "model-config": ("GET", "v2/models/ticker/config"),
    "shared-memory": ("GET", "v2/systemsharedmemory/status"),
    "statistics": ("GET", "v2/models/stats"),
    "trace": ("GET", "v2/trace/setting"),
    "logging": ("GET", "v2/logging"),
}
ADMIN_CALLS = {
    "model-repository": "get_model_repository_index",
    "shared-memory": "get_system_shared_memory_status",
    "statistics": "get_inference_statistics",
    "trace": "get_trace_settings",
    "logging": "get_log_settings",
}

# What CVE-2025-23319, 23320 and 23334 need, and what else changes a server.
OPERATING_PATHS = (
    "GET v2/systemsharedmemory/status",
    "POST v2/systemsharedmemory/region/any/register",
    "POST v2/systemsharedmemory/unregister",
    "GET v2/cudasharedmemory/status",
    "POST v2/cudasharedmemory/region/any/register",
    "POST v2/cudasharedmemory/unregister",
    "POST v2/repository/index",
    "POST v2/repository/models/ticker/load",
    "POST v2/repository/models/ticker/unload",
    "GET v2/trace/setting",
    "POST v2/models/ticker/trace/setting",
    "GET v2/logging",
    "POST v2/logging",
)
OPERATING_CALLS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "shared memory": ("register_system_shared_memory", ("any", "/any", 1)),
    "load": ("load_model", ("ticker",)),
    "trace": ("update_trace_settings", ()),
    "logging": ("update_log_settings", ({},)),
}


@pytest.fixture(scope="module")
def restricted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A server whose admin protocols need a header."""
    repository = write_ticker(tmp_path_factory.mktemp("restricted") / "repository")
    with serve(repository, f"--restrict-admin={HEADER}={VALUE}") as (_, record):
        yield record


def status(url: str, method: str, headers: dict[str, str]) -> int:
    """Return the status of an HTTP call."""
    request = urllib.request.Request(url, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


@pytest.mark.server
@pytest.mark.parametrize("protocol", ADMIN_PROTOCOLS)
def test_an_admin_call_over_http_needs_the_header(
    restricted: dict[str, Any], protocol: str
) -> None:
    method, path = ADMIN_PATHS[protocol]
    url = f"{restricted['http']}/{path}"

    assert status(url, method, {}) == 403
    assert status(url, method, {HEADER: "wrong"}) == 403
    assert status(url, method, {HEADER: VALUE}) == 200


@pytest.mark.server
@pytest.mark.parametrize("protocol", [*ADMIN_CALLS, "model-config"])
def test_an_admin_call_over_grpc_needs_the_header(
    restricted: dict[str, Any], protocol: str
) -> None:
    with grpc.InferenceServerClient(restricted["grpc"].removeprefix("grpc://")) as client:

        def call(**headers: str) -> Any:
            if protocol == "model-config":
                return client.get_model_config("ticker", headers=headers)
            return getattr(client, ADMIN_CALLS[protocol])(headers=headers)

        with pytest.raises(InferenceServerException, match="restricted"):
            call()
        with pytest.raises(InferenceServerException, match="restricted"):
            call(**{PREFIX + HEADER: "wrong"})

        assert call(**{PREFIX + HEADER: VALUE}) is not None


@dataclass(frozen=True)
class Closed:
    """A server as `serve` starts it when nothing is said, and what it was started with."""

    record: dict[str, Any]
    command_line: list[str]
    log: Path

    @property
    def header(self) -> tuple[str, str]:
        """Return the header that opens it, as a user of the machine can read it."""
        option = "--http-restricted-api="
        (argument,) = (word for word in self.command_line if word.startswith(option))
        name, _, value = argument.partition(":")[2].partition("=")
        return name, value


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Closed]:
    """A server whose admin protocols nobody was allowed."""
    folder = tmp_path_factory.mktemp("closed")
    repository = write_ticker(folder / "repository")
    with serve(repository, f"--log-file={folder / 'log'}", "--allow-api=statistics") as (_, record):
        words = Path(f"/proc/{record['pid']}/cmdline").read_text().split("\0")
        yield Closed(record, words, folder / "log")


@pytest.mark.server
@pytest.mark.parametrize("path", OPERATING_PATHS)
def test_nobody_operates_a_server_over_http(closed: Closed, path: str) -> None:
    """Not even who reads the header on the server's command line."""
    name, value = closed.header
    method, _, place = path.partition(" ")
    url = f"{closed.record['http']}/{place}"

    for headers in ({}, {name: value}, {name: value.strip()}, {name.lower(): value}):
        assert status(url, method, headers) == 403


@pytest.mark.server
@pytest.mark.parametrize("call", OPERATING_CALLS)
def test_nobody_operates_a_server_over_grpc(closed: Closed, call: str) -> None:
    name, value = closed.header
    method, arguments = OPERATING_CALLS[call]
    url = closed.record["grpc"].removeprefix("grpc://")
    with grpc.InferenceServerClient(url) as client:
        for headers in ({}, {PREFIX + name.lower(): value}):
            with pytest.raises(InferenceServerException, match="restricted"):
                getattr(client, method)(*arguments, headers=headers)


@pytest.mark.server
def test_what_a_client_needs_stays_open_and_so_does_what_is_allowed(closed: Closed) -> None:
    assert set(CLOSED_PROTOCOLS) == {*ADMIN_PROTOCOLS} - {"model-config"}
    for protocol in ("model-config", "statistics"):
        method, path = ADMIN_PATHS[protocol]
        assert status(f"{closed.record['http']}/{path}", method, {}) == 200
    for path in ("v2", "v2/health/ready", "v2/models/ticker", "v2/models/ticker/ready"):
        assert status(f"{closed.record['http']}/{path}", "GET", {}) == 200


@pytest.mark.server
def test_the_header_that_nobody_can_send_is_not_in_the_log(closed: Closed) -> None:
    _, value = closed.header

    assert value.strip() not in closed.log.read_text()


def send_chunks(address: str, path: str, count: int) -> None:
    """Send a body in chunks of one byte, 6 bytes each on the wire."""
    host, _, port = address.removeprefix("http://").partition(":")
    head = f"POST /{path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with (
        contextlib.suppress(OSError),
        socket.create_connection((host, int(port)), timeout=PATIENCE_S) as connection,
    ):
        connection.sendall(head.encode() + b"1\r\n \r\n" * count + b"0\r\n\r\n")
        connection.recv(1)


@pytest.mark.server
def test_the_request_that_ends_the_embedded_server_is_named_by_its_number(tmp_path: Path) -> None:
    """No option of Triton 2.51 prevents it: it is the reason why it listens on loopback only."""
    repository = write_ticker(tmp_path / "repository")
    with serve(repository) as (process, record):
        send_chunks(record["http"], "v2/models/ticker/generate_stream", count=600_000)
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 5
    assert stderr.startswith(
        "error: tritonserver ended by itself with status -11 (SIGSEGV), serving ticker; known to "
        "end it: an HTTP request in very many chunks (CVE-2025-23310, CVE-2025-23311)"
    )
    assert len(stderr.splitlines()) == 1
    assert wait_until_gone(int(record["pid"])) == []


@pytest.mark.server
def test_a_body_in_some_hundred_chunks_is_no_attack(closed: Closed) -> None:
    send_chunks(closed.record["http"], "v2/models/ticker/generate_stream", count=500)

    assert status(f"{closed.record['http']}/v2/health/ready", "GET", {}) == 200


@pytest.mark.server
def test_inference_health_and_metadata_stay_open(restricted: dict[str, Any]) -> None:
    for path in ("v2/health/ready", "v2/models/ticker", "v2/models/ticker/ready"):
        assert status(f"{restricted['http']}/{path}", "GET", {}) == 200
    body = json.dumps({"count": 1}).encode()
    url = f"{restricted['http']}/v2/models/ticker/generate_stream"

    with urllib.request.urlopen(url, data=body, timeout=PATIENCE_S) as answer:
        assert b'"tick":0' in answer.read()


@pytest.mark.server
def test_models_cannot_be_unloaded(restricted: dict[str, Any]) -> None:
    url = f"{restricted['http']}/v2/repository/models/ticker/unload"

    assert status(url, "POST", {HEADER: VALUE}) >= 400
    assert status(f"{restricted['http']}/v2/models/ticker/ready", "GET", {}) == 200


@pytest.mark.server
def test_metrics_are_bound_to_an_address_of_their_own(tmp_path: Path) -> None:
    repository = write_ticker(tmp_path / "repository")
    with serve(repository, "--metrics-host=127.0.0.2") as (_, record):
        assert record["metrics"].startswith("http://127.0.0.2:")
        assert status(record["metrics"], "GET", {}) == 200
        port = int(record["metrics"].rpartition(":")[2].partition("/")[0])
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def refused(tmp_path: Path, *options: str) -> str:
    """Return what a serve says that does not start: equal ports end it, if nothing before."""
    repository = write_ticker(tmp_path / "repository")
    result = subprocess.run(
        [
            *(sys.executable, "-m", "minitron_trt", "serve", str(repository)),
            *("--runner=embedded", "--http-port=9", "--grpc-port=9", *options),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    return result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("option", ["--host", "--metrics-host"])
def test_the_embedded_server_listens_on_this_machine_only(tmp_path: Path, option: str) -> None:
    assert refused(tmp_path, f"{option}=0.0.0.0") == (
        f"error: {option} 0.0.0.0 lets other machines reach the embedded server. "
        f"{EMBEDDED_PURPOSE} --insecure-embedded says that you know\n"
    )


@pytest.mark.slow
def test_the_embedded_server_listens_elsewhere_for_whoever_says_that_they_know(
    tmp_path: Path,
) -> None:
    message = refused(tmp_path, "--host=0.0.0.0", "--insecure-embedded")

    assert message.startswith("error: the ports must differ")


@pytest.mark.slow
def test_open_admin_protocols_beyond_this_machine_are_warned_of(tmp_path: Path) -> None:
    message = refused(tmp_path, "--host=0.0.0.0", "--insecure-embedded", "--allow-api=trace")

    assert message.startswith(
        "warning: whoever reaches 0.0.0.0 can also operate the server: that is what --allow-api "
        "trace says\n"
    )


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, and a server's and a client's certificate that it signed."""
    if shutil.which("openssl") is None:
        pytest.skip("TLS IS NOT TESTED: there is no openssl to make certificates with")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=IP:127.0.0.1")
        files = ("-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}")
        openssl(*new, *signed, *files, "-addext", "basicConstraints=critical,CA:FALSE")
    return folder


def is_live(record: dict[str, Any], folder: Path, *, client: bool) -> bool:
    """Ask over TLS, showing a client's certificate or none."""
    own = {"private_key": "client.key", "certificate_chain": "client.pem"} if client else {}
    with grpc.InferenceServerClient(
        record["grpc"].removeprefix("grpcs://"),
        ssl=True,
        root_certificates=str(folder / "ca.pem"),
        **{key: str(folder / name) for key, name in own.items()},
    ) as asked:
        return bool(asked.is_server_live(client_timeout=PATIENCE_S))


@pytest.mark.server
def test_grpc_speaks_tls(certificates: Path, tmp_path: Path) -> None:
    repository = write_ticker(tmp_path / "repository")
    options = tls_options(certificates)
    with serve(repository, *options) as (_, record):
        assert record["grpc"].startswith("grpcs://")
        assert is_live(record, certificates, client=False)
        address = record["grpc"].removeprefix("grpcs://")
        with grpc.InferenceServerClient(address) as plain, pytest.raises(InferenceServerException):
            plain.is_server_live(client_timeout=5)


@pytest.mark.server
def test_mutual_tls_asks_the_client_for_a_certificate(certificates: Path, tmp_path: Path) -> None:
    repository = write_ticker(tmp_path / "repository")
    options = (*tls_options(certificates), f"--grpc-tls-ca={certificates / 'ca.pem'}")
    with serve(repository, *options) as (_, record):
        assert is_live(record, certificates, client=True)
        with pytest.raises(InferenceServerException):
            is_live(record, certificates, client=False)


def tls_options(folder: Path) -> tuple[str, str]:
    """Return the options of a server's certificate."""
    return f"--grpc-tls-cert={folder / 'server.pem'}", f"--grpc-tls-key={folder / 'server.key'}"
