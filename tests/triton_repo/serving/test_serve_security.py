"""Who can ask a server what: addresses, admin protocols, TLS, model control."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S
from tests.triton_repo.ticker import serve, write_ticker
from tritonclient.utils import InferenceServerException

from minitron_trt.triton_repo.serving.server_options import ADMIN_PROTOCOLS

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


def test_open_admin_protocols_beyond_this_machine_are_warned_of(tmp_path: Path) -> None:
    repository = write_ticker(tmp_path / "repository")
    # Equal ports end it before the start.
    options = ("--host=0.0.0.0", "--http-port=9", "--grpc-port=9")
    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository), *options],
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 2
    assert result.stderr.startswith(
        "warning: whoever reaches 0.0.0.0 can also operate the server: add --restrict-admin"
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
