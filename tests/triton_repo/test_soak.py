"""A server under many clients, some of which leave early or hang up, keeps every promise."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served
from tests.triton_repo.test_server import FRONT_MODELS, PROMPTS, slots_in_use
from transformers import AutoModelForCausalLM, AutoTokenizer

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import ServerError

# One sample: what is looked at here does not depend on the model.
pytestmark = [
    pytest.mark.server,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

REQUESTS = 500
CONCURRENT = 64
LONGEST = 48
# Python, torch and Triton all keep some of what they once used; a leak of 500 requests is more.
MOST_GROWTH = 80e6


@pytest.fixture(scope="module")
def greedy(served: Served) -> dict[str, list[str]]:
    """What transformers makes of each prompt with 0, 1, 2, … tokens."""
    tokenizer: Any = AutoTokenizer.from_pretrained(served.model)
    model: Any = AutoModelForCausalLM.from_pretrained(served.model, dtype=torch.bfloat16)
    texts = {}
    for prompt in PROMPTS:
        inputs = tokenizer(prompt, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(**inputs, max_new_tokens=LONGEST, do_sample=False, pad_token_id=0)
        new = ids[0, inputs["input_ids"].shape[1] :].tolist()
        texts[prompt] = [
            tokenizer.decode(new[:count], skip_special_tokens=True) for count in range(LONGEST + 1)
        ]
    return texts


def resident_bytes(group: int) -> int:
    """Return the memory of a server and the processes of its models."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                lines = (status.parent / "status").read_text().splitlines()
                total += sum(1024 * int(x.split()[1]) for x in lines if x.startswith("RssAnon:"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return total


class Crowd:
    """Clients that come one after another, so many at a time, each with its own way to behave."""

    def __init__(self, served: Served, greedy: dict[str, list[str]], seed: int) -> None:
        self._served = served
        self._greedy = greedy
        self._random = random.Random(seed)
        self._slots = asyncio.Semaphore(CONCURRENT)
        self.wrong: list[str] = []
        self.seen: Counter[str] = Counter()

    async def run(self, count: int) -> None:
        """Send so many requests."""
        urls = itertools.cycle((self._served.endpoints.grpc_url, self._served.endpoints.http_url))
        async with asyncio.TaskGroup() as tasks:
            for _, url in zip(range(count), urls, strict=False):
                tasks.create_task(self._one(url))

    async def _one(self, url: str) -> None:
        choice = self._random
        prompt, count = choice.choice(PROMPTS), choice.randint(1, LONGEST)
        leaves_after = choice.choice((None, None, None, 0, 1, choice.randint(0, count)))
        hangs_up = leaves_after is not None and choice.random() < 0.5
        model = choice.choice(FRONT_MODELS)
        request = GenerateRequest(prompt, max_tokens=count, model=model)
        async with self._slots:
            client = AsyncClient.connect(url, timeout_s=300, connect_timeout_s=PATIENCE_S)
            try:
                texts = await self._read(client, request, leaves_after, hangs_up)
            except ServerError as error:
                self.wrong.append(f"{model} over {url}: {error}")
                return
            finally:
                await client.close()
        expected = self._greedy[prompt][count]
        kind = "whole" if leaves_after is None else "hung up" if hangs_up else "left"
        self.seen[kind] += 1
        whole = texts == expected if leaves_after is None else expected.startswith(texts)
        if not whole:
            self.wrong.append(f"{model} over {url}, {kind}: {texts!r} of {expected!r}")

    async def _read(
        self, client: AsyncClient, request: GenerateRequest, leaves_after: int | None, rude: bool
    ) -> str:
        texts: list[str] = []
        stream = client.stream(request)
        try:
            async for text in stream:
                texts.append(text)
                if leaves_after is not None and len(texts) > leaves_after:
                    break
        finally:
            if not rude:
                await stream.close()
        return "".join(texts)


def test_nothing_is_lost_or_leaked_under_many_clients(
    served: Served, greedy: dict[str, list[str]]
) -> None:
    """A hundred requests warm the server up; then its memory must not grow any more."""

    async def soak(count: int, seed: int) -> Crowd:
        crowd = Crowd(served, greedy, seed)
        await crowd.run(count)
        return crowd

    asyncio.run(soak(100, 1))
    until(lambda: slots_in_use(served) == 0)
    before = resident_bytes(served.pid)

    crowd = asyncio.run(soak(REQUESTS, 2))

    assert crowd.wrong == []
    assert sum(crowd.seen.values()) == REQUESTS
    assert min(crowd.seen[kind] for kind in ("whole", "left", "hung up")) > REQUESTS / 20
    until(lambda: slots_in_use(served) == 0)
    assert resident_bytes(served.pid) - before < MOST_GROWTH
