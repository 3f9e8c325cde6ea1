"""`minitron-trt gateway`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import cloup

from minitron_trt.clients.request_options import (
    CHAT_TEMPLATE,
    SHORT_URLS,
    TRITON_CA,
    url_option,
)
from minitron_trt.console import PATH, Console, console_options
from minitron_trt.drain_option import drain_option
from minitron_trt.errors import MissingExtraError, UsageError
from minitron_trt.host.addresses import is_loopback
from minitron_trt.option_types import POSITIVE

if TYPE_CHECKING:
    from minitron_trt.gateway.access import ApiKeys

PORT: Final = 9000
"""Where it listens unless told otherwise, as Triton's own OpenAI frontend does."""
ANSWER_S: Final = 600.0
"""How long a whole answer may take unless told otherwise: as long as the openai package waits."""
LIMITS: Final = ("body_bytes", "running", "rate_per_minute")
"""The options that limit requests, by their fields of GatewayLimits."""


@cloup.command()
@cloup.option_group(
    "Triton and its models",
    # A token takes less of the gateway's time than over gRPC, whose asyncio is slow.
    url_option("Triton", more=SHORT_URLS, default="http://127.0.0.1:8000"),
    TRITON_CA,
    cloup.option(
        "--model",
        "models",
        multiple=True,
        metavar="[NAME=]MODEL",
        help="Offer this model of Triton's, to clients as NAME; may be repeated  [default: those "
        "of ensemble, tensorrt_llm_bls and tensorrt_llm that are there and take a text]",
    ),
    CHAT_TEMPLATE,
    cloup.option(
        "--max-tokens",
        "chat_max_tokens",
        type=click.IntRange(1),
        default=128,
        show_default=True,
        help="Tokens of a chat's answer at most where the request does not say",
    ),
)
@cloup.option_group(
    "Address",
    cloup.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on"),
    cloup.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=PORT,
        show_default=True,
        help="0: a free one",
    ),
    cloup.option("--tls-cert", type=PATH, help="PEM certificate: the gateway speaks HTTPS"),
    cloup.option("--tls-key", type=PATH, help="PEM key of the certificate"),
)
@cloup.option_group(
    "Who may ask",
    cloup.option("--api-keys", type=PATH, help="File of keys: KEY or NAME KEY, one a line"),
    cloup.option(
        "--insecure-no-keys",
        is_flag=True,
        help="Listen beyond this machine though everybody may ask",
    ),
    cloup.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Let pages from here ask, like https://example.org; may be repeated  [default: none]",
    ),
)
@cloup.option_group(
    "Limits",
    cloup.option(
        "--max-body",
        "body_bytes",
        type=click.IntRange(1),
        default=2**20,
        show_default=True,
        help="Bytes of a request's body at most",
    ),
    cloup.option(
        "--max-running",
        "running",
        type=click.IntRange(1),
        default=256,
        show_default=True,
        help="Sequences that are made at a time; further requests get 429",
    ),
    cloup.option(
        "--rate",
        "rate_per_minute",
        type=click.IntRange(1),
        help="Requests a minute of each key, or of each address  [default: no limit]",
    ),
    cloup.option(
        "--timeout",
        "total_s",
        type=POSITIVE,
        default=ANSWER_S,
        show_default=True,
        help="Seconds for a whole answer",
    ),
    drain_option("after SIGTERM or Ctrl-C; a second one cuts"),
)
@console_options
def gateway(
    console: Console,
    url: str,
    ca: Path | None,
    models: tuple[str, ...],
    chat_template: str | None,
    chat_max_tokens: int,
    tls_cert: Path | None,
    tls_key: Path | None,
    api_keys: Path | None,
    insecure_no_keys: bool,
    cors_origins: tuple[str, ...],
    total_s: float,
    **options: Any,
) -> None:
    """Serve OpenAI's API, and a page to talk on, before Triton.

    Runs until SIGTERM or Ctrl-C. Whatever repository Triton serves, the inputs that its models
    declare decide what a request may ask for.

    Example: minitron-trt gateway --url http://127.0.0.1:8000 --api-keys keys.txt
    """
    try:
        from minitron_trt.gateway.app import GatewayOptions, gateway_app
        from minitron_trt.gateway.gateway_server import Listener, allow_open_files, gateway_server
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "gateway", "the gateway") from error
    from minitron_trt.chat_templates import read_template
    from minitron_trt.clients.aio import AsyncClient
    from minitron_trt.clients.endpoint import Access, Timeouts
    from minitron_trt.gateway.limits import GatewayLimits
    from minitron_trt.gateway.served_models import ServedModels

    listener = Listener(options["host"], options["port"], tls_cert, tls_key, options["drain_s"])
    keys = _keys(listener.host, api_keys, insecure_no_keys=insecure_no_keys)
    limits = GatewayLimits(**{name: options[name] for name in LIMITS})
    client = AsyncClient.connect(url, timeouts=Timeouts(total_s=total_s), access=Access(ca))
    template = None if chat_template is None else read_template(chat_template)
    names = dict(map(_named_model, models))
    served = ServedModels(client, names=names, chat_max_tokens=chat_max_tokens, template=template)
    allow_open_files(limits.running)
    app = gateway_app(client, served, GatewayOptions(keys, limits, cors_origins))
    # Open before it is told: who has read the line can connect, also while the rest starts.
    with listener.open() as taken:
        record = addresses(listener.url(taken), url)
        console.result(record, describe(record))
        gateway_server(app, listener).run(sockets=[taken])


def addresses(where: str, triton: str) -> dict[str, str]:
    """Return the URLs of a gateway's parts, and of what it asks."""
    return {"openai": f"{where}/v1", "page": f"{where}/", "triton": triton}


def describe(record: Mapping[str, str]) -> str:
    """Return where the gateway can be reached, as text."""
    return "\n".join(
        (
            f"OpenAI's API  {record['openai']}",
            f"a page        {record['page']}",
            f"Triton        {record['triton']}",
            "Ctrl-C stops it",
        )
    )


def _keys(host: str, file: Path | None, *, insecure_no_keys: bool) -> ApiKeys | None:
    """Return who may ask, None for everybody; UsageError where others than this machine could."""
    from minitron_trt.gateway.access import ApiKeys

    if file is None and not insecure_no_keys and not is_loopback(host):
        raise UsageError(
            f"whoever reaches {host} could ask; give --api-keys FILE, or say --insecure-no-keys"
        )
    return ApiKeys.read(file) if file else None


def _named_model(text: str) -> tuple[str, str]:
    name, equals, model = text.partition("=")
    if not name or (equals and not model):
        raise UsageError(f"--model is {text!r}; expected MODEL or NAME=MODEL")
    return name, model or name
