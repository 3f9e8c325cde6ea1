"""The requests in flight, found by their clients' ids."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

Name = str | int
"""A request id or a stream id."""


@dataclass(frozen=True, slots=True)
class RunningRequest:
    """One row of a client's request: the names it goes by, and the executor's id of it."""

    names: frozenset[Name]
    request_id: str


class RunningRequests:
    """Every request that has not had its last response; for any thread."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._requests: dict[str, RunningRequest] = {}  # by the executor's id

    def add(self, request: RunningRequest) -> None:
        """Remember a request that begins."""
        with self._changed:
            self._requests[request.request_id] = request
            self._changed.notify_all()

    def remove(self, request_ids: Iterable[str]) -> None:
        """Forget requests that have ended."""
        with self._changed:
            for request_id in request_ids:
                self._requests.pop(request_id, None)

    def named(self, names: Iterable[Name]) -> list[str]:
        """Return the executor's ids of every request that goes by one of the names."""
        wanted = frozenset(names)
        return [request.request_id for request in self._all() if request.names & wanted]

    def wait(self, closing: threading.Event) -> bool:
        """Sleep until a request runs, or the model closes; return whether one runs."""
        with self._changed:
            self._changed.wait_for(lambda: self._requests or closing.is_set())
            return bool(self._requests)

    def wake(self) -> None:
        """End the sleep of who waits."""
        with self._changed:
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._requests)

    def _all(self) -> tuple[RunningRequest, ...]:
        with self._changed:
            return tuple(self._requests.values())
