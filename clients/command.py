"""`minitron-trt generate`."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import cloup

from minitron_trt.clients.request_options import ACCESS, PLACE, SAMPLING, SEVERAL, WAITS, connect
from minitron_trt.console import Console, console_options, show_piece
from minitron_trt.errors import UsageError, visible
from minitron_trt.option_types import Count

if TYPE_CHECKING:
    from minitron_trt.clients.client import Client
    from minitron_trt.clients.messages import GenerateRequest

log = logging.getLogger(__name__)


@cloup.command()
@cloup.argument("prompt", required=False)
@cloup.option_group(
    "Request",
    *PLACE,
    cloup.option("--max-tokens", type=Count(), help="Tokens to make at most  [default: 64]"),
    cloup.option("--chat", is_flag=True, help="Apply the model's chat template to the prompt"),
    cloup.option(
        "--input-ids",
        metavar="ID,ID…",
        help="Token ids in place of PROMPT, for the model tensorrt_llm, which answers with ids",
    ),
    cloup.option("--log-probs", is_flag=True, help="Have the tokens' log-probs in the JSON object"),
    cloup.option(
        "--stream/--no-stream", default=True, help="Print the text as it is made, or at once"
    ),
)
@cloup.option_group("How tokens are chosen", *SAMPLING, *SEVERAL)
@cloup.option_group("Waiting", *WAITS)
@cloup.option_group("Access", *ACCESS)
@console_options
def generate(
    console: Console,
    prompt: str | None,
    input_ids: str | None,
    chat: bool,
    log_probs: bool,
    **options: Any,
) -> None:
    """Stream the continuation of a prompt.

    Without PROMPT, or with -, it is read from standard input, less one line break at its end.
    Text goes to stdout as it is made; of several answers, each when all are made. On a terminal,
    control characters in it are shown and not obeyed.

    Example: minitron-trt generate "Complete the paragraph: our solar system is" --max-tokens 32
    """
    from minitron_trt.clients.messages import GenerateRequest

    url, client = options["url"], connect(options)
    if input_ids is None:
        options["text_input"] = _read_stdin() if prompt in (None, "-") else prompt
    else:
        options |= {"text_input": prompt or "", "input_ids": _ids(input_ids)}
    request = GenerateRequest(
        apply_chat_template=chat or None,
        return_log_probs=log_probs or None,
        count_tokens=console.as_json,
        **options,
    )
    several = request.sequences > 1
    show = _ignore if console.as_json or several else show_piece
    with client:
        record = run(client, request, show)
    if console.as_json or several:
        console.result({**record, "url": url}, _numbered(record) if several else record["text"])


def run(client: Client, request: GenerateRequest, show: Callable[[str], None]) -> dict[str, Any]:
    """Ask the server, hand each piece of text to `show` and return the record of the answer."""
    from minitron_trt.clients.completions import Collector

    collector = Collector(request)
    pieces = 0
    collector.begin()
    try:
        with contextlib.closing(client.chunks(request)) as stream:
            for chunk in stream:
                collector.add(chunk)
                if text := chunk.text or " ".join(map(str, chunk.token_ids)):
                    show(text if chunk.text or not pieces else f" {text}")
                    pieces += 1
    finally:
        # An error or the shell's prompt then starts on a line of its own.
        if pieces:
            show("\n")
    completions = collector.completions()
    first = collector.first()
    return {
        "text": first.text,
        **({"token_ids": first.token_ids} if first.token_ids else {}),
        **({"texts": [each.text for each in completions]} if request.sequences > 1 else {}),
        **({"outputs": [each.outputs for each in completions]} if request.return_log_probs else {}),
        "finish_reason": first.finish_reason,
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": first.completion_tokens,
        "model": request.model,
        "chunks": pieces,
        "first_chunk_s": first.first_chunk_s and round(first.first_chunk_s, 6),
        "total_s": round(first.total_s, 6),
    }


def _numbered(record: dict[str, Any]) -> str:
    texts = "\n".join(f"[{index}] {text}" for index, text in enumerate(record["texts"]))
    return visible(texts) if sys.stdout.isatty() else texts


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(f"--input-ids is {text!r}; expected token ids like 1,2,3") from error


def _ignore(text: str) -> None:
    """Keep stdout for the JSON object."""


def _read_stdin() -> str:
    if sys.stdin.isatty():
        log.info("reading the prompt from the terminal; end it with Ctrl-D")
    try:
        text = sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text ({error})") from error
    return text.removesuffix("\n")
