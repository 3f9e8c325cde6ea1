"""The four ways to a server, each asked the same questions."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest
from tests.clients.conftest import WebSite
from tests.patience import PATIENCE_S, until

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import RefusedError, ServerTimeoutError, UnreachableError, UsageError

if TYPE_CHECKING:
    from tests.clients.conftest import Ask, Serve, TritonDouble

EXPECTED = {
    "grpc": "expected Triton's gRPC service, usually port 8001 (its HTTP is 8000)",
    "http": "expected Triton's HTTP service, usually port 8000 (its gRPC is 8001)",
}


def stop_early(url: str) -> Sequence[str]:
    with Client.connect(url) as client, client.stream(GenerateRequest("forever and")) as texts:
        return [next(texts), next(texts)]


def stop_early_async(url: str) -> Sequence[str]:
    async def ask() -> Sequence[str]:
        request = GenerateRequest("forever and")
        async with AsyncClient.connect(url) as client, client.stream(request) as texts:
            return [await anext(texts), await anext(texts)]

    return asyncio.run(ask())


def fail_inside(url: str) -> Sequence[str]:
    seen: list[str] = []
    with (
        contextlib.suppress(KeyboardInterrupt),
        Client.connect(url) as client,
        client.stream(GenerateRequest("forever and")) as texts,
    ):
        for text in texts:
            seen.append(text)
            if len(seen) == 2:
                raise KeyboardInterrupt
    return seen


def cancel_the_task(url: str) -> Sequence[str]:
    seen: list[str] = []

    async def ask() -> None:
        async with AsyncClient.connect(url) as client:
            async for text in client.stream(GenerateRequest("forever and")):
                seen.append(text)

    async def cancel() -> None:
        task = asyncio.create_task(ask())
        while len(seen) < 2:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    return seen[:2]


def drop_the_stream(url: str) -> Sequence[str]:
    with Client.connect(url) as client:
        texts = client.stream(GenerateRequest("forever and"))
        seen = [next(texts), next(texts)]
        del texts
        gc.collect()
        time.sleep(0.2)
    return seen


def test_the_text_arrives_piece_by_piece_and_whole(triton: TritonDouble, ask: Ask) -> None:
    prompt = "say Bonjour, 世界! 🙂🙃 a\u2028b\u0085c\n\n\ttab"

    texts = ask(triton.url, GenerateRequest(prompt))

    assert texts == ["Bonjour, ", "世界! ", "🙂🙃 ", "a\u2028b\u0085c\n\n\ttab"]


def test_an_answer_at_once_is_one_piece(triton_http: TritonDouble, ask: Ask) -> None:
    texts = ask(triton_http.url, GenerateRequest("say one two", stream=False))

    assert texts == ["one two"]
    assert triton_http.requests[0]["stream"] is False


def test_an_answer_without_text_is_empty(triton: TritonDouble, ask: Ask) -> None:
    assert ask(triton.url, GenerateRequest("say ")) == []


def test_generate_returns_the_whole_text(triton: TritonDouble) -> None:
    async def ask() -> Sequence[str]:
        async with AsyncClient.connect(triton.url) as client:
            requests = [GenerateRequest(f"say {word}") for word in ("one two", "three four")]
            return await asyncio.gather(*map(client.generate, requests))

    with Client.connect(triton.url) as client:
        text = client.generate(GenerateRequest("say one two"))

    assert text == "one two"
    assert asyncio.run(ask()) == ["one two", "three four"]


def test_messages_have_no_size_limit(triton: TritonDouble, ask: Ask) -> None:
    # gRPC stops at 4 MiB and the event reader at 1 MiB unless told otherwise.
    word = "x" * 5_000_000

    assert ask(triton.url, GenerateRequest(f"say {word}")) == [word]


def test_requests_share_one_connection(triton: TritonDouble) -> None:
    with Client.connect(triton.url) as client:
        for _ in range(3):
            client.generate(GenerateRequest("say so"))

    assert len(triton.connections) == 1


def test_the_server_gets_exactly_what_was_asked(triton: TritonDouble, ask: Ask) -> None:
    request = GenerateRequest(
        "say ja", stop_words=["\n", "ü"], model="tensorrt_llm_bls", request_id="r1"
    )

    ask(triton.url, request)

    is_grpc = triton.url.startswith("grpc")
    assert triton.requests == [
        {
            "id": "r1",
            "model": "tensorrt_llm_bls",
            "text_input": "say ja",
            "stop_words": ["\n", "ü"],
            "stream": b"\x01" if is_grpc else True,
            "max_tokens": b"\x40\0\0\0" if is_grpc else 64,
        }
    ]


@pytest.mark.parametrize("is_ready", [True, False])
def test_readiness_is_what_the_server_says(triton: TritonDouble, is_ready: bool) -> None:
    async def ask() -> bool:
        async with AsyncClient.connect(triton.url) as client:
            return await client.ready()

    triton.ready = is_ready
    with Client.connect(triton.url) as client:
        answers = client.ready(), asyncio.run(ask())

    assert answers == (is_ready, is_ready)


@pytest.mark.slow
@pytest.mark.parametrize(
    "leave",
    [stop_early, stop_early_async, fail_inside, cancel_the_task, drop_the_stream],
    ids=lambda leave: leave.__name__,
)
def test_leaving_early_cancels_the_request_on_the_server(triton: TritonDouble, leave: Any) -> None:
    seen = leave(triton.url)

    assert seen == ["and", "on and "]
    assert triton.cancelled.wait(3)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (
            GenerateRequest("refuse temperature is 3; expected 0 to 2."),
            "in ensemble 'ensemble', temperature is 3; expected 0 to 2. and a second line",
        ),
        (GenerateRequest("fail half an"), "broke midway"),
        (
            GenerateRequest("say no", model="nope/../x"),
            "Request for unknown model: 'nope/../x' is not found",
        ),
    ],
    ids=["at once", "midway", "unknown model"],
)
def test_what_the_server_refuses_is_told_in_its_own_words(
    triton: TritonDouble, ask: Ask, request_: GenerateRequest, message: str
) -> None:
    with pytest.raises(RefusedError) as caught:
        ask(triton.url, request_)

    assert str(caught.value) == f"the server refused the request: {message}"


def test_an_answer_cut_short_is_an_error(triton: TritonDouble, ask: Ask) -> None:
    with pytest.raises(UnreachableError) as caught:
        ask(triton.url, GenerateRequest("cut half an"))

    assert str(caught.value) == (
        f"the connection to {triton.url} ended before the answer was complete (connection closed); "
        "look at the server's log, then try again"
    )


@pytest.mark.parametrize("prompt", ["stall", "stall half an", "forever half an"])
def test_an_answer_must_be_complete_in_time(triton: TritonDouble, ask: Ask, prompt: str) -> None:
    start = time.monotonic()

    with pytest.raises(ServerTimeoutError) as caught:
        ask(triton.url, GenerateRequest(prompt), timeout_s=0.4)

    assert str(caught.value) == (
        f"the answer from {triton.url} was not complete after 0.4 s; "
        "ask for fewer tokens or raise the timeout"
    )
    assert 0.3 < time.monotonic() - start < PATIENCE_S
    assert prompt.startswith("stall") or triton.cancelled.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("scheme", "where", "detail"),
    [
        ("grpc", "closed_port", "Connection refused"),
        ("http", "closed_port", "Connection refused"),
        ("grpc", "silent_port", "silent for 0.5 s"),
        ("http", "silent_port", "silent for 0.5 s"),
        ("grpc", "web_port", ""),
        ("http", "web_port", "/v2/health/live says HTTP 404 with text/html"),
        ("grpc", "other_grpc_port", "Method not found!"),
        ("http", "other_grpc_port", ""),
        ("grpcs", "web_port", ""),
        ("https", "web_port", ""),
    ],
)
def test_what_is_not_triton_is_found_out_early(
    ask: Ask, request: pytest.FixtureRequest, scheme: str, where: str, detail: str
) -> None:
    url = f"{scheme}://127.0.0.1:{request.getfixturevalue(where)}"
    # Only silence takes the whole time; what else there is says so before.
    timeout_s = 0.5 if where == "silent_port" else PATIENCE_S
    start = time.monotonic()

    with pytest.raises(UnreachableError) as caught:
        ask(url, GenerateRequest("say hello"), connect_timeout_s=timeout_s)

    message = str(caught.value)
    assert message.startswith(f"no Triton server answers at {url} (")
    assert detail in message
    assert message.endswith(
        f"); {EXPECTED[scheme[:4]]}; start one with: minitron-trt serve, or correct the URL"
    )
    assert "\n" not in message
    assert caught.value.__cause__ is not None
    assert time.monotonic() - start < PATIENCE_S


def test_a_path_in_the_url_comes_before_tritons_own(ask: Ask, web_port: int) -> None:
    with pytest.raises(UnreachableError, match=r"/triton \(/v2/health/live says HTTP 404 with"):
        ask(f"http://127.0.0.1:{web_port}/triton/", GenerateRequest("say hello"))
    assert "/triton/v2/health/live" in WebSite.paths


def test_a_server_may_come_up_after_its_client(serve: Serve, closed_port: int) -> None:
    with serve(closed_port) as before:
        url = before.url
    with Client.connect(url) as client:
        with pytest.raises(UnreachableError):
            client.ready()
        with serve(closed_port):
            until(lambda: says_hello(client))


def says_hello(client: Client) -> bool:
    """Say whether a server answers."""
    with contextlib.suppress(UnreachableError):
        assert client.generate(GenerateRequest("say hello")) == "hello"
        return True
    return False


@pytest.mark.slow
def test_a_server_may_go_and_come_back(serve: Serve, closed_port: int) -> None:
    with contextlib.ExitStack() as stack:
        with serve(closed_port) as double:
            client = stack.enter_context(Client.connect(double.url))
            client.generate(GenerateRequest("say hello"))
        with pytest.raises(UnreachableError):
            client.generate(GenerateRequest("say hello"))
        with pytest.raises(UnreachableError, match="no Triton server answers"):
            client.generate(GenerateRequest("say hello"))
        stack.enter_context(serve(closed_port))

        until(lambda: says_hello(client))


def test_the_environments_proxy_is_not_used_for_this_machine(
    triton: TritonDouble, ask: Ask, closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    assert ask(triton.url, GenerateRequest("say hello")) == ["hello"]
    with pytest.raises(UnreachableError):
        ask(triton.url, GenerateRequest("say hello"), environment_proxy=True)


@pytest.mark.parametrize("client", [Client, AsyncClient])
@pytest.mark.parametrize("name", ["timeout_s", "connect_timeout_s"])
def test_a_timeout_must_be_positive(client: Any, name: str) -> None:
    with pytest.raises(UsageError, match=r"_s is 0; expected a number of seconds above 0"):
        client.connect("grpc://127.0.0.1:8001", **{name: 0})
