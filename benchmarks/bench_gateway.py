"""Measure what the gateway adds, before the real tritonserver with an engine that emits at once.

    python benchmarks/bench_gateway.py --runs 5

A load of streams goes to Triton's generate_stream and to the gateway's completions by turns, from a
reader that only looks for the end of each answer. The gateway is a process of its own: what it adds
to a token is its processor time. Reader, gateway, server and models share the machine's cores, so
that a ratio of throughputs says most where those are many. Rounds of 256 streams, and many short
requests, show whether the gateway keeps memory or descriptors.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import click

PROMPT: Final = "Complete the paragraph: our solar system is"
DIRECT: Final = "/v2/models/ensemble/generate_stream"
OPENAI: Final = "/v1/completions"
_HOST: Final = "127.0.0.1"
# The last part of a chunked body: to look for it costs the reader less than to read events.
_END: Final = b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class StreamLoad:
    """What to ask over HTTP: `requests` in all, `streams` at a time, of `tokens` each."""

    port: int
    path: str
    streams: int
    requests: int
    tokens: int

    @property
    def message(self) -> bytes:
        """Return a request as it goes over the wire."""
        fields = {"max_tokens": self.tokens, "stream": True}
        own = (
            {"model": "ensemble", "prompt": PROMPT}
            if self.path == OPENAI
            else {"text_input": PROMPT}
        )
        body = json.dumps({**own, **fields}).encode()
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: {_HOST}:{self.port}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process has used and holds: processor seconds, bytes of memory, descriptors."""

    processor_s: float
    memory_bytes: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Look at a process."""
        folder = Path("/proc", str(pid))
        # utime and stime, behind the program's name, which may hold spaces and brackets.
        times = (folder / "stat").read_text().rpartition(")")[2].split()[11:13]
        pages = int((folder / "statm").read_text().split()[1])
        return cls(
            processor_s=sum(map(int, times)) / os.sysconf("SC_CLK_TCK"),
            memory_bytes=pages * os.sysconf("SC_PAGE_SIZE"),
            descriptors=len(list((folder / "fd").iterdir())),
        )


async def _read_answers(load: StreamLoad, turns: Iterator[int]) -> None:
    """Send one request after another over one connection, and read each answer to its end."""
    reader, writer = await asyncio.open_connection(_HOST, load.port)
    with contextlib.closing(writer):
        for _ in turns:
            writer.write(load.message)
            status = await reader.readline()
            if status.split()[1:2] != [b"200"]:
                raise ConnectionError(f"{load.path} answers {status!r}")
            end = b""
            while end != _END:
                data = await reader.read(65536)
                if not data:
                    raise ConnectionError("the server hung up")
                # The end may come in two parts.
                end = (end + data)[-len(_END) :]


async def _put_here(load: StreamLoad) -> float:
    """Return the seconds that a load takes."""
    turns = iter(range(load.requests))
    start = time.monotonic()
    await asyncio.gather(*(_read_answers(load, turns) for _ in range(load.streams)))
    return time.monotonic() - start


def put(load: StreamLoad) -> float:
    """Run a load in a process of its own; return tokens per second."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", json.dumps(asdict(load))],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return load.requests * load.tokens / float(json.loads(done.stdout))


@contextlib.contextmanager
def running_gateway(triton: str) -> Iterator[tuple[int, int]]:
    """Run a gateway; yield its process and its port."""
    argv = [sys.executable, "-m", "minitron_trt", "gateway", "--url", triton, "--port", "0"]
    argv += ["--json", "-q"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        page = json.loads(process.stdout.readline())["page"]
        try:
            yield process.pid, int(page.rstrip("/").rpartition(":")[2])
        finally:
            process.terminate()


def measure(triton: StreamLoad, gateway: StreamLoad, pid: int, runs: int) -> list[str]:
    """Return the lines of the two loads by turns, and of what the gateway adds to a token."""
    from bench_convert import spread

    ratios, costs, rates = [], [], []
    for index in range(runs):
        direct = put(triton)
        before = Usage.of(pid).processor_s
        through = put(gateway)
        spent = Usage.of(pid).processor_s - before
        costs.append(1000 * spent / (gateway.requests * gateway.tokens))
        rates.append(through)
        ratios.append(through / direct)
        click.echo(
            f"{index + 1}/{runs}: {direct:.0f}, {through:.0f} tokens/s, {costs[-1]:.3f} ms",
            err=True,
        )
    return [
        f"| {gateway.streams} streams | |",
        "|---|--:|",
        f"| tokens/s through the gateway | {spread(rates, 0)} |",
        f"| of Triton's generate_stream alone | {spread(ratios, 2)} |",
        f"| processor time of the gateway for a token | {spread(costs, 3, ' ms')} |",
    ]


def held(load: StreamLoad, pid: int, rounds: int) -> list[str]:
    """Return the lines of what the gateway holds after each of several rounds."""
    lines = [
        f"| after rounds of {load.requests} requests, {load.streams} at a time | memory | "
        "descriptors |",
        "|---|--:|--:|",
    ]
    for index in range(rounds + 1):
        if index:
            put(load)
        usage = Usage.of(pid)
        lines.append(f"| {index} | {usage.memory_bytes / 1e6:.1f} MB | {usage.descriptors} |")
        click.echo(lines[-1], err=True)
    return lines


def report(runs: int, requests: int, protocol: str) -> None:
    """Run everything and print the tables."""
    from bench_clients import running_stub
    from bench_convert import machine

    tables: list[str] = []
    with running_stub() as urls, running_gateway(urls[protocol]) as (pid, port):
        port_of = {DIRECT: int(urls["http"].rpartition(":")[2]), OPENAI: port}
        direct, through = (
            StreamLoad(port=port_of[path], path=path, streams=16, requests=64, tokens=200)
            for path in (DIRECT, OPENAI)
        )
        put(replace(through, requests=16, tokens=8))  # connections and caches
        tables += [*measure(direct, through, pid, runs), ""]
        many = replace(through, streams=256, requests=512, tokens=50)
        tables += [*held(many, pid, rounds=4), ""]
        tables += held(replace(through, requests=requests // 2, tokens=1), pid, rounds=2)
    click.echo(machine(Path(tempfile.gettempdir())) + "\n")
    click.echo("\n".join(tables))


@click.command()
@click.option("--runs", default=5, show_default=True, help="Turns of the two ways")
@click.option("--requests", default=10_000, show_default=True, help="Short requests at the end")
@click.option(
    "--protocol",
    type=click.Choice(["http", "grpc"]),
    default="http",
    show_default=True,
    help="How the gateway asks Triton",
)
@click.option("--child", help="Put one load from here")
def main(runs: int, requests: int, protocol: str, child: str | None) -> None:
    """Measure what the gateway adds to a token, and what it keeps."""
    if child:
        click.echo(json.dumps(asyncio.run(_put_here(StreamLoad(**json.loads(child))))))
    else:
        report(runs, requests, protocol)


if __name__ == "__main__":
    main()
