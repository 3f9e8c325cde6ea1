"""A served model as one to talk with, by its own chat template or by the user's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minitron_trt.chat_templates import PLAIN, PromptTemplate
from minitron_trt.clients.client import Client, TextStream
from minitron_trt.errors import RefusedError, UsageError

_TEMPLATE: Final = "apply_chat_template"


@dataclass(frozen=True, slots=True)
class ServedChat:
    """A model on a server; without a `template` its own one makes the prompt, on the server."""

    client: Client
    model: str
    template: PromptTemplate | None = None

    def check(self) -> None:
        """Find out before the user types whether the model can talk.

        Only a request shows whether the tokenizer has a chat template, so one token is asked for.
        RefusedError when there is none, another ServerError when the server does not answer.
        """
        interface = self.client.interface(self.model)
        if self.template is not None or not interface.takes_text:
            return
        if not interface.takes(_TEMPLATE):
            raise self._no_template()
        try:
            self.client.chat("Hello", model=self.model, max_tokens=1)
        except RefusedError as error:
            if error.field == _TEMPLATE:
                raise self._no_template() from error
            raise

    def stream(
        self, messages: Sequence[Mapping[str, str]], options: Mapping[str, Any]
    ) -> TextStream:
        """Return the answer to a conversation as it comes.

        `options` are fields of a request, None where the server decides.
        """
        fields = {name: value for name, value in options.items() if value is not None}
        # Counted by the server: pieces of text are not tokens.
        fields |= {"model": self.model, "count_tokens": True}
        if self.template is None:
            return self.client.stream(messages, **fields)
        try:
            prompt = self.template.render(messages)
        except Exception as error:  # whatever a template raises that somebody wrote
            raise UsageError(
                f"the conversation does not fit the chat template: {error}; begin anew with /new, "
                "or give another --chat-template"
            ) from error
        fields["stop_words"] = (*fields.get("stop_words", ()), *self.template.stop_words)
        return self.client.stream(prompt, **fields)

    def _no_template(self) -> RefusedError:
        *names, last = PLAIN
        return RefusedError(
            f"the model {self.model!r} has no chat template, as base models have none; give one "
            f"with --chat-template FILE, or a family's plain one: {', '.join(names)} or {last}",
            field=_TEMPLATE,
        )
