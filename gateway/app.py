"""The gateway as an ASGI application: routes, and what each request passes on its way to one."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Generic

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.errors import MinitronError, one_line
from minitron_trt.gateway.access import ApiKeys
from minitron_trt.gateway.generation import (
    ClientGoneError,
    Numbered,
    numbered_chunks,
    unless_gone,
)
from minitron_trt.gateway.limits import GatewayLimits, Places, Rates, read_limited
from minitron_trt.gateway.openai_answers import Answer
from minitron_trt.gateway.openai_errors import ApiError, api_error
from minitron_trt.gateway.openai_fields import B, ChatRequest, CompletionRequest, read_body
from minitron_trt.gateway.openai_requests import (
    AskedText,
    ModelTarget,
    asked_chat,
    asked_completion,
)
from minitron_trt.gateway.page import show_page
from minitron_trt.gateway.request_log import (
    GONE_STATUS,
    Metrics,
    RequestLog,
    log,
    notes_of,
)
from minitron_trt.gateway.served_models import ServedModels

_JSON: Final = "application/json"
# Without a key: what a load balancer looks at, and the page, which asks for the key.
_OPEN_PATHS: Final = frozenset({"/health", "/"})
_EVENT_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # nginx would hold the pieces back.
    (b"x-accel-buffering", b"no"),
)


@dataclass(frozen=True, slots=True)
class GatewayOptions:
    """Who may ask the gateway, and how much."""

    keys: ApiKeys | None = None
    limits: GatewayLimits = field(default_factory=GatewayLimits)
    cors_origins: tuple[str, ...] = ()


def gateway_app(client: AsyncClient, models: ServedModels, options: GatewayOptions) -> Starlette:
    """Return the application; it closes the client when it ends."""
    metrics = Metrics()
    places = Places(options.limits.running)
    api = _ModelsApi(client, models, metrics)
    shared = (client, models, places, options.limits)
    completions = TextEndpoint(CompletionRequest, asked_completion, *shared)
    chats = TextEndpoint(ChatRequest, asked_chat, *shared)
    routes = [
        Route("/v1/completions", completions, methods=["POST"]),
        Route("/v1/chat/completions", chats, methods=["POST"]),
        Route("/v1/models", api.list_models),
        Route("/v1/models/{name:path}", api.show_model),
        Route("/", show_page),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
    ]
    cors = Middleware(
        CORSMiddleware,
        allow_origins=options.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id"],
    )
    paths = frozenset(route.path for route in routes)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with client:
            yield

    return Starlette(
        routes=routes,
        middleware=[
            # The log is outermost: what is turned away has an id and a line, too. CORS is before
            # keys, as the question that a browser sends ahead has none.
            Middleware(RequestLog, metrics=metrics, paths=paths),
            *([cors] if options.cors_origins else []),
            Middleware(Admission, keys=options.keys, rates=Rates(options.limits.rate_per_minute)),
        ],
        exception_handlers={
            ApiError: _on_api_error,
            HTTPException: _on_http_error,
            Exception: _on_fault,
        },
        lifespan=lifespan,
    )


class Admission:
    """Turns away who has no key, or too many requests."""

    def __init__(self, app: ASGIApp, *, keys: ApiKeys | None, rates: Rates) -> None:
        self._app = app
        self._keys = keys
        self._rates = rates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer with an error."""
        if scope["type"] == "http" and scope["path"] not in _OPEN_PATHS:
            try:
                self._admit(Request(scope))
            except ApiError as error:
                await _error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, request: Request) -> None:
        client = request.client.host if request.client else "-"
        if self._keys is not None:
            client = self._keys.owner(request.headers.get("authorization"))
            notes_of(request.scope).owner = client
        # Not /metrics, which Prometheus asks at a pace of its own.
        if request.url.path.startswith("/v1/"):
            self._rates.spend(client)


class TextEndpoint(Generic[B]):
    """Answers a POST for text, whole or as a stream; a client that leaves cancels it in Triton.

    `ask` turns the fields of a body of this kind into the requests for a model.
    """

    def __init__(
        self,
        kind: type[B],
        ask: Callable[[B, ModelTarget], AskedText],
        client: AsyncClient,
        models: ServedModels,
        places: Places,
        limits: GatewayLimits,
    ) -> None:
        self._kind = kind
        self._ask = ask
        self._client = client
        self._models = models
        self._places = places
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, as an ASGI application."""
        # An ASGI application has `receive`, by which a client is seen to leave; a function that
        # Starlette calls with a request has not.
        model = "-"
        try:
            fields = read_body(await self._body(Request(scope), receive), self._kind)
            model = fields.model
            asked = self._ask(fields, await self._models.target(model))
            # Noted when it is known to be a model's: a label of figures, and clients type anything.
            notes_of(scope).model = model
            await unless_gone(receive, self._answer(asked, scope, receive, send))
        except ClientGoneError:
            notes_of(scope).status = GONE_STATUS
        except MinitronError as error:
            raise _logged(error, model) from error

    async def _body(self, request: Request, receive: Receive) -> bytes:
        # A page of another site may post any other type without being asked, see CORS.
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise ApiError(f"The request's Content-Type must be {_JSON}.", status=415)
        told = request.headers.get("content-length", "")
        return await read_limited(receive, self._limits, int(told) if told.isdecimal() else None)

    async def _answer(self, asked: AskedText, scope: Scope, receive: Receive, send: Send) -> None:
        notes, answer = notes_of(scope), Answer(asked)
        try:
            places = self._places.take(asked.sequences)
            stream = numbered_chunks(self._client, asked.requests, places)
            async with contextlib.aclosing(stream) as chunks:
                if asked.streams:
                    # Until here an error has a status of its own.
                    first = await anext(chunks)
                    notes.note_first_chunk()
                    await _send_events(_events(asked, answer, first, chunks), send)
                    return
                async for prompt, chunk in chunks:
                    notes.note_first_chunk()
                    answer.take(prompt, chunk)
        finally:
            # Of a client that left, too: its tokens were made.
            notes.prompt_tokens = answer.prompt_tokens or 0
            notes.completion_tokens = answer.completion_tokens
        await _json_response(answer.whole())(scope, receive, send)


async def _events(
    asked: AskedText, answer: Answer, first: Numbered, rest: AsyncGenerator[Numbered, None]
) -> AsyncIterator[bytes]:
    """Yield the events of a stream; an error after the first ends it, as OpenAI has it."""
    try:
        for event in answer.take(*first):
            yield _event(event)
        async for numbered in rest:
            for event in answer.take(*numbered):
                yield _event(event)
    except MinitronError as error:
        yield _event(_logged(error, asked.model).record())
        return
    if asked.include_usage:
        yield _event(answer.usage_chunk())
    yield b"data: [DONE]\n\n"


async def _send_events(events: AsyncIterator[bytes], send: Send) -> None:
    start: Message = {"type": "http.response.start", "status": 200}
    await send({**start, "headers": list(_EVENT_HEADERS)})
    async for event in events:
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def _event(record: Mapping[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(record) + b"\n\n"


class _ModelsApi:
    """The paths that are only looked at."""

    def __init__(self, client: AsyncClient, models: ServedModels, metrics: Metrics) -> None:
        self._client = client
        self._models = models
        self._metrics = metrics

    async def list_models(self, _: Request) -> Response:
        """Answer /v1/models."""
        try:
            return _json_response({"object": "list", "data": await self._models.records()})
        except MinitronError as error:
            raise _logged(error, "-") from error

    async def show_model(self, request: Request) -> Response:
        """Answer /v1/models/NAME."""
        name = request.path_params["name"]
        try:
            return _json_response(await self._models.record(name))
        except MinitronError as error:
            raise _logged(error, name) from error

    async def health(self, _: Request) -> Response:
        """Answer /health: 200 when Triton can take requests, else 503."""
        try:
            is_ready = await self._client.ready()
        # What is wrong with Triton is for its operator: a load balancer asks for yes or no.
        except MinitronError:
            is_ready = False
        record = {"status": "ok" if is_ready else "the model's server is not ready"}
        return _json_response(record, status=200 if is_ready else 503)

    async def metrics(self, _: Request) -> Response:
        """Answer /metrics."""
        return Response(self._metrics.text(), media_type=self._metrics.content_type)


def _json_response(record: Mapping[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(record), status, media_type=_JSON)


def _error_response(error: ApiError) -> Response:
    return Response(
        msgspec.json.encode(error.record()), error.status, error.headers, media_type=_JSON
    )


def _logged(error: MinitronError, model: str) -> ApiError:
    """Return what the client is told; what only the operator may know goes into the log."""
    told = api_error(error, model)
    if str(told) != str(error):
        log.warning("%s", one_line(str(error)))
    return told


async def _on_api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"({request.method} {request.url.path})"
    words = {404: f"Invalid URL {where}", 405: f"Not allowed to {request.method} here {where}"}
    told = ApiError(words.get(error.status_code, error.detail), status=error.status_code)
    return _error_response(told)


async def _on_fault(request: Request, error: Exception) -> Response:
    response = _error_response(api_error(error, "-"))
    # Starlette answers a fault above RequestLog, which gives other answers their id.
    response.headers["x-request-id"] = notes_of(request.scope).request_id
    return response
