"""What the user types, a line at a time: edited on a terminal, and read as it is from a pipe."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import click

from minitron_trt.errors import UsageError
from minitron_trt.host.termination import Terminated

_PROMPT: Final = ">>> "
_MORE: Final = "... "


class Lines(Protocol):
    """Where the lines come from."""

    is_terminal: bool

    def read(self) -> str | None:
        """Return the next line, None after the last one."""
        ...


class PipedLines:
    """The lines of standard input, each a message; the end of the input ends it."""

    is_terminal = False

    def read(self) -> str | None:
        """Return the next line; UsageError when it is no text."""
        line = sys.stdin.buffer.readline()
        try:
            return line.decode().removesuffix("\n") if line else None
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input is not UTF-8 text ({error})") from error


class TerminalLines:
    """Lines typed on a terminal, with the keys and the history that GNU readline has.

    A backslash at the end goes on in the next line. Ctrl-C drops the line, Ctrl-D ends it all. The
    history is of this run: what is said to a model is written to no file unasked.
    """

    is_terminal = True

    def __init__(self, completions: Sequence[str]) -> None:
        self._completions = completions
        with contextlib.suppress(ModuleNotFoundError):  # some builds of Python lack it
            import readline

            # By default / parts words, and commands begin with it.
            readline.set_completer_delims(" ")
            readline.set_completer(self._complete)
            readline.parse_and_bind("tab: complete")

    def read(self) -> str | None:
        """Return the next line that is not dropped."""
        while True:
            try:
                return "\n".join(self._parts())
            except Terminated:
                raise
            except KeyboardInterrupt:
                click.echo("\n(Ctrl-D or /quit ends the conversation)", err=True)
            except EOFError:
                # The shell's prompt then starts on a line of its own.
                click.echo()
                return None

    def _parts(self) -> Iterator[str]:
        line = input(_PROMPT)
        while line.endswith("\\"):
            yield line[:-1]
            line = input(_MORE)
        yield line

    # Readline asks again and again, with 0, 1, 2 …, until there is no more.
    def _complete(self, text: str, index: int) -> str | None:
        found = [each for each in self._completions if text and each.startswith(text)]
        return found[index] if index < len(found) else None
