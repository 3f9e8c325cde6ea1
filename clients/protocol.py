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
    OUTPUT_IDS,
    SEQUENCE_INDEX,
    SEQUENCE_LENGTH,
    TEXT,
    Chunk,
    can_be_encoded,
)
from minitron_trt.clients.model_interface import InferCall

_HEADER: Final = ("model_name", "model_version", "id")


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message from the server carries; bytes may end inside a character.

    `texts` are of as many sequences, the first of which is number `sequence`. `final` is None where
    the server does not mark its last response. `size` is what came, in bytes.
    """

    texts: tuple[str | bytes, ...] = ()
    final: bool | None = None
    sequence: int = 0
    finish_reason: str | None = None
    outputs: Mapping[str, Sequence[Any]] = field(default_factory=dict)
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
        if not all(can_be_encoded(text) for text in piece.texts if isinstance(text, str)):
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
    token_ids = tensors.pop(OUTPUT_IDS, ())
    lengths = tensors.pop(SEQUENCE_LENGTH, ())
    reasons = tensors.pop(FINISH_REASON, ())
    indices = tensors.pop(SEQUENCE_INDEX, ())
    # TensorRT-LLM pads the ids behind a sequence's length.
    if lengths and _is_count(lengths[0]):
        token_ids = token_ids[: lengths[0]]
    if not all(map(_is_count, (*token_ids, *indices))):
        raise BrokenProtocolError(f"{OUTPUT_IDS} or {SEQUENCE_INDEX} that are no numbers")
    if not all(isinstance(reason, str) for reason in reasons):
        raise BrokenProtocolError(f"{FINISH_REASON} that is no text")
    if not all(isinstance(text, (str, bytes)) for text in texts):
        raise BrokenProtocolError(f"{TEXT} that is no text")
    return Piece(
        # A model of token ids has no text, which is as good as an empty one.
        texts=tuple(texts) or (("",) if token_ids else ()),
        final=final,
        sequence=next(iter(indices), 0),
        finish_reason=next(filter(None, reasons), None),
        outputs=tensors,
        token_ids=token_ids,
        size=size,
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def http_path(call: InferCall) -> str:
    """Return the path that a request is posted to."""
    # Triton refuses a second response of generate.
    streams = call.streams or call.request.sequences > 1
    verb = "infer" if call.is_plain else "generate_stream" if streams else "generate"
    return f"{model_path(call.request.model)}/{verb}"


def model_path(model: str) -> str:
    """Return where a model says what it takes and gives."""
    return f"/v2/models/{quote(model, safe='')}"


def http_body(call: InferCall) -> dict[str, Any]:
    """Return the JSON object to post: for generate keyed by tensor, for KServe with its shapes."""
    if not call.is_plain:
        return {"id": call.request.request_id, **{each.name: each.value for each in call.inputs}}
    return {
        "id": call.request.request_id,
        "inputs": [
            {
                "name": each.name,
                "shape": each.shape,
                "datatype": each.datatype,
                "data": each.values,
            }
            for each in call.inputs
        ],
        "outputs": [{"name": name} for name in call.outputs],
    }


def decode_event(data: str | bytes) -> Piece:
    """Read the data of one event, or the body of a plain answer.

    RefusedError when the server reports an error, BrokenProtocolError for what is not Triton's.
    """
    record = json_object(data)
    if record is None:
        raise _not_triton(data)
    if "error" in record:
        raise refusal(text_of(record["error"]))
    if isinstance(record.get("outputs"), list):
        tensors = _plain_tensors(record["outputs"])
    else:
        tensors = {name: _values(record[name]) for name in record if name not in _HEADER}
    if not (tensors.get(TEXT) or tensors.get(OUTPUT_IDS)):
        raise _not_triton(data)
    return piece_of(tensors, final=None, size=len(data))


def json_object(data: str | bytes) -> dict[str, Any] | None:
    """Return a JSON object, None for anything else."""
    try:
        record = json.loads(data if isinstance(data, str) else data.decode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def _plain_tensors(outputs: Sequence[Any]) -> dict[str, Sequence[Any]]:
    """Return the tensors of KServe's own answer."""
    try:
        return {output["name"]: _values(output["data"]) for output in outputs}
    except (TypeError, KeyError, IndexError) as error:
        raise BrokenProtocolError("outputs that are no list of tensors") from error


def _values(value: Any) -> Sequence[Any]:
    # A tensor of one element comes as the element itself, a longer one as a list.
    values = value if isinstance(value, list) else () if value is None else (value,)
    if any(isinstance(each, (list, dict)) for each in values):
        raise BrokenProtocolError("a tensor whose elements are no numbers and no texts")
    return values


def text_of(reason: Any) -> str:
    """Return a server's reason as text, whatever JSON it is."""
    return reason if isinstance(reason, str) else json.dumps(reason, ensure_ascii=False)


def _not_triton(data: str | bytes) -> BrokenProtocolError:
    text = data if isinstance(data, str) else data[:200].decode(errors="replace")
    return BrokenProtocolError(f"an answer without {TEXT}: {text[:60]!r}")


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
        self._parts.append(received)
        self._parts_size += len(received)
        events = []
        # Joining for every few bytes of a long line would take the square of its length.
        if b"\n" in received or b"\r" in received:
            *lines, rest = _lines(b"".join(self._parts))
            self._parts, self._parts_size = [rest], len(rest)
            events = [event for line in lines if (event := self._line(line))]
        if self._data_size + self._parts_size > self._limit:
            raise BrokenProtocolError(f"an event of more than {self._limit} bytes", Fault.TOO_LARGE)
        return events

    def _line(self, line: bytes) -> bytes | None:
        """Take a line; return the data of the event that it ends."""
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            self._data_size += len(line)
        elif not line and self._data:
            event = b"\n".join(self._data)
            self._data, self._data_size = [], 0
            return event
        return None


def _lines(data: bytes) -> list[bytes]:
    """Return the lines of an event stream; the last one has no end yet."""
    if b"\r" not in data:
        return data.split(b"\n")
    # The line feed after a carriage return may still come.
    held = b"\r" if data.endswith(b"\r") else b""
    whole = data.removesuffix(b"\r").replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    *lines, rest = whole.split(b"\n")
    return [*lines, rest + held]
