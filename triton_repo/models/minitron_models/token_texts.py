"""From token ids to text in pieces, which concatenate to the tokenizer's own text of all ids.

A text model's tokenizer is of one of two sorts. In a *byte-level* one a token is some bytes, and
the text is what UTF-8 makes of all of them. In the others a token is a piece of text, but for the
tokens that are one byte each: a run of those becomes text, or replacement characters, as a whole.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Sequence
from typing import Protocol

from tokenizers import Tokenizer

_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Steps of a tokenizer's decoder under which a token's text does not depend on later tokens.
_PIECEWISE = ("Replace", "ByteFallback", "Fuse", "Strip", "Metaspace")


class Detokenizer(Protocol):
    """The state of one text that is being decoded."""

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that the next ids add, without characters that are not whole yet."""
        ...

    def finish(self) -> str:
        """Return what is still held back, as it decodes where the ids end."""
        ...


class TokenTexts:
    """The texts of a tokenizer's ids; ValueError when they cannot be put together as they come."""

    def __init__(self, backend: Tokenizer, *, skip_special: bool) -> None:
        steps = _decoder_steps(backend)
        self._bytes = _BytesOfIds(backend, skip_special) if steps == ["ByteLevel"] else None
        self._pieces: _PiecesOfIds | None = None
        if self._bytes is None:
            if unknown := [step for step in steps if step not in _PIECEWISE]:
                raise ValueError(
                    f"the tokenizer decodes with {', '.join(unknown)}; only ByteLevel, or "
                    f"{', '.join(_PIECEWISE)} can be streamed"
                )
            self._pieces = _PiecesOfIds(backend, skip_special, byte_tokens="ByteFallback" in steps)

    def detokenizer(self) -> Detokenizer:
        """Return the state of a text that has no ids yet."""
        if self._bytes is not None:
            return _ByteLevelText(self._bytes)
        assert self._pieces is not None
        return _PiecewiseText(self._pieces)

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of all ids."""
        text = self.detokenizer()
        return text.push(ids) + text.finish()


def _decoder_steps(backend: Tokenizer) -> list[str]:
    """Return the names of the steps of a tokenizer's decoder."""
    if backend.decoder is None:
        return []
    # The decoder's own serialization: that of the whole tokenizer holds the vocabulary too.
    state = json.loads(backend.decoder.__getstate__())
    return [step["type"] for step in state.get("decoders", [state])]


def _skipped(backend: Tokenizer, skip_special: bool) -> frozenset[str]:
    """Return the tokens that do not appear in text."""
    added = backend.get_added_tokens_decoder().values()
    return frozenset(token.content for token in added if token.special and skip_special)


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character of a byte-level token stands for, as GPT-2 laid down."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    characters = {chr(byte): byte for byte in printable}
    return characters | {chr(256 + index): byte for index, byte in enumerate(others)}


class _BytesOfIds(dict[int, bytes]):
    """The bytes of each id of a byte-level tokenizer, looked up when first met."""

    def __init__(self, backend: Tokenizer, skip_special: bool) -> None:
        super().__init__()
        self._backend = backend
        self._skipped = _skipped(backend, skip_special)
        self._alphabet = _byte_alphabet()

    def __missing__(self, token_id: int) -> bytes:
        # Rows of ids are filled up with -1, of which the library knows nothing.
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        if token is None or token in self._skipped:
            value = b""
        elif all(character in self._alphabet for character in token):
            value = bytes(self._alphabet[character] for character in token)
        else:
            # Added tokens are text as it is, not written in the alphabet of bytes.
            value = token.encode("utf-8")
        self[token_id] = value
        return value


class _ByteLevelText:
    """A text of bytes, of which those of a character that is not whole are held back.

    Python's own incremental decoder does the same in a frame of its own; this runs per token.
    """

    def __init__(self, table: _BytesOfIds) -> None:
        self._of = table.__getitem__
        self._held = b""

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that the next ids add."""
        data = self._held + b"".join(map(self._of, ids))
        text, used = codecs.utf_8_decode(data, "replace", False)
        self._held = data[used:]
        return text

    def finish(self) -> str:
        """Return what is still held back."""
        held, self._held = self._held, b""
        return held.decode("utf-8", "replace")


class _PiecesOfIds(dict[int, "str | None"]):
    """The text that each id adds after others; None for an id that is one byte."""

    def __init__(self, backend: Tokenizer, skip_special: bool, *, byte_tokens: bool) -> None:
        super().__init__()
        self._backend = backend
        self._skip = skip_special
        self._byte_tokens = byte_tokens
        self._skipped = _skipped(backend, skip_special)
        # Decoders strip the space before a text's first word: behind this id none is the first.
        self._before = self._some_id()
        self._cut = len(self.at_start([self._before]))

    def _some_id(self) -> int:
        """Return an id with text of its own, for others to come after."""
        for token_id in range(self._backend.get_vocab_size()):
            if not self._is_byte(token_id) and self.at_start([token_id]).strip():
                return token_id
        raise ValueError("no token of the tokenizer has text")

    def _is_byte(self, token_id: int) -> bool:
        token = self._backend.id_to_token(token_id) or ""
        is_byte = self._byte_tokens and _BYTE_TOKEN.fullmatch(token) is not None
        return is_byte and token not in self._skipped

    def at_start(self, ids: Sequence[int]) -> str:
        """Return the text of ids that begin a text, where a leading space may go."""
        return str(self._backend.decode(ids, skip_special_tokens=self._skip))

    def later(self, ids: Sequence[int]) -> str:
        """Return the text of ids that come after others."""
        return self.at_start([self._before, *ids])[self._cut :]

    def __missing__(self, token_id: int) -> str | None:
        if token_id < 0:
            return ""
        value = None if self._is_byte(token_id) else self.later([token_id])
        self[token_id] = value
        return value


class _PiecewiseText:
    """A text of pieces: a run of bytes is held back until it ends, for one bad byte spoils all."""

    def __init__(self, table: _PiecesOfIds) -> None:
        self._table = table
        self._begun = False
        self._run: list[int] = []  # ids that are bytes, while no other came after them

    def push(self, ids: Iterable[int]) -> str:
        """Return the text that the next ids add."""
        text = ""
        for token_id in ids:
            piece = self._table[token_id]
            if piece is None:
                self._run.append(token_id)
            # One without text, as a special token that is left out, does not end a run of bytes.
            elif piece:
                text += self.finish()
                text += piece if self._begun else self._table.at_start([token_id])
                self._begun = True
        return text

    def finish(self) -> str:
        """Return what is still held back."""
        if not self._run:
            return ""
        run, self._run = self._run, []
        text = self._table.later(run) if self._begun else self._table.at_start(run)
        self._begun = True
        return text
