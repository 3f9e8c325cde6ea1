"""`minitron-trt generate`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from minitron_trt.console import Console, console_options
from minitron_trt.errors import UsageError

if TYPE_CHECKING:
    from minitron_trt.clients.endpoint import Access
    from minitron_trt.clients.messages import Chunk, GenerateRequest

log = logging.getLogger(__name__)


_SAMPLING = (
    click.option(
        "--temperature",
        type=float,
        help="Flatten (above 1) or sharpen (below 1) the odds by which --top-k or --top-p choose",
    ),
    click.option("--top-k", type=int, help="Choose among so many of the likeliest tokens"),
    click.option("--top-p", type=float, help="Choose among the likeliest tokens up to this share"),
    click.option("--seed", type=int, help="Make the choice of tokens repeatable"),
    click.option("--repetition-penalty", type=float, help="Above 1: repeat less"),
    click.option("--presence-penalty", type=float, help="Above 0: favour tokens not yet there"),
    click.option("--frequency-penalty", type=float, help="Above 0: the more often, the less"),
    click.option("--min-tokens", type=int, help="Do not end before so many tokens"),
    click.option("--stop-word", "stop_words", multiple=True, help="End at this text; repeatable"),
    click.option("--bad-word", "bad_words", multiple=True, help="Avoid this text; repeatable"),
    click.option("--end-id", type=int, help="End at this token instead of the model's own"),
    click.option("-n", "--num-return-sequences", type=int, help="Make so many answers"),
    click.option("--beam-width", type=int, help="Search with so many beams"),
    click.option("--length-penalty", type=float, help="Of beam search: above 0 favours length"),
)
_ACCESS = (
    click.option("--ca", type=click.Path(path_type=Path), help="PEM file that signed the server's"),
    click.option("--certificate", type=click.Path(path_type=Path), help="PEM file of your own"),
    click.option("--key", type=click.Path(path_type=Path), help="PEM file of its private key"),
    click.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Header to send"),
)


def _options(*options: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return a decorator that adds options in their order."""
    return lambda command: functools.reduce(lambda c, option: option(c), options[::-1], command)


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
@_options(*_SAMPLING)
@click.option("--chat", is_flag=True, help="Apply the model's chat template to the prompt")
@click.option("--log-probs", is_flag=True, help="Have the tokens' log-probs in the JSON object")
@click.option("--model", default="ensemble", show_default=True, help="Model to ask on the server")
@click.option(
    "--timeout", type=float, default=120.0, show_default=True, help="Seconds for the whole answer"
)
@click.option("--stream/--no-stream", default=True, help="Print the text as it is made, or at once")
@_options(*_ACCESS)
@console_options
def generate(
    console: Console,
    prompt: str | None,
    url: str,
    timeout: float,
    ca: Path | None,
    certificate: Path | None,
    key: Path | None,
    headers: tuple[str, ...],
    chat: bool,
    log_probs: bool,
    **options: Any,
) -> None:
    """Stream the continuation of a prompt.

    Without PROMPT, or with -, it is read from standard input, less one line break at its end.
    Text goes to stdout as it is made; of several answers, each when all are made.

    Example: minitron-trt generate "Complete the paragraph: our solar system is" --max-tokens 32
    """
    from minitron_trt.clients.endpoint import Access
    from minitron_trt.clients.messages import GenerateRequest

    # The gRPC library logs to stderr what the error will say.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    text = _read_stdin() if prompt is None or prompt == "-" else prompt
    request = GenerateRequest(
        text_input=text,
        apply_chat_template=chat or None,
        return_log_probs=log_probs or None,
        **options,
    )
    access = Access(ca, certificate, key, dict(_header(header) for header in headers))
    several = request.sequences > 1
    record = run(request, url, timeout, _ignore if console.as_json or several else _show, access)
    if console.as_json or several:
        console.result(record, _numbered(record) if several else record["text"])


def run(
    request: GenerateRequest,
    url: str,
    timeout_s: float,
    show: Callable[[str], None],
    access: Access | None = None,
) -> dict[str, Any]:
    """Ask the server, hand each piece of text to `show` and return the record of the answer."""
    from minitron_trt.clients.client import Client
    from minitron_trt.clients.completions import collect

    chunks: list[Chunk] = []
    first_chunk_s = None
    start = time.monotonic()
    try:
        with (
            Client.connect(url, timeout_s=timeout_s, access=access) as client,
            contextlib.closing(client.chunks(request)) as stream,
        ):
            for chunk in stream:
                chunks.append(chunk)
                if chunk.text:
                    first_chunk_s = first_chunk_s or round(time.monotonic() - start, 6)
                    show(chunk.text)
        total_s = round(time.monotonic() - start, 6)
    finally:
        # An error or the shell's prompt then starts on a line of its own.
        if any(chunk.text for chunk in chunks):
            show("\n")
    completions = collect(chunks)
    return {
        "text": completions[0].text,
        **({"texts": [each.text for each in completions]} if request.sequences > 1 else {}),
        **({"outputs": [each.outputs for each in completions]} if request.return_log_probs else {}),
        "model": request.model,
        "url": url,
        "chunks": sum(bool(chunk.text) for chunk in chunks),
        "first_chunk_s": first_chunk_s,
        "total_s": total_s,
    }


def _numbered(record: dict[str, Any]) -> str:
    return "\n".join(f"[{index}] {text}" for index, text in enumerate(record["texts"]))


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--header is {text!r}; expected NAME=VALUE")
    return name, value


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
