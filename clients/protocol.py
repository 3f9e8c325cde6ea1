"""The exchange with Triton apart from the connection: bodies, events, the state of an answer.

The protobuf half is in `protocol_grpc`, so that HTTP clients do without grpc.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import quote

from minitron_trt.clients.faults import BrokenProtocolError, Fault, refusal
from minitron_trt.clients.messages import (
    FINISH_REASON,
    SEQUENCE_INDEX,
    TEXT,
    Chunk,
    GenerateRequest,
)

_HEADER: Final = ("model_name", "model_version", "id")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message from the server carries; bytes may end inside a character.

    `texts` are of as many sequences, the first of which is number `sequence`.
    """

    texts: tuple[str | bytes, ...] = ()
    final: bool = False
    sequence: int = 0
    finish_reason: str | None = None
    outputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)


class AnswerStream:
    """Follow one answer: turn pieces into chunks and know when it is complete.

    `marks_final` is true over gRPC, where the server marks its last response. Over HTTP the end of
    the body says the same, and the HTTP library raises when a body ends early.
    """

    def __init__(self, *, marks_final: bool) -> None:
        self._marks_final = marks_final
        self._utf8: dict[int, codecs.IncrementalDecoder] = {}
        self.complete = False

    def feed(self, piece: Piece) -> list[Chunk]:
        """Return the chunks of the next piece."""
        if self.complete:
            raise BrokenProtocolError(Fault.LOST, "more text came after the final response")
        self.complete = piece.final
        chunks = []
        for sequence, data in enumerate(piece.texts, piece.sequence):
            text = data if isinstance(data, str) else self._decoder(sequence).decode(data)
            # A tensor's values are flat: whose they are cannot be told, so the first has them all.
            outputs = piece.outputs if sequence == piece.sequence else {}
            chunks.append(
                Chunk(
                    text,
                    final=False,
                    sequence=sequence,
                    finish_reason=piece.finish_reason,
                    outputs=outputs,
                )
            )
        return [*chunks, *self._close()] if piece.final else chunks

    def end(self) -> list[Chunk]:
        """Close the answer when nothing more will come; BrokenProtocolError if it was cut short."""
        if self.complete:
            return []
        if self._marks_final:
            raise BrokenProtocolError(Fault.LOST, "no final response came")
        return self.feed(Piece(final=True))

    def _close(self) -> list[Chunk]:
        """Return the replacement of any character that was cut off, and the final chunk."""
        rests = ((index, utf8.decode(b"", final=True)) for index, utf8 in self._utf8.items())
        return [
            *(Chunk(text, final=False, sequence=index) for index, text in rests if text),
            Chunk("", final=True),
        ]

    def _decoder(self, sequence: int) -> codecs.IncrementalDecoder:
        if sequence not in self._utf8:
            self._utf8[sequence] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return self._utf8[sequence]


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
    texts = _values(record.pop(TEXT, None))
    if not texts or not all(isinstance(text, str) for text in texts):
        raise _not_triton(data)
    outputs = {name: _values(value) for name, value in record.items() if name not in _HEADER}
    reasons = outputs.pop(FINISH_REASON, ())
    sequence = next(iter(outputs.pop(SEQUENCE_INDEX, ())), 0)
    return Piece(
        tuple(texts),
        sequence=sequence,
        finish_reason=next(filter(None, reasons), None),
        outputs=outputs,
    )


def _values(value: Any) -> Sequence[Any]:
    # A tensor of one element comes as the element itself, a longer one as a list.
    return value if isinstance(value, list) else () if value is None else (value,)


def _not_triton(data: str) -> BrokenProtocolError:
    return BrokenProtocolError(Fault.ABSENT, f"an answer without {TEXT}: {data[:60]!r}")
