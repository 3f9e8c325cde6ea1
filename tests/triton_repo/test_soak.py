"""A server under many clients, some of which leave early, hang up, crash or read slowly.

SOAK_REQUESTS says how many there are; `make test-soak` sends 3,000.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import logging
import os
import random
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served
from tests.triton_repo.greedy_texts import greedy_text
from tests.triton_repo.test_server import FRONT_MODELS, PROMPTS, slots_in_use

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import ServerError

# One sample: what is looked at here does not depend on the model.
pytestmark = [
    pytest.mark.server,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

log = logging.getLogger(__name__)

REQUESTS = int(os.environ.get("SOAK_REQUESTS", "500"))
CONCURRENT = 64
LONGEST = 48
CRASHING = """
import sys
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest

client = Client.connect(sys.argv[1])
for model in ("ensemble", "tensorrt_llm_bls") * 2:
    stream = client.stream(GenerateRequest(sys.argv[2], max_tokens=500, end_id=0, model=model))
    next(stream)
print("reading", flush=True)
for piece in stream:
    pass
"""
"""A process that holds four streams."""
# Pools of threads, and connections that are kept, come to their full number by and by.
MORE = 16
# Python, torch and Triton all keep some of what they once used; a leak of 500 requests is more.
MOST_GROWTH = 80e6


@pytest.fixture(scope="module")
def greedy(served: Served) -> dict[str, list[str]]:
    """What transformers makes of each prompt with 0, 1, 2, … tokens."""
    return {
        prompt: [greedy_text(served.model, prompt, count) for count in range(LONGEST + 1)]
        for prompt in PROMPTS
    }


class Resources(NamedTuple):
    """What a server and the processes of its models hold."""

    processes: int
    threads: int
    files: int
    bytes: int

    @classmethod
    def of(cls, group: int) -> Resources:
        """Count those of a process group."""
        counts = [_count(folder) for folder in _processes(group)]
        return cls(len(counts), *(sum(column) for column in zip(*counts, strict=True)))


def _processes(group: int) -> Iterator[Path]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if int(status.read_text().rpartition(")")[2].split()[2]) == group:
                yield status.parent


def _count(folder: Path) -> tuple[int, int, int]:
    """Return a process's threads, open files, and bytes of memory of its own."""
    fields = dict(line.split(":", 1) for line in (folder / "status").read_text().splitlines())
    memory = 1024 * int(fields["RssAnon"].split()[0])
    return int(fields["Threads"]), len(list((folder / "fd").iterdir())), memory


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
        """Send so many requests; of every 50 one crashes over HTTP, of every 500 a process."""
        urls = itertools.cycle((self._served.endpoints.grpc_url, self._served.endpoints.http_url))
        async with asyncio.TaskGroup() as tasks:
            for number, url in zip(range(count), urls, strict=False):
                if number % 500 == 250:
                    tasks.create_task(self._crash_process())
                elif number % 50 == 25:
                    tasks.create_task(self._crash_connection())
                else:
                    tasks.create_task(self._one(url))

    async def _crash_connection(self) -> None:
        """Ask for a stream, read its beginning, and have the kernel reset the connection."""
        endpoints = self._served.endpoints
        body = json.dumps({"text_input": PROMPTS[0], "max_tokens": 500, "stream": True}).encode()
        head = f"POST /v2/models/ensemble/generate_stream HTTP/1.1\r\nHost: {endpoints.host}\r\n"
        async with self._slots:
            reader, writer = await asyncio.open_connection(endpoints.host, endpoints.http_port)
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            await reader.read(100)
            connection = writer.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
        self.seen["crashed"] += 1

    async def _crash_process(self) -> None:
        """Kill a process that reads four streams over gRPC."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            CRASHING,
            self._served.endpoints.grpc_url,
            PROMPTS[0],
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        await process.wait()
        self.seen["crashed"] += 1

    async def _one(self, url: str) -> None:
        choice = self._random
        prompt, count = choice.choice(PROMPTS), choice.randint(1, LONGEST)
        leaves_after = choice.choice((None, None, None, 0, 1, choice.randint(0, count)))
        hangs_up = leaves_after is not None and choice.random() < 0.5
        reads_in_s = 0.2 if choice.random() < 0.05 else 0.0
        model = choice.choice(FRONT_MODELS)
        request = GenerateRequest(prompt, max_tokens=count, model=model)
        async with self._slots:
            client = AsyncClient.connect(url, timeout_s=300, connect_timeout_s=PATIENCE_S)
            try:
                texts = await self._read(client, request, leaves_after, hangs_up, reads_in_s)
            except ServerError as error:
                self.wrong.append(f"{model} over {url}: {error}")
                return
            finally:
                await client.close()
        expected = self._greedy[prompt][count]
        kind = "whole" if leaves_after is None else "hung up" if hangs_up else "left"
        self.seen[kind] += 1
        self.seen["slow"] += reads_in_s > 0
        whole = texts == expected if leaves_after is None else expected.startswith(texts)
        if not whole:
            self.wrong.append(f"{model} over {url}, {kind}: {texts!r} of {expected!r}")

    async def _read(
        self,
        client: AsyncClient,
        request: GenerateRequest,
        leaves_after: int | None,
        rude: bool,
        reads_in_s: float,
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
    """A hundred requests warm the server up; then it must not grow any more."""

    async def soak(count: int, seed: int) -> Crowd:
        crowd = Crowd(served, greedy, seed)
        await crowd.run(count)
        return crowd

    asyncio.run(soak(100, 1))
    until(lambda: slots_in_use(served) == 0)
    before = Resources.of(served.pid)

    crowd = asyncio.run(soak(REQUESTS, 2))
    until(lambda: slots_in_use(served) == 0)
    # Triton closes a connection whose client has gone when it next looks.
    until(lambda: Resources.of(served.pid).files <= before.files + MORE)
    after = Resources.of(served.pid)
    log.info("%s\nbefore %s\nafter  %s", crowd.seen, before, after)

    assert crowd.wrong == []
    assert sum(crowd.seen[kind] for kind in ("whole", "left", "hung up", "crashed")) == REQUESTS
    assert min(crowd.seen[kind] for kind in ("whole", "left", "hung up")) > REQUESTS / 20
    assert after.processes == before.processes
    assert after.threads <= before.threads + MORE
    assert after.bytes - before.bytes < MOST_GROWTH
