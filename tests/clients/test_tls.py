"""HTTP inside TLS: the same answers, and the same words for what goes wrong."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.certificates import self_signed
from tests.clients.conftest import HttpDouble, QuietServer, TritonDouble
from tests.clients.tcp_proxy import tcp_proxy
from tests.patience import PATIENCE_S

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.endpoint import Access, Timeouts
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import BadInputError, UnreachableError

if TYPE_CHECKING:
    from tests.clients.conftest import Ask

# They wait for what never comes, and make a certificate.
pytestmark = pytest.mark.slow


class TlsServer(QuietServer):
    """Speaks TLS with a certificate of its own."""

    def __init__(self, certificate: Path, handler: type[HttpDouble]) -> None:
        super().__init__(0, handler)
        self._double = handler.double
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._tls.load_cert_chain(certificate)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # The thread that answers shakes hands.
        inside = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        self._connections[-1] = inside
        return inside, address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Note that a client has hung up, which is an error of TLS where it is not one of TCP."""
        self._double.cancelled.set()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of this machine with its key, in one file."""
    folder = tmp_path_factory.mktemp("tls")
    certificate, key = self_signed(folder)
    path = folder / "both.pem"
    path.write_text(key.read_text() + certificate.read_text())
    return path


def test_a_file_that_may_not_be_read_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As root may read all, the system's answer is a double."""
    monkeypatch.setattr("os.access", lambda path, mode: False)

    with pytest.raises(BadInputError, match="cannot be read: Permission denied"):
        Access(ca=Path(__file__))


@pytest.fixture
def triton_tls(certificate: Path) -> Iterator[TritonDouble]:
    """A double of Triton's HTTP service inside TLS."""
    double = TritonDouble("")
    with TlsServer(certificate, type("Handler", (HttpDouble,), {"double": double})) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        double.url = f"https://127.0.0.1:{server.server_port}"
        yield double
        double.stopping.set()
        server.shutdown()
        server.hang_up()
        thread.join()


def test_an_answer_comes_through_tls(triton_tls: TritonDouble, ask: Ask, certificate: Path) -> None:
    request = GenerateRequest("say one two three")

    assert ask(triton_tls.url, request, access=Access(certificate)) == ["one ", "two ", "three"]


def test_an_answer_comes_through_a_proxys_tunnel(
    triton_tls: TritonDouble, ask: Ask, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    request, access = GenerateRequest("say one two three"), Access(certificate)
    with tcp_proxy(int(triton_tls.url.rpartition(":")[2]), is_tunnel=True) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.port}")
        said = ask(triton_tls.url, request, access=access, environment_proxy=True)

    assert said == ["one ", "two ", "three"]
    assert proxy.accepted == 1


@pytest.mark.parametrize("form", ["sync", "asyncio"])
def test_leaving_early_hangs_up(triton_tls: TritonDouble, form: str, certificate: Path) -> None:
    async def leave() -> None:
        async with (
            AsyncClient.connect(triton_tls.url, access=Access(certificate)) as client,
            client.stream("forever and") as pieces,
        ):
            await anext(pieces)

    if form == "asyncio":
        asyncio.run(leave())
    else:
        with (
            Client.connect(triton_tls.url, access=Access(certificate)) as client,
            client.stream("forever and") as pieces,
        ):
            next(pieces)

    assert triton_tls.cancelled.wait(PATIENCE_S)


def errors(url: str, timeouts: Timeouts) -> tuple[str, str]:
    """Return what both clients say of a server that is none."""

    async def ask() -> None:
        async with AsyncClient.connect(url, timeouts=timeouts, max_retries=0) as client:
            await client.generate("x")

    with pytest.raises(UnreachableError) as sync:
        Client.connect(url, timeouts=timeouts, max_retries=0).generate("x")
    with pytest.raises(UnreachableError) as other:
        asyncio.run(ask())
    return str(sync.value), str(other.value)


def test_a_certificate_that_nobody_signed_is_told(triton_tls: TritonDouble) -> None:
    sync, other = errors(triton_tls.url, Timeouts(PATIENCE_S, PATIENCE_S))

    assert "certificate verify failed" in sync
    assert other == sync


def test_a_server_without_tls_is_told(triton_http: TritonDouble) -> None:
    sync, other = errors(triton_http.url.replace("http", "https"), Timeouts(PATIENCE_S, PATIENCE_S))

    assert "no Triton server answers at https://" in sync
    assert other == sync


def test_a_server_that_does_not_shake_hands_is_silent(silent_port: int) -> None:
    sync, other = errors(f"https://127.0.0.1:{silent_port}", Timeouts(PATIENCE_S, 0.5))

    assert "(silent for 0.5 s)" in sync
    assert other == sync
