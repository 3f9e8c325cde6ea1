"""The options of the commands that evaluate models: how they are computed, or asked on a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import cloup

from minitron_trt.clients.request_options import ACCESS, access
from minitron_trt.console import PATH
from minitron_trt.option_types import POSITIVE

if TYPE_CHECKING:
    from minitron_trt.evaluate.served_model import ServerSettings

C = TypeVar("C", bound=Callable[..., Any])
DTYPES: Final = ("float32", "bfloat16", "float16")
"""What a model is computed in."""
DEVICES: Final = ("cpu", "cuda")
"""Where it is."""


def tokenizer_option(*, default: str | None = None) -> Callable[[C], C]:
    """Return a decorator: the command gets the `tokenizer` of a server's model."""
    more = f"  [default: {default}]" if default else ""
    return cloup.option(
        "--tokenizer",
        type=PATH,
        help=f"tokenizer.json of a server's model, or its folder{more}",
    )


SERVER: Final = (
    cloup.option(
        "--server-model",
        default="tensorrt_llm",
        show_default=True,
        help="Model of token ids to ask on a server",
    ),
    cloup.option(
        "--timeout",
        "timeout_s",
        type=POSITIVE,
        default=600.0,
        show_default=True,
        help="Seconds for an answer of a server",
    ),
    *ACCESS,
)


def server_settings(options: dict[str, Any]) -> ServerSettings:
    """Return what `tokenizer_option` and SERVER describe; their values leave `options`."""
    from minitron_trt.evaluate.served_model import ServerSettings

    return ServerSettings(
        model=options.pop("server_model"),
        tokenizer=options.pop("tokenizer"),
        timeout_s=options.pop("timeout_s"),
        access=access(options),
    )
