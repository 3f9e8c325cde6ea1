"""Measure the clients against the least code that does the same, on the real tritonserver.

    python benchmarks/bench_clients.py --runs 5

The server has an engine that emits tokens at once, so that what is left is the way to the client.
Each work is a process of its own: so many tokens in streams, then so many short requests one after
another. Works take turns, and a ratio is of one turn: of processor time, which others on the
machine disturb less, and of wall time.

The yardsticks: tritonclient's gRPC stream, sync and asyncio, and httpx with its own lines of an
event stream. A request of ours can be cancelled alone, as one of tritonclient with a stream of its
own; with one stream for all that is not so.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import queue
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click

TOKENS: Final = 10_000
PER_STREAM: Final = 500
REQUESTS: Final = 1_000
PROMPT: Final = "Complete the paragraph: our solar system is"

# What is measured beside what it is measured against.
PAIRS: Final = (
    ("Client gRPC", "tritonclient, a stream each"),
    ("Client gRPC", "tritonclient, one stream"),
    ("AsyncClient gRPC", "tritonclient aio"),
    ("Client HTTP", "httpx"),
    ("AsyncClient HTTP", "httpx async"),
)
IMPORTS: Final = {
    "the client": ("from minitron_trt import Client", "pass"),
    "the client, connected by HTTP": (
        "from minitron_trt import Client; Client.connect('http://127.0.0.1:1')",
        "import httpcore2",
    ),
    "the client, connected by gRPC": (
        "from minitron_trt import Client; Client.connect('grpc://127.0.0.1:1')",
        "import tritonclient.grpc",
    ),
}


def loads() -> list[tuple[int, int]]:
    """Return the two loads: how many requests of how many tokens."""
    return [(TOKENS // PER_STREAM, PER_STREAM), (REQUESTS, 1)]


def ours_sync(url: str) -> Callable[[int, int], None]:
    """Return the work of Client: streams of so many tokens."""
    from minitron_trt import Client

    client = Client.connect(url)

    def run(requests: int, tokens: int) -> None:
        for _ in range(requests):
            with client.stream(PROMPT, max_tokens=tokens) as stream:
                for piece in stream:
                    str(piece)

    return run


def ours_async(url: str) -> Callable[[int, int], None]:
    """Return the work of AsyncClient."""
    from minitron_trt import AsyncClient

    client = AsyncClient.connect(url)
    # One for all rounds: connections are of the loop that opened them.
    loop = asyncio.new_event_loop()

    async def ask(requests: int, tokens: int) -> None:
        for _ in range(requests):
            async with client.stream(PROMPT, max_tokens=tokens) as stream:
                async for piece in stream:
                    str(piece)

    return lambda requests, tokens: loop.run_until_complete(ask(requests, tokens))


def _inputs(library: Any, tokens: int) -> list[Any]:
    import numpy as np

    values = {
        "text_input": ("BYTES", np.array([[PROMPT]], np.object_)),
        "max_tokens": ("INT32", np.array([[tokens]], np.int32)),
        "stream": ("BOOL", np.array([[True]])),
    }
    inputs = []
    for name, (datatype, value) in values.items():
        each = library.InferInput(name, value.shape, datatype)
        each.set_data_from_numpy(value)
        inputs.append(each)
    return inputs


def _is_final(result: Any) -> bool:
    parameters = result.get_response().parameters
    return bool(parameters["triton_final_response"].bool_param)


def raw_sync(url: str) -> Callable[[int, int], None]:
    """Return the work of tritonclient with one stream for all requests, cancelled together."""
    import tritonclient.grpc as library

    client = library.InferenceServerClient(url.removeprefix("grpc://"))
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    client.start_stream(lambda result, error: answers.put((result, error)))

    def run(requests: int, tokens: int) -> None:
        for _ in range(requests):
            _ask_and_read(client, library, answers, tokens)

    return run


def raw_each(url: str) -> Callable[[int, int], None]:
    """Return the work of tritonclient with a stream for each request, which can be cancelled."""
    import tritonclient.grpc as library

    client = library.InferenceServerClient(url.removeprefix("grpc://"))
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def run(requests: int, tokens: int) -> None:
        for _ in range(requests):
            client.start_stream(lambda result, error: answers.put((result, error)))
            _ask_and_read(client, library, answers, tokens)
            client.stop_stream()

    return run


def _ask_and_read(client: Any, library: Any, answers: Any, tokens: int) -> None:
    client.async_stream_infer(
        "ensemble",
        _inputs(library, tokens),
        outputs=[library.InferRequestedOutput("text_output")],
        enable_empty_final_response=True,
    )
    while True:
        result, error = answers.get()
        if error:
            raise error
        text = result.as_numpy("text_output")
        if text is not None:
            text.reshape(-1)[0].decode()
        if _is_final(result):
            return


def raw_async(url: str) -> Callable[[int, int], None]:
    """Return the work of tritonclient's stream in asyncio."""
    import tritonclient.grpc.aio as library

    loop = asyncio.new_event_loop()

    async def connect() -> Any:
        return library.InferenceServerClient(url.removeprefix("grpc://"))

    client = loop.run_until_complete(connect())

    async def ask(requests: int, tokens: int) -> None:
        for _ in range(requests):

            async def one() -> Any:
                yield {
                    "model_name": "ensemble",
                    "inputs": _inputs(library, tokens),
                    "outputs": [library.InferRequestedOutput("text_output")],
                    "enable_empty_final_response": True,
                }

            async for result, error in client.stream_infer(one()):
                if error:
                    raise error
                text = result.as_numpy("text_output")
                if text is not None:
                    text.reshape(-1)[0].decode()

    return lambda requests, tokens: loop.run_until_complete(ask(requests, tokens))


def _body(tokens: int) -> dict[str, Any]:
    return {"text_input": PROMPT, "max_tokens": tokens, "stream": True}


_PATH: Final = "/v2/models/ensemble/generate_stream"


def httpx_sync(url: str) -> Callable[[int, int], None]:
    """Return the work of httpx and its lines of an event stream."""
    import httpx2

    client = httpx2.Client(base_url=url, timeout=120)

    def run(requests: int, tokens: int) -> None:
        for _ in range(requests):
            with client.stream("POST", _PATH, json=_body(tokens)) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    if line.startswith("data:"):
                        json.loads(line[5:])["text_output"]

    return run


def httpx_async(url: str) -> Callable[[int, int], None]:
    """Return the work of httpx in asyncio."""
    import httpx2

    client = httpx2.AsyncClient(base_url=url, timeout=120)
    loop = asyncio.new_event_loop()

    async def ask(requests: int, tokens: int) -> None:
        for _ in range(requests):
            async with client.stream("POST", _PATH, json=_body(tokens)) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        json.loads(line[5:])["text_output"]

    return lambda requests, tokens: loop.run_until_complete(ask(requests, tokens))


# One work for both protocols: the URL says which it is.
WORKS: Final[dict[str, Callable[[str], Callable[[int, int], None]]]] = {
    "Client gRPC": ours_sync,
    "tritonclient, a stream each": raw_each,
    "tritonclient, one stream": raw_sync,
    "AsyncClient gRPC": ours_async,
    "tritonclient aio": raw_async,
    "Client HTTP": ours_sync,
    "httpx": httpx_sync,
    "AsyncClient HTTP": ours_async,
    "httpx async": httpx_async,
}


def measure(name: str, url: str) -> list[tuple[float, float]]:
    """Return processor and wall seconds of each load, in this process."""
    run = WORKS[name](url)
    run(3, 8)  # connections and caches
    seconds = []
    for requests, tokens in loads():
        start, wall = time.process_time(), time.monotonic()
        run(requests, tokens)
        seconds.append((time.process_time() - start, time.monotonic() - wall))
    return seconds


def held_after(name: str, url: str, requests: int) -> list[tuple[float, int]]:
    """Return megabytes of memory and descriptors of this process, after a tenth and after all."""
    run = WORKS[name](url)
    figures = []
    for part in (requests // 10, requests - requests // 10):
        run(part, 1)
        # What only waits to be collected is not held.
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        memory_mb = pages * os.sysconf("SC_PAGE_SIZE") / 1e6
        figures.append((round(memory_mb, 1), len(list(Path("/proc/self/fd").iterdir()))))
    return figures


def turn(name: str, urls: dict[str, str]) -> list[tuple[float, float]]:
    """Do the same in a process of its own."""
    return [tuple(each) for each in in_a_child(name, urls)]


def in_a_child(name: str, urls: dict[str, str], *options: str) -> Any:
    """Return what a process of its own says of a work."""
    is_http = "HTTP" in name or "httpx" in name
    url = urls["http" if is_http else "grpc"]
    done = subprocess.run(
        [sys.executable, __file__, "--child", name, "--url", url, *options],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    )
    return json.loads(done.stdout)


def import_seconds(code: str) -> float:
    """Return the processor seconds of a Python that runs some code."""
    # From the process's begin: Python's own start is in it, and in the yardstick alone.
    program = f"{code}\nimport time; print(time.process_time())"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, check=True, text=True
    )
    return float(done.stdout)


def imports(runs: int) -> list[str]:
    """Return the lines of how long it takes until a client could connect."""
    lines = ["| import | ms of processor time | more than | ratio |", "|---|--:|--:|--:|"]
    for name, (code, yardstick) in IMPORTS.items():
        found = [(import_seconds(code), import_seconds(yardstick)) for _ in range(runs * 2)]
        ours, theirs = (statistics.median(each) * 1000 for each in zip(*found, strict=True))
        ratios = sorted(a / b for a, b in found)
        beside = "python itself" if yardstick == "pass" else yardstick.removeprefix("import ")
        lines.append(
            f"| {name} | {ours:.0f} | {beside} by {ours - theirs:.0f} | "
            f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f}) |"
        )
    return lines


@contextlib.contextmanager
def running_stub() -> Iterator[dict[str, str]]:
    """Run the server whose engine emits at once; yield its URLs by protocol."""
    from bench_serve import SAMPLE, make_stub_repository

    from minitron_trt.convert.conversion import ConvertOptions, convert
    from minitron_trt.samples import sample_folder
    from minitron_trt.triton_repo.serving.runners import running_server
    from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert(str(sample_folder(SAMPLE)), folder / "checkpoint", ConvertOptions())
        repository = make_stub_repository(folder, folder / "checkpoint", 1, 0)
        options = ServerOptions(free_endpoints())
        with running_server(repository, options, "embedded", timeout_s=600) as server:
            yield {"grpc": server.endpoints.grpc_url, "http": server.endpoints.http_url}


def report_held(requests: int) -> None:
    """Print what each client holds after many short requests."""
    click.echo(
        f"| after {requests // 10} and {requests} requests | memory | descriptors |\n|---|--:|--:|"
    )
    with running_stub() as urls:
        for name in (name for name in WORKS if "Client" in name):
            (early_mb, early), (late_mb, late) = in_a_child(name, urls, "--many", str(requests))
            click.echo(f"| {name} | {early_mb} MB, {late_mb} MB | {early}, {late} |")


def report(runs: int) -> None:
    """Run everything and print the tables."""
    from bench_convert import machine, spread

    found: dict[str, list[list[tuple[float, float]]]] = defaultdict(list)
    with running_stub() as urls:
        for index in range(runs):
            for work in WORKS:
                found[work].append(turn(work, urls))
                click.echo(f"{index + 1}/{runs} {work}: {found[work][-1]}", err=True)
    click.echo(machine(Path(tempfile.gettempdir())))
    click.echo(
        f"| of the yardstick's | {TOKENS} tokens: processor | wall | "
        f"{REQUESTS} requests: processor | wall |\n|---|--:|--:|--:|--:|"
    )
    for ours, yardstick in PAIRS:
        cells = [
            spread(
                [
                    a[load][kind] / b[load][kind]
                    for a, b in zip(found[ours], found[yardstick], strict=True)
                ],
                2,
            )
            for load in (0, 1)
            for kind in (0, 1)
        ]
        click.echo(f"| {ours} / {yardstick} | " + " | ".join(cells) + " |")
    click.echo("\n" + "\n".join(imports(runs)))


@click.command()
@click.option("--runs", default=5, show_default=True, help="Turns of every work")
@click.option("--many", type=int, help="Look at what is held after so many requests instead")
@click.option("--child", help="Measure one work here")
@click.option("--url", default="", help="Where its server is")
def main(runs: int, many: int | None, child: str | None, url: str) -> None:
    """Measure the clients against the least code that does the same."""
    if child:
        click.echo(json.dumps(held_after(child, url, many) if many else measure(child, url)))
    elif many:
        report_held(many)
    else:
        report(runs)


if __name__ == "__main__":
    main()
