"""Lines that are said to a model, and commands, without a terminal and without a server."""

from __future__ import annotations

import json
import logging
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from minitron_trt.chat.conversation import Conversation
from minitron_trt.chat.served_chat import ServedChat
from minitron_trt.chat.session import HELP, Session
from minitron_trt.chat_templates import read_template
from minitron_trt.clients.client import Client
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.messages import TENSORS, Chunk, GenerateRequest
from minitron_trt.clients.model_interface import ModelInterface
from minitron_trt.clients.transport import EchoTransport
from minitron_trt.errors import MinitronError, RefusedError, UnreachableError, UsageError
from minitron_trt.host.termination import Terminated

OPTIONS = {"max_tokens": 8, "temperature": None, "seed": None, "stop_words": ()}


class ModelDouble(EchoTransport):
    """Says the last message back; its first word may be a fault, after the words that follow."""

    has_template = True
    takes_messages = True

    def interface(self, request: GenerateRequest, deadlines: Deadlines) -> ModelInterface:
        names = set(TENSORS) - (set() if self.takes_messages else {"apply_chat_template"})
        return ModelInterface.of_metadata(
            {name: (TENSORS[name], (-1, -1)) for name in names}, ["text_output"], is_triton=True
        )

    def stream(
        self, request: GenerateRequest, deadlines: Deadlines
    ) -> Generator[Chunk, None, None]:
        self.requests.append(request)
        text = request.text_input
        if request.apply_chat_template:
            if not self.has_template:
                raise RefusedError("the tokenizer has none", field="apply_chat_template")
            text = json.loads(text)[-1]["content"]
        verb, _, said = text.partition(" ")
        yield Chunk(said, outputs={"num_output_tokens": [2]})
        faults = {
            "break": UnreachableError("gone"),
            "stop": KeyboardInterrupt(),
            "end": Terminated(),
        }
        if verb in faults:
            raise faults[verb]
        yield Chunk("", final=True, finish_reason="stop")


@dataclass
class Script:
    """Lines that somebody types."""

    texts: Iterator[str]
    is_terminal: bool = True

    def read(self) -> str | None:
        return next(self.texts, None)


@dataclass
class Told:
    """What a session showed."""

    session: Session
    double: ModelDouble
    shown: list[str] = field(default_factory=list)


def talk(
    *lines: str,
    is_terminal: bool = True,
    template: str | None = None,
    conversation: Conversation | None = None,
) -> Told:
    double = ModelDouble()
    chosen = None if template is None else read_template(template)
    served = ServedChat(Client(double, max_retries=0), "ensemble", chosen)
    shown: list[str] = []
    script = Script(iter(lines), is_terminal)
    session = Session(
        served,
        script,
        show=shown.append,
        options=dict(OPTIONS),
        conversation=conversation or Conversation(),
    )
    session.run()
    return Told(session, double, shown)


def test_answers_become_part_of_what_is_asked_next() -> None:
    told = talk("say one", "", "  ", "say two")

    assert "".join(told.shown) == "one\ntwo\n"
    assert told.session.conversation.turns == [("say one", "one"), ("say two", "two")]
    assert json.loads(told.double.requests[1].text_input) == [
        {"role": "user", "content": "say one"},
        {"role": "assistant", "content": "one"},
        {"role": "user", "content": "say two"},
    ]
    assert told.double.requests[1].max_tokens == 8


def test_what_follows_an_answer_are_its_tokens(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="minitron_trt"):
        talk("say one", is_terminal=False)

    (line,) = caplog.messages
    assert line.startswith("[2 tokens, ")
    assert " tokens/s, first after " in line
    assert line.endswith(" ms, stop]")


def test_ctrl_c_stops_the_answer_and_not_the_program(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="minitron_trt"):
        told = talk("stop half", "say more")

    assert told.session.conversation.turns == [("stop half", "half"), ("say more", "more")]
    assert any(line.endswith("stopped]") for line in caplog.messages)


@pytest.mark.parametrize(
    ("line", "is_terminal", "raised"),
    [("end now", True, Terminated), ("stop now", False, KeyboardInterrupt)],
    ids=["SIGTERM", "Ctrl-C in a pipe"],
)
def test_what_ends_the_program_ends_it(
    line: str, is_terminal: bool, raised: type[BaseException]
) -> None:
    with pytest.raises(raised):
        talk(line, is_terminal=is_terminal)


def test_an_error_is_a_line_on_a_terminal_and_the_end_in_a_pipe(
    capsys: pytest.CaptureFixture[str],
) -> None:
    told = talk("break half", "break", "say more")

    assert capsys.readouterr().err.count("error: gone\n") == 2
    # A message that got no answer is not asked for ever after.
    assert told.session.conversation.turns == [("break half", "half"), ("say more", "more")]
    with pytest.raises(UnreachableError):
        talk("break", "say more", is_terminal=False)


def test_retry_asks_the_same_again() -> None:
    told = talk("say one", "say two", "/retry", "break", "/retry")
    contents = [json.loads(each.text_input)[-1]["content"] for each in told.double.requests]

    assert contents == ["say one", "say two", "say two", "break", "break"]
    assert told.session.conversation.turns == [("say one", "one"), ("say two", "two")]


def test_retry_leaves_the_answer_to_an_earlier_message_of_the_same_words(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% if messages|length > 1 %}{{ raise_exception('too long') }}{% endif %}say x")
    told = talk("say one", "say one", "/retry", template=str(path))

    assert told.session.conversation.turns == [("say one", "x")]
    assert len(told.double.requests) == 1


def test_retry_answers_the_last_message_of_a_loaded_conversation_anew() -> None:
    told = talk("/retry", conversation=Conversation("", [("say one", "eins")]))

    assert told.session.conversation.turns == [("say one", "one")]


def test_the_system_comes_first_and_stays_when_all_begins_anew() -> None:
    told = talk("/system Be brief.", "say one", "/new", "say two", "/system none", "/new", "say x")
    asked = [json.loads(request.text_input) for request in told.double.requests]

    assert asked[0][0] == asked[1][0] == {"role": "system", "content": "Be brief."}
    assert [len(messages) for messages in asked] == [2, 2, 1]


def test_options_are_set_and_unset_by_their_names(capsys: pytest.CaptureFixture[str]) -> None:
    told = talk(
        "/set temperature 0", '/set stop_words ["a"]', "say x", "/set temperature none", "say y"
    )
    first, second = told.double.requests

    assert (first.temperature, first.stop_words) == (0, ("a",))
    assert (second.temperature, second.stop_words) == (None, ("a",))
    assert 'max_tokens 8, temperature 0, stop_words ["a"]\n' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/sve x", "error: /sve is no command; did you mean '/save'?; /help lists them"),
        ("/set top 5", "error: 'top' is no option of requests"),
        ("/set seed", "error: /set seed needs a value; none unsets it"),
        ("/set seed -1", "error: seed is -1; expected a whole number"),
        ("/set stop_words a", "error: stop_words is 'a'; expected a list of strings"),
        ("/retry", "error: nothing was said yet"),
        ("/save", "error: /save needs the name of a file"),
        ("/load /nowhere/x", "error: /nowhere/x cannot be read: No such file or directory"),
        ("/save /proc/x", "error: cannot write /proc/x"),
    ],
)
def test_a_command_that_makes_no_sense_is_a_line(
    line: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    told = talk(line)

    assert words in capsys.readouterr().err
    assert told.double.requests == []


def test_a_message_may_begin_with_a_slash() -> None:
    assert talk("//say one").session.conversation.turns == [("/say one", "one")]


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    talk("/help", "/quit", "say nothing")
    told = capsys.readouterr().err

    assert all(usage in told for usage in HELP)


def test_a_talk_goes_on_from_its_file(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk("/system Be brief.", "say one", f"/save {path}")
    told = talk(f"/load {path}", "say two", "/retry")

    assert [len(json.loads(each.text_input)) for each in told.double.requests] == [4, 4]
    assert told.session.conversation.turns == [("say one", "one"), ("say two", "two")]


def test_a_template_of_the_users_makes_the_prompt_here() -> None:
    told = talk("say one", template="mistral")
    (request,) = told.double.requests

    assert request.text_input == "[INST]say one[/INST]"
    assert request.stop_words == ("[INST]",)
    assert request.apply_chat_template is None


def test_a_conversation_that_a_template_refuses_is_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "chat.jinja"
    path.write_text("{% if messages|length > 1 %}{{ raise_exception('too long') }}{% endif %}say x")
    told = talk("say one", "say two", template=str(path))

    assert len(told.double.requests) == 1
    assert "does not fit the chat template: too long; begin anew" in capsys.readouterr().err


@pytest.mark.parametrize("lacks", ["has_template", "takes_messages"])
def test_a_model_without_a_template_is_found_out_first(
    lacks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelDouble, lacks, False)
    client = Client(ModelDouble())
    with pytest.raises(RefusedError, match=r"no chat template, as base models.*llama, nemotron or"):
        ServedChat(client, "ensemble").check()

    ServedChat(client, "ensemble", read_template("llama")).check()


def test_errors_of_commands_are_the_projects_own() -> None:
    with pytest.raises(MinitronError):
        talk("/nothing", is_terminal=False)
    with pytest.raises(UsageError):
        talk("/save", is_terminal=False)
