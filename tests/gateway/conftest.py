"""A gateway on a real port, before a double of Triton that says its prompt back."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpcore2
import msgspec
import pytest
from tests.patience import PATIENCE_S, until

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Timeouts
from minitron_trt.clients.messages import TENSORS, Chunk, GenerateRequest
from minitron_trt.clients.model_interface import ModelInterface
from minitron_trt.clients.transport import AsyncEchoTransport
from minitron_trt.errors import RefusedError
from minitron_trt.gateway.app import GatewayOptions, gateway_app
from minitron_trt.gateway.gateway_server import Listener, gateway_server
from minitron_trt.gateway.served_models import ServedModels

# Those of `ensemble`: drafts are made for tensorrt_llm_bls alone.
INPUTS: Final = {
    name: (kind, (-1, -1)) for name, kind in TENSORS.items() if name != "num_draft_tokens"
}
ENSEMBLE: Final = ModelInterface.of_metadata(
    INPUTS, ["text_output", "finish_reason"], is_decoupled=True, is_triton=True
)
UPSTREAM: Final = ModelInterface.of_metadata(
    {name: value for name, value in INPUTS.items() if name != "apply_chat_template"},
    ["text_output"],
    is_decoupled=True,
    is_triton=True,
)


class EchoDouble(AsyncEchoTransport):
    """Says each sequence's prompt back, a word a token, with counts, log-probs and reasons.

    A prompt that begins with `stall` stops after its first word until the request is cancelled;
    `error` is raised in place of an answer, after `error_after` words.
    """

    def __init__(self, interface: ModelInterface = ENSEMBLE) -> None:
        super().__init__()
        self.interfaces = {"ensemble": interface}
        self.forget()

    def forget(self) -> None:
        """Be as new."""
        self.requests.clear()
        self.cancelled.clear()
        self.error: Exception | None = None
        self.error_after = 0
        self.left = threading.Event()
        self.is_ready = True

    async def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        if request.model not in self.interfaces:
            raise RefusedError(f"Request for unknown model: '{request.model}' is not found")
        return self.interfaces[request.model]

    async def ready(self, deadlines: Deadlines) -> bool:
        return self.is_ready

    async def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> AsyncGenerator[Chunk, None]:
        self.requests.append(request)
        self.interfaces[request.model].call(request)
        words = request.text_input.split(" ")
        try:
            for index, word in enumerate(words[: request.max_tokens]):
                if self.error is not None and index >= self.error_after:
                    raise self.error
                for sequence in range(request.sequences):
                    yield self._chunk(request, words, index, sequence)
                if word == "stall":
                    await asyncio.sleep(PATIENCE_S)
            yield Chunk("", final=True)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.append(request)
            self.left.set()
            raise

    def _chunk(
        self, request: GenerateRequest, words: list[str], index: int, sequence: int
    ) -> Chunk:
        last = min(len(words), request.max_tokens or 0) - 1
        reason = "stop" if last == len(words) - 1 else "length"
        log_probs = {"output_log_probs": [-0.5]} if request.return_log_probs else {}
        return Chunk(
            words[index] if index == 0 else " " + words[index],
            sequence=sequence,
            finish_reason=reason if index == last else None,
            outputs={"num_input_tokens": [len(words)], "num_output_tokens": [1], **log_probs},
        )


@dataclass
class Running:
    """A gateway that runs."""

    url: str
    triton: EchoDouble

    def ask(
        self, method: str, path: str, body: Any = None, **headers: str
    ) -> tuple[int, dict[str, str], Any]:
        """Return status, headers and body of an answer, the body as JSON where it is."""
        sent = {"content-type": "application/json", **headers} if body is not None else headers
        content = body if isinstance(body, (bytes, type(None))) else msgspec.json.encode(body)
        reply = httpcore2.request(method, self.url + path, headers=[*sent.items()], content=content)
        told = {name.decode().lower(): value.decode() for name, value in reply.headers}
        is_json = told.get("content-type") == "application/json"
        return reply.status, told, msgspec.json.decode(reply.content) if is_json else reply.content


@contextlib.contextmanager
def running_gateway(
    triton: EchoDouble,
    options: GatewayOptions | None = None,
    *,
    listener: Listener | None = None,
    **served: Any,
) -> Iterator[Running]:
    """Run a gateway in a thread of its own until the block is left."""
    listener = listener or Listener(port=0, drain_s=5)
    client = AsyncClient(triton, timeouts=Timeouts(total_s=PATIENCE_S), max_retries=0)
    models = ServedModels(client, **{"chat_max_tokens": 128, **served})
    server = gateway_server(gateway_app(client, models, options or GatewayOptions()), listener)
    with listener.open() as taken:
        url = listener.url(taken)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]})
        thread.start()
        try:
            until(lambda: server.started)
            yield Running(url, triton)
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


@pytest.fixture(scope="session")
def _shared_gateway() -> Iterator[Running]:
    with running_gateway(EchoDouble()) as running:
        yield running


@pytest.fixture
def gateway(_shared_gateway: Running) -> Running:
    """A gateway before a double of our ensemble, which nobody has asked anything yet."""
    _shared_gateway.triton.forget()
    return _shared_gateway
