"""The `openai` package asks the gateway: sync, async, streamed and whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from tests.gateway.conftest import Running
from tests.patience import until

from minitron_trt.clients.faults import refusal
from minitron_trt.errors import RefusedError, ServerTimeoutError, UnreachableError

WORDS = "our solar system is large"


@pytest.fixture
def client(gateway: Running) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_a_completion_is_openais(client: OpenAI) -> None:
    answer = client.completions.create(model="ensemble", prompt=WORDS)

    assert answer.object == "text_completion"
    assert answer.id.startswith("cmpl-")
    assert answer.model == "ensemble"
    assert [choice.text for choice in answer.choices] == [WORDS]
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 5)
    assert answer.usage.total_tokens == 10


def test_a_limit_is_the_reason_length(client: OpenAI) -> None:
    answer = client.completions.create(model="ensemble", prompt=WORDS, max_tokens=2)

    assert answer.choices[0].text == "our solar"
    assert answer.choices[0].finish_reason == "length"


def test_a_streamed_completion_joins_to_the_whole(client: OpenAI) -> None:
    chunks = list(client.completions.create(model="ensemble", prompt=WORDS, stream=True))

    assert "".join(chunk.choices[0].text for chunk in chunks) == WORDS
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * 5 + ["stop"]
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_in_a_last_chunk_without_choices(client: OpenAI) -> None:
    *chunks, last = client.chat.completions.create(
        model="ensemble",
        messages=[{"role": "user", "content": "Hello there"}],
        stream=True,
        stream_options={"include_usage": True},
    )

    assert all(len(chunk.choices) == 1 and chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.total_tokens == last.usage.prompt_tokens + last.usage.completion_tokens > 0


def test_every_chunk_tells_the_usage_to_load_tests_that_ask_for_it(client: OpenAI) -> None:
    """By vLLM's name, as guidellm asks."""
    chunks = client.completions.create(
        model="ensemble",
        prompt=WORDS,
        stream=True,
        extra_body={"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    )
    counts = [chunk.usage.completion_tokens for chunk in chunks if chunk.usage]

    assert counts == [1, 2, 3, 4, 5, 5, 5]


def test_a_streamed_chat_says_the_role_first_and_the_reason_last(client: OpenAI) -> None:
    chunks = list(
        client.chat.completions.create(
            model="ensemble", messages=[{"role": "user", "content": "Hello"}], stream=True
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks]

    assert (deltas[0].role, deltas[0].content) == ("assistant", "")
    assert "".join(delta.content or "" for delta in deltas) == (
        '[{"role": "user", "content": "Hello"}]'
    )
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert chunks[0].object == "chat.completion.chunk"


def test_a_chat_is_in_the_models_own_template(gateway: Running, client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model="ensemble",
        messages=[
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        ],
        max_completion_tokens=99,
    )

    (request,) = gateway.triton.requests
    assert request.apply_chat_template is True
    assert request.text_input == (
        '[{"role": "system", "content": "Be brief"}, {"role": "user", "content": "Hello"}]'
    )
    assert request.max_tokens == 99
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content == request.text_input


def test_several_prompts_and_sequences_are_choices_in_order(client: OpenAI) -> None:
    answer = client.completions.create(model="ensemble", prompt=["one two", "three"], n=2)

    assert [choice.text for choice in answer.choices] == ["one two", "one two", "three", "three"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 6)


def test_streamed_sequences_are_told_apart_by_index(client: OpenAI) -> None:
    texts = dict.fromkeys(range(4), "")
    reasons = []
    stream = client.completions.create(
        model="ensemble", prompt=["one two", "three"], n=2, stream=True
    )
    for chunk in stream:
        (choice,) = chunk.choices
        texts[choice.index] += choice.text
        reasons += [choice.index] * (choice.finish_reason == "stop")

    assert list(texts.values()) == ["one two", "one two", "three", "three"]
    assert sorted(reasons) == [0, 1, 2, 3]


def test_log_probs_have_both_forms(client: OpenAI) -> None:
    completion = client.completions.create(
        model="ensemble", prompt="one two", logprobs=1, temperature=0
    )
    chat = client.chat.completions.create(
        model="ensemble",
        messages=[{"role": "user", "content": "Hello"}],
        logprobs=True,
    )

    told = completion.choices[0].logprobs
    assert told is not None
    assert told.tokens == ["one", " two"]
    assert told.token_logprobs == [-0.5, -0.5]
    assert told.top_logprobs == [{"one": -0.5}, {" two": -0.5}]
    assert told.text_offset == [0, 3]
    assert chat.choices[0].logprobs is not None
    content = chat.choices[0].logprobs.content
    assert content is not None
    assert "".join(token.token for token in content) == chat.choices[0].message.content
    assert bytes(content[0].bytes or []) == content[0].token.encode()
    assert content[0].top_logprobs == []


def test_streamed_log_probs_come_with_their_tokens(client: OpenAI) -> None:
    stream = client.completions.create(model="ensemble", prompt="a bc d", logprobs=0, stream=True)
    told = [chunk.choices[0].logprobs for chunk in stream]

    tokens = [logprobs for logprobs in told if logprobs is not None and logprobs.tokens]
    assert [logprobs.tokens for logprobs in tokens] == [["a"], [" bc"], [" d"]]
    assert [logprobs.text_offset for logprobs in tokens] == [[0], [1], [4]]


def test_models_are_those_that_are_there(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["ensemble"]
    assert client.models.retrieve("ensemble").owned_by == "triton"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("gpt-4o")
    assert raised.value.code == "model_not_found"


def test_an_unknown_model_is_404(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        client.completions.create(model="gpt-4o", prompt="x")

    assert raised.value.code == "model_not_found"
    assert raised.value.type == "invalid_request_error"


def test_a_full_queue_is_503_and_may_be_asked_again(gateway: Running, client: OpenAI) -> None:
    gateway.triton.error = refusal(
        "in ensemble 'ensemble', 1 requests are waiting; try again later"
    )

    with pytest.raises(openai.InternalServerError) as raised:
        client.completions.create(model="ensemble", prompt="x")
    assert raised.value.status_code == 503
    assert raised.value.code == "overloaded"
    assert raised.value.response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("error", "kind", "status"),
    [
        (RefusedError("stop_words are longer", field="stop_words"), openai.BadRequestError, 400),
        (UnreachableError("no Triton at grpc://h:1"), openai.InternalServerError, 503),
        (ServerTimeoutError("late"), openai.InternalServerError, 504),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_triton_says_has_a_status(
    gateway: Running,
    client: OpenAI,
    *,
    error: UnreachableError,
    kind: type[openai.APIStatusError],
    status: int,
    stream: bool,
) -> None:
    gateway.triton.error = error

    with pytest.raises(kind) as raised:
        client.completions.create(model="ensemble", prompt="x", stream=stream)
    assert raised.value.status_code == status
    assert "grpc://" not in str(raised.value)
    if isinstance(error, RefusedError):
        assert raised.value.param == "stop"


def test_a_prompt_that_is_too_long_has_openais_code(gateway: Running, client: OpenAI) -> None:
    gateway.triton.error = RefusedError("input_ids has 300 tokens; this model holds max_seq_len 9")

    with pytest.raises(openai.BadRequestError) as raised:
        client.completions.create(model="ensemble", prompt="x")
    assert raised.value.code == "context_length_exceeded"


def test_an_error_amid_a_stream_is_raised_by_the_package(gateway: Running, client: OpenAI) -> None:
    gateway.triton.error, gateway.triton.error_after = UnreachableError("gone"), 2

    stream = client.completions.create(model="ensemble", prompt=WORDS, stream=True)
    texts = [next(stream).choices[0].text, next(stream).choices[0].text]

    assert "".join(texts) == "our solar"
    with pytest.raises(openai.APIError, match="cannot be reached"):
        next(stream)


def test_leaving_a_stream_cancels_in_triton(gateway: Running, client: OpenAI) -> None:
    stream = client.completions.create(model="ensemble", prompt="stall here", stream=True)
    next(iter(stream))
    stream.close()

    until(gateway.triton.left.is_set)
    assert gateway.triton.cancelled == gateway.triton.requests


def test_a_whole_answer_that_nobody_waits_for_is_cancelled(gateway: Running) -> None:
    with (
        OpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=0.5) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.completions.create(model="ensemble", prompt=["stall", "stall"])

    until(lambda: len(gateway.triton.cancelled) == 2)


@pytest.mark.slow
def test_many_async_streams_run_side_by_side(gateway: Running) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(
            base_url=f"{gateway.url}/v1", api_key="none", max_retries=0
        ) as client:

            async def one(number: int) -> str:
                stream = await client.completions.create(
                    model="ensemble", prompt=f"number {number} of many", stream=True
                )
                return "".join([chunk.choices[0].text async for chunk in stream])

            return await asyncio.gather(*(one(number) for number in range(32)))

    assert asyncio.run(ask()) == [f"number {number} of many" for number in range(32)]
