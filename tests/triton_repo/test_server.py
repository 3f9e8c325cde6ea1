"""A real tritonserver answers as TensorRT-LLM's models would."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served
from tests.triton_repo.greedy_texts import greedy_text
from tests.triton_repo.text_calls import tensors
from transformers import AutoTokenizer

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import RefusedError

pytestmark = pytest.mark.server

PROMPT = "Complete the paragraph: our solar system is"
PROMPTS = (
    PROMPT,
    "In Japanese: 太陽系には",
    "In French: Le système solaire",
    "In Korean:",
    "Question: Why is Mars red? Answer:",
    "The planets have many names. Mars is also Marte, 火星",
)
LIMIT = 900  # tokens, for requests that nothing else ends
FRONT_MODELS = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture(scope="module")
def expected(served: Served) -> dict[str, str]:
    """What transformers makes of each prompt, greedily, to the end of the text."""
    return {prompt: greedy_text(served.model, prompt) for prompt in PROMPTS}


@pytest.fixture(params=["grpc", "http"])
def client(request: pytest.FixtureRequest, served: Served) -> Any:
    """A client of each protocol."""
    url = getattr(served.endpoints, f"{request.param}_url")
    with Client.connect(url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S) as client:
        yield client


def ask(prompt: str, **changes: Any) -> GenerateRequest:
    """Return a request that ends by itself."""
    return GenerateRequest(text_input=prompt, **{"max_tokens": 200, **changes})


def slots_in_use(served: Served) -> int:
    """Return how many requests tensorrt_llm works on, from its Prometheus metric."""
    return metric(metrics(served), 'request_type="active"')


def long_answers(served: Served) -> int:
    """Return how many answers have had more than 500 tokens."""
    name, lines = "nv_llm_output_token_len", metrics(served)
    return metric(lines, f"{name}_count") - metric(lines, f'{name}_bucket.*le="500"')


def metrics(served: Served) -> list[str]:
    """Return the lines of a server's Prometheus metrics."""
    url = f"http://127.0.0.1:{served.endpoints.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines: list[str] = answer.read().decode().splitlines()
    return lines


def metric(lines: list[str], name: str) -> int:
    """Return the value of one metric."""
    (found,) = (line for line in lines if re.search(name, line) and not line.startswith("#"))
    return int(float(found.rpartition(" ")[2]))


def assert_freed(served: Served, long_before: int) -> None:
    """Wait until every slot is free; fail if a request has run to its limit for that."""
    until(lambda: slots_in_use(served) == 0)
    assert long_answers(served) == long_before


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize("prompt", PROMPTS)
def test_streamed_pieces_are_the_text_transformers_makes(
    client: Client, expected: dict[str, str], model: str, prompt: str
) -> None:
    with client.stream(ask(prompt, model=model)) as stream:
        pieces = list(stream)

    assert "".join(pieces) == expected[prompt]
    assert len(pieces) > 3


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_without_streaming_the_text_comes_in_one_piece(
    client: Client, expected: dict[str, str], model: str
) -> None:
    with client.stream(ask(PROMPT, model=model, stream=False)) as stream:
        pieces = [piece for piece in stream if piece]

    assert pieces == [expected[PROMPT]]


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_many_requests_at_once_get_the_answers_they_get_alone(
    served: Served, expected: dict[str, str], model: str
) -> None:
    """Four slots serve twelve requests, so that some join while others run."""
    prompts = PROMPTS * 2
    with (
        Client.connect(
            served.endpoints.grpc_url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
        ) as client,
        ThreadPoolExecutor(len(prompts)) as threads,
    ):
        texts = list(threads.map(lambda p: client.generate(ask(p, model=model)), prompts))

    assert texts == [expected[prompt] for prompt in prompts]


def test_the_asyncio_client_streams_the_same(served: Served, expected: dict[str, str]) -> None:
    async def run(url: str) -> list[str]:
        async with AsyncClient.connect(
            url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
        ) as client:
            return list(await asyncio.gather(*(client.generate(ask(prompt)) for prompt in PROMPTS)))

    for url in (served.endpoints.grpc_url, served.endpoints.http_url):
        assert asyncio.run(run(url)) == [expected[prompt] for prompt in PROMPTS]


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_text_ends_before_a_stop_word(client: Client, expected: dict[str, str], model: str) -> None:
    text = client.generate(ask(PROMPT, model=model, stop_words=("planets",)))

    assert text == expected[PROMPT].split("planets")[0]


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_a_bad_word_does_not_appear(client: Client, model: str) -> None:
    text = client.generate(ask(PROMPT, model=model, bad_words=("star", "Sun")))

    assert "star" not in text
    assert "Sun" not in text


def test_a_seed_repeats_a_sample_and_another_seed_does_not(client: Client) -> None:
    def sample(seed: int) -> str:
        return client.generate(
            ask("The", temperature=1.0, top_k=50, top_p=0.95, seed=seed, max_tokens=24)
        )

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(6)}) > 1


def test_an_end_id_of_ones_own_ends_the_text(client: Client, served: Served) -> None:
    tokenizer = AutoTokenizer.from_pretrained(served.model)
    full = client.generate(ask(PROMPT))
    ids = tokenizer(full, add_special_tokens=False)["input_ids"]

    text = client.generate(ask(PROMPT, end_id=ids[10]))

    assert text == tokenizer.decode(ids[: ids.index(ids[10])])


@pytest.mark.parametrize("model", FRONT_MODELS)
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"text_input": ""}, "text_input is empty"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": -3}, "max_tokens is -3"),
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"text_input": "Mars " * 4000}, "max_seq_len"),
    ],
    ids=["empty prompt", "no tokens", "negative tokens", "temperature", "top_p", "long prompt"],
)
def test_a_request_that_is_wrong_is_refused_by_field_and_the_server_stays_up(
    client: Client, model: str, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(RefusedError, match=words):
        client.generate(ask(**{"prompt": "x", "model": model} | rename(changes)))

    assert client.generate(ask("Hello", max_tokens=2, model=model))


def rename(changes: dict[str, Any]) -> dict[str, Any]:
    """Return the changes as `ask` takes them."""
    return {"prompt" if key == "text_input" else key: value for key, value in changes.items()}


def test_an_unknown_model_is_refused_by_name(client: Client) -> None:
    with pytest.raises(RefusedError, match="nonesuch"):
        client.generate(ask("Hello", model="nonesuch"))


@pytest.mark.parametrize("model", FRONT_MODELS)
def test_leaving_a_stream_frees_its_slot(client: Client, served: Served, model: str) -> None:
    before = long_answers(served)
    # Nothing ends it but the limit.
    request = ask("The", model=model, max_tokens=LIMIT, end_id=0, temperature=1.0, seed=5)
    with client.stream(request) as stream:
        next(iter(stream))
        # The metric may come a moment after the token.
        until(lambda: slots_in_use(served) > 0)

    assert_freed(served, before)


def test_leaving_an_answer_that_comes_in_one_piece_frees_its_slot(served: Served) -> None:
    leave_before_the_answer(served)


def leave_before_the_answer(served: Served) -> None:
    """Leave an answer in one piece of tensorrt_llm_bls; fail unless that frees its slot.

    Over gRPC: Triton's HTTP service does not notice that a client has gone before it writes.
    """
    before = long_answers(served)
    given = tensors({"text_input": "The", "max_tokens": LIMIT, "end_id": 0, "stream": False})
    with grpc.InferenceServerClient(served.endpoints.grpc_url.removeprefix("grpc://")) as client:
        client.start_stream(lambda result, error: None)
        client.async_stream_infer("tensorrt_llm_bls", given)
        until(lambda: slots_in_use(served) == 1)
        client.stop_stream(cancel_requests=True)

    assert_freed(served, before)


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_ctrl_c_in_generate_frees_the_slot(served: Served, protocol: str) -> None:
    url = getattr(served.endpoints, f"{protocol}_url")
    before = long_answers(served)
    # Nothing ends it but the limit.
    arguments = ["The", f"--max-tokens={LIMIT}", "--end-id=0", "--temperature=1", "--seed=5"]
    with subprocess.Popen(
        [sys.executable, "-m", "minitron_trt", "generate", *arguments, "--url", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.read(8)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, stderr) == (130, "interrupted\n")
    assert_freed(served, before)
