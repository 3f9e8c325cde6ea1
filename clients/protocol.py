"""The exchange with Triton without its input and output: bodies, events and the state of an answer.

The protobuf half is in `protocol_grpc`, so that HTTP clients do without grpc.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from minitron_trt.clients.faults import BrokenProtocolError, Fault, refusal
from minitron_trt.clients.messages import OUTPUT, Chunk, GenerateRequest


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message from the server carries; bytes may end inside a character."""

    data: str | bytes
    final: bool = False


class AnswerStream:
    """Follow one answer: turn pieces into chunks and know when it is complete.

    Over gRPC the server marks its last response. Over HTTP the end of the body says the same, and
    a body that ends early is the HTTP library's to notice.
    """

    def __init__(self, *, marks_final: bool) -> None:
        self._marks_final = marks_final
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.complete = False

    def feed(self, piece: Piece) -> Chunk:
        """Return the chunk for the next piece."""
        if self.complete:
            raise BrokenProtocolError(Fault.LOST, "more text came after the final response")
        self.complete = piece.final
        data = piece.data
        text = data if isinstance(data, str) else self._utf8.decode(data, piece.final)
        return Chunk(text, piece.final)

    def end(self) -> Iterator[Chunk]:
        """Close the answer when nothing more will come; BrokenProtocolError if it was cut short."""
        if self.complete:
            return
        if self._marks_final:
            raise BrokenProtocolError(Fault.LOST, "no final response came")
        yield self.feed(Piece(b"", final=True))


def http_path(request: GenerateRequest) -> str:
    """Return the path that a request is posted to."""
    verb = "generate_stream" if request.stream else "generate"
    return f"/v2/models/{quote(request.model, safe='')}/{verb}"


def http_body(request: GenerateRequest) -> dict[str, Any]:
    """Return the JSON object to post; its keys are the names of the tensors."""
    return {"id": request.request_id, **request.inputs()}


def decode_event(data: str) -> Piece:
    """Read the data of one event, or the body of a plain answer.

    RefusedError when the server reports an error, BrokenProtocolError for what is not Triton's.
    """
    try:
        record = json.loads(data)
    except ValueError as error:
        raise _not_triton(data) from error
    if not isinstance(record, dict):
        raise _not_triton(data)
    if "error" in record:
        raise refusal(str(record["error"]))
    text = record.get(OUTPUT)
    # A tensor of one string comes as the string itself, a longer one as a list.
    if isinstance(text, list) and text:
        text = text[0]
    if not isinstance(text, str):
        raise _not_triton(data)
    return Piece(text)


def _not_triton(data: str) -> BrokenProtocolError:
    return BrokenProtocolError(Fault.ABSENT, f"an answer without {OUTPUT}: {data[:60]!r}")
