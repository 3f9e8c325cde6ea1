"""A name with several addresses is asked at all of them."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from minitron_trt.clients.endpoint import Endpoint, SizeLimits
from minitron_trt.clients.transport_grpc import channel_options

grpc = pytest.importorskip("grpc")
METHOD = "/test.Names/Say"


@pytest.fixture
def port() -> Iterator[int]:
    """Return a port at which each of localhost's two addresses has a server of its own."""
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
            chosen = probe.getsockname()[1]
        addresses = {info[4][0] for info in socket.getaddrinfo("localhost", chosen)}
    except OSError:
        addresses = set()
    if not addresses >= {"127.0.0.1", "::1"}:
        pytest.skip("localhost has one address here")
    servers = []
    for address, name in (("127.0.0.1", b"four"), ("[::1]", b"six")):

        def say(request: bytes, _: object, name: bytes = name) -> bytes:
            return name

        handler = grpc.method_handlers_generic_handler(
            "test.Names", {"Say": grpc.unary_unary_rpc_method_handler(say)}
        )
        running = grpc.server(ThreadPoolExecutor(1), handlers=(handler,))
        running.add_insecure_port(f"{address}:{chosen}")
        running.start()
        servers.append(running)
    yield chosen
    for running in servers:
        running.stop(None).wait()


def test_requests_go_to_every_address_of_a_name(port: int) -> None:
    endpoint = Endpoint.parse(f"grpc://localhost:{port}")
    with grpc.insecure_channel(
        endpoint.address, channel_options(endpoint, SizeLimits())
    ) as channel:
        call = channel.unary_unary(METHOD)
        said: set[bytes] = set()
        # The second connection may take a moment longer than the first.
        while len(said) < 2:
            said.add(call(b"", timeout=30, wait_for_ready=True))

    assert said == {b"four", b"six"}
