"""Prompts from the files that people have, and made ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.loadtest.workload import (
    BLOCK_TOKENS,
    Lengths,
    Question,
    TokenizerCounter,
    WordCounter,
    file_questions,
    repeated,
    scheduled,
    synthetic_questions,
)
from minitron_trt.samples import sample_folder

WORDS = WordCounter()


def read(path: Path, output_tokens: int | None = None) -> list[Question]:
    found = file_questions(path, output_tokens=output_tokens, seed=1, counter=WORDS)
    return list(found)


def lines(folder: Path, *records: Any) -> Path:
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    return path


SHAREGPT = [
    {
        "id": "a",
        "conversations": [
            {"from": "human", "value": "What is a planet?"},
            {"from": "gpt", "value": "It goes round a star."},
            {"from": "human", "value": "Why?"},
        ],
    },
    # These two are in the published file, too: an answer first, and nothing at all.
    {
        "id": "b",
        "conversations": [{"from": "gpt", "value": "Yes."}, {"from": "human", "value": "?"}],
    },
    {"id": "c", "conversations": []},
]


@pytest.mark.parametrize("as_list", [True, False], ids=["a list", "lines"])
def test_sharegpt_gives_the_first_exchange(tmp_path: Path, as_list: bool) -> None:
    path = lines(tmp_path, *SHAREGPT)
    if as_list:
        path.write_text(json.dumps(SHAREGPT))

    assert read(path) == [Question("What is a planet?", 5)]
    assert read(path, output_tokens=9) == [Question("What is a planet?", 9)]


def test_a_trace_gives_lengths_times_and_what_prompts_share(tmp_path: Path) -> None:
    shared = {"input_length": BLOCK_TOKENS + 20, "output_length": 7}
    path = lines(
        tmp_path,
        {"timestamp": 500, **shared, "hash_ids": [1, 2]},
        {"timestamp": 250, **shared, "hash_ids": [1, 3]},
        {"input_length": 30},
        {"input_length": 30},
    )

    first, second, third, fourth = read(path)

    assert [len(str(each.prompt).split()) for each in (first, third)] == [BLOCK_TOKENS + 20, 30]
    begin = str(first.prompt).split()[:BLOCK_TOKENS]
    assert begin == str(second.prompt).split()[:BLOCK_TOKENS]
    assert first.prompt != second.prompt
    assert third.prompt != fourth.prompt
    assert [(each.output_tokens, each.at_s) for each in (first, third)] == [(7, 0.5), (64, None)]
    assert [each.at_s for each in scheduled([first, second])] == [0, 0.25]
    with pytest.raises(UsageError, match="--fixed-schedule needs a timestamp in every line"):
        scheduled([first, third])


def test_a_line_may_have_its_own_text_or_messages(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    path = lines(
        tmp_path,
        {"text_input": "a", "output_length": 3},
        {"prompt": "b", "max_tokens": 4, "id": 1},
        {"messages": messages},
    )

    assert read(path) == [Question("a", 3), Question("b", 4), Question(messages, 64)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"prompt": "a"}\n{"prompt": \n', "at line 2"),
        ('{"prompt": "a"}\n{"question": "a"}\n', "no prompt at line 2; expected one of"),
        ('[{"prompt": 3}]', "Expected `str | null`, got `int`"),
        ('{"input_length": 0}', "Expected `int` >= 1"),
        ('{"input_length": 5, "timestamp": -1}', "timestamp"),
        ('{"input_length": 600, "hash_ids": [1]}', "at line 1: 600 tokens have 1 hash_ids; exp"),
        ('{"input_length": 512, "hash_ids": [1, 2]}', "expected 1, one for each block of 512"),
        ("\n\n", "has no question"),
        ("[]", "has no question"),
        ('{"conversations": []}', "has no question"),
        ("3", "at line 1"),
        ("\udcff", "at line 1"),
        ("[" * 100_000, "cannot be read at its begin"),
    ],
)
def test_a_file_without_prompts_is_refused_by_its_line(
    tmp_path: Path, content: str, message: str
) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(content.encode(errors="surrogateescape"))

    with pytest.raises(BadInputError) as error:
        read(path)
    assert message in str(error.value)


def test_made_prompts_have_the_lengths_and_are_new_in_each_run() -> None:
    lengths = Lengths(isl=20, isl_stddev=4, osl=10)

    first, again, second = (synthetic_questions(lengths, 50, 3, WORDS, run) for run in (0, 0, 1))

    counts = [WORDS.count(str(each.prompt)) for each in first]
    assert first == again
    assert not {each.prompt for each in first} & {each.prompt for each in second}
    assert counts == [WORDS.count(str(each.prompt)) for each in second]
    assert 18 < sum(counts) / 50 < 22
    assert len(set(counts)) > 5
    assert {each.output_tokens for each in first} == {10}


def test_a_tokenizer_makes_prompts_of_so_many_tokens() -> None:
    counter = TokenizerCounter(sample_folder("solar-llama"))

    made = synthetic_questions(Lengths(isl=40), 5, 0, counter)

    assert [counter.count(str(each.prompt)) for each in made] == [40] * 5


@pytest.mark.parametrize("name", ["absent", "prompts.jsonl"])
def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    lines(tmp_path, {"prompt": "a"})

    with pytest.raises(BadInputError, match=r"tokenizer"):
        TokenizerCounter(tmp_path / name)


def test_questions_begin_anew_when_there_are_more_requests() -> None:
    asked = [Question("a", 1), Question("b", 1)]

    assert [each.prompt for each in repeated(asked, 5)] == ["a", "b", "a", "b", "a"]
