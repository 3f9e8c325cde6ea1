"""Text ends before the first stop word that is complete, however it comes in."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from minitron_models.stop_words import MOST_CHARACTERS, StopMatcher, StopWords

LETTERS = st.text(alphabet="ab日\n", max_size=40)
WORDS = st.lists(st.text(alphabet="ab日\n", min_size=1, max_size=5), min_size=1, max_size=4)
SIZES = st.lists(st.integers(0, 4), max_size=40)


def cut(text: str, words: Sequence[str]) -> tuple[str, bool]:
    """Return the text before the word that is complete first, the longer of two at once."""
    found = [(text.index(word) + len(word), -len(word)) for word in words if word in text]
    if not found:
        return text, False
    end, minus_length = min(found)
    return text[: end + minus_length], True


def feed(words: Sequence[str], text: str, sizes: Sequence[int]) -> tuple[list[str], bool]:
    """Return the pieces that come out for pieces of these sizes, and whether a word was found."""
    matcher = StopMatcher(StopWords(words))
    ends = [0, *(min(end, len(text)) for end in itertools.accumulate(sizes)), len(text)]
    out = []
    for start, end in itertools.pairwise(ends):
        out.append(matcher.push(text[start:end]))
        if matcher.stopped:
            return out, True
    return [*out, matcher.finish()], False


@pytest.mark.slow
@given(words=WORDS, text=LETTERS, sizes=SIZES)
def test_text_is_cut_before_the_first_word_wherever_pieces_end(
    words: list[str], text: str, sizes: list[int]
) -> None:
    pieces, stopped = feed(words, text, sizes)

    assert ("".join(pieces), stopped) == cut(text, words)


@pytest.mark.slow
@given(words=WORDS, text=LETTERS)
def test_only_what_may_start_a_word_is_held_back(words: list[str], text: str) -> None:
    matcher = StopMatcher(StopWords(words))
    out = ""
    for end, character in enumerate(text, 1):
        out += matcher.push(character)
        if matcher.stopped:
            return
        held = text[len(out) : end]
        starts = [word[:size] for word in words for size in range(len(word))]
        assert held == max((start for start in starts if text[:end].endswith(start)), key=len)


@pytest.mark.parametrize(
    ("words", "text", "cut_text"),
    [
        (["abc", "b"], "xabc", "xa"),
        (["bc", "abc"], "xabcd", "x"),
        (["aab"], "aaab", "a"),
        (["abcdefg", "bcd"], "abcdefg", "a"),
        (["\n\n"], "a\nb\n\nc", "a\nb"),
    ],
    ids=["complete first", "longer of two at once", "overlapping itself", "inside", "lines"],
)
def test_of_several_words_the_first_to_be_complete_counts(
    words: list[str], text: str, cut_text: str
) -> None:
    pieces, stopped = feed(words, text, [1] * len(text))

    assert ("".join(pieces), stopped) == (cut_text, True)


def test_words_that_are_too_long_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="stop_words"):
        StopWords(["a" * MOST_CHARACTERS, "b"])


def test_a_long_word_that_never_ends_is_not_searched_again_and_again() -> None:
    """The automaton takes each character a bounded number of times, whatever is held back."""
    steps = 0

    class Counted(StopWords):
        def step(self, node: int, character: str) -> int:
            nonlocal steps
            steps += 1
            return int(super().step(node, character))

    words = Counted(["a" * 1000 + "b"])
    steps = 0
    matcher = StopMatcher(words)
    for _ in range(5000):
        matcher.push("a")

    assert steps == 5000
