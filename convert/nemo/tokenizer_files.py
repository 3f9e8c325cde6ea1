"""The tokenizer of a NeMo archive: its files, how many tokens it has, and which begin and end text.

NeMo packs a file under a number and its name, `0123…_tokenizer.model`, and the config names it as
`nemo:…`; tokenizers of the hub are only named.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.nemo.archive import ByteRange, NemoArchive
from minitron_trt.convert.nemo.nemo_config import NemoConfig
from minitron_trt.convert.source.protobuf_fields import protobuf_fields
from minitron_trt.errors import BadInputError

SENTENCEPIECE_FILE: Final = "tokenizer.model"
TOKENIZER_FILE: Final = "tokenizer.json"
_PACKED: Final = "nemo:"
_NUMBERED: Final = re.compile(r"(?:[0-9a-f]{32}_)?(.+)")
# Fields of SentencePiece's ModelProto, of its pieces and its TrainerSpec, the latter with defaults.
_PIECE, _TRAINER = 1, 2
_TEXT, _TYPE, _CONTROL = 1, 3, 3
_SPECIAL: Final = {
    "bos_token_id": (46, b"<s>"),
    "eos_token_id": (47, b"</s>"),
    "pad_token_id": (48, b"<pad>"),
}


@dataclass(frozen=True, slots=True)
class NemoTokenizer:
    """A tokenizer's files by the name that a Hugging Face folder has for each."""

    files: Mapping[str, ByteRange]
    size: int | None  # None where it is only named
    special: Mapping[str, int]

    @classmethod
    def read(cls, archive: NemoArchive, config: NemoConfig) -> NemoTokenizer:
        """Find an archive's tokenizer; BadInputError where a file that the config names is gone."""
        section = config.section("tokenizer")
        files: dict[str, ByteRange] = {}
        for path, file in archive.members.items():
            match = _NUMBERED.fullmatch(PurePosixPath(path).name)
            if match and match[1] in TOKENIZER_FILES:
                files.setdefault(match[1], file)
        model = str(section.get("model") or section.get("tokenizer_model") or "")
        if section.get("library") == "sentencepiece" and model:
            name = PurePosixPath(model.removeprefix(_PACKED)).name
            packed = archive.members.get(name)
            if packed is None and model.startswith(_PACKED):
                raise BadInputError(f"the archive lacks {name}, its tokenizer by its config")
            if packed:
                files[SENTENCEPIECE_FILE] = packed
        if TOKENIZER_FILE in files:
            return cls(files, _json_size(files[TOKENIZER_FILE]), {})
        if SENTENCEPIECE_FILE not in files:
            return cls(files, None, {})
        size, special = _sentencepiece_facts(files[SENTENCEPIECE_FILE])
        # With `sentencepiece_legacy` NeMo adds tokens of its own after those of the file.
        added = bool(section.get("sentencepiece_legacy")) or bool(section.get("special_tokens"))
        return cls(files, None if added else size, special)


def _json_size(file: ByteRange) -> int:
    """Return one more than the largest id of a tokenizer.json."""
    try:
        record = json.loads(file.read())
        vocabulary = record["model"]["vocab"]
        ids = list(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
        ids += [token["id"] for token in record.get("added_tokens") or ()]
        return int(max(ids)) + 1
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise BadInputError(f"{file.name} is no tokenizer ({error})") from error


def _sentencepiece_facts(file: ByteRange) -> tuple[int, dict[str, int]]:
    """Return the number of pieces and the ids of the control pieces that begin and end text."""
    pieces, trainer = list[bytes](), dict[int, Any]()
    try:
        for number, value in protobuf_fields(file.read()):
            if number == _PIECE:
                pieces.append(value)
            elif number == _TRAINER:
                trainer = dict(protobuf_fields(value))
        texts = {name: trainer.get(number, text) for name, (number, text) in _SPECIAL.items()}
        special = {
            name: index
            for index, piece in enumerate(pieces)
            for name, text in texts.items()
            # A look comes first: to parse each of 256,000 pieces takes seconds.
            if text in piece and _is_control(piece, text)
        }
    except (IndexError, TypeError, ValueError) as error:
        raise BadInputError(f"{file.name} is no SentencePiece model ({error})") from error
    if not pieces:
        raise BadInputError(f"{file.name} is no SentencePiece model; it has no pieces")
    return len(pieces), special


def _is_control(piece: bytes, text: bytes) -> bool:
    fields = dict(protobuf_fields(piece))
    return fields.get(_TEXT) == text and fields.get(_TYPE) == _CONTROL
