"""Spans of requests, by OpenTelemetry's own package."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import RefusedError

if TYPE_CHECKING:
    from tests.clients.conftest import TritonDouble

trace = pytest.importorskip("opentelemetry.trace")
sdk = pytest.importorskip("opentelemetry.sdk.trace")
export = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
processors = pytest.importorskip("opentelemetry.sdk.trace.export")


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """What is traced while a test runs."""
    exporter, provider = export.InMemorySpanExporter(), sdk.TracerProvider()
    provider.add_span_processor(processors.SimpleSpanProcessor(exporter))
    # A program sets its provider once, so it is not set but replaced.
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    yield exporter.get_finished_spans
    provider.shutdown()


def test_a_request_is_a_span_whose_context_goes_with_it(triton: TritonDouble, spans: Any) -> None:
    triton.model.outputs += ("finish_reason",)

    async def ask() -> None:
        async with AsyncClient.connect(triton.url) as client:
            await client.generate("say one two", max_tokens=7, temperature=0.5)

    with Client.connect(triton.url) as client:
        client.generate("say one two", max_tokens=7, temperature=0.5)
    asyncio.run(ask())

    for span, headers in zip(spans(), triton.headers, strict=True):
        assert span.name == "text_completion ensemble"
        assert span.attributes == {
            "gen_ai.operation.name": "text_completion",
            "gen_ai.provider.name": "nvidia.triton",
            "gen_ai.request.model": "ensemble",
            "gen_ai.request.max_tokens": 7,
            "gen_ai.request.temperature": 0.5,
        }
        assert [event.name for event in span.events] == ["first token"]
        ids = f"{span.context.trace_id:032x}-{span.context.span_id:016x}"
        assert headers["traceparent"].startswith(f"00-{ids}-0")


def test_a_failed_request_is_a_span_with_its_error(triton: TritonDouble, spans: Any) -> None:
    with Client.connect(triton.url) as client, pytest.raises(RefusedError):
        client.generate("refuse that")

    (span,) = spans()
    assert span.attributes["error.type"] == "RefusedError"
    assert span.status.description == "the server refused the request: " + (
        "in ensemble 'ensemble', that and a second line"
    )


def test_leaving_a_stream_ends_its_span(triton: TritonDouble, spans: Any) -> None:
    with Client.connect(triton.url) as client, client.stream(GenerateRequest("forever a")) as some:
        next(some)

    (span,) = spans()
    assert span.attributes["gen_ai.response.finish_reasons"] == ("cancelled",)


def test_who_does_not_trace_does_not_load_it() -> None:
    code = (
        "from minitron_trt.clients import Client, EchoTransport; import sys; "
        "assert Client(EchoTransport()).generate('a') == 'a'; "
        "assert not [name for name in sys.modules if name.startswith('opentelemetry')]"
    )

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
