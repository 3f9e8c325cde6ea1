"""Rebuild the tokenizer files of a Hugging Face folder from the vocabulary in a GGUF file.

Two kinds are written for the architectures read here. `gpt2` is byte-level BPE: merges are listed,
and the way text is split before them is only named. `llama` is SentencePiece's BPE: it has no list
of merges but a score for each piece, and joins the neighbours whose piece has the highest score, so
every way to make a piece of two others is a merge, in the order of the scores.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert import tokenizer_json
from minitron_trt.convert.gguf.vocabulary import (
    CHAT_TEMPLATE,
    KEY,
    SENTENCEPIECE,
    Vocabulary,
)
from minitron_trt.convert.source.folder_files import write_json
from minitron_trt.convert.tokenizer_json import (
    TokenType,
    added_token,
    bpe,
    scored_merges,
    spaced,
)
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.folder_links import inside

# Patterns of the tokenizer.json of Llama 3 and of Mistral NeMo (Tekken). llama.cpp splits alike by
# others, as its engine lacks some of their classes.
_WORDS_OF_LLAMA: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_WORDS_OF_TEKKEN: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


# Special tokens by their names in tokenizer_config.json and in GGUF.
_SPECIAL: Final[Mapping[str, str]] = MappingProxyType(
    {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
)


@dataclass(frozen=True, slots=True)
class _Splitting:
    """How text is split before the merges, and llama.cpp's defaults for such a tokenizer."""

    words: str | None  # a regular expression; None splits as GPT-2 does
    whole_words: bool  # a word that is a token needs no merges
    begin: bool  # a text begins with the begin-of-text token


# By names of tokenizer.ggml.pre, as llama.cpp's llama-vocab.cpp reads them (ignore_merges,
# add_bos).
_SPLITTINGS: Final[Mapping[str, _Splitting]] = MappingProxyType(
    {
        **dict.fromkeys(
            ("llama-bpe", "llama3", "llama-v3"), _Splitting(_WORDS_OF_LLAMA, True, True)
        ),
        "smaug-bpe": _Splitting(_WORDS_OF_LLAMA, False, False),
        "tekken": _Splitting(_WORDS_OF_TEKKEN, True, True),
        "gpt-2": _Splitting(None, False, False),
    }
)


def write_tokenizer(vocabulary: Vocabulary, folder: Path, positions: int) -> dict[str, Any]:
    """Write the tokenizer's files and return the ids that begin, end and fill up a text.

    UnsupportedError names a kind of tokenizer that is not read, unless the model's own files lie
    beside the GGUF file; those are copied then.
    """
    file, special = vocabulary.file, vocabulary.special
    record = {
        **{
            name: vocabulary.tokens[special[key]]
            for name, key in _SPECIAL.items()
            if key in special
        },
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
        "model_max_length": positions,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    if CHAT_TEMPLATE in file.facts:
        record["chat_template"] = file.string(CHAT_TEMPLATE)
    try:
        tokenizer = _tokenizer(vocabulary)
    except UnsupportedError:
        if not (file.path.parent / "tokenizer.json").is_file():
            raise
        for name in TOKENIZER_FILES:
            if (file.path.parent / name).is_file():
                shutil.copyfile(inside(file.path.parent, name), folder / name)
    else:
        write_json(folder, "tokenizer.json", tokenizer)
        write_json(folder, "tokenizer_config.json", record)
    ids: dict[str, Any] = {
        f"{name}_token_id": special[key]
        for name, key in (("bos", "bos"), ("pad", "padding"))
        if key in special
    }
    if ends := vocabulary.ends():
        ids["eos_token_id"] = ends[0] if len(ends) == 1 else ends
    return ids


def _tokenizer(vocabulary: Vocabulary) -> dict[str, Any]:
    """Return the tokenizer.json."""
    kind = vocabulary.file.string(f"{KEY}.model")
    if kind == "gpt2":
        parts, begin = _byte_level(vocabulary)
    elif kind == SENTENCEPIECE:
        # llama.cpp puts the begin token there unless the file says no.
        parts, begin = _sentencepiece(vocabulary), True
    else:
        raise UnsupportedError(
            f"{vocabulary.file.path} has a tokenizer of type {kind!r}; read are 'gpt2' and "
            "'llama': put the model's tokenizer.json beside the file"
        )
    added = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
    return tokenizer_json.tokenizer(
        parts,
        (
            added_token(token, special=vocabulary.types[token[1]] != TokenType.USER_DEFINED)
            for token in vocabulary.of(*added)
        ),
        first=_around(vocabulary, "bos", begin),
        last=_around(vocabulary, "eos", False),
    )


def _byte_level(vocabulary: Vocabulary) -> tuple[dict[str, Any], bool]:
    file = vocabulary.file
    if f"{KEY}.pre" not in file.facts:
        raise UnsupportedError(
            f"{file.path} does not say how it splits text (no {KEY}.pre, as before May 2024); put "
            "the model's tokenizer.json beside the file"
        )
    name = file.string(f"{KEY}.pre")
    if name not in _SPLITTINGS:
        raise UnsupportedError(
            f"{file.path} splits text as {name!r} does; known are {', '.join(_SPLITTINGS)}: put "
            "the model's tokenizer.json beside the file"
        )
    splitting = _SPLITTINGS[name]
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    split = {
        "type": "Split",
        "pattern": {"Regex": splitting.words},
        "behavior": "Isolated",
        "invert": False,
    }
    usual = splitting.words is None
    pre = {**level, "use_regex": usual}
    model = bpe(vocabulary.known(), list(_listed_merges(vocabulary)))
    parts = {
        "normalizer": None,
        "pre_tokenizer": pre if usual else {"type": "Sequence", "pretokenizers": [split, pre]},
        "decoder": {**level, "use_regex": True},
        "model": {**model, "ignore_merges": splitting.whole_words},
    }
    return parts, splitting.begin


def _listed_merges(vocabulary: Vocabulary) -> Iterator[tuple[str, str]]:
    known = vocabulary.known()
    for merge in vocabulary.file.array(f"{KEY}.merges"):
        left, _, right = str(merge).partition(" ")
        if not {left, right, left + right} <= known.keys():
            raise BadInputError(
                f"{vocabulary.file.path} merges {merge!r}, which are not tokens; download it again"
            )
        yield left, right


def _sentencepiece(vocabulary: Vocabulary) -> dict[str, Any]:
    file, known = vocabulary.file, vocabulary.known()
    if file.flag(f"{KEY}.remove_extra_whitespaces", False):
        raise UnsupportedError(
            f"{file.path} has a tokenizer that drops spaces, which is not supported; put the "
            "model's tokenizer.json beside the file"
        )
    unknown = [token for token, _ in vocabulary.of(TokenType.UNKNOWN)]
    return {
        **spaced(prefixed=file.flag(f"{KEY}.add_space_prefix", True)),
        "model": {
            **bpe(known, _scored_merges(vocabulary)),
            "unk_token": unknown[0] if unknown else None,
            "fuse_unk": True,
            "byte_fallback": all(f"<0x{byte:02X}>" in known for byte in range(256)),
        },
    }


def _scored_merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    scores = vocabulary.file.array(f"{KEY}.scores")
    if len(scores) != len(vocabulary.tokens):
        raise BadInputError(
            f"{vocabulary.file.path} has {len(vocabulary.tokens)} tokens but {len(scores)} scores"
        )
    if not all(isinstance(score, (int, float)) for score in scores):
        raise BadInputError(f"{vocabulary.file.path} has scores that are no numbers")
    return scored_merges(dict(vocabulary.of(TokenType.NORMAL)), scores)


def _around(vocabulary: Vocabulary, name: str, default: bool) -> tuple[str, int] | None:
    """Return the token that is put before or after a text, if the file has one and says so."""
    index = vocabulary.special.get(name)
    wanted = vocabulary.file.flag(f"{KEY}.add_{name}_token", default)
    return None if index is None or not wanted else (vocabulary.tokens[index], index)
