"""One way to run a server, as a value: nothing of it is started or written yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SHARED_MEMORY: Final = Path("/dev/shm")
Explain = Callable[[int, str], str | None]
"""Say what an exit status and the last lines of the log mean; None leaves it to the default."""


@dataclass(frozen=True, slots=True)
class Launch:
    """One way to run a server: the command, and what must lie there before it starts.

    SIGTERM to the command makes the server finish its requests and end. `links` and `texts` are
    files to make, by their paths; `remove` is a command that makes sure of the end afterwards;
    names in /dev/shm that begin with `shm_prefix` are its own, "" when nobody can tell;
    `check` raises when something that it needs is absent; `holes` says what is known to end such a
    server by a signal; `must_finalize` is whether its models have something to do at their end.
    """

    runner: str
    argv: tuple[str, ...]
    models: tuple[str, ...]
    ranks: int = 1
    environment: Mapping[str, str] | None = None
    links: Mapping[Path, Path] = field(default_factory=dict)
    texts: Mapping[Path, str] = field(default_factory=dict)
    remove: tuple[str, ...] = ()
    check: Callable[[], None] = lambda: None
    explain: Explain = lambda code, tail: None
    holes: str | None = None
    shm_prefix: str = ""
    must_finalize: bool = True

    def remove_shared_memory(self) -> None:
        """Remove the regions that it left in /dev/shm, which a server that is killed does."""
        if self.shm_prefix:
            for region in _SHARED_MEMORY.glob(f"{self.shm_prefix}*"):
                region.unlink(missing_ok=True)

    def prepare(self) -> None:
        """Check what it needs and make the files."""
        self.check()
        for path in (*self.links, *self.texts):
            path.parent.mkdir(parents=True, exist_ok=True)
        for path, target in self.links.items():
            path.symlink_to(target)
        for path, text in self.texts.items():
            path.write_text(text, encoding="utf-8")
