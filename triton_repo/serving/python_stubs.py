"""The stubs of Python models: programs that Triton starts and does not look after."""

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
_WAITING_TICKS: Final = 4  # hundredths of a second
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
    """Sees when some processes together used next to no processor for so many seconds.

    A stub that only waits wakes up three times a second, so that it is not quite none.
    """

    def __init__(self, pids: Callable[[], Iterable[int]], seconds: float) -> None:
        self._pids, self._seconds = pids, seconds
        self._ticks: int | None = None
        self._since = self._looked = time.monotonic()

    def is_seen(self) -> bool:
        """Say whether there are such processes and they have used hardly any for that time."""
        now = time.monotonic()
        if now < self._looked + _LOOK_S:
            return False
        self._looked = now
        ticks = processor_ticks(self._pids())
        # Fewer than before when one has ended, or has loaded and is no longer of interest.
        if ticks is None or self._ticks is None or not 0 <= ticks - self._ticks <= _WAITING_TICKS:
            self._ticks, self._since = ticks, now
        return now > self._since + self._seconds
