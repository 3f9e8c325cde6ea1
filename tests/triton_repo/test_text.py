"""Pieces of text concatenate to the decoded whole, however tokens and responses are cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.models.minitron_text import CONTEXT_TOKENS, new_text, pack_words

Decode = Callable[[Sequence[int]], str]


def byte_level(ids: Sequence[int]) -> str:
    """Decode as a byte-level BPE does: bytes, what is not UTF-8 replaced."""
    return bytes(ids).decode("utf-8", errors="replace")


def byte_fallback(ids: Sequence[int]) -> str:
    """Decode as SentencePiece with byte fallback: a run of bytes that is no text is all replaced.

    Ids below 256 are bytes; the rest are words with their space, which the text's start drops.
    """
    text, run = "", bytearray()
    for item in [*ids, None]:
        if item is not None and item < 256:
            run.append(item)
            continue
        try:
            text += run.decode("utf-8")
        except UnicodeDecodeError:
            text += "\ufffd" * len(run)
        run.clear()
        if item is not None:
            text += f" w{item}"
    return text.removeprefix(" ")


def stream(decode: Decode, ids: Sequence[int], sizes: Sequence[int]) -> list[str]:
    """Return the pieces in which ids that arrive in groups of these sizes become text."""
    ends = [min(end, len(ids)) for end in itertools.accumulate(sizes)]
    pieces, at = [], 0
    for end in [*ends, len(ids)]:
        context = ids[max(0, at - CONTEXT_TOKENS) : at]
        pieces.append(new_text(decode, context, ids[at:end], False))
        at = end
    pieces.append(new_text(decode, ids[-CONTEXT_TOKENS:], [], True))
    return pieces


@given(st.lists(st.integers(0, 255), max_size=120), st.lists(st.integers(0, 5), max_size=60))
def test_any_bytes_survive_streaming(ids: list[int], sizes: list[int]) -> None:
    assert "".join(stream(byte_level, ids, sizes)) == byte_level(ids)


@given(st.text(max_size=60), st.lists(st.integers(1, 5), max_size=80))
def test_no_piece_of_a_text_holds_a_broken_character(text: str, sizes: list[int]) -> None:
    pieces = stream(byte_level, list(text.encode()), sizes)

    assert "".join(pieces) == text
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


@given(
    st.lists(st.one_of(st.characters(codec="utf-8"), st.integers(256, 400)), max_size=60),
    st.lists(st.integers(1, 5), max_size=120),
)
def test_spaces_and_byte_runs_of_sentencepiece_survive_streaming(
    items: list[str | int], sizes: list[int]
) -> None:
    ids = [i for item in items for i in (item.encode() if isinstance(item, str) else [item])]

    assert "".join(stream(byte_fallback, ids, sizes)) == byte_fallback(ids)


@given(st.text(max_size=80), st.lists(st.integers(1, 3), max_size=80))
def test_the_samples_tokenizer_streams_any_text(text: str, sizes: list[int]) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]

    assert "".join(stream(TOKENIZER.decode, ids, sizes)) == TOKENIZER.decode(ids)


TOKENIZER: Any = AutoTokenizer.from_pretrained(
    sample_folder("solar-llama"), local_files_only=True, clean_up_tokenization_spaces=False
)


@pytest.mark.parametrize(
    ("words", "packed"),
    [
        ([], [[[0], [-1]]]),
        ([[7]], [[[7], [1]]]),
        ([[7, 8], [9]], [[[7, 8, 9], [2, 3, -1]]]),
    ],
    ids=["none", "one", "two"],
)
def test_words_are_packed_as_tensorrt_llm_packs_them(
    words: list[list[int]], packed: list[list[list[int]]]
) -> None:
    assert pack_words(words).tolist() == packed
    assert pack_words(words).dtype == np.int32
