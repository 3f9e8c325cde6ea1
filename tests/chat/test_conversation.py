"""What has been said, in memory and in a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minitron_trt.chat.conversation import Conversation
from minitron_trt.errors import BadInputError

TALK = Conversation("Be brief.", [("What is a planet?", "A wörld.\n"), ("A moon?", "Smaller.")])


def test_a_question_comes_after_all_that_was_said() -> None:
    assert TALK.asked("A star?") == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is a planet?"},
        {"role": "assistant", "content": "A wörld.\n"},
        {"role": "user", "content": "A moon?"},
        {"role": "assistant", "content": "Smaller."},
        {"role": "user", "content": "A star?"},
    ]


@pytest.mark.parametrize(
    "talk", [TALK, Conversation("", TALK.turns), Conversation("Be brief.")], ids=str
)
def test_what_is_saved_is_loaded(talk: Conversation, tmp_path: Path) -> None:
    talk.save(tmp_path / "talk.json")

    assert Conversation.load(tmp_path / "talk.json") == talk


def test_a_saved_conversation_is_what_openais_api_takes(tmp_path: Path) -> None:
    TALK.save(tmp_path / "talk.json")

    messages = json.loads((tmp_path / "talk.json").read_text(encoding="utf-8"))
    assert [*messages, {"role": "user", "content": "A star?"}] == TALK.asked("A star?")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[", "is no conversation (Input data was truncated)"),
        ('{"role": "user"}', "Expected `array`, got `object`"),
        ('[{"role": "tool", "content": ""}]', "Invalid enum value 'tool'"),
        ('[{"role": "user", "content": 1}]', "Expected `str`, got `int`"),
        ('[{"role": "user", "content": ""}]', "expected turns of user and assistant"),
        ('[{"role": "assistant", "content": ""}]', "expected turns of user and assistant"),
        ("[" * 100_000, "is no conversation"),
    ],
    ids=lambda text: text[:20],
)
def test_what_is_no_conversation_is_refused(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    path.write_text(text)

    with pytest.raises(BadInputError) as caught:
        Conversation.load(path)

    assert str(caught.value).startswith(f"{path} is no conversation")
    assert reason in str(caught.value)
