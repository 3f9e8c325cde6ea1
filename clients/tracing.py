"""OpenTelemetry spans of requests, in programs that use OpenTelemetry.

Names are those of its conventions for generative AI. The span's context goes with the request as a
`traceparent` header (W3C), so that what is behind the server can go on with it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from minitron_trt.clients.messages import Chunk, GenerateRequest


class Span:
    """What a request's span hears of its answer; without OpenTelemetry nobody listens."""

    def __init__(self, request: GenerateRequest, span: Any = None) -> None:
        self.request = request
        self._span = span
        self._has_begun = False
        self._made = 0

    def note(self, chunk: Chunk) -> None:
        """Take a chunk of the answer."""
        if self._span is None:
            return
        if not self._has_begun and chunk.says_something:
            self._has_begun = True
            self._span.add_event("first token")
        if chunk.finish_reason:
            self._span.set_attribute("gen_ai.response.finish_reasons", [chunk.finish_reason])
        if counts := chunk.outputs.get("num_input_tokens"):
            self._span.set_attribute("gen_ai.usage.input_tokens", int(counts[-1]))
        if counts := chunk.outputs.get("num_output_tokens"):
            # Each response counts its own.
            self._made += sum(counts)
            self._span.set_attribute("gen_ai.usage.output_tokens", self._made)


@contextlib.contextmanager
def request_span(request: GenerateRequest) -> Iterator[Span]:
    """Yield the span of a request; its `request` is the one to send, with the span's context."""
    # A program that traces has loaded the package; to load it for others costs them time.
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        yield Span(request)
        return
    from opentelemetry.propagate import inject

    span = trace.get_tracer("minitron_trt").start_span(
        f"text_completion {request.model}",
        kind=trace.SpanKind.CLIENT,
        attributes=_attributes(request),
    )
    headers: dict[str, str] = {}
    # Not made the current span: a generator would leave it so between its chunks.
    inject(headers, context=trace.set_span_in_context(span))
    try:
        # A traceparent that the request has already stays: its caller is in a trace of its own.
        yield Span(replace(request, headers={**headers, **request.headers}), span)
    except GeneratorExit:
        span.set_attribute("gen_ai.response.finish_reasons", ["cancelled"])
        raise
    except BaseException as error:
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(trace.Status(trace.StatusCode.ERROR, str(error)))
        raise
    finally:
        span.end()


def _attributes(request: GenerateRequest) -> dict[str, Any]:
    options = {
        "gen_ai.operation.name": "text_completion",
        "gen_ai.provider.name": "nvidia.triton",
        "gen_ai.request.model": request.model,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.top_k": request.top_k,
        "gen_ai.request.seed": request.seed,
        "gen_ai.request.stop_sequences": list(request.stop_words) or None,
    }
    return {name: value for name, value in options.items() if value is not None}
