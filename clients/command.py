"""`minitron-trt generate`."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from minitron_trt.console import Console, console_options
from minitron_trt.errors import UsageError

if TYPE_CHECKING:
    from minitron_trt.clients.messages import GenerateRequest

log = logging.getLogger(__name__)


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--url",
    default="grpc://127.0.0.1:8001",
    show_default=True,
    help="Where the server is: grpc://, grpcs://, http:// or https:// with host and port",
)
@click.option(
    "--max-tokens", type=int, default=64, show_default=True, help="Tokens to make at most"
)
@click.option("--temperature", type=float, help="Flatten (above 1) or sharpen (below 1) the odds")
@click.option("--top-k", type=int, help="Choose among so many of the likeliest tokens")
@click.option("--top-p", type=float, help="Choose among the likeliest tokens up to this share")
@click.option("--seed", type=int, help="Make the choice of tokens repeatable")
@click.option("--stop-word", "stop_words", multiple=True, help="End at this text; may be repeated")
@click.option("--bad-word", "bad_words", multiple=True, help="Avoid this text; may be repeated")
@click.option("--end-id", type=int, help="End at this token instead of the model's own")
@click.option("--model", default="ensemble", show_default=True, help="Model to ask on the server")
@click.option(
    "--timeout", type=float, default=120.0, show_default=True, help="Seconds for the whole answer"
)
@click.option("--stream/--no-stream", default=True, help="Print the text as it is made, or at once")
@console_options
def generate(
    console: Console, prompt: str | None, url: str, timeout: float, **options: Any
) -> None:
    """Stream the continuation of a prompt.

    Without PROMPT, or with -, it is read from standard input, less one line break at its end.
    Text goes to stdout as it is made.

    Example: minitron-trt generate "Complete the paragraph: our solar system is" --max-tokens 32
    """
    from minitron_trt.clients.messages import GenerateRequest

    # The gRPC library logs to stderr what the error will say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    text = _read_stdin() if prompt is None or prompt == "-" else prompt
    request = GenerateRequest(text_input=text, **options)
    record = run(request, url, timeout, _ignore if console.as_json else _show)
    if console.as_json:
        console.result(record, record["text"])


def run(
    request: GenerateRequest, url: str, timeout_s: float, show: Callable[[str], None]
) -> dict[str, Any]:
    """Ask the server, hand each piece of text to `show` and return the record of the answer."""
    from minitron_trt.clients.client import Client

    texts: list[str] = []
    first_chunk_s = None
    start = time.monotonic()
    try:
        with Client.connect(url, timeout_s=timeout_s) as client, client.stream(request) as stream:
            for text in stream:
                if first_chunk_s is None:
                    first_chunk_s = round(time.monotonic() - start, 6)
                texts.append(text)
                show(text)
        total_s = round(time.monotonic() - start, 6)
    finally:
        # An error or the shell's prompt then starts on a line of its own.
        if texts:
            show("\n")
    return {
        "text": "".join(texts),
        "model": request.model,
        "url": url,
        "chunks": len(texts),
        "first_chunk_s": first_chunk_s,
        "total_s": total_s,
    }


def _show(text: str) -> None:
    click.echo(text, nl=False)


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
