"""What a request passes on its way: keys, limits, ids, errors of a body; and what is open."""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import threading
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families
from starlette.types import Message
from tests.gateway.conftest import UPSTREAM, EchoDouble, Running, running_gateway
from tests.patience import until

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.gateway.access import ApiKeys
from minitron_trt.gateway.app import GatewayOptions, gateway_app
from minitron_trt.gateway.limits import GatewayLimits, Rates
from minitron_trt.gateway.openai_errors import ApiError
from minitron_trt.gateway.served_models import ServedModels

PROMPT: dict[str, Any] = {"model": "ensemble", "prompt": "one two"}
SCOPE: Final = {
    "type": "http",
    "method": "POST",
    "scheme": "http",
    "path": "/v1/completions",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}
CHAT: dict[str, Any] = {"model": "ensemble", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        (b"{", None, "could not parse the JSON body"),
        (b'{"metadata":' + b"[" * 100_000, None, "could not parse the JSON body"),
        ({"prompt": "x"}, "model", "you must provide a model parameter"),
        ({"model": "ensemble"}, "prompt", "Missing required parameter: 'prompt'"),
        ({**PROMPT, "tempreature": 1}, None, "Unrecognized request argument supplied: tempreature"),
        ({**PROMPT, "temperature": 3}, "temperature", "<= 2"),
        ({**PROMPT, "max_tokens": "5"}, "max_tokens", "Expected `int | null`, got `str`"),
        ({**PROMPT, "stop": [1]}, "stop", "Expected `str`, got `int`"),
        ({**PROMPT, "n": 0}, "n", ">= 1"),
        ({**PROMPT, "seed": -1}, "seed", "a whole number from 0"),
        ({**PROMPT, "prompt": []}, "prompt", "it is empty"),
        ({**PROMPT, "prompt": [1, 2]}, "prompt", "no token ids"),
        ({**PROMPT, "suffix": "x"}, "suffix", "Unsupported parameter: 'suffix'"),
        ({**PROMPT, "logit_bias": {"5": 1}}, "logit_bias", "Unsupported parameter"),
        ({**PROMPT, "best_of": 3}, "best_of", "Unsupported parameter"),
        ({**PROMPT, "logprobs": 2, "temperature": 0}, "logprobs", "of no other"),
        ({**PROMPT, "logprobs": 1}, "logprobs", "temperature of 0"),
        ({**PROMPT, "echo": True, "logprobs": 0}, "logprobs", "Unsupported parameter"),
        ({**PROMPT, "stream_options": {}}, "stream_options", "only allowed when 'stream'"),
        ({**PROMPT, "guided_regex": "a", "guided_json": "{}"}, "guided_regex", "exclude each"),
        ({**PROMPT, "response_format": {"type": "xml"}}, "response_format.type", "'json_schema'"),
    ],
)
def test_a_body_that_asks_for_nonsense_is_400(
    gateway: Running, body: Any, param: str | None, words: str
) -> None:
    status, _, answer = gateway.ask("POST", "/v1/completions", body)

    assert status == 400
    assert set(answer["error"]) == {"message", "type", "param", "code"}
    assert answer["error"]["type"] == "invalid_request_error"
    assert answer["error"]["param"] == param
    assert words in answer["error"]["message"]
    assert gateway.triton.requests == []


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "pirate", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
        ),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"top_logprobs": 1}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 5}, "top_logprobs"),
        ({"modalities": ["audio"]}, "modalities"),
    ],
)
def test_a_chat_that_asks_for_nonsense_is_400(
    gateway: Running, change: dict[str, Any], param: str
) -> None:
    status, _, answer = gateway.ask("POST", "/v1/chat/completions", {**CHAT, **change})

    assert (status, answer["error"]["param"]) == (400, param)


def test_what_asks_for_nothing_is_passed_over(gateway: Running) -> None:
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "logit_bias": {},
        "user": "me",
        "metadata": {"a": "b"},
        "store": False,
        "modalities": ["text"],
        "reasoning_effort": None,
        "response_format": {"type": "text"},
    }
    status, _, _ = gateway.ask("POST", "/v1/chat/completions", {**CHAT, **nothing})

    assert status == 200


def test_a_model_without_a_chat_template_says_what_to_do() -> None:
    with running_gateway(EchoDouble(UPSTREAM)) as gateway:
        status, _, answer = gateway.ask("POST", "/v1/chat/completions", CHAT)

        assert status == 400
        assert "--chat-template FILE" in answer["error"]["message"]


def test_urls_and_methods_that_are_not_there_have_openais_errors(gateway: Running) -> None:
    assert gateway.ask("POST", "/v1/embeddings", {})[0] == 404
    status, _, answer = gateway.ask("GET", "/v1/completions")
    assert status == 405
    assert answer["error"]["type"] == "invalid_request_error"


def test_a_form_from_another_site_is_turned_away(gateway: Running) -> None:
    headers = {"content-type": "text/plain"}
    status, told, _ = gateway.ask(
        "POST", "/v1/completions", b'{"model": "ensemble", "prompt": "x"}', **headers
    )

    assert status == 415
    assert "access-control-allow-origin" not in told
    assert gateway.triton.requests == []


def test_cors_is_for_the_named_origins_only() -> None:
    options = GatewayOptions(cors_origins=("https://example.org",))
    with running_gateway(EchoDouble(), options) as gateway:
        for origin, allowed in (("https://example.org", True), ("https://example.com", False)):
            _, told, _ = gateway.ask("GET", "/v1/models", origin=origin)
            assert (told.get("access-control-allow-origin") == origin) is allowed


def test_keys_are_asked_of_everything_but_health(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# the team's\nalice sk-1\nsk-2 # spare\n")
    path.chmod(0o600)
    with running_gateway(EchoDouble(), GatewayOptions(ApiKeys.read(path))) as gateway:
        assert gateway.ask("GET", "/health")[0] == 200
        for path_ in ("/v1/models", "/metrics"):
            status, _, answer = gateway.ask("GET", path_)
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
        for key, status in (("sk-1", 200), ("sk-2", 200), ("sk-3", 401), ("x sk-1", 401)):
            told = gateway.ask("GET", "/v1/models", authorization=f"Bearer {key}")
            assert told[0] == status


@pytest.mark.parametrize("text", ["", "# none\n", "a b c\n", "same k1\nsame k2\n"])
def test_a_file_without_proper_keys_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)

    with pytest.raises(BadInputError):
        ApiKeys.read(path)


def test_a_file_of_keys_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        ApiKeys.read(tmp_path / "none")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_413(*, chunked: bool) -> None:
    options = GatewayOptions(limits=GatewayLimits(body_bytes=1000))
    with running_gateway(EchoDouble(), options) as gateway:
        host = gateway.url.removeprefix("http://")
        connection = http.client.HTTPConnection(host, timeout=10)
        body = b"x" * 2000
        connection.request(
            "POST",
            "/v1/completions",
            body=iter([body]) if chunked else body,
            headers={"Content-Type": "application/json"},
            encode_chunked=chunked,
        )
        assert connection.getresponse().status == 413
        connection.close()
        assert gateway.triton.requests == []


def test_a_body_that_drips_is_given_up() -> None:
    options = GatewayOptions(limits=GatewayLimits(body_s=0.3))
    with running_gateway(EchoDouble(), options) as gateway:
        host, _, port = gateway.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=10) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b"Content-Length: 50\r\n\r\n{"
            )
            assert b" 408 " in connection.recv(1000)


@pytest.mark.slow
def test_more_than_can_run_at_a_time_is_429_at_once() -> None:
    options = GatewayOptions(limits=GatewayLimits(running=2))
    with running_gateway(EchoDouble(), options) as gateway:
        status, _, answer = gateway.ask("POST", "/v1/completions", {**PROMPT, "n": 3})
        assert (status, "2 at a time" in answer["error"]["message"]) == (400, True)
        held = {**PROMPT, "prompt": ["stall", "stall"]}
        thread = threading.Thread(target=_ask_and_leave, args=(gateway, held))
        thread.start()
        until(lambda: len(gateway.triton.requests) == 2)

        status, told, answer = gateway.ask("POST", "/v1/completions", PROMPT)

        assert (status, answer["error"]["code"]) == (429, "rate_limit_exceeded")
        assert told["retry-after"] == "1"
        thread.join()
        until(lambda: gateway.ask("POST", "/v1/completions", PROMPT)[0] == 200)


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(
    "asked", [{"n": 2}, {"prompt": ["one", "two"]}], ids=["sequences", "prompts"]
)
def test_whoever_reads_the_end_of_an_answer_may_ask_again_at_once(
    asked: dict[str, Any], *, stream: bool
) -> None:
    client = AsyncClient(EchoDouble(), max_retries=0)
    options = GatewayOptions(limits=GatewayLimits(running=2))
    app = gateway_app(client, ServedModels(client, chat_max_tokens=8), options)
    body = msgspec.json.encode({**PROMPT, **asked, "stream": stream})
    statuses: list[int] = []

    async def ask(times: int) -> None:
        received: list[Message] = [{"type": "http.request", "body": body}]

        async def receive() -> Message:
            return received.pop() if received else await asyncio.Future()

        async def send(message: Message) -> None:
            if "status" in message:
                statuses.append(message["status"])
            is_end = b"[DONE]" in message.get("body", b"") if stream else "body" in message
            if is_end and times > 1:
                await ask(times - 1)

        await app(dict(SCOPE), receive, send)

    asyncio.run(ask(3))

    assert statuses == [200, 200, 200]


def _ask_and_leave(gateway: Running, body: dict[str, Any]) -> None:
    connection = http.client.HTTPConnection(gateway.url.removeprefix("http://"), timeout=1)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/completions", msgspec.json.encode(body), headers)
    with pytest.raises(TimeoutError):
        connection.getresponse()
    connection.close()


def test_a_rate_is_of_each_client_and_comes_back_with_time() -> None:
    now = 0.0
    rates = Rates(2, clock=lambda: now)
    rates.spend("a")
    rates.spend("a")

    with pytest.raises(ApiError) as raised:
        rates.spend("a")
    assert raised.value.headers == {"retry-after": "30"}
    rates.spend("b")
    now = 30.0
    rates.spend("a")
    with pytest.raises(ApiError):
        rates.spend("a")


def test_requests_have_ids_and_lines_in_the_log(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "minitron_trt.gateway"):
        _, told, _ = gateway.ask("POST", "/v1/completions", PROMPT, **{"x-request-id": "abc-1"})
        assert told["x-request-id"] == "abc-1"
        _, told, _ = gateway.ask("GET", "/v1/models", **{"x-request-id": "a b\tc"})
        assert len(told["x-request-id"]) == 32
        until(lambda: len(caplog.messages) == 2)

    assert "POST /v1/completions 200" in caplog.messages[0]
    assert "2+2 tokens, model ensemble, key -, id abc-1" in caplog.messages[0]


def test_a_fault_of_the_gateways_own_is_500_and_logged_as_such(
    gateway: Running, caplog: pytest.LogCaptureFixture
) -> None:
    gateway.triton.error = RuntimeError("nobody expected this")
    with caplog.at_level(logging.INFO, "minitron_trt.gateway"):
        status, told, body = gateway.ask(
            "POST", "/v1/completions", PROMPT, **{"x-request-id": "abc-2"}
        )
        until(lambda: any(line.startswith("POST") for line in caplog.messages))

    (line,) = (line for line in caplog.messages if line.startswith("POST"))
    assert (status, body["error"]["message"]) == (500, "The gateway failed.")
    assert told["x-request-id"] == "abc-2"
    assert "POST /v1/completions 500" in line


def test_health_is_that_of_the_server_behind(gateway: Running) -> None:
    assert gateway.ask("GET", "/health")[::2] == (200, {"status": "ok"})
    gateway.triton.is_ready = False
    assert gateway.ask("GET", "/health")[0] == 503


def test_metrics_count_requests_and_tokens(gateway: Running) -> None:
    before = _samples(gateway)
    gateway.ask("POST", "/v1/completions", PROMPT)
    gateway.ask("GET", "/whatever/a/client/types")
    after = _samples(gateway)
    grown = {name: after[name] - before.get(name, 0.0) for name in after}

    assert grown["minitron_gateway_requests_total", "/v1/completions", "200"] == 1
    assert grown["minitron_gateway_requests_total", "404", "other"] == 1
    assert grown["minitron_gateway_tokens_total", "completion", "ensemble"] == 2
    assert grown["minitron_gateway_time_to_first_chunk_seconds_count", "/v1/completions"] == 1
    assert after["minitron_gateway_running_requests",] == 1


def _samples(gateway: Running) -> dict[tuple[str, ...], float]:
    _, _, text = gateway.ask("GET", "/metrics")
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
