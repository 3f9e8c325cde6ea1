"""A server, or the model behind it, is killed while clients stream: each of them is told."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from tests.patience import PATIENCE_S, longer_and_longer
from tests.triton_repo.ticker import group_of

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import MinitronError, RefusedError, ServerError, UnreachableError
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server import TritonServer
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

FRONT_MODELS: Final = ("ensemble", "tensorrt_llm_bls")


@pytest.fixture
def server(checkpoint: Checkpoint, tmp_path: Path) -> Iterator[TritonServer]:
    """A server of its own, which serves all clients at once."""
    recipe = ServingRecipe(max_batch_size=8, bls_instances=4)
    emit_repository(checkpoint.folder, tmp_path / "repository", recipe)
    options = ServerOptions(free_endpoints(), drain_s=3)
    with running_server(tmp_path / "repository", options, timeout_s=PATIENCE_S) as server:
        yield server
        if group_of(server.pid):
            # It would wait for streams that nothing ends.
            os.kill(server.pid, signal.SIGKILL)


@dataclass(frozen=True)
class Ended:
    """What a client got: some text, and the error that ended it, if one did."""

    text: str
    error: MinitronError | None


Follow = Callable[[str, GenerateRequest, float, threading.Event], Ended]


def follow(url: str, request: GenerateRequest, timeout_s: float, begun: threading.Event) -> Ended:
    """Stream with Client."""
    text = ""
    try:
        with Client.connect(url, timeout_s=timeout_s) as client, client.stream(request) as pieces:
            for piece in pieces:
                text += piece
                begun.set()
    except MinitronError as error:
        return Ended(text, error)
    finally:
        begun.set()
    return Ended(text, None)


def follow_async(
    url: str, request: GenerateRequest, timeout_s: float, begun: threading.Event
) -> Ended:
    """Stream with AsyncClient."""

    async def run() -> Ended:
        text = ""
        try:
            async with (
                AsyncClient.connect(url, timeout_s=timeout_s) as client,
                client.stream(request) as pieces,
            ):
                async for piece in pieces:
                    text += piece
                    begun.set()
        except MinitronError as error:
            return Ended(text, error)
        finally:
            begun.set()
        return Ended(text, None)

    return asyncio.run(run())


def streams(
    threads: ThreadPoolExecutor, server: TritonServer, timeout_s: float
) -> list[Future[Ended]]:
    """Start a stream of each client, protocol and model; return when each has text, or ended."""
    urls = (server.endpoints.grpc_url, server.endpoints.http_url)
    ways: Sequence[tuple[Follow, str, str]] = list(
        itertools.product((follow, follow_async), urls, FRONT_MODELS)
    )
    begun = [threading.Event() for _ in ways]
    # Nothing ends them but the limit, which is some seconds away.
    long: dict[str, Any] = {"max_tokens": 900, "end_id": 0, "temperature": 1.0, "seed": 5}
    running = [
        threads.submit(run, url, GenerateRequest("The", model=model, **long), timeout_s, event)
        for (run, url, model), event in zip(ways, begun, strict=True)
    ]
    assert all(event.wait(PATIENCE_S) for event in begun)
    return running


def kill_model(server: TritonServer) -> None:
    """Kill the process in which Triton runs tensorrt_llm."""
    (stub,) = (
        pid
        for pid in group_of(server.pid)
        if b"tensorrt_llm/1/model.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    os.kill(stub, signal.SIGKILL)


def test_every_client_of_a_killed_server_gets_an_error_at_once(server: TritonServer) -> None:
    """No client takes the text that it has for the whole answer."""
    with ThreadPoolExecutor(8) as threads:
        running = streams(threads, server, timeout_s=PATIENCE_S)
        assert not any(stream.done() for stream in running)
        os.kill(server.pid, signal.SIGKILL)
        ended = [stream.result(timeout=PATIENCE_S) for stream in running]

    assert [type(end.error) for end in ended] == [UnreachableError] * len(ended)
    assert all("ended before the answer was complete" in str(end.error) for end in ended)


def test_every_stream_of_a_killed_model_ends_with_an_error(server: TritonServer) -> None:
    """Triton says nothing to requests under way, so that it is the client's limit that ends them.

    Nor does the Python backend start the process of a decoupled model again, and the server goes on
    to call itself ready: github.com/triton-inference-server/server/issues/8604.
    """
    with ThreadPoolExecutor(8) as threads:
        for seconds in longer_and_longer(8):
            running = streams(threads, server, seconds)
            if not any(stream.done() for stream in running):
                break
        kill_model(server)
        ended = [stream.result(timeout=seconds + PATIENCE_S) for stream in running]

    assert all(isinstance(end.error, ServerError) for end in ended)
    assert all(end.text for end in ended)


def test_requests_after_the_death_of_the_model_are_refused(server: TritonServer) -> None:
    urls = (server.endpoints.grpc_url, server.endpoints.http_url)
    kill_model(server)

    for url, model in itertools.product(urls, FRONT_MODELS):
        with (
            Client.connect(url, timeout_s=PATIENCE_S) as client,
            pytest.raises(RefusedError, match="'tensorrt_llm_0_0' is not healthy"),
        ):
            client.generate(GenerateRequest("The", max_tokens=2, model=model))
