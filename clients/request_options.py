"""The options of the commands that ask a server: where it is, how tokens are chosen, waits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import cloup

from minitron_trt.console import PATH
from minitron_trt.errors import UsageError

if TYPE_CHECKING:
    from minitron_trt.clients.client import Client
    from minitron_trt.clients.endpoint import Access

C = TypeVar("C", bound=Callable[..., Any])


def url_option(what: str, *, more: str, default: str = "grpc://127.0.0.1:8001") -> Callable[[C], C]:
    """Return a decorator: the command gets `url`, by default Triton's gRPC on this machine."""
    return cloup.option(
        "--url",
        default=default,
        show_default=True,
        help=f"Where {what} is: grpc://, grpcs://, http:// or https:// with host and port; {more}",
    )


SHORT_URLS: Final = "localhost:8000 and :8001 are Triton's HTTP and gRPC"
TRITON_URL = url_option("Triton", more=SHORT_URLS)
TRITON_CA = cloup.option("--ca", type=PATH, help="PEM file that signed Triton's certificate")
CHAT_TEMPLATE = cloup.option(
    "--chat-template",
    metavar="FILE",
    help="What makes a prompt of messages: a jinja file, a tokenizer's folder, or llama, nemotron "
    "or mistral for that family's plain one  [default: the model's own]",
)
PLACE = (
    url_option("the server", more=SHORT_URLS),
    cloup.option(
        "--model", default="ensemble", show_default=True, help="Model to ask on the server"
    ),
)
SAMPLING = (
    cloup.option(
        "--temperature",
        type=float,
        help="Flatten (above 1) or sharpen (below 1) the odds by which --top-k or --top-p choose",
    ),
    cloup.option("--top-k", type=int, help="Choose among so many of the likeliest tokens"),
    cloup.option("--top-p", type=float, help="Choose among the likeliest tokens up to this share"),
    cloup.option("--seed", type=int, help="Make the choice of tokens repeatable"),
    cloup.option("--repetition-penalty", type=float, help="Above 1: repeat less"),
    cloup.option("--presence-penalty", type=float, help="Above 0: favour tokens not yet there"),
    cloup.option("--frequency-penalty", type=float, help="Above 0: the more often, the less"),
    cloup.option("--min-tokens", type=int, help="Do not end before so many tokens"),
    cloup.option("--stop-word", "stop_words", multiple=True, help="End at this text; repeatable"),
    cloup.option("--bad-word", "bad_words", multiple=True, help="Avoid this text; repeatable"),
    cloup.option("--end-id", type=int, help="End at this token instead of the model's own"),
)
SEVERAL = (
    cloup.option("-n", "--num-return-sequences", type=int, help="Make so many answers"),
    cloup.option("--beam-width", type=int, help="Search with so many beams"),
    cloup.option("--length-penalty", type=float, help="Of beam search: above 0 favours length"),
)
WAITS = (
    cloup.option(
        "--timeout",
        "total_s",
        type=float,
        default=120.0,
        show_default=True,
        help="Seconds for the whole answer",
    ),
    cloup.option(
        "--connect-timeout",
        "connect_s",
        type=float,
        default=5.0,
        show_default=True,
        help="Seconds to find the server and its model",
    ),
    cloup.option("--first-token-timeout", "first_token_s", type=float, help="Seconds to the first"),
    cloup.option(
        "--between-tokens-timeout", "between_tokens_s", type=float, help="Seconds to each next"
    ),
    cloup.option(
        "--retries",
        type=int,
        default=2,
        show_default=True,
        help="Further tries when the connection fails before the first token",
    ),
)
ACCESS = (
    cloup.option("--ca", type=PATH, help="PEM file that signed the server's"),
    cloup.option("--certificate", type=PATH, help="PEM file of your own"),
    cloup.option("--key", type=PATH, help="PEM file of its private key"),
    cloup.option("--header", "headers", multiple=True, metavar="NAME=VALUE", help="Header to send"),
)


def connect(options: dict[str, Any]) -> Client:
    """Return the client that PLACE, WAITS and ACCESS describe; their values leave `options`.

    The model stays: it is a field of the request.
    """
    from minitron_trt.clients.client import Client
    from minitron_trt.clients.endpoint import Timeouts

    timeouts = Timeouts(**{field: options.pop(field) for field in Timeouts.__slots__})
    return Client.connect(
        options.pop("url"),
        timeouts=timeouts,
        max_retries=options.pop("retries"),
        access=access(options),
    )


def access(options: dict[str, Any]) -> Access:
    """Return what ACCESS describes; its values leave `options`."""
    from minitron_trt.clients.endpoint import Access

    files = {name: options.pop(name) for name in ("ca", "certificate", "key")}
    return Access(**files, headers=dict(map(_header, options.pop("headers"))))


def _header(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise UsageError(f"--header is {text!r}; expected NAME=VALUE")
    return name, value
