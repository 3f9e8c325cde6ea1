"""What is known of each request: its id, a line in the log, and figures for Prometheus."""

from __future__ import annotations

import logging
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

GONE_STATUS: Final = 499
"""What is logged for a client that left before its answer, as nginx does."""

FAULT_STATUS: Final = 500
"""What is logged for a fault of the gateway's own, before any answer to it."""

_OWN_ID: Final = re.compile(r"[\w.:-]{1,128}", re.ASCII)
# Up to 10 s those of Prometheus's Go client, and beyond, as answers take longer than pages.
_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)


@dataclass(slots=True)
class RequestNotes:
    """What is found out about a request while it is answered."""

    request_id: str
    begun_s: float = field(default_factory=time.monotonic)
    owner: str = "-"
    model: str = "-"
    prompt_tokens: int = 0
    completion_tokens: int = 0
    first_chunk_s: float | None = None
    status: int = 0

    def note_first_chunk(self) -> None:
        """Note when the answer began."""
        if self.first_chunk_s is None:
            self.first_chunk_s = time.monotonic() - self.begun_s


def notes_of(scope: Scope) -> RequestNotes:
    """Return the notes that go with a request."""
    notes = scope["state"]["notes"]
    assert isinstance(notes, RequestNotes)
    return notes


class Metrics:
    """The gateway's figures, by Prometheus's rules for names."""

    def __init__(self) -> None:
        # In the library's own registry a second gateway of a process would find the names taken.
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "minitron_gateway_requests",
            "Requests by path and HTTP status (499: the client left)",
            ("path", "status"),
            registry=self._registry,
        )
        self._seconds = self._histogram("request_seconds", "From a request to its end")
        self._first = self._histogram(
            "time_to_first_chunk_seconds", "From a request to its first text"
        )
        self._tokens = Counter(
            "minitron_gateway_tokens",
            "Tokens that clients sent and got",
            ("model", "kind"),
            registry=self._registry,
        )
        self.running = Gauge(
            "minitron_gateway_running_requests",
            "Requests that are being answered",
            registry=self._registry,
        )

    def _histogram(self, name: str, help_text: str) -> Histogram:
        return Histogram(
            f"minitron_gateway_{name}",
            help_text,
            ("path",),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def count(self, path: str, notes: RequestNotes) -> None:
        """Count a request that has ended."""
        self._requests.labels(path, str(notes.status)).inc()
        self._seconds.labels(path).observe(time.monotonic() - notes.begun_s)
        if notes.first_chunk_s is not None:
            self._first.labels(path).observe(notes.first_chunk_s)
            self._tokens.labels(notes.model, "prompt").inc(notes.prompt_tokens)
            self._tokens.labels(notes.model, "completion").inc(notes.completion_tokens)

    def text(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self._registry)

    content_type = CONTENT_TYPE_PLAIN_0_0_4


class RequestLog:
    """The outermost layer: gives each request an id, and says in the log what became of it."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, paths: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, with its notes, and log what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        notes = RequestNotes(_request_id(scope))
        scope.setdefault("state", {})["notes"] = notes

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                notes.status = message["status"]
                headers = list(message.get("headers", ()))
                message["headers"] = [*headers, (b"x-request-id", notes.request_id.encode())]
            await send(message)

        self._metrics.running.inc()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            # Starlette answers a fault above this layer, which its status does not pass.
            notes.status = notes.status or FAULT_STATUS
            raise
        finally:
            self._metrics.running.dec()
            self._end(scope, notes)

    def _end(self, scope: Scope, notes: RequestNotes) -> None:
        # A path that is none of ours is anything that a client may type: no name for a figure.
        path = scope["path"] if scope["path"] in self._paths else "other"
        self._metrics.count(path, notes)
        # Who only looks whether the server lives is not worth a line.
        level = logging.DEBUG if path in ("/health", "/metrics") else logging.INFO
        log.log(
            level,
            "%s %s %d %.3f s, %d+%d tokens, model %s, key %s, id %s",
            scope["method"],
            scope["path"],
            notes.status,
            time.monotonic() - notes.begun_s,
            notes.prompt_tokens,
            notes.completion_tokens,
            notes.model,
            notes.owner,
            notes.request_id,
        )


def _request_id(scope: Scope) -> str:
    """Return the client's own id where it sent one that is fit to be logged, else a new one."""
    own = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    text = own.decode("latin-1")
    return text if _OWN_ID.fullmatch(text) else uuid.uuid4().hex
