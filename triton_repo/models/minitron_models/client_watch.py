"""Whether a client still waits, for a model that is itself waiting for another model's answer."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import triton_python_backend_utils as pb_utils
from minitron_models.triton_io import CANCEL_CHECK_S
from minitron_models.triton_types import Cancellable


class WatchedRequest:
    """One request: whether its client has left it, or its time is up."""

    def __init__(self, client: Cancellable, request_id: str, timeout_us: int) -> None:
        self.left = False
        self.late = False
        self.request_id = request_id
        self._client = client
        self._deadline = time.monotonic() + timeout_us / 1e6 if timeout_us else None

    def look(self) -> bool:
        """Ask whether the client has left or its time is up; keep the answers, return if either."""
        self.left = bool(self._client.is_cancelled())
        self.late = self._deadline is not None and time.monotonic() >= self._deadline
        return self.left or self.late


class ClientWatch:
    """A thread that looks after one request at a time."""

    def __init__(self, end: Callable[[str], None]) -> None:
        """`end`, called on the thread, has the request of an id ended."""
        self._end = end
        self._changed = threading.Condition()
        self._watched: WatchedRequest | None = None
        self._thread = threading.Thread(target=self._run, name="client_watch", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def over(
        self, client: Cancellable, request_id: str, timeout_us: int
    ) -> Iterator[WatchedRequest]:
        """Look after a request until the block ends, which must be before its last response."""
        watched = WatchedRequest(client, request_id, timeout_us)
        self._watch(watched)
        try:
            yield watched
        finally:
            self._watch(None)

    def _watch(self, watched: WatchedRequest | None) -> None:
        with self._changed:
            self._watched = watched
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                watched = self._watched
                # Woken when another request begins or this one ends.
                self._changed.wait(None if watched is None else CANCEL_CHECK_S)
                # Locked, for the server must not be asked about a request that has ended.
                if watched is None or self._watched is not watched or not watched.look():
                    continue
                # Once is enough. The call below waits for other models, and is made without the
                # lock, which the answer needs to come to its end.
                self._watched = None
            try:
                self._end(watched.request_id)
            except Exception as error:
                # It runs to its end; the next request is looked after all the same.
                pb_utils.Logger.log_warn(f"a request that nobody wants goes on: {error}")
