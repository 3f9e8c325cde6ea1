"""A SentencePiece model, `tokenizer.model`: the protobuf that it is, without SentencePiece."""

from __future__ import annotations

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.convert.source.protobuf_fields import protobuf_fields
from minitron_trt.convert.tokenizer_json import (
    Token,
    TokenType,
    added_token,
    bpe,
    scored_merges,
    spaced,
    tokenizer,
)
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.records import read_regular

# Numbers of the fields in sentencepiece_model.proto; there is no need of its generated classes.
_PIECES, _TRAINER, _NORMALIZER = 1, 2, 3
_MODEL_TYPE: Final = 3
_MODEL_TYPES: Final = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}
_CHARSMAP, _DUMMY_PREFIX, _REMOVE_SPACES = 2, 3, 4


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The pieces by their ids, and how a text is prepared for them."""

    path: Path
    pieces: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    model_type: str
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool
    charsmap: bytes

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Read a model; BadInputError when the file is none."""
        try:
            messages = list(protobuf_fields(read_regular(path)))
            pieces = [_piece(data) for number, data in messages if number == _PIECES]
            trainer, normalizer = (
                dict(
                    field for n, data in messages if n == number for field in protobuf_fields(data)
                )
                for number in (_TRAINER, _NORMALIZER)
            )
            # Of a file without pieces there is nothing to unpack, which is a ValueError, too.
            texts, scores, types = zip(*pieces, strict=True)
        except (IndexError, KeyError, TypeError, ValueError, struct.error) as error:
            raise BadInputError(
                f"{path} is no SentencePiece model ({error}); put the model's tokenizer.json "
                "beside it"
            ) from error
        # A file may lack fields that are at sentencepiece_model.proto's defaults, which these are.
        kind = trainer.get(_MODEL_TYPE, 1)
        return cls(
            path=path,
            pieces=texts,
            scores=scores,
            types=types,
            model_type=_MODEL_TYPES.get(kind, str(kind)),
            add_dummy_prefix=bool(normalizer.get(_DUMMY_PREFIX, True)),
            remove_extra_whitespaces=bool(normalizer.get(_REMOVE_SPACES, True)),
            charsmap=bytes(normalizer.get(_CHARSMAP, b"")),
        )

    @property
    def ids(self) -> dict[str, int]:
        """Return the id of each piece."""
        return {piece: index for index, piece in enumerate(self.pieces)}

    def model(self) -> dict[str, Any]:
        """Return the model of a tokenizer.json; UnsupportedError where words are no pieces."""
        unknown = [i for i, kind in enumerate(self.types) if kind == TokenType.UNKNOWN]
        if self.model_type == "unigram":
            vocabulary = [list(pair) for pair in zip(self.pieces, self.scores, strict=True)]
            return {
                "type": "Unigram",
                "unk_id": unknown[0] if unknown else None,
                "vocab": vocabulary,
                "byte_fallback": self._has_bytes,
            }
        if self.model_type != "bpe":
            raise UnsupportedError(
                f"{self.path} is a SentencePiece model of type {self.model_type}; read are bpe and "
                "unigram"
            )
        normal = {
            piece: index
            for index, piece in enumerate(self.pieces)
            if self.types[index] == TokenType.NORMAL
        }
        return {
            **bpe(self.ids, scored_merges(normal, self.scores)),
            "unk_token": self.pieces[unknown[0]] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": self._has_bytes,
        }

    def added(self) -> list[Mapping[str, Any]]:
        """Return the tokens that are found in a text before it is split."""
        kinds = (TokenType.UNKNOWN, TokenType.CONTROL, TokenType.USER_DEFINED)
        return [
            added_token((piece, index), special=self.types[index] != TokenType.USER_DEFINED)
            for index, piece in enumerate(self.pieces)
            if self.types[index] in kinds
        ]

    def token(self, text: str) -> Token | None:
        """Return a token of a text, if there is such a piece."""
        index = self.ids.get(text)
        return None if index is None else (text, index)

    def tokenizer_json(self) -> dict[str, Any]:
        """Return a tokenizer.json that has the ids that SentencePiece itself gives to a text."""
        parts = spaced(prefixed=self.add_dummy_prefix)
        charsmap = base64.b64encode(self.charsmap).decode()
        several = {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}
        ends = {"type": "Strip", "strip_left": True, "strip_right": True}
        before = [
            *([{"type": "Precompiled", "precompiled_charsmap": charsmap}] if charsmap else []),
            *([ends, several] if self.remove_extra_whitespaces else []),
        ]
        normalizers = [*before, *parts["normalizer"]["normalizers"]]
        normalizer = {"type": "Sequence", "normalizers": normalizers}
        return tokenizer({**parts, "normalizer": normalizer, "model": self.model()}, self.added())

    @property
    def _has_bytes(self) -> bool:
        return self.types.count(TokenType.BYTE) == 256


def _piece(data: bytes) -> tuple[str, float, int]:
    fields = dict(protobuf_fields(data))
    score = struct.unpack("<f", fields.get(2, bytes(4)))[0]
    return fields[1].decode("utf-8"), score, fields.get(3, TokenType.NORMAL)
