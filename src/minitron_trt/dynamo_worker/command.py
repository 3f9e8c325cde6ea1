"""`minitron-trt dynamo-worker`."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final, NoReturn

import click
import cloup

from minitron_trt.clients.request_options import CHAT_TEMPLATE, TRITON_CA, TRITON_URL
from minitron_trt.console import PATH, Console, console_options
from minitron_trt.drain_option import drain_option
from minitron_trt.errors import MinitronError, MissingExtraError, one_line
from minitron_trt.option_types import POSITIVE

# Before it drains, Dynamo waits this long for routers to notice that a worker goes.
_MARGIN_S: Final = 5
_DEADLINE: Final = "DYN_WORKER_GRACEFUL_SHUTDOWN_TIMEOUT"


@cloup.command("dynamo-worker")
@cloup.argument("repository", type=PATH)
@cloup.option_group(
    "Triton and its model",
    TRITON_URL,
    TRITON_CA,
    cloup.option("--model-name", help="What clients call it  [default: the repository's folder]"),
    CHAT_TEMPLATE,
    cloup.option(
        "--timeout",
        "timeout_s",
        type=POSITIVE,
        default=300.0,
        show_default=True,
        help="Seconds until Triton must be ready",
    ),
    cloup.option(
        "--answer-timeout",
        "answer_s",
        type=POSITIVE,
        default=600.0,
        show_default=True,
        help="Seconds for a whole answer",
    ),
    drain_option("after SIGTERM or Ctrl-C"),
)
@cloup.option_group(
    "Dynamo, by whose own variables each can be set",
    cloup.option(
        "--namespace",
        envvar="DYN_NAMESPACE",
        default="dynamo",
        show_default=True,
        show_envvar=True,
        help="Namespace of frontend and workers",
    ),
    cloup.option(
        "--component",
        envvar="DYN_COMPONENT",
        default="backend",
        show_default=True,
        show_envvar=True,
        help="Name that workers of a kind share",
    ),
    cloup.option(
        "--endpoint",
        default="generate",
        show_default=True,
        help="Name of what they offer",
    ),
    cloup.option(
        "--discovery-backend",
        envvar="DYN_DISCOVERY_BACKEND",
        type=click.Choice(["kubernetes", "etcd", "file", "mem"]),
        default="etcd",
        show_default=True,
        show_envvar=True,
        help="How frontend and workers find each other; file needs a folder that all share: "
        "DYN_FILE_KV",
    ),
    cloup.option(
        "--request-plane",
        envvar="DYN_REQUEST_PLANE",
        type=click.Choice(["tcp", "nats"]),
        default="tcp",
        show_default=True,
        show_envvar=True,
        help="What carries requests",
    ),
    cloup.option(
        "--event-plane",
        envvar="DYN_EVENT_PLANE",
        type=click.Choice(["zmq", "nats"]),
        show_envvar=True,
        help="What carries events  [default: Dynamo's]",
    ),
    cloup.option(
        "--kv-block-size",
        "block_size",
        type=click.IntRange(1),
        default=32,
        show_default=True,
        help="Tokens of a block by which a router with --router-mode kv compares prompts",
    ),
)
@console_options
def dynamo_worker(
    console: Console,
    repository: Path,
    model_name: str | None,
    chat_template: str | None,
    **options: Any,
) -> None:
    """Put a running Triton behind NVIDIA Dynamo.

    REPOSITORY is what Triton serves: tokenizer, length and ends of texts are read there. Tokens are
    streamed as they come, and a client that leaves is cancelled at Triton. Runs until SIGTERM or
    Ctrl-C; ends with 6 when Triton does.

    Example: minitron-trt dynamo-worker repository --discovery-backend file
    """
    # Dynamo ends a worker by force after this time, and our drain must fit.
    os.environ.setdefault(_DEADLINE, str(options["drain_s"] + _MARGIN_S))
    try:
        from minitron_trt.dynamo_worker.model_card import read_card
        from minitron_trt.dynamo_worker.worker_run import WorkerOptions, run_worker
    except ModuleNotFoundError as error:
        raise MissingExtraError(str(error.name), "dynamo", "a worker of Dynamo") from error
    from minitron_trt.triton_repo.serving.served_repository import ServedRepository

    card = read_card(
        ServedRepository.open(repository), name=model_name, chat_template=chat_template
    )
    ca = options["ca"]
    # The worker has a folder of its own to work in.
    chosen = WorkerOptions(**options | {"ca": ca and ca.absolute()})
    record = {
        "model": card.name,
        "endpoint": f"{chosen.namespace}.{chosen.component}.{chosen.endpoint}",
        "offers": card.endpoint_types.split(","),
        "context_length": card.context_length,
        "triton": chosen.url,
    }
    console.result(record, describe(record))
    try:
        run_worker(card, chosen)
    except MinitronError as error:
        click.echo(one_line(f"error: {error}"), err=True)
        _leave(error.exit_code)
    _leave(0)


def _leave(code: int) -> NoReturn:
    """End at once: threads of Dynamo's outlive its worker, and abort a Python that tidies up."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def describe(record: dict[str, Any]) -> str:
    """Return what the worker offers and where, as text."""
    return "\n".join(
        (
            f"model     {record['model']}: {', '.join(record['offers'])}",
            f"length    {record['context_length']} tokens",
            f"endpoint  {record['endpoint']}",
            f"Triton    {record['triton']}",
            "Ctrl-C stops it",
        )
    )
