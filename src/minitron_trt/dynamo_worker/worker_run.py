"""The life of a worker: it waits for Triton, serves while Triton does, and tells why it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dynamo.common.backend import Worker, WorkerConfig
from dynamo.common.utils.namespace import get_worker_namespace

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.endpoint import Access, Timeouts
from minitron_trt.clients.model_interface import ModelInterface
from minitron_trt.dynamo_worker.model_card import ModelCard
from minitron_trt.dynamo_worker.triton_engine import TritonEngine
from minitron_trt.dynamo_worker.triton_watch import EVERY_S, TritonWatch
from minitron_trt.errors import ServerError, UnreachableError, UnsupportedError
from minitron_trt.host.async_termination import run_terminable

log = logging.getLogger(__name__)

# Frontends take workers for the same only where the path that was given is the same, too.
_FOLDER: Final = Path("model")


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """Where a worker's Triton is, and where in Dynamo the worker stands."""

    url: str
    ca: Path | None
    namespace: str
    component: str
    endpoint: str
    discovery_backend: str
    request_plane: str
    event_plane: str | None
    block_size: int
    timeout_s: float
    answer_s: float
    drain_s: int


def run_worker(card: ModelCard, options: WorkerOptions) -> None:
    """Wait for Triton, then serve until SIGTERM or Ctrl-C, then drain.

    UnreachableError when Triton was not there in time, or has gone; UnsupportedError when its model
    does not stream token ids.
    """
    run_terminable(_work(card, options))


async def _work(card: ModelCard, options: WorkerOptions) -> None:
    async with AsyncClient.connect(
        options.url, timeouts=Timeouts(total_s=options.answer_s), access=Access(options.ca)
    ) as client:
        _check(card, await _found(client, card, options))
        with (
            tempfile.TemporaryDirectory(prefix="minitron-trt-") as scratch,
            contextlib.chdir(scratch),
        ):
            card.write(_FOLDER)
            engine = TritonEngine(
                client, card, drain_s=options.drain_s, block_size=options.block_size
            )
            watch = TritonWatch(client, lambda: engine.endpoint, _end_worker)
            log.info("Triton is ready; the worker joins %s", options.namespace)
            async with watch.watching():
                # Not before: while Triton is waited for, Ctrl-C is ours to answer.
                _leave_signals_to_dynamo()
                await _run(Worker(engine, _config(card, options)))
    if watch.fault is not None:
        raise watch.fault


async def _found(client: AsyncClient, card: ModelCard, options: WorkerOptions) -> ModelInterface:
    """Return what the model takes, as soon as Triton is ready to be asked."""
    until = time.monotonic() + options.timeout_s
    while True:
        try:
            if await client.ready():
                return await client.interface(card.generator)
            fault: ServerError | None = None
        except UnreachableError as error:
            fault = error
        if time.monotonic() > until:
            raise fault or UnreachableError(
                f"Triton at {options.url} was not ready after {options.timeout_s:g} s; look at its "
                "log, or raise --timeout"
            )
        await asyncio.sleep(EVERY_S)


def _check(card: ModelCard, interface: ModelInterface) -> None:
    if interface.takes_text or interface.is_decoupled is False:
        lacks = "takes text" if interface.takes_text else "has one response for a whole answer"
        raise UnsupportedError(
            f"the model {card.generator!r} {lacks}; Dynamo wants token ids one by one: make the "
            "repository with triton-repo, without --no-decoupled"
        )


def _config(card: ModelCard, options: WorkerOptions) -> WorkerConfig:
    return WorkerConfig(
        # Of an operator's rollout each generation of workers has a namespace of its own.
        namespace=get_worker_namespace(options.namespace),
        component=options.component,
        endpoint=options.endpoint,
        model_name=str(_FOLDER),
        served_model_name=card.name,
        endpoint_types=card.endpoint_types,
        discovery_backend=options.discovery_backend,
        request_plane=options.request_plane,
        event_plane=options.event_plane,
        # Triton tells nobody which blocks its cache holds, so routers go by what they sent.
        enable_local_indexer=False,
        enable_kv_routing=False,
        metrics_labels=[("model", card.name)],
    )


async def _run(worker: Worker) -> None:
    try:
        await worker.run()
    except Exception as error:  # Dynamo raises nothing more precise
        raise UnreachableError(
            f"Dynamo cannot be joined: {error}; look at --discovery-backend and at what it needs"
        ) from error


def _end_worker() -> None:
    # Its own way to its end: Dynamo takes the worker from the routers first, then drains.
    os.kill(os.getpid(), signal.SIGTERM)


def _leave_signals_to_dynamo() -> None:
    """Give up our handlers: Dynamo's would call them before its own."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
