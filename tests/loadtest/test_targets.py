"""What is asked of a service, and what is noted of its answer."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.gateway.conftest import EchoDouble, Running, running_gateway

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.errors import (
    MinitronError,
    ProtocolError,
    RefusedError,
    ServerError,
    UnreachableError,
    UsageError,
)
from minitron_trt.loadtest.openai_target import OpenAiTarget
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.target import (
    CHAT,
    COMPLETIONS,
    TRITON,
    LoadTarget,
    TargetOptions,
    endpoint_type_of,
    extra_inputs,
)
from minitron_trt.loadtest.triton_target import TritonTarget
from minitron_trt.loadtest.workload import Question

WORDS = Question("one two three", 8)


@pytest.fixture(scope="module")
def double() -> Iterator[Running]:
    with running_gateway(EchoDouble()) as running:
        yield running


def options(running: Running | None = None, kind: str = COMPLETIONS, **other: Any) -> TargetOptions:
    url = f"{running.url}/v1" if running else "grpc://127.0.0.1:1"
    return TargetOptions(url=url, endpoint_type=kind, **other)


def asked(target: LoadTarget, question: Question = WORDS) -> RequestRecord:
    record = RequestRecord(0, 0, texts=[])

    async def ask() -> None:
        try:
            await target.check()
            await target.ask(question, record)
        finally:
            await target.close()

    asyncio.run(ask())
    record.end()
    return record


def seen(record: RequestRecord) -> tuple[list[str] | None, int | None, int | None]:
    return record.texts, record.input_tokens, record.counted_tokens


def test_triton_is_asked_by_the_client() -> None:
    triton = EchoDouble()
    extra = {"temperature": 0.5}
    target = TritonTarget(
        options(kind=TRITON, force_min_tokens=True, extra_inputs=extra), AsyncClient(triton)
    )

    record = asked(target)

    request = triton.requests[-1]
    assert seen(record) == (["one", " two", " three"], 3, 3)
    assert record.tokens_at_first == 1
    assert (request.max_tokens, request.min_tokens, request.temperature) == (8, 8, 0.5)


def test_messages_get_the_models_chat_template() -> None:
    triton = EchoDouble()
    question = Question([{"role": "user", "content": "Hi"}], 8)

    asked(TritonTarget(options(kind=TRITON), AsyncClient(triton)), question)

    assert triton.requests[-1].apply_chat_template


@pytest.mark.parametrize("kind", [COMPLETIONS, CHAT])
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_openais_api_is_asked_as_its_clients_do(double: Running, kind: str, stream: bool) -> None:
    double.triton.forget()
    question = Question("one two three", 2)
    # The double says messages back as the JSON that they are.
    said = {COMPLETIONS: ["one", " two"], CHAT: ['[{"role":', ' "user",']}[kind]

    record = asked(OpenAiTarget(options(double, kind, stream=stream)), question)

    texts, _, counted = seen(record)
    assert texts == (said if stream else ["".join(said)])
    assert counted == 2
    assert len(record.pieces_ns) == (2 if stream else 1)
    assert double.triton.requests[-1].max_tokens == 2


def test_the_body_is_openais() -> None:
    target = OpenAiTarget(
        TargetOptions("http://h/v1", CHAT, "m", force_min_tokens=True, extra_inputs={"seed": 1})
    )

    assert target.fields(Question("Hi", 3)) == {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_completion_tokens": 3,
        "min_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 1,
    }


def test_completions_take_no_messages(double: Running) -> None:
    with pytest.raises(UsageError, match="--endpoint-type chat"):
        asked(OpenAiTarget(options(double)), Question([{"role": "user", "content": "Hi"}], 3))


def test_a_refusal_has_the_servers_words(double: Running) -> None:
    with pytest.raises(RefusedError, match=r"HTTP 400: Unrecognized request argument.*colour"):
        asked(OpenAiTarget(options(double, extra_inputs={"colour": "red"})))


def test_an_answer_that_breaks_off_is_a_failure(double: Running) -> None:
    double.triton.forget()
    double.triton.error, double.triton.error_after = UnreachableError("Triton went away"), 1

    with pytest.raises(ServerError, match="server cannot be reached"):
        asked(OpenAiTarget(options(double)))
    double.triton.forget()


def test_nobody_there_is_unreachable() -> None:
    target = OpenAiTarget(TargetOptions("http://127.0.0.1:1/v1", COMPLETIONS))

    with pytest.raises(UnreachableError, match=r"no server answers at http://127\.0\.0\.1:1/v1"):
        asked(target)


class _Plain(BaseHTTPRequestHandler):
    """Answers every request with what its path stands for."""

    answers: dict[str, tuple[int, bytes]] = {}  # noqa: RUF012

    def do_GET(self) -> None:
        self._answer(b'{"data": [{"id": "m"}]}' if self.path.endswith("models") else b"")

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        status, body = self.answers[self.path.split("/")[1]]
        self._answer(body, status)

    def _answer(self, body: bytes, status: int = 200) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


def event(record: Any) -> bytes:
    return b"data: " + json.dumps(record).encode() + b"\n\n"


HOSTILE = {
    "page": (200, b"data: <html>\n\n", ProtocolError, "not OpenAI's protocol"),
    "types": (200, event({"choices": 3}), ProtocolError, "not OpenAI's protocol"),
    "cut": (200, event({"choices": [{"text": "a"}]}), UnreachableError, "before the answer was"),
    "error": (200, event({"error": {"message": "no room"}}), RefusedError, "no room"),
    "words": (200, event({"error": "no room"}), RefusedError, "no room"),
    "busy": (429, b"{}", RefusedError, "HTTP 429: no reason given"),
    "broken": (502, b"<html>", ServerError, "failed with HTTP 502"),
    "missing": (404, b'{"error": {"message": "no m"}}', RefusedError, "HTTP 404: no m"),
}


@pytest.fixture(scope="module")
def plain() -> Iterator[str]:
    _Plain.answers = {name: case[:2] for name, case in HOSTILE.items()}
    with ThreadingHTTPServer(("127.0.0.1", 0), _Plain) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_answer_is_an_error_of_its_kind(plain: str, name: str) -> None:
    _, _, kind, words = HOSTILE[name]

    with pytest.raises(MinitronError) as error:
        asked(OpenAiTarget(TargetOptions(f"{plain}/{name}/v1", COMPLETIONS)))
    assert type(error.value) is kind
    assert words in str(error.value)


def test_the_url_says_what_it_speaks() -> None:
    assert endpoint_type_of("http://127.0.0.1:9000/v1/", None) == COMPLETIONS
    assert endpoint_type_of("http://127.0.0.1:8000", None) == TRITON
    assert endpoint_type_of("http://127.0.0.1:9000/v1", CHAT) == CHAT


def test_extra_inputs_are_json_where_they_can_be() -> None:
    assert extra_inputs(["a:1", "b:true", "c:x:y", 'd:{"e": 2}']) == {
        "a": 1,
        "b": True,
        "c": "x:y",
        "d": {"e": 2},
    }
    with pytest.raises(UsageError, match="expected NAME:VALUE"):
        extra_inputs(["a"])
