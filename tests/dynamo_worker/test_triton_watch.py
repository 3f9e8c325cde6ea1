"""A worker leaves its router while Triton is not ready, and ends when Triton has gone."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests.patience import PATIENCE_S

from minitron_trt.clients.aio import AsyncClient
from minitron_trt.clients.deadlines import Deadlines
from minitron_trt.clients.transport import AsyncEchoTransport
from minitron_trt.dynamo_worker.triton_watch import TritonWatch
from minitron_trt.errors import UnreachableError

GONE = UnreachableError("no Triton server answers")


class Answering(AsyncEchoTransport):
    """A double of Triton: says so and so of itself, then that it is gone."""

    def __init__(self, says: Iterator[bool | UnreachableError]) -> None:
        super().__init__()
        self._says = says

    async def ready(self, deadlines: Deadlines) -> bool:
        said = next(self._says, GONE)
        if isinstance(said, UnreachableError):
            raise said
        return said


class Listed:
    """A double of Dynamo's endpoint, which keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    async def register_endpoint_instance(self) -> None:
        self.told.append("listed")

    async def unregister_endpoint_instance(self) -> None:
        self.told.append("left")


def watched(*says: bool | UnreachableError) -> tuple[list[str], UnreachableError | None, int]:
    """Return what the endpoint was told until Triton was gone, why, and how often that was said."""
    endpoint, ends = Listed(), []

    async def work() -> TritonWatch:
        gone = asyncio.Event()
        client = AsyncClient(Answering(iter(says)))
        watch = TritonWatch(client, lambda: endpoint, gone.set, every_s=0.001)
        async with watch.watching():
            await asyncio.wait_for(gone.wait(), PATIENCE_S)
            ends.append(True)
        return watch

    watch = asyncio.run(work())
    assert watch.fault is None or isinstance(watch.fault, UnreachableError)
    return endpoint.told, watch.fault, len(ends)


@pytest.mark.parametrize(
    ("says", "told"),
    [
        ((True, True), []),
        ((True, False, False, True), ["left", "listed"]),
        ((False,), ["left"]),
        ((True, GONE, GONE, True), []),
    ],
    ids=["ready", "not for a while", "draining", "late for a moment"],
)
def test_a_worker_is_listed_while_triton_is_ready(
    says: tuple[bool | UnreachableError, ...], told: list[str]
) -> None:
    assert watched(*says) == (told, GONE, 1)
