"""The processes of Python models below a server, which Triton starts and does not look after."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from minitron_trt.host.processes import processor_ticks

# Triton runs each instance of a Python model in a program of this name, its stub; among the
# arguments is the path of the model.py.
_STUB: Final = "triton_python_backend_stub"
_LOOK_S: Final = 0.5
_MODEL_PATH: Final = re.compile(r"/(?P<model>[^/]+)/\d+/model\.py$")


def model_processes(pids: Iterable[int]) -> dict[int, str]:
    """Return those of some processes that run a Python model, each with the model's name."""
    return dict(_stubs(pids))


def _stubs(pids: Iterable[int]) -> Iterator[tuple[int, str]]:
    for pid in pids:
        # One that has ended since is none.
        with contextlib.suppress(OSError):
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")
            if Path(command[0]).name == _STUB:
                matches = (_MODEL_PATH.search(argument) for argument in command)
                yield pid, next((match["model"] for match in matches if match), "unknown")


class Stall:
    """Sees when some processes together used no processor for so many seconds."""

    def __init__(self, pids: Callable[[], Iterable[int]], seconds: float) -> None:
        self._pids, self._seconds = pids, seconds
        self._ticks: int | None = None
        self._since = self._looked = time.monotonic()

    def is_seen(self) -> bool:
        """Say whether there are such processes and they have used none for that time."""
        now = time.monotonic()
        if now < self._looked + _LOOK_S:
            return False
        self._looked = now
        ticks = processor_ticks(self._pids())
        if ticks is None or ticks != self._ticks:
            self._ticks, self._since = ticks, now
        return now > self._since + self._seconds
