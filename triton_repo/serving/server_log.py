"""What a server says: kept per rank, read for what loads and what fails."""

from __future__ import annotations

import logging
import re
from collections import deque
from pathlib import Path
from typing import IO, Final

from minitron_trt.errors import OutputError

log = logging.getLogger(__name__)

_KEPT_LINES: Final = 400
_LOADING: Final = re.compile(r"\"loading: (?P<model>.+):\d+\"")
_LOADED: Final = re.compile(r"successfully loaded '(?P<model>[^']+)'")
_DRAINED: Final = re.compile(r"All models are stopped, unloading models")
_UNLOADED: Final = re.compile(r"successfully unloaded '(?P<model>[^']+)'")
# `failed to load 'NAME' version 1: REASON`, and the end of a Python traceback.
_FAILURE: Final = re.compile(r"failed to load '(?P<model>[^']+)'.*?: (?P<reason>.+)")
# What Triton says each second while it drains.
_IN_FLIGHT: Final = re.compile(
    r"Model '(?P<model>[^']+)' .* has (?P<count>\d+) in-flight inferences"
)
_CONNECTIONS: Final = re.compile(r"Found (?P<count>\d+) HTTP service connections")
# Errors that every machine without a GPU gets to see; nothing follows from them.
_EVERYWHERE: Final = re.compile(
    r"Failed to initialize NVML|CudaDriverHelper has not been initialized|DCGM unable to start|"
    r"Unable to allocate pinned system memory"
)
# What mpirun --tag-output writes before each line: [JOB,RANK]<stdout>:
_TAG: Final = re.compile(r"\[[^\]]*,(?P<rank>\d+)\]<std(?:out|err)>: ?(?P<line>.*)")


class ServerLog:
    """The log of a server's ranks: the last lines, which model is how far, and copies in files.

    One rank's copy is `file`; of several, rank 1's is `file.rank1`.
    """

    def __init__(self, file: Path | None, ranks: int) -> None:
        self.loaded: list[str] = []
        self.unloaded: set[str] = set()
        self.is_drained = False
        self._loading: list[str] = []
        self._lines: deque[str] = deque(maxlen=_KEPT_LINES)
        self._failures: dict[str, str] = {}
        self._complaint: str | None = None
        self._drains: dict[str, str] = {}
        self._file, self._ranks = file, ranks
        self._copies: dict[int, IO[str]] = {}

    @staticmethod
    def paths(file: Path, ranks: int) -> tuple[Path, ...]:
        """Return where the copies lie, by rank."""
        if ranks == 1:
            return (file,)
        return tuple(file.with_name(f"{file.name}.rank{rank}") for rank in range(ranks))

    def open(self) -> None:
        """Make the files, so that a path that cannot be written is known before the start."""
        if self._file is not None:
            paths = self.paths(self._file, self._ranks)
            if pipe := next((path for path in paths if path.is_fifo()), None):
                raise OutputError(f"cannot write {pipe}: it is a pipe, which waits for a reader")
            self._copies = {rank: path.open("w") for rank, path in enumerate(paths)}

    def close(self) -> None:
        """Close the files."""
        for copy in self._copies.values():
            copy.close()
        self._copies = {}

    def add(self, line: str) -> None:
        """Take the next line that the server, or what runs it, wrote."""
        tag = _TAG.match(line) if self._ranks > 1 else None
        rank, text = (int(tag["rank"]), tag["line"]) if tag else (0, line)
        log.debug("triton%s: %s", f" {rank}" if tag else "", text)
        self._lines.append(text)
        if copy := self._copies.get(rank):
            copy.write(f"{text}\n")
            # For whoever follows the file.
            copy.flush()
        self._note(text)

    def _note(self, line: str) -> None:
        if match := _LOADING.search(line):
            self._loading.append(match["model"])
        elif match := _FAILURE.search(line):
            self._failures.setdefault(match["model"], match["reason"])
        elif (match := _LOADED.search(line)) and match["model"] not in self.loaded:
            self.loaded.append(match["model"])
            log.info("%s is loaded", match["model"])
        elif match := _UNLOADED.search(line):
            self.unloaded.add(match["model"])
        elif _DRAINED.search(line):
            self.is_drained = True
        elif match := _IN_FLIGHT.search(line):
            self._drains[match["model"]] = f"{match['count']} in {match['model']}"
        elif match := _CONNECTIONS.search(line):
            self._drains["HTTP"] = f"{match['count']} over HTTP"
        # Triton's lines begin with a letter for their severity; what runs it writes the word.
        elif line.startswith(("E", "error")) and not _EVERYWHERE.search(line):
            self._complaint = line

    def start_again(self) -> None:
        """Forget how far the models were: the server starts anew."""
        self.loaded.clear()
        self.unloaded.clear()
        self._loading.clear()
        self.begin_serving()

    def begin_serving(self) -> None:
        """Forget the complaints of the start, which came to nothing."""
        self._failures, self._complaint = {}, None

    @property
    def draining(self) -> str:
        """Say how many requests Triton waits for, and where; "" when it said nothing."""
        return ", ".join(self._drains.values())

    @property
    def tail(self) -> str:
        """Return the last lines."""
        return "\n".join(self._lines)

    def waiting_for(self, models: tuple[str, ...]) -> str:
        """Say which models are not loaded, the ones that were begun first."""
        left = [model for model in models if model not in self.loaded]
        begun = [model for model in left if model in self._loading]
        return ", ".join(begun or left)

    def failure(self) -> str:
        """Return which model failed and why, else the last complaint; "" when there was none."""
        for model, reason in self._failures.items():
            return f": model {model!r}: {reason}"
        return f": {self._complaint}" if self._complaint else ""

    def last_words(self) -> str:
        """Return the failure, or the last line where none was named."""
        last = self._lines[-1] if self._lines else ""
        return self.failure() or (f": {last}" if last else "")
