"""The parts of a tokenizer.json, as transformers' own conversions write them.

What splits words and merges them is the `tokenizers` library's business; here are the objects that
describe it: byte-level BPE as GPT-2 has it, and SentencePiece's BPE and Unigram.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Final

SPACE: Final = "\u2581"
"""What SentencePiece writes for a space."""

Token = tuple[str, int]
"""A token's text and its id."""


class TokenType(IntEnum):
    """What a token is, by SentencePiece's numbers, which GGUF took over."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def tokenizer(
    parts: Mapping[str, Any],
    added: Iterable[Mapping[str, Any]],
    *,
    first: Token | None = None,
    last: Token | None = None,
) -> dict[str, Any]:
    """Return a tokenizer.json; `first` and `last` are put around each text."""
    record = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": list(added)}
    return {**record, **parts, "post_processor": _around(first, last)}


def added_token(token: Token, *, special: bool) -> dict[str, Any]:
    """Return a token that is found in a text before it is split."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": token[1], "content": token[0], **flags, "special": special}


def bpe(vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return a model of merges, which are tried in their order."""
    return {
        "type": "BPE",
        **dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix")),
        "end_of_word_suffix": None,
        **dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False),
        "vocab": vocabulary,
        "merges": merges,
    }


def scored_merges(pieces: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Return SentencePiece's merges: every way to make a piece of two, by the scores of the ids."""
    merges = [
        (-scores[index], index, pieces[left], pieces[right], left, right)
        for piece, index in pieces.items()
        for left, right in ((piece[:at], piece[at:]) for at in range(1, len(piece)))
        if left in pieces and right in pieces
    ]
    return [(left, right) for *_, left, right in sorted(merges)]


def byte_level(*, add_prefix_space: bool = False) -> dict[str, Any]:
    """Return how GPT-2 splits a text, and puts it together again."""
    level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": {**level, "add_prefix_space": add_prefix_space},
        # As transformers writes it; a decoder does not look at it.
        "decoder": {**level, "add_prefix_space": True},
    }


def spaced(*, prefixed: bool, legacy: bool = True) -> dict[str, Any]:
    """Return how SentencePiece writes spaces; `prefixed` puts one before a text.

    What is not `legacy` puts it before the first word only, and none where one is already.
    """
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    # Decoding drops one space and no more: the one that `prefixed` has put there.
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    decoders = [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *([strip] if prefixed else [])]
    prepend = [{"type": "Prepend", "prepend": SPACE}] if prefixed else []
    metaspace = {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": "first" if prefixed else "never",
        "split": False,
    }
    return {
        "normalizer": {"type": "Sequence", "normalizers": [*prepend, replace]} if legacy else None,
        "pre_tokenizer": None if legacy else metaspace,
        "decoder": {"type": "Sequence", "decoders": decoders},
    }


def _around(first: Token | None, last: Token | None) -> dict[str, Any] | None:
    used = [token for token in (first, last) if token is not None]
    if not used:
        return None

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        """Return the tokens around one of two texts."""
        text = {"Sequence": {"id": name, "type_id": kind}}
        before, after = (
            [] if token is None else [{"SpecialToken": {"id": token[0], "type_id": kind}}]
            for token in (first, last)
        )
        return [*before, text, *after]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [index], "tokens": [text]} for text, index in used
        },
    }
