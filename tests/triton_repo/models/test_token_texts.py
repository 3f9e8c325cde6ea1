"""Pieces of text concatenate to the tokenizer's own text of all ids, wherever they are cut."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minitron_models.token_texts import TokenTexts
from tests.triton_repo.models.tokenizers_of_kinds import TOKENIZERS, sentencepiece, wrapped
from tokenizers import Tokenizer, decoders, models

pytestmark = pytest.mark.slow

VOCABULARIES = {
    (name, skip): TokenTexts(tokenizer.backend_tokenizer, skip_special=skip)
    for name, tokenizer in TOKENIZERS.items()
    for skip in (True, False)
}
SIZES = st.lists(st.integers(0, 5), max_size=60)
# What cutting breaks most easily: marks, joiners, flags, right to left, all planes, replacements.
MARKED = ("e\u0301", "👩\u200d👩\u200d👧", "🇯🇵", "مرحبا", "\u200f", "𐍈", "\U0010ffff")
HARD = st.sampled_from([*MARKED, "\ufffd", " ", "\n", "\0"])
TEXTS = st.lists(st.one_of(st.text(max_size=6), HARD), max_size=12).map("".join)


def pieces(vocabulary: TokenTexts, ids: Sequence[int], sizes: Sequence[int]) -> list[str]:
    """Return the pieces in which ids that come in groups of these sizes become text."""
    text = vocabulary.detokenizer()
    ends = [0, *(min(end, len(ids)) for end in itertools.accumulate(sizes)), len(ids)]
    pushed = [text.push(ids[start:end]) for start, end in itertools.pairwise(ends)]
    return [*pushed, text.finish()]


@pytest.mark.parametrize("skip", [True, False], ids=["skip special", "keep special"])
@pytest.mark.parametrize("name", TOKENIZERS)
@given(data=st.data(), sizes=SIZES)
def test_any_ids_stream_as_they_decode(
    name: str, skip: bool, data: st.DataObject, sizes: list[int]
) -> None:
    """Arbitrary ids hold every run of invalid bytes, special tokens and ids of no token."""
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) + 3), max_size=60))

    text = "".join(pieces(VOCABULARIES[name, skip], ids, sizes))

    assert text == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=TEXTS, sizes=SIZES)
def test_any_text_streams_as_it_decodes(name: str, text: str, sizes: list[int]) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]

    assert "".join(pieces(VOCABULARIES[name, True], ids, sizes)) == tokenizer.decode(
        ids, skip_special_tokens=True
    )


@pytest.mark.parametrize("name", ["sample", "tekken", "llama-2"])
@given(text=TEXTS)
def test_no_piece_holds_a_broken_character(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text.replace("\ufffd", ""), add_special_tokens=False)["input_ids"]

    assert all("\ufffd" not in piece for piece in pieces(VOCABULARIES[name, True], ids, [1] * 200))


@given(
    runs=st.lists(st.lists(st.integers(2, 257), max_size=9), max_size=6),
    words=st.lists(st.integers(258, 270), min_size=6, max_size=6),
)
def test_runs_of_byte_tokens_between_words_stream_as_they_decode(
    runs: list[list[int]], words: list[int]
) -> None:
    ids = [i for run, word in zip(runs, words, strict=False) for i in (*run, word)]

    for name in ("llama-2", "gemma"):
        text = "".join(pieces(VOCABULARIES[name, True], ids, [1] * len(ids)))
        assert text == TOKENIZERS[name].decode(ids, skip_special_tokens=True)


def test_text_comes_as_soon_as_it_is_whole() -> None:
    tokenizer = TOKENIZERS["tekken"]
    ids = tokenizer.convert_tokens_to_ids(["a", "æ", "Ĺ", "¥", "a"])

    assert pieces(VOCABULARIES["tekken", True], ids, [1] * 5)[:5] == ["a", "", "", "日", "a"]


def test_an_unfinished_character_is_flushed_at_the_end() -> None:
    ids = TOKENIZERS["tekken"].convert_tokens_to_ids(["æ", "Ĺ"])

    assert pieces(VOCABULARIES["tekken", True], ids, [1, 1])[-1] == "\ufffd"


def test_text_goes_on_after_what_was_flushed() -> None:
    """An answer goes on from its prompt: its first word keeps its space."""
    text = VOCABULARIES["llama-2", True].detokenizer()
    the = TOKENIZERS["llama-2"].convert_tokens_to_ids("▁the")

    assert (text.push([the]) + text.finish(), text.push([the])) == ("the", " the")


@pytest.mark.parametrize(
    "step", [decoders.CTC(), decoders.WordPiece()], ids=lambda step: type(step).__name__
)
def test_a_decoder_that_cannot_be_streamed_is_refused_by_name(step: Any) -> None:
    with pytest.raises(ValueError, match=type(step).__name__):
        TokenTexts(sentencepiece(step).backend_tokenizer, skip_special=True)


def test_a_tokenizer_without_a_decoder_joins_its_tokens() -> None:
    words = {"<s>": 0, "a": 1, "b": 2}
    tokenizer = wrapped(Tokenizer(models.WordLevel(words, unk_token="<s>")))
    vocabulary = TokenTexts(tokenizer.backend_tokenizer, skip_special=True)

    assert "".join(pieces(vocabulary, [1, 0, 2, 2], [1, 1, 1, 1])) == "a b b"
