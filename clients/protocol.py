"""The exchange with Triton apart from the connection: pieces, events, the state of an answer.

What is in JSON is in `protocol_http`, what is in protocol buffers in `protocol_grpc`, so that each
client loads its own.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from minitron_trt.clients.faults import BrokenProtocolError, Fault
from minitron_trt.clients.messages import (
    FINISH_REASON,
    OUTPUT_IDS,
    SEQUENCE_INDEX,
    SEQUENCE_LENGTH,
    TEXT,
    Chunk,
    can_be_encoded,
)


class Piece(NamedTuple):
    """What one message from the server carries; bytes may end inside a character.

    `texts` are of as many sequences, the first of which is number `sequence`. `final` is None where
    the server does not mark its last response. `size` is what came, in bytes.
    """

    texts: tuple[str | bytes, ...] = ()
    final: bool | None = None
    sequence: int = 0
    finish_reason: str | None = None
    outputs: Mapping[str, Sequence[Any]] = MappingProxyType({})
    token_ids: Sequence[int] = ()
    size: int = 0


class AnswerStream:
    """Follow one answer: turn pieces into chunks and know when it is complete.

    Triton marks its last response over gRPC. Where there is no such mark, the end of the call or
    body says the same, and the library raises when that ends early.
    """

    def __init__(self, *, sequences: int = 1, limit_bytes: int | None = None) -> None:
        self._sequences = sequences
        self._room = limit_bytes
        self._utf8: dict[int, codecs.IncrementalDecoder] = {}
        self._is_marked = False
        self._has_text = False
        self.complete = False

    def feed(self, piece: Piece) -> list[Chunk]:
        """Return the chunks of the next piece."""
        if self.complete:
            raise BrokenProtocolError("more text came after the final response")
        self._check(piece)
        self._is_marked |= piece.final is not None
        self._has_text |= bool(piece.texts)
        self.complete = bool(piece.final)
        chunks = []
        for sequence, data in enumerate(piece.texts, piece.sequence):
            text = data if isinstance(data, str) else self._decoder(sequence).decode(data)
            is_first = sequence == piece.sequence
            chunks.append(
                Chunk(
                    text,
                    sequence=sequence,
                    finish_reason=piece.finish_reason,
                    # A tensor's values are flat: whose they are cannot be told.
                    outputs=piece.outputs if is_first else None,
                    token_ids=piece.token_ids if is_first else (),
                )
            )
        return [*chunks, *self._close()] if piece.final else chunks

    def end(self) -> list[Chunk]:
        """Close the answer when nothing more will come; BrokenProtocolError if it was cut short."""
        if self.complete:
            return []
        if self._is_marked:
            raise BrokenProtocolError("connection closed", Fault.LOST)
        return self.feed(Piece(final=True))

    def _check(self, piece: Piece) -> None:
        if self._room is not None:
            self._room -= piece.size
            if self._room < 0:
                raise BrokenProtocolError("the answer is over its limit", Fault.TOO_LARGE)
        last = piece.sequence + len(piece.texts)
        if not 0 <= piece.sequence <= last <= self._sequences:
            raise BrokenProtocolError(
                f"sequence {last - 1} of an answer that has {self._sequences}"
            )
        for text in piece.texts:
            if isinstance(text, str) and not can_be_encoded(text):
                raise BrokenProtocolError("half a surrogate pair as text")

    def _close(self) -> list[Chunk]:
        """Return the replacement of any character that was cut off, and the final chunk."""
        if not self._has_text:
            raise BrokenProtocolError(f"an answer without {TEXT}")
        rests = ((index, utf8.decode(b"", final=True)) for index, utf8 in self._utf8.items())
        return [
            *(Chunk(text, sequence=index) for index, text in rests if text),
            Chunk("", final=True),
        ]

    def _decoder(self, sequence: int) -> codecs.IncrementalDecoder:
        if sequence not in self._utf8:
            self._utf8[sequence] = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return self._utf8[sequence]


def piece_of(tensors: dict[str, Sequence[Any]], *, final: bool | None, size: int) -> Piece:
    """Return what a response's tensors say; BrokenProtocolError where they make no sense."""
    texts = tensors.pop(TEXT, ())
    has_ids = OUTPUT_IDS in tensors
    token_ids = tensors.pop(OUTPUT_IDS, ())
    lengths = tensors.pop(SEQUENCE_LENGTH, ())
    reasons = tensors.pop(FINISH_REASON, ())
    indices = tensors.pop(SEQUENCE_INDEX, ())
    # TensorRT-LLM pads the ids behind a sequence's length.
    if lengths and _is_count(lengths[0]):
        token_ids = token_ids[: lengths[0]]
    # Loops, since this is done for each token: a generator costs more than what it looks at.
    for number in (*token_ids, *indices):
        if not _is_count(number):
            raise BrokenProtocolError(f"{OUTPUT_IDS} or {SEQUENCE_INDEX} that are no numbers")
    for reason in reasons:
        if not isinstance(reason, str):
            raise BrokenProtocolError(f"{FINISH_REASON} that is no text")
    for text in texts:
        if not isinstance(text, (str, bytes)):
            raise BrokenProtocolError(f"{TEXT} that is no text")
    return Piece(
        # A model of token ids has no text, which is as good as an empty one. The last response may
        # have no ids either, but the reason.
        texts=tuple(texts) or (("",) if has_ids else ()),
        final=final,
        sequence=indices[0] if indices else 0,
        finish_reason=next(filter(None, reasons), None) if reasons else None,
        outputs=tensors,
        token_ids=token_ids,
        size=size,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


_EMPTY: Final = b"data: \n\n"


class EventReader:
    """Find the data of server-sent events in bytes as they come."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._parts_size = 0
        self._data: list[bytes] = []
        self._data_size = 0

    def feed(self, received: bytes) -> list[bytes]:
        """Return the data of each event that is complete now."""
        if self._is_event(received):
            return [received[6:-2]]
        self._parts.append(received)
        self._parts_size += len(received)
        events: list[bytes] = []
        # Joining for every few bytes of a long line would take the square of its length.
        if b"\n" in received or b"\r" in received:
            *lines, rest = _lines(b"".join(self._parts))
            self._parts, self._parts_size = [rest], len(rest)
            # Other fields of an event (event, id, retry) and comments have nothing of an answer.
            for line in lines:
                if line.startswith(b"data:"):
                    self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                    self._data_size += len(line)
                elif not line and self._data:
                    if event := b"\n".join(self._data):
                        events.append(event)
                    self._data, self._data_size = [], 0
        if self._data_size + self._parts_size > self._limit:
            raise BrokenProtocolError(f"an event of more than {self._limit} bytes", Fault.TOO_LARGE)
        return events

    def _is_event(self, received: bytes) -> bool:
        """Say whether this is one whole event in one line, as servers send them when they can."""
        return (
            received.endswith(b"\n\n")
            and received.startswith(b"data: ")
            and received.count(b"\n") == 2
            and b"\r" not in received
            and not (self._parts_size or self._data)
            and len(_EMPTY) < len(received) <= self._limit
        )


def _lines(data: bytes) -> list[bytes]:
    """Return the lines of an event stream; the last one has no end yet."""
    if b"\r" not in data:
        return data.split(b"\n")
    # The line feed after a carriage return may still come.
    held = b"\r" if data.endswith(b"\r") else b""
    whole = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *lines, rest = whole.split(b"\n")
    return [*lines, rest + held]
