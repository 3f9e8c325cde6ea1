"""The options of the commands that evaluate models: how they are computed, or asked on a server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import cloup

from minitron_trt.clients.request_options import ACCESS, access
from minitron_trt.console import PATH
from minitron_trt.option_types import POSITIVE

if TYPE_CHECKING:
    from minitron_trt.evaluate.served_model import ServerSettings

C = TypeVar("C", bound=Callable[..., Any])

dtype_option: Final = cloup.option(
    "--dtype",
    type=click.Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Compute in this; weights stay rounded as they are stored",
)
device_option: Final = cloup.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="Where models are computed that are not on a server; cuda is an NVIDIA GPU",
)


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
