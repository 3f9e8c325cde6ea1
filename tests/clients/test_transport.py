"""The stand-in for a server, and the clients on top of it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence

import pytest

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.clients.transport import AsyncEchoTransport, EchoTransport


def test_the_echo_answers_both_clients_alike() -> None:
    request = GenerateRequest("one  two\nthree ", max_tokens=3)

    async def ask() -> tuple[Sequence[str], str, bool]:
        async with AsyncClient(AsyncEchoTransport()) as client:
            texts = [text async for text in client.stream(request)]
            return texts, await client.generate(request), await client.ready()

    with Client(EchoTransport()) as client:
        answer = list(client.stream(request)), client.generate(request), client.ready()

    assert answer == (["one", "  two", "\nthree"], "one  two\nthree", True)
    assert asyncio.run(ask()) == answer


def test_the_echo_streams_only_when_asked() -> None:
    request = GenerateRequest("one two", stream=False)

    chunks = list(EchoTransport().stream(request, Deadlines(Timeouts())))

    assert [(chunk.text, chunk.final) for chunk in chunks] == [("one two", False), ("", True)]


def test_the_echo_remembers_what_it_was_asked_and_what_was_cancelled() -> None:
    whole, part = GenerateRequest("one two"), GenerateRequest("three four")

    async def ask() -> AsyncEchoTransport:
        echo = AsyncEchoTransport()
        async with AsyncClient(echo) as client:
            await client.generate(whole)
            async with client.stream(part) as texts:
                await anext(texts)
        return echo

    echo = EchoTransport()
    with Client(echo) as client:
        client.generate(whole)
        with client.stream(part) as texts:
            next(texts)

    for record in (echo, asyncio.run(ask())):
        assert (record.requests, record.cancelled) == ([whole, part], [part])
        assert record.closed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import minitron_trt.clients.command", {"grpc", "httpcore2", "numpy", "tritonclient"}),
        (
            "from minitron_trt.clients.client import Client; Client.connect('grpc://localhost')",
            {"httpcore2"},
        ),
        (
            "from minitron_trt.clients.client import Client; Client.connect('http://localhost')",
            {"grpc", "numpy", "tritonclient"},
        ),
    ],
    ids=["command", "grpc", "http"],
)
def test_only_the_library_that_is_used_is_loaded(code: str, absent: set[str]) -> None:
    code += f"; import sys; assert not {absent} & set(sys.modules), {absent} & set(sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_importing_the_client_loads_what_every_request_needs_and_no_more() -> None:
    """What URLs, models, connections and conversations need is loaded when they come."""
    code = "import sys; before = set(sys.modules); from minitron_trt import Client"
    code += "; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, check=True, text=True
    )
    loaded = set(done.stdout.split())
    own = {name for name in loaded if name.split(".")[0] == "minitron_trt"}

    assert own == {
        "minitron_trt",
        "minitron_trt.faces",
        "minitron_trt.version",
        "minitron_trt.errors",
        "minitron_trt.host",
        "minitron_trt.host.addresses",
        "minitron_trt.clients",
        *(
            f"minitron_trt.clients.{name}"
            for name in (
                *("client", "completions", "deadlines", "endpoint", "faults", "messages"),
                *("retries", "tracing"),
            )
        ),
    }
    assert {name.split(".")[0] for name in loaded - own} <= sys.stdlib_module_names
    # Each takes a tenth of all the rest, and more.
    heavy = {"asyncio", "importlib.metadata", "ipaddress", "json", "logging", "pathlib", "random"}
    assert not loaded & {*heavy, "socket", "ssl", "subprocess", "threading", "urllib.parse"}
