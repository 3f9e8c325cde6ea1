"""What has been said: the messages of a conversation, in a file and for a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

from minitron_trt.errors import BadInputError
from minitron_trt.outputs import write_output


# Unknown fields are refused: calls of tools, say, would be lost without a word.
class Message(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """What one side said, as OpenAI's API writes it."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(slots=True)
class Conversation:
    """The turns so far, each a question and its answer, and what the system says before them."""

    system: str = ""
    turns: list[tuple[str, str]] = field(default_factory=list)

    @property
    def messages(self) -> list[Message]:
        """Return all that has been said."""
        system = [Message("system", self.system)] if self.system else []
        pairs = (
            (Message("user", question), Message("assistant", answer))
            for question, answer in self.turns
        )
        return [*system, *(message for pair in pairs for message in pair)]

    def asked(self, question: str) -> list[dict[str, str]]:
        """Return the messages that end with a new question, as a client sends them."""
        asked: list[dict[str, str]] = msgspec.to_builtins(
            [*self.messages, Message("user", question)]
        )
        return asked

    def save(self, path: Path) -> None:
        """Write the messages as JSON; OutputError when the disk cannot take them."""
        write_output(path, msgspec.json.format(msgspec.json.encode(self.messages)) + b"\n")

    @classmethod
    def load(cls, path: Path) -> Conversation:
        """Read what `save` wrote; BadInputError when it is no conversation of turns."""
        try:
            messages = msgspec.json.decode(path.read_bytes(), type=list[Message])
        except OSError as error:
            raise BadInputError(f"{path} cannot be read: {error.strerror}") from error
        except (msgspec.MsgspecError, RecursionError) as error:
            raise BadInputError(
                f"{path} is no conversation ({error}); expected a JSON list of messages with role "
                "and content"
            ) from error
        has_system = bool(messages) and messages[0].role == "system"
        system = messages[0].content if has_system else ""
        return cls(system, _turns(path, messages[has_system:]))


def _turns(path: Path, messages: Sequence[Message]) -> list[tuple[str, str]]:
    roles = ["user", "assistant"] * (len(messages) // 2)
    if [message.role for message in messages] != roles:
        raise BadInputError(
            f"{path} is no conversation: expected turns of user and assistant, after a message of "
            "the system at most"
        )
    texts = [message.content for message in messages]
    return list(zip(texts[::2], texts[1::2], strict=True))
