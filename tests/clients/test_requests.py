"""What a client offers on top of one request: completions, conversations, many at once."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncGenerator, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from tests.clients.canned import AsyncCanned, Canned
from tests.patience import PATIENCE_S, until

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.messages import Chunk, GenerateRequest
from minitron_trt.clients.transport import AsyncEchoTransport, EchoTransport
from minitron_trt.errors import (
    RefusedError,
    RequestCancelledError,
    ServerError,
    ServerTimeoutError,
    UsageError,
)

if TYPE_CHECKING:
    from tests.clients.conftest import TritonDouble

# They wait for what never comes.
pytestmark = pytest.mark.slow

PIECES = (
    Chunk("So", outputs={"num_input_tokens": [3], "num_output_tokens": [1]}),
    Chunk("", outputs={"num_output_tokens": [1], "output_log_probs": [-0.5]}),
    Chunk("lar", outputs={"num_output_tokens": [2], "output_log_probs": [-1.0, -2.0]}),
    Chunk("", finish_reason="stop"),
    Chunk("", final=True),
)


def test_a_completion_is_text_that_knows_more() -> None:
    completions = [
        Client(Canned(PIECES)).generate("Our"),
        asyncio.run(AsyncClient(AsyncCanned(PIECES)).generate("Our")),
    ]

    for completion in completions:
        assert completion == completion.text == "Solar"
        assert type(completion.text) is str
        assert completion.finish_reason == "stop"
        assert (completion.prompt_tokens, completion.completion_tokens) == (3, 4)
        assert completion.log_probs == [-0.5, -1.0, -2.0]
        assert completion.request.text_input == "Our"
        assert completion.first_chunk_s is not None
        assert 0 <= completion.first_chunk_s <= completion.total_s < PATIENCE_S


def test_a_stream_has_pieces_and_in_the_end_their_completion() -> None:
    with Client(Canned(PIECES)).stream("Our") as stream:
        pieces = [(piece.text, piece.finish_reason) for piece in stream]

    assert pieces == [("So", None), ("lar", None), ("", "stop")]
    assert (stream.completion, stream.completion.completion_tokens) == ("Solar", 4)


def test_options_may_be_given_beside_a_prompt_or_a_request() -> None:
    echo = EchoTransport()
    client = Client(echo)

    client.generate("a b c", max_tokens=2, stop_words=["x"])
    client.generate(GenerateRequest("a b c", top_k=3), max_tokens=2)

    assert [(each.max_tokens, each.stop_words, each.top_k) for each in echo.requests] == [
        (2, ("x",), None),
        (2, (), 3),
    ]
    with pytest.raises(UsageError, match="max_new_tokens is no option of a request; expected"):
        client.generate("a", max_new_tokens=2)


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("Hi", '[{"role": "user", "content": "Hi"}]'),
        (
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüß"}],
            '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüß"}]',
        ),
    ],
)
def test_a_conversation_goes_by_the_models_template(messages: Any, text: str) -> None:
    echo, other = EchoTransport(), AsyncEchoTransport()

    Client(echo).chat(messages, max_tokens=5)
    asyncio.run(AsyncClient(other).chat(messages, max_tokens=5))

    for request in (*echo.requests, *other.requests):
        assert (request.text_input, request.apply_chat_template) == (text, True)


@pytest.mark.parametrize(
    "messages", [[], ["Hi"], [{"role": "user"}], [{"role": "user", "content": ["Hi"]}], 5]
)
def test_what_is_no_conversation_is_a_usage_error(messages: Any) -> None:
    with pytest.raises(UsageError, match="expected a"):
        Client(EchoTransport()).chat(messages)


class Gauge(EchoTransport):
    """Answers slowly, and counts how many are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.running = self.most = 0
        self._lock = threading.Lock()

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            # Later prompts are answered earlier.
            threading.Event().wait(0.01 * (10 - int(request.text_input)))
            yield from super().stream(request, deadlines)
        finally:
            with self._lock:
                self.running -= 1


class AsyncGauge(AsyncEchoTransport):
    """The same for AsyncClient."""

    running = most = 0

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await asyncio.sleep(0.01 * (10 - int(request.text_input)))
            async for chunk in super().stream(request, deadlines):
                yield chunk
        finally:
            self.running -= 1


@pytest.mark.parametrize("ordered", [True, False])
def test_many_prompts_are_answered_so_many_at_a_time(ordered: bool) -> None:
    prompts = [str(n) for n in range(10)]
    gauge, other = Gauge(), AsyncGauge()

    async def ask() -> Sequence[str]:
        answers = AsyncClient(other).generate_many(prompts, concurrency=3, ordered=ordered)
        return [answer async for answer in answers]

    answers: Sequence[str] = list(
        Client(gauge).generate_many(prompts, concurrency=3, ordered=ordered)
    )
    found = asyncio.run(ask())

    assert sorted(answers) == sorted(found) == prompts
    assert (answers == prompts, found == prompts) == (ordered, ordered)
    assert gauge.most == other.most == 3


def test_many_prompts_may_be_endless_and_leaving_cancels_what_runs(triton: TritonDouble) -> None:
    def prompts() -> Iterator[str]:
        yield from ("say one", "say two")
        while True:
            yield "forever on"

    async def ask() -> Sequence[str]:
        async with AsyncClient.connect(triton.url) as client:
            answers = client.generate_many(prompts(), concurrency=4)
            found = [await anext(answers), await anext(answers)]
            await answers.aclose()
            return found

    with Client.connect(triton.url) as client:
        answers = client.generate_many(prompts(), concurrency=4)
        found = [next(answers), next(answers)]
        answers.close()
    assert found == ["one", "two"]
    assert triton.cancelled.wait(PATIENCE_S)
    triton.cancelled.clear()

    assert asyncio.run(ask()) == ["one", "two"]
    assert triton.cancelled.wait(PATIENCE_S)


def test_a_failure_ends_many_unless_somebody_takes_it(triton: TritonDouble) -> None:
    prompts = ["say one", "refuse that", "say two"]
    failed: list[tuple[str, ServerError]] = []

    def note(request: GenerateRequest, error: ServerError) -> None:
        failed.append((request.text_input, error))

    async def ask() -> list[str]:
        async with AsyncClient.connect(triton.url) as client:
            return [text async for text in client.generate_many(prompts, on_error=note)]

    with Client.connect(triton.url) as client:
        with pytest.raises(RefusedError, match="that"):
            list(client.generate_many(prompts))
        found = list(client.generate_many(prompts, on_error=note))

    assert found == asyncio.run(ask()) == ["one", "two"]
    assert [prompt for prompt, _ in failed] == ["refuse that", "refuse that"]


@pytest.mark.parametrize("client", [Client(EchoTransport()), AsyncClient(AsyncEchoTransport())])
def test_none_at_a_time_is_a_usage_error(client: Any) -> None:
    with pytest.raises(UsageError, match="concurrency is 0; expected 1 or more"):
        client.generate_many(["a"], concurrency=0)


def test_threads_share_a_client(triton: TritonDouble) -> None:
    words = [f"word{n}" for n in range(60)]

    with Client.connect(triton.url) as client, ThreadPoolExecutor(12) as threads:
        answers = list(threads.map(lambda word: client.generate(f"say {word}"), words))

    assert answers == words


def test_another_thread_ends_a_stream_that_waits(triton: TritonDouble) -> None:
    with Client.connect(triton.url) as client, ThreadPoolExecutor(1) as threads:
        stream = client.stream("stall here")
        first = next(stream)
        waiting = threads.submit(stream.read)
        until(lambda: waiting.running())
        while not waiting.done():
            stream.close()

        assert first == "here"
        assert isinstance(waiting.exception(), (RequestCancelledError, type(None)))


def test_closing_a_client_ends_what_other_threads_wait_for(triton: TritonDouble) -> None:
    with ThreadPoolExecutor(1) as threads:
        client = Client.connect(triton.url, max_retries=0)
        stream = client.stream("stall here")
        next(stream)
        waiting = threads.submit(stream.read)
        until(lambda: waiting.running())
        threading.Event().wait(0.1)
        client.close()

        with pytest.raises(RequestCancelledError, match="was cancelled before its answer"):
            waiting.result(PATIENCE_S)
    with pytest.raises(UsageError, match="the client is closed"):
        client.generate("say hi")


def test_closing_an_async_client_ends_what_other_tasks_wait_for(triton: TritonDouble) -> None:
    async def ask() -> None:
        client = AsyncClient.connect(triton.url, max_retries=0)
        stream = client.stream("stall here")
        await anext(stream)
        waiting = asyncio.create_task(stream.read())
        await asyncio.sleep(0.1)
        await client.close()
        with pytest.raises(RequestCancelledError):
            await waiting
        with pytest.raises(UsageError, match="the client is closed"):
            await client.generate("say hi")

    asyncio.run(ask())


def test_an_async_client_works_in_one_loop_after_another(triton: TritonDouble) -> None:
    client = AsyncClient.connect(triton.url)

    async def close() -> None:
        await client.close()

    answers: list[str] = [asyncio.run(client.generate("say hi")) for _ in range(3)]
    asyncio.run(close())

    assert answers == ["hi"] * 3


def test_an_async_client_works_in_loops_of_several_threads(triton: TritonDouble) -> None:
    client = AsyncClient.connect(triton.url)

    async def ask(word: str) -> list[str]:
        return [await client.generate(f"say {word}") for _ in range(5)]

    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda word: asyncio.run(ask(word)), "abcd"))

    assert answers == [[word] * 5 for word in "abcd"]


def test_a_stream_that_nobody_holds_is_cancelled(triton: TritonDouble) -> None:
    with Client.connect(triton.url) as client:
        stream = client.stream("forever on")
        next(stream)
        del stream
        gc.collect()

        assert triton.cancelled.wait(PATIENCE_S)


def test_an_async_stream_that_nobody_holds_is_cancelled(triton: TritonDouble) -> None:
    async def ask() -> None:
        async with AsyncClient.connect(triton.url) as client:
            stream = client.stream("forever on")
            await anext(stream)
            del stream
            gc.collect()
            await asyncio.to_thread(triton.cancelled.wait, PATIENCE_S)

    asyncio.run(ask())

    assert triton.cancelled.is_set()


@pytest.mark.parametrize(
    ("prompt", "limits", "words"),
    [
        ("stall", {"first_token_s": 0.3}, "the first token from .* did not come within 0.3 s"),
        ("stall a", {"between_tokens_s": 0.3}, "the next token from .* did not come within 0.3 s"),
        ("stall a", {"total_s": 0.6, "between_tokens_s": 9}, "not complete after 0.6 s"),
    ],
)
def test_each_limit_in_time_has_its_own_words(
    triton: TritonDouble, prompt: str, limits: dict[str, float], words: str
) -> None:
    timeouts = Timeouts(**{"total_s": PATIENCE_S, "connect_s": PATIENCE_S, **limits})

    async def ask() -> None:
        async with AsyncClient.connect(triton.url, timeouts=timeouts) as client:
            await client.generate(prompt)

    with (
        Client.connect(triton.url, timeouts=timeouts) as client,
        pytest.raises(ServerTimeoutError, match=words),
    ):
        client.generate(prompt)
    with pytest.raises(ServerTimeoutError, match=words):
        asyncio.run(ask())


def test_a_reader_may_take_its_time_between_pieces(triton: TritonDouble) -> None:
    timeouts = Timeouts(PATIENCE_S, PATIENCE_S, between_tokens_s=0.5)
    pieces: list[str] = []

    with (
        Client.connect(triton.url, timeouts=timeouts) as client,
        client.stream("say one two three") as stream,
    ):
        for piece in stream:
            threading.Event().wait(0.7)
            pieces.append(piece)

    assert pieces == ["one ", "two ", "three"]


def test_headers_go_with_their_request(triton: TritonDouble) -> None:
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

    with Client.connect(triton.url) as client:
        client.generate("say hi", headers={"traceparent": parent})
        client.generate("say hi")

    assert [headers.get("traceparent") for headers in triton.headers] == [parent, None]
