"""A conversation at the terminal: lines for the model, and commands, which begin with /."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import click

from minitron_trt.chat.conversation import Conversation
from minitron_trt.chat.lines import Lines
from minitron_trt.chat.served_chat import ServedChat
from minitron_trt.clients.completions import Completion
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.errors import MinitronError, UsageError, one_line
from minitron_trt.host.termination import Terminated
from minitron_trt.option_types import suggestion

log = logging.getLogger(__name__)

HELP: Final[Mapping[str, str]] = MappingProxyType(
    {
        "/help": "this list",
        "/system [TEXT]": "show, or set, what the system says at the start; none unsets",
        "/set [NAME VALUE]": "show, or set, an option: /set temperature 0.7, /set seed none",
        "/retry": "have the last message answered anew",
        "/new": "forget what was said, but not the system's words",
        "/save FILE": "write the conversation as JSON, as OpenAI's API has messages",
        "/load FILE": "go on with a saved conversation",
        "/quit": "end; so does Ctrl-D. Ctrl-C stops an answer",
    }
)
_NONE: Final = "none"
_QUIT: Final = ("/quit", "/exit", "/bye")
NAMES: Final = (*(usage.partition(" ")[0] for usage in HELP), *_QUIT[1:])


@dataclass(slots=True)
class Session:
    """Reads lines, has them answered, and hands the answer's text to `show` as it comes.

    `options` are fields of a request by name, None where the server decides.
    """

    model: ServedChat
    lines: Lines
    show: Callable[[str], None]
    options: dict[str, Any]
    conversation: Conversation = field(default_factory=Conversation)
    answers: list[Completion] = field(default_factory=list)
    # The last message, while it has no answer; one with an answer is the last of the turns.
    _unanswered: str | None = None

    def run(self) -> None:
        """Go on until the lines end.

        On a terminal an error is a line and the talk goes on; from a pipe it ends it.
        """
        if self.lines.is_terminal:
            log.info("%s answers; /help lists the commands", self.model.model)
        while (line := self.lines.read()) is not None and line.strip() not in _QUIT:
            try:
                self._take(line)
            except MinitronError as error:
                if not self.lines.is_terminal:
                    raise
                click.echo(one_line(f"error: {error}"), err=True)

    def _take(self, line: str) -> None:
        text = line.strip()
        # A way to say what begins with /: the first one goes.
        if text.startswith("//"):
            self._answer(text[1:])
        elif text.startswith("/"):
            self._command(text)
        elif text:
            self._answer(line)

    def _command(self, text: str) -> None:
        name, _, rest = text.partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help,
            "/system": self._system,
            "/set": self._set,
            "/retry": self._retry,
            "/new": self._new,
            "/save": self._save,
            "/load": self._load,
        }
        if name not in commands:
            raise UsageError(
                f"{name} is no command{suggestion(name, NAMES)}; /help lists them, and a message "
                "that begins with / is written with //"
            )
        commands[name](rest.strip())

    def _answer(self, question: str) -> None:
        """Show the answer to a message; what came of it is part of the conversation."""
        self._unanswered = question
        stream = self.model.stream(self.conversation.asked(question), self.options)
        is_stopped = False
        try:
            with stream:
                for piece in stream:
                    self.show(piece)
        except Terminated:
            # SIGTERM, which is a KeyboardInterrupt, too, ends everything.
            raise
        except KeyboardInterrupt:
            if not self.lines.is_terminal:
                raise
            is_stopped = True
        finally:
            completion = stream.completion
            # A message without an answer is not piled up: /retry asks it again.
            if completion:
                self.show("\n")
                self.conversation.turns.append((question, str(completion)))
                self._unanswered = None
        self.answers.append(completion)
        log.info("%s", _facts(completion, "stopped" if is_stopped else completion.finish_reason))

    def _help(self, _: str) -> None:
        width = max(map(len, HELP))
        _tell("a line is said to the model; with \\ at its end it goes on in the next one")
        for usage, words in HELP.items():
            _tell(f"  {usage:{width}}  {words}")

    def _system(self, text: str) -> None:
        if text:
            self.conversation.system = "" if text == _NONE else text
        _tell(f"system: {self.conversation.system or '(nothing)'}")

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        if name:
            self._set_option(name, value.strip())
        told = [
            f"{key} {json.dumps(value)}"
            for key, value in self.options.items()
            if value not in (None, (), [])
        ]
        _tell(", ".join(told) or "(nothing; the server decides)")

    def _set_option(self, name: str, value: str) -> None:
        if name not in self.options:
            raise UsageError(
                f"{name!r} is no option of requests{suggestion(name, self.options)}; expected one "
                f"of {', '.join(sorted(self.options))}"
            )
        if not value:
            raise UsageError(f"/set {name} needs a value; {_NONE} unsets it")
        options = {**self.options, name: _parsed(value)}
        # What no request can hold is refused here, and not with the next message.
        GenerateRequest("-", **{key: each for key, each in options.items() if each is not None})
        self.options = options

    def _retry(self, _: str) -> None:
        if self._unanswered is not None:
            self._answer(self._unanswered)
        elif self.conversation.turns:
            question, _ = self.conversation.turns.pop()
            self._answer(question)
        else:
            raise UsageError("nothing was said yet that could be answered anew")

    def _new(self, _: str) -> None:
        self.conversation = Conversation(self.conversation.system)
        self._unanswered = None
        _tell("the conversation begins anew")

    def _save(self, text: str) -> None:
        path = _path(text, "/save")
        self.conversation.save(path)
        _tell(f"{len(self.conversation.messages)} messages in {path}")

    def _load(self, text: str) -> None:
        self.conversation = Conversation.load(_path(text, "/load"))
        self._unanswered = None
        _tell(f"{len(self.conversation.messages)} messages so far")


def _tell(text: str) -> None:
    """Say what a command has to say, with -q too: it was asked for."""
    click.echo(one_line(text), err=True)


def _path(text: str, name: str) -> Path:
    if not text:
        raise UsageError(f"{name} needs the name of a file")
    return Path(text).expanduser()


def _parsed(value: str) -> Any:
    """Return the value that somebody typed: as JSON, or else as text."""
    if value == _NONE:
        return None
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _facts(completion: Completion, reason: str | None) -> str:
    """Return tokens, their rate after the first, and the time to that, as the page has them."""
    tokens, first_s = completion.completion_tokens, completion.first_chunk_s
    parts = [] if tokens is None else [f"{tokens} tokens"]
    if tokens and tokens > 1 and first_s is not None and completion.total_s > first_s:
        parts.append(f"{(tokens - 1) / (completion.total_s - first_s):.1f} tokens/s")
    if first_s is not None:
        parts.append(f"first after {first_s * 1000:.0f} ms")
    return "[" + ", ".join([*parts, *([reason] if reason else [])]) + "]"
