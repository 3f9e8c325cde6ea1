"""A service of OpenAI's API under load: the project's gateway, vLLM, trtllm-serve, OpenAI.

The openai package makes a validated object of every event, which takes more of a processor than
all else here. What is needed of an event is three fields, so it is the connections, deadlines and
event reader of the project's own client that are used, and msgspec for the fields.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Final

import httpcore2
import msgspec

from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.endpoint import Endpoint, SizeLimits, Timeouts
from minitron_trt.clients.faults import BrokenProtocolError
from minitron_trt.clients.network import (
    LIBRARY_ERRORS,
    pool_settings,
    system_reason,
    tls_context,
)
from minitron_trt.clients.network_asyncio import AsyncBoundedBackend
from minitron_trt.clients.protocol import EventReader
from minitron_trt.errors import (
    ProtocolError,
    RefusedError,
    ServerError,
    ServerTimeoutError,
    UnreachableError,
    UsageError,
)
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.target import CHAT, TargetOptions
from minitron_trt.loadtest.workload import Question

_DONE: Final = b"[DONE]"
_OK: Final = 200
_TOO_MANY: Final = 429
_BROKEN: Final = 500


class _Delta(msgspec.Struct):
    content: str | None = None
    # What vLLM and trtllm-serve put a model's thoughts into: they are tokens that came.
    reasoning_content: str | None = None


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    message: _Delta | None = None
    finish_reason: str | None = None

    def said(self) -> str:
        """Return the text, whichever of the API's forms it has."""
        part = self.delta or self.message
        if part is not None:
            return part.content or part.reasoning_content or ""
        return self.text or ""


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Error(msgspec.Struct):
    message: str = ""


class _Answer(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: _Error | str | None = None


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


class OpenAiTarget:
    """Completions or chat completions at a URL that ends where OpenAI's ends with /v1."""

    def __init__(self, options: TargetOptions) -> None:
        self._endpoint = Endpoint.parse(options.url)
        if self._endpoint.is_grpc:
            raise UsageError(
                f"{options.url} is gRPC, and {options.endpoint_type} goes over HTTP; expected a "
                "URL like http://127.0.0.1:9000/v1"
            )
        options.access.check(self._endpoint)
        self.model = options.model or ""
        self._options = options
        self._timeouts = Timeouts(total_s=options.timeout_s)
        self._limits = SizeLimits()
        self._decoder = msgspec.json.Decoder(_Answer)
        tls = tls_context(options.access) if self._endpoint.is_encrypted else None
        self._pool = httpcore2.AsyncConnectionPool(
            **pool_settings(self._endpoint, tls), network_backend=AsyncBoundedBackend()
        )

    async def check(self) -> None:
        """Find the service and its model: the one that it lists, unless one was named."""
        deadlines = Deadlines(self._timeouts)
        deadlines.begin()
        deadlines.connecting()
        with self._faults(deadlines):
            call = self._call("GET", "/models", None, deadlines)
            async with self._pool.stream(**call) as response:
                body = await self._body(response)
        if response.status != _OK:
            raise self._refusal(response.status, body)
        try:
            names = [model.id for model in msgspec.json.decode(body, type=_Models).data]
        except msgspec.MsgspecError as error:
            raise self._garbled(str(error)) from error
        if not self.model and len(names) != 1:
            raise UsageError(
                f"{self._endpoint} has {len(names)} models ({', '.join(sorted(names)[:8])}); "
                "name one with --model"
            )
        self.model = self.model or names[0]

    async def ask(self, question: Question, record: RequestRecord) -> None:
        """Ask once, and note what comes when."""
        deadlines = Deadlines(self._timeouts)
        path = "/chat/completions" if self._is_chat else "/completions"
        call = self._call("POST", path, msgspec.json.encode(self.fields(question)), deadlines)
        deadlines.begin()
        deadlines.asked()
        record.begin()
        with self._faults(deadlines):
            async with self._pool.stream(**call) as response:
                if response.status != _OK:
                    raise self._refusal(response.status, await self._body(response))
                if self._options.stream:
                    await self._follow(response, record)
                else:
                    self._note(await self._body(response), record)

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.aclose()

    @property
    def _is_chat(self) -> bool:
        return self._options.endpoint_type == CHAT

    def fields(self, question: Question) -> dict[str, Any]:
        """Return the body of a request."""
        body: dict[str, Any] = {"model": self.model}
        if self._is_chat:
            prompt = question.prompt
            is_text = isinstance(prompt, str)
            body["messages"] = [{"role": "user", "content": prompt}] if is_text else prompt
        elif isinstance(question.prompt, str):
            body["prompt"] = question.prompt
        else:
            raise UsageError(
                "the prompts are messages, which completions do not take; expected "
                "--endpoint-type chat"
            )
        # OpenAI's newer models refuse the older name in a chat, as aiperf knows.
        length = "max_completion_tokens" if self._is_chat else "max_tokens"
        body[length] = question.output_tokens
        if self._options.force_min_tokens:
            body["min_tokens"] = question.output_tokens
        # The usage is the server's own count of tokens, which a stream has only when asked.
        if self._options.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return {**body, **self._options.extra_inputs}

    async def _follow(self, response: httpcore2.Response, record: RequestRecord) -> None:
        """Note the events of a stream as they come."""
        events = EventReader(self._limits.message_bytes)
        has_ended = False
        async for data in response.aiter_stream():
            for event in events.feed(data):
                if event == _DONE:
                    return
                has_ended |= self._note(event, record)
        # Some services send no [DONE]: then a reason in a choice says that the answer is whole.
        if not has_ended:
            raise UnreachableError(
                f"the connection to {self._endpoint} ended before the answer was complete; look "
                "at the server's log"
            )

    def _note(self, blob: bytes, record: RequestRecord) -> bool:
        """Take an event, or the whole of a plain answer; say whether the answer ends with it."""
        try:
            answer = self._decoder.decode(blob)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise self._garbled(str(error)) from error
        if answer.error is not None:
            reason = answer.error if isinstance(answer.error, str) else answer.error.message
            raise RefusedError(f"the server refused the request: {reason}")
        for choice in answer.choices:
            record.piece(choice.said())
        if answer.usage is not None:
            record.input_tokens = answer.usage.prompt_tokens
            record.counted_tokens = answer.usage.completion_tokens
        return any(choice.finish_reason for choice in answer.choices)

    async def _body(self, response: httpcore2.Response) -> bytes:
        parts, size = [], 0
        async for data in response.aiter_stream():
            parts.append(data)
            size += len(data)
            if size > self._limits.message_bytes:
                raise ProtocolError(f"what {self._endpoint} answers is over {size} bytes")
        return b"".join(parts)

    def _call(
        self, method: str, path: str, content: bytes | None, deadlines: Deadlines
    ) -> dict[str, Any]:
        """Return a request as the library takes it."""
        headers = {
            "host": self._endpoint.address,
            "accept": "*/*",
            "accept-encoding": "identity",
            "user-agent": "minitron-trt",
        }
        if content is not None:
            headers["content-type"] = "application/json"
        if self._options.api_key:
            headers["authorization"] = f"Bearer {self._options.api_key}"
        own = {name.lower(): value for name, value in self._options.access.headers.items()}
        return {
            "method": method,
            "url": httpcore2.URL(
                scheme=self._endpoint.scheme,
                host=self._endpoint.host,
                port=self._endpoint.port,
                target=self._endpoint.path + path,
            ),
            "headers": list({**headers, **own}.items()),
            "content": content,
            "extensions": {
                "timeout": {"connect": deadlines, "read": deadlines, "write": deadlines}
            },
        }

    @contextlib.contextmanager
    def _faults(self, deadlines: Deadlines) -> Iterator[None]:
        """Turn the library's errors into ours."""
        try:
            yield
        except BrokenProtocolError as error:
            raise self._garbled(str(error)) from error
        except LIBRARY_ERRORS as error:
            if deadlines.fault is not None or isinstance(error, httpcore2.TimeoutException):
                raise ServerTimeoutError(
                    f"{self._endpoint} did not answer in time; look whether it is busy, or raise "
                    "--timeout"
                ) from error
            raise UnreachableError(
                f"no server answers at {self._endpoint} ({system_reason(error)}); expected "
                "OpenAI's API there: start one, or correct the URL"
            ) from error

    def _refusal(self, status: int, body: bytes) -> ServerError:
        try:
            error = msgspec.json.decode(body, type=_Answer).error
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            error = None
        words = error.message if isinstance(error, _Error) else error or ""
        reason = " ".join(words.split()) or "no reason given"
        if status >= _BROKEN:
            return ServerError(f"{self._endpoint} failed with HTTP {status}: {reason}")
        raised = RefusedError(f"the server refused the request with HTTP {status}: {reason}")
        raised.is_passing = status == _TOO_MANY
        return raised

    def _garbled(self, detail: str) -> ProtocolError:
        return ProtocolError(
            f"what {self._endpoint} answers is not OpenAI's protocol ({detail}); look at the URL, "
            "and at what lies between"
        )
