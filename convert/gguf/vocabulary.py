"""The tokens in a GGUF file: their text, what each is for, and the ids of the special ones.

Where llama.cpp's loader fills in what a file leaves out, so does this: the ids of SentencePiece
tokenizers, names of empty tokens, and the tokens that end an answer, which it knows by their text.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.tokenizer_json import TokenType
from minitron_trt.errors import BadInputError

log = logging.getLogger(__name__)

KEY: Final = "tokenizer.ggml"
CHAT_TEMPLATE: Final = "tokenizer.chat_template"
SENTENCEPIECE: Final = "llama"
"""What GGUF calls SentencePiece's BPE; byte-level BPE is `gpt2`."""

_IDS_OF_PIECES: Final[Mapping[str, int]] = MappingProxyType({"unknown": 0, "bos": 1, "eos": 2})
_ENDS: Final = ("eos", "eot", "eom")  # of a text, a turn, a message
_FILL_IN_ENDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
        "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
        "fim_sep": ("<|file_sep|>",),
    }
)
"""What ends code that is filled in: by id, else by text."""
_END_TEXTS: Final = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
        "<｜end▁of▁sentence｜>",
        "[e~[",
    }
)
"""The texts of tokens that end an answer in llama.cpp, whatever their type."""
_SPECIAL: Final = ("bos", *_ENDS, *_FILL_IN_ENDS, "padding", "unknown")
_CONTROL_LOOKING: Final = re.compile(r"<\|.*\|>", re.DOTALL)
_BYTE: Final = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The tokens of a GGUF file with their types, and the ids of the special ones."""

    file: GgufFile
    tokens: list[str]
    types: list[int]
    ids: Mapping[str, int]  # of the tokens
    special: Mapping[str, int]  # those that the file or llama.cpp names: `bos`, `eos` …

    @classmethod
    def read(cls, file: GgufFile, rows: int) -> Vocabulary | None:
        """Read the tokens, None where there are none.

        BadInputError when they do not fit together, or into so many rows of the embedding.
        """
        if file.facts.get(f"{KEY}.model", "none") in ("none", "no_vocab"):
            return None
        tokens = file.array(f"{KEY}.tokens")
        if not all(isinstance(token, str) for token in tokens):
            raise BadInputError(f"{file.path}: {KEY}.tokens has what is no text; download it again")
        if len(tokens) > rows:
            raise BadInputError(
                f"{file.path} has {len(tokens)} tokens but its embedding {rows} rows; llama.cpp "
                "does not load it either: convert the model again"
            )
        tokens = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        ids = {token: index for index, token in enumerate(tokens)}
        if len(ids) < len(tokens):
            twice = next(token for index, token in enumerate(tokens) if ids[token] != index)
            raise BadInputError(f"{file.path} has token {twice!r} twice; download it again")
        special = _special_ids(file, len(tokens))
        types = _types(file, tokens, special)
        for token in _END_TEXTS & ids.keys():
            types[ids[token]] = TokenType.CONTROL
        return cls(file, tokens, types, ids, special)

    def ends(self) -> list[int]:
        """Return the ids that end an answer: those of its special tokens first."""
        ends = [self.special.get(name) for name in _ENDS]
        for name, texts in _FILL_IN_ENDS.items():
            stated = self.special.get(name)
            ends += [self.ids.get(text) for text in texts] if stated is None else [stated]
        ends += sorted(self.ids[text] for text in _END_TEXTS & self.ids.keys())
        return list(dict.fromkeys(index for index in ends if index is not None))

    def of(self, *types: TokenType) -> Iterator[tuple[str, int]]:
        """Yield (token, id) of the tokens of some types."""
        for index, (token, kind) in enumerate(zip(self.tokens, self.types, strict=True)):
            if kind in types:
                yield token, index

    def known(self) -> dict[str, int]:
        """Return the ids of all tokens but the unused ones, which only fill the embedding up."""
        return {
            token: index
            for token, index in self.ids.items()
            if self.types[index] != TokenType.UNUSED
        }


def _special_ids(file: GgufFile, count: int) -> dict[str, int]:
    """Return the ids of the special tokens, by the names in their keys."""
    pieces = file.facts.get(f"{KEY}.model") == SENTENCEPIECE
    ids = {name: index for name, index in _IDS_OF_PIECES.items() if pieces and index < count}
    for name in _SPECIAL:
        key = f"{KEY}.{name}_token_id"
        if key not in file.facts:
            continue
        index = file.integer(key)
        if 0 <= index < count:
            ids[name] = index
        else:
            log.warning("%s: %s is %d of %d tokens; it is left out", file.path, key, index, count)
    return ids


def _types(file: GgufFile, tokens: list[str], special: Mapping[str, int]) -> list[int]:
    """Return what each token is: as stated, else special what is named so or looks so."""
    key = f"{KEY}.token_type"
    if key in file.facts:
        types = list(file.array(key))
        if len(types) != len(tokens):
            raise BadInputError(
                f"{file.path} has {len(tokens)} tokens but {len(types)} types of tokens"
            )
        return types
    pieces = file.facts.get(f"{KEY}.model") == SENTENCEPIECE
    types = [
        TokenType.CONTROL
        if _CONTROL_LOOKING.fullmatch(token)
        else TokenType.BYTE
        if pieces and _BYTE.fullmatch(token)
        else TokenType.NORMAL
        for token in tokens
    ]
    for name, index in special.items():
        types[index] = TokenType.UNKNOWN if name == "unknown" else TokenType.CONTROL
    return types
