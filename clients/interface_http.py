"""Asking over HTTP what a model takes and gives, apart from the connection.

The questions are generators that yield a path to get and are sent its answer: both transports drive
the same ones.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Final, TypeAlias, TypeVar

import msgspec

from minitron_trt.clients.faults import BrokenProtocolError, Fault, refusal
from minitron_trt.clients.model_interface import TEXT_MODEL, ModelInterface
from minitron_trt.clients.protocol_http import json_object, model_path, text_of
from minitron_trt.errors import RefusedError

T = TypeVar("T")
_SERVER: Final = "/v2"
_LIVE: Final = "/v2/health/live"
_OK: Final = 200
_CLOSED: Final = (401, 403)
_BUSY: Final = (429, 503)


@dataclass(frozen=True, slots=True)
class HttpReply:
    """The answer to a request, or its head."""

    status: int
    content_type: str
    body: bytes = b""

    def __str__(self) -> str:
        kind = self.content_type.partition(";")[0].strip() or "nothing"
        return f"HTTP {self.status} with {kind}"

    @property
    def is_busy(self) -> bool:
        """Say whether the server, or what lies before it, takes no more requests now."""
        return self.status in _BUSY

    def refusal(self, reason: str) -> RefusedError:
        """Return the error for what the server refuses; one that is busy may be asked again."""
        error = refusal(reason)
        error.is_passing |= self.is_busy
        return error


Question: TypeAlias = Generator[str, HttpReply | None, T]
"""Yields a path to get, is sent its answer, and returns what was asked for."""


class _Tensor(msgspec.Struct):
    name: str
    datatype: str = "BYTES"
    shape: list[int] = []


class _Metadata(msgspec.Struct):
    inputs: list[_Tensor]
    outputs: list[_Tensor]


class _ConfigInput(msgspec.Struct):
    name: str
    optional: bool = False


class _Policy(msgspec.Struct):
    decoupled: bool = False


class _Config(msgspec.Struct):
    input: list[_ConfigInput] = []
    model_transaction_policy: _Policy | None = None


def ask_interface(model: str) -> Question[ModelInterface]:
    """Return what a model takes and gives; RefusedError when the server does not know it.

    A server that keeps that to itself, but lives, is taken for one with TensorRT-LLM's model of
    text.
    """
    reply = yield from _get(model_path(model))
    record = json_object(reply.body)
    if record and "error" in record and reply.status not in _CLOSED:
        raise reply.refusal(text_of(record["error"]))
    metadata = _read(reply, _Metadata)
    if metadata is None:
        yield from _ask_live()
        return TEXT_MODEL
    reply = yield from _get(f"{model_path(model)}/config")
    config = _read(reply, _Config)
    return ModelInterface.of_metadata(
        {each.name: (each.datatype, each.shape) for each in metadata.inputs},
        [each.name for each in metadata.outputs],
        required=[each.name for each in config.input if not each.optional] if config else (),
        is_decoupled=_decoupled(config) if config else None,
        # An administrator may close the configuration: then it is Triton all the same.
        is_triton=config is not None or reply.status in _CLOSED,
    )


def ask_ready() -> Question[bool]:
    """Return whether server and models can take requests; BrokenProtocolError for another server.

    Others answer 400 to what they do not know, which is Triton's way to say "not ready", and its
    port of metrics answers 200 to everything.
    """
    reply = yield from _get("/v2/health/ready")
    if reply.status != _OK:
        yield from _ask_live()
        return False
    reply = yield from _get(_SERVER)
    if json_object(reply.body) is None and reply.status not in _CLOSED:
        raise BrokenProtocolError(f"{_SERVER} says {reply}", Fault.ABSENT)
    return True


def _get(path: str) -> Question[HttpReply]:
    reply = yield path
    # A generator is first sent None, by which it begins.
    assert reply is not None
    return reply


def _ask_live() -> Question[None]:
    reply = yield from _get(_LIVE)
    if reply.status != _OK:
        raise BrokenProtocolError(f"{_LIVE} says {reply}", Fault.ABSENT)


def _decoupled(config: _Config) -> bool | None:
    """Return what a configuration says, which others than Triton leave out."""
    policy = config.model_transaction_policy
    return None if policy is None else policy.decoupled


S = TypeVar("S", bound=msgspec.Struct)


def _read(reply: HttpReply, kind: type[S]) -> S | None:
    """Return a body as a record of this kind, None where it is none."""
    if reply.status != _OK:
        return None
    try:
        return msgspec.json.decode(reply.body, type=kind)
    except (msgspec.MsgspecError, RecursionError):
        return None
