"""`minitron-trt chat`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cloup

from minitron_trt.clients.request_options import (
    ACCESS,
    CHAT_TEMPLATE,
    PLACE,
    SAMPLING,
    WAITS,
    connect,
)
from minitron_trt.console import PATH, Console, console_options, show_piece
from minitron_trt.option_types import Count

if TYPE_CHECKING:
    from minitron_trt.chat.session import Session


@cloup.command()
@cloup.option_group(
    "Conversation",
    *PLACE,
    cloup.option("--system", help="What the system says at the start"),
    cloup.option("--load", type=PATH, help="Go on with a conversation that /save wrote"),
    CHAT_TEMPLATE,
    cloup.option(
        "--max-tokens",
        type=Count(),
        default=256,
        show_default=True,
        help="Tokens of an answer at most",
    ),
)
@cloup.option_group("How tokens are chosen", *SAMPLING)
@cloup.option_group("Waiting", *WAITS)
@cloup.option_group("Access", *ACCESS)
@console_options
def chat(
    console: Console,
    system: str | None,
    load: Path | None,
    chat_template: str | None,
    model: str,
    **options: Any,
) -> None:
    """Talk with a served model.

    A line is said to the model, whose answer is shown as it is made; /help lists the commands.
    Ctrl-C stops an answer, Ctrl-D ends the talk. A base model has no chat template: give it one.

    From a pipe each line is a message; with --json the whole conversation is printed at the end.

    Example: minitron-trt chat --chat-template llama --system "Answer in one sentence."
    """
    from minitron_trt.chat.conversation import Conversation
    from minitron_trt.chat.lines import PipedLines, TerminalLines
    from minitron_trt.chat.served_chat import ServedChat
    from minitron_trt.chat.session import NAMES, Session
    from minitron_trt.chat_templates import read_template

    conversation = Conversation() if load is None else Conversation.load(load)
    conversation.system = conversation.system if system is None else system
    template = None if chat_template is None else read_template(chat_template)
    url, client = options["url"], connect(options)
    with client:
        served = ServedChat(client, model, template)
        served.check()
        session = Session(
            served,
            TerminalLines(NAMES) if sys.stdin.isatty() else PipedLines(),
            _ignore if console.as_json else show_piece,
            options,
            conversation,
        )
        session.run()
    if console.as_json:
        console.result({**_record(session), "model": model, "url": url}, "")


def _record(session: Session) -> dict[str, Any]:
    import msgspec

    answers = [
        {
            "text": each.text,
            "finish_reason": each.finish_reason,
            "prompt_tokens": each.prompt_tokens,
            "completion_tokens": each.completion_tokens,
            "first_chunk_s": each.first_chunk_s and round(each.first_chunk_s, 6),
            "total_s": round(each.total_s, 6),
        }
        for each in session.answers
    ]
    # As they were asked for: with the system's words, and without the unanswered.
    return {"messages": msgspec.to_builtins(session.conversation.messages), "answers": answers}


def _ignore(text: str) -> None:
    """Keep stdout for the JSON object."""
