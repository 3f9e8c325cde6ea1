"""Between text and token ids: shared by the text models, which carry a copy beside their model.py.

Needs only numpy and transformers, so that it runs in any Triton container.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONTEXT_TOKENS = 32
"""How many ids before the new ones decoding may need: a character takes at most 4 byte tokens."""

_UNFINISHED_AT_MOST = 3  # bytes of a UTF-8 character that are not the last
_REPLACEMENT = "\ufffd"

Decode = Callable[[Sequence[int]], str]


def parameter(args: Mapping[str, str], key: str) -> str:
    """Return a parameter of the model's config.pbtxt."""
    return str(json.loads(args["model_config"])["parameters"][key]["string_value"])


def _load_tokenizer(args: Mapping[str, str]) -> Any:
    """Return the Hugging Face tokenizer that lies beside the model; no code of it is run."""
    from transformers import AutoTokenizer

    folder = Path(args["model_repository"], args["model_version"], parameter(args, "tokenizer_dir"))
    return AutoTokenizer.from_pretrained(
        folder, local_files_only=True, clean_up_tokenization_spaces=False
    )


@dataclass(frozen=True)
class Prompt:
    """What a text request is to tensorrt_llm."""

    ids: NDArray[np.int32]  # [1, n]
    stop_words: NDArray[np.int32]  # [1, 2, n]
    bad_words: NDArray[np.int32]  # [1, 2, n]
    end_id: int  # -1 for none


class TextEncoder:
    """Turns prompts and words into ids as the model's Hugging Face tokenizer does."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self._tokenizer = _load_tokenizer(args)
        self._special = parameter(args, "add_special_tokens") == "true"
        self._end_ids: list[int] = json.loads(parameter(args, "end_ids"))

    def prompt(
        self,
        text: NDArray[Any],
        stop_words: NDArray[Any] | None,
        bad_words: NDArray[Any] | None,
        end_id: NDArray[Any] | None,
    ) -> Prompt:
        """Encode one request's tensors; ValueError names the one that is wrong."""
        if text.size != 1:
            raise ValueError(f"text_input holds {text.size} texts; send one per request")
        query = text.item().decode("utf-8")
        if not query:
            raise ValueError("text_input is empty; expected some text")
        # Any id of generation_config ends a text; the contract has one end_id and many stop words.
        ends = self._end_ids if end_id is None else [int(end_id.item())]
        return Prompt(
            ids=np.array([self._encode(query, self._special)], np.int32),
            stop_words=pack_words([*self._words(stop_words), *([end] for end in ends[1:])]),
            bad_words=pack_words(self._words(bad_words)),
            end_id=ends[0] if ends else -1,
        )

    def _encode(self, text: str, special: bool) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _words(self, words: NDArray[Any] | None) -> list[list[int]]:
        """Return the ids under which each word can appear: at a start, and after a space."""
        texts = [] if words is None else [word.decode("utf-8") for word in words.reshape(-1)]
        spellings = (spelling for text in texts if text for spelling in (text, f" {text}"))
        ids = dict.fromkeys(tuple(self._encode(spelling, False)) for spelling in spellings)
        return [list(word) for word in ids if word]


class TextDecoder:
    """Turns ids into the text that they add."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self._tokenizer = _load_tokenizer(args)
        self._skip = parameter(args, "skip_special_tokens") == "true"

    def new_text(self, context: Sequence[int], ids: Sequence[int], final: bool) -> str:
        """Return what `new_text` does, with this tokenizer."""
        return new_text(self._decode, context, ids, final)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=self._skip))


def pack_words(words: Sequence[Sequence[int]]) -> NDArray[np.int32]:
    """Return [1, 2, n]: ids one after another, and the end offset of each word, padded with -1."""
    ids = [i for word in words for i in word] or [0]
    ends = list(itertools.accumulate(len(word) for word in words))
    return np.array([[ids, ends + [-1] * (len(ids) - len(ends))]], np.int32)


def new_text(decode: Decode, context: Sequence[int], ids: Sequence[int], final: bool) -> str:
    """Return the text that `ids` add after `context`, the ids before them (CONTEXT_TOKENS or all).

    Pieces concatenate to the decoded whole: decoding with context keeps the space that a tokenizer
    drops at the start of a text, and a character whose bytes are split over tokens is held back
    until it is whole, or `final`.
    """
    seen = context[_first_whole(decode, context) :]
    before, after = _settled(decode, seen), [*seen, *ids]
    return (decode(after) if final else _settled(decode, after))[len(before) :]


def _first_whole(decode: Decode, context: Sequence[int]) -> int:
    """Return where to cut the context's start so that it does not begin inside a character."""
    if len(context) < CONTEXT_TOKENS:
        return 0
    for start in range(_UNFINISHED_AT_MOST + 1):
        if not _settled(decode, context[start:]).startswith(_REPLACEMENT):
            return start
    return 0


def _settled(decode: Decode, ids: Sequence[int]) -> str:
    """Return the decoded text without what later ids may turn into another character.

    An unfinished character decodes to one replacement, or with byte fallback spoils the whole run
    of bytes that it ends; leaving out its 3 bytes at most gives the run back. Where that does not
    help, the bytes are no text and the replacements stay.
    """
    text = decode(ids)
    if not text.endswith(_REPLACEMENT * 2):
        return text.removesuffix(_REPLACEMENT)
    for left_out in range(1, _UNFINISHED_AT_MOST + 1):
        shorter = decode(ids[: max(0, len(ids) - left_out)])
        if not shorter.endswith(_REPLACEMENT):
            return shorter
    return text[:-_UNFINISHED_AT_MOST]
