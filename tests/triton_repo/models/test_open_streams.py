"""What postprocessing remembers of streams: bounded, apart from each other, ended exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from minitron_models.open_streams import OpenStream, OpenStreams, SequenceText, id_rows
from minitron_models.stop_words import StopWords
from minitron_models.token_texts import TokenTexts
from tests.triton_repo.models.tokenizers_of_kinds import TOKENIZERS

TOKENIZER = TOKENIZERS["sample"]
TOKEN_TEXTS = TokenTexts(TOKENIZER.backend_tokenizer, skip_special=True)


def ids(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False)["input_ids"])


def stream(*names: Any, **changes: Any) -> OpenStream:
    return OpenStream(**{"names": names, "max_tokens": 99, "streaming": True, **changes})


def test_a_held_back_tail_comes_when_the_answer_ends() -> None:
    answer = SequenceText(TOKEN_TEXTS, StopWords(["Mars!"]))

    assert answer.push(ids("to Mars"), last=False) == "to "
    assert answer.push([], last=True) == "Mars"


def test_nothing_comes_after_a_stop_word() -> None:
    answer = SequenceText(TOKEN_TEXTS, StopWords(["Mars"]))

    assert answer.push(ids("to Mars and"), last=False) == "to "
    assert (answer.push(ids(" back"), last=True), answer.stopped) == ("", True)


def test_a_prompt_goes_before_the_answer_and_its_words_do_not_stop_it() -> None:
    answer = SequenceText(TOKEN_TEXTS, StopWords(["Mars"]), ids("Why is Mars"))

    assert answer.push(ids(" red"), last=True) == "Why is Mars red"


@pytest.mark.parametrize("repeated", [True, False])
def test_a_prompt_that_the_runtime_repeats_is_not_in_the_text_twice(repeated: bool) -> None:
    asked, answer = ids("Why is Mars"), ids(" red")
    kept = stream("a", prompt=asked, echo=asked, streaming=False)
    pushed = kept.push([asked + answer if repeated else answer], 0, "", TOKEN_TEXTS)

    assert (pushed.texts, pushed.over) == (["Why is Mars red"], True)


def test_beams_are_whole_texts_and_sequences_go_on() -> None:
    beams, sequences = stream("a"), stream("a")
    one, two = ids("one"), ids("two")

    assert [beams.push([one, two], 0, "", TOKEN_TEXTS).texts for _ in range(2)] == [
        ["one", "two"]
    ] * 2
    assert beams.sequences == {}
    assert sequences.push([one], 1, "", TOKEN_TEXTS).texts == ["one"]
    assert sequences.push([ids(" more")], 1, "", TOKEN_TEXTS).texts == [" more"]


@pytest.mark.parametrize(
    ("tokens", "given", "changes", "reasons"),
    [
        (5, "", {"max_tokens": 9}, []),
        (0, "", {"max_tokens": 9}, [""]),
        (9, "", {"max_tokens": 9}, ["length"]),
        (5, "", {"max_tokens": 9, "streaming": False}, ["stop"]),
        (5, "cancelled", {}, ["cancelled"]),
    ],
    ids=["goes on", "nobody knows", "full", "one response", "runtime says"],
)
def test_why_an_answer_ended_is_what_can_be_known(
    tokens: int, given: str, changes: dict[str, Any], reasons: list[str]
) -> None:
    pushed = stream("a", **changes).push([[0] * tokens], 0, given, TOKEN_TEXTS)

    assert (pushed.reasons, pushed.over) == (reasons, bool(reasons))


@pytest.mark.parametrize(("given", "cut"), [("cancelled", False), ("", True)])
def test_a_stop_word_is_the_reason_whatever_the_runtime_says(given: str, cut: bool) -> None:
    pushed = stream("a", words=StopWords(["Mars"])).push([ids("to Mars")], 0, given, TOKEN_TEXTS)

    assert pushed == (["to "], ["stop"], True, cut)


def test_the_least_recently_used_streams_go() -> None:
    streams = OpenStreams(most=2)
    first, second, third = stream(1), stream(2), stream(3)
    for opened in (first, second):
        streams.open(opened)
    streams.find(1)
    streams.open(third)

    assert [streams.find(name) for name in (1, 2, 3)] == [first, None, third]


def test_closing_a_stream_leaves_another_that_took_its_request_id() -> None:
    streams = OpenStreams()
    old, new = stream(1, "same"), stream(2, "same")
    streams.open(old)
    streams.open(new)
    streams.close(old)

    assert (streams.find(1), streams.find("same")) == (None, new)


def test_rows_end_at_their_lengths_and_shapes_that_do_not_fit_are_refused() -> None:
    tokens = np.array([[[1, 2, 0], [3, 0, 0]]], np.int32)

    assert id_rows(tokens, np.array([[2, 1]])) == [[1, 2], [3]]
    assert id_rows(tokens, None) == [[1, 2, 0], [3, 0, 0]]
    with pytest.raises(ValueError, match=r"2 rows of tokens have lengths of shape \[1, 1\]"):
        id_rows(tokens, np.array([[2]]))
    with pytest.raises(ValueError, match=r"\[2, 3\]; expected \[1, rows, tokens\]"):
        id_rows(tokens[0], None)
