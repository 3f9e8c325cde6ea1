"""A name with several addresses is asked at all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from minitron_trt.clients.endpoint import Endpoint, SizeLimits
from minitron_trt.clients.transport_grpc import channel_options

grpc = pytest.importorskip("grpc")
NAMES = (b"one", b"two")


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    """Return the addresses of two servers that say their names."""
    servers, found = [], []
    for name in NAMES:

        def say(request: bytes, _: object, name: bytes = name) -> bytes:
            return name

        handler = grpc.method_handlers_generic_handler(
            "test.Names", {"Say": grpc.unary_unary_rpc_method_handler(say)}
        )
        running = grpc.server(ThreadPoolExecutor(1), handlers=(handler,))
        found.append(f"127.0.0.1:{running.add_insecure_port('127.0.0.1:0')}")
        running.start()
        servers.append(running)
    yield found
    for running in servers:
        running.stop(None).wait()


def test_requests_go_to_every_address(addresses: list[str]) -> None:
    """Addresses with commas between are what gRPC makes of a name that resolves to them."""
    options = channel_options(Endpoint.parse("grpc://127.0.0.1:1"), SizeLimits())
    with grpc.insecure_channel(f"ipv4:{','.join(addresses)}", options) as channel:
        call = channel.unary_unary("/test.Names/Say")
        said: set[bytes] = set()
        # The second connection may take a moment longer than the first.
        while len(said) < len(NAMES):
            said.add(call(b"", timeout=30, wait_for_ready=True))

    assert said == set(NAMES)


@pytest.mark.slow
def test_a_stream_outlives_the_age_at_which_its_connection_is_given_up() -> None:
    """A server that gives up its connections has clients ask anew who is there."""
    peers = []

    def count(_: bytes, context: Any) -> Iterator[bytes]:
        peers.append(context.peer())
        for number in range(8):
            yield bytes([number])
            time.sleep(0.1)

    handler = grpc.method_handlers_generic_handler(
        "test.Names", {"Count": grpc.unary_stream_rpc_method_handler(count)}
    )
    ages = [("grpc.max_connection_age_ms", 200)]
    server = grpc.server(ThreadPoolExecutor(1), handlers=(handler,), options=ages)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    options = channel_options(Endpoint.parse("grpc://127.0.0.1:1"), SizeLimits())
    with grpc.insecure_channel(address, options) as channel:
        call = channel.unary_stream("/test.Names/Count")
        said = [list(call(b"", timeout=30, wait_for_ready=True)) for _ in range(2)]
    server.stop(None).wait()

    assert said == [[bytes([number]) for number in range(8)]] * 2
    assert len(set(peers)) == 2
