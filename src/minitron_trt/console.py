"""What the commands share with the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import click
from click.core import ParameterSource

from minitron_trt.errors import one_line

R = TypeVar("R")
PROGRAM: Final = "minitron-trt"
Advance = Callable[[int], None]
"""Tell a progress display that so many more bytes are done."""
ShowProgress = Callable[[str, int], contextlib.AbstractContextManager[Advance]]
"""Show how far some bytes are, under a label; the number is all of them."""

log = logging.getLogger("minitron_trt")


def size_text(size_bytes: float) -> str:
    """Return a size with the unit that suits it, decimal as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def no_progress(_: int) -> None:
    """Tell nobody."""


def no_display(label: str, total_bytes: int) -> contextlib.AbstractContextManager[Advance]:
    """Show nothing either: what the stages do in a program that does not say."""
    return contextlib.nullcontext(no_progress)


@dataclass(frozen=True, slots=True)
class Console:
    """The output side of one command."""

    as_json: bool = False
    quiet: bool = False

    def result(self, record: Mapping[str, Any], text: str) -> None:
        """Print the result on stdout: the record as one JSON object with --json, else the text."""
        shown = json.dumps(record, ensure_ascii=False) if self.as_json else text
        # Of a file's name that is no UTF-8, which an escape stands for in JSON as well.
        click.echo(shown.encode(errors="backslashreplace").decode(), color=True)

    @contextlib.contextmanager
    def progress(self, label: str, total_bytes: int) -> Iterator[Advance]:
        """Show bytes, rate and time left on a terminal; nothing elsewhere."""
        if self.quiet or not sys.stderr.isatty():
            yield no_progress
            return
        # rich takes longer to import than most commands take to run.
        from rich.console import Console as RichConsole
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=RichConsole(stderr=True), transient=True) as display:
            task = display.add_task(label, total=total_bytes)
            yield lambda done: display.advance(task, done)


class _LineHandler(logging.Handler):
    """Write log records to stderr as one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what is worse than a note begins with its level."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = self.format(record).strip()
        # The trace of a fault has lines; everything else is one.
        click.echo(prefix + (text if record.exc_info else one_line(text)), err=True)


def _configure_logging(verbose: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    log.handlers = [_LineHandler()]
    log.setLevel(level)
    log.propagate = False


def console_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --json, -v and -q, and a Console as its first argument."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object with the result")
    @click.option("-v", "--verbose", count=True, help="Say more on stderr")
    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors on stderr")
    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, verbose: int, quiet: bool, **kwargs: Any) -> R:
        _configure_logging(verbose, quiet)
        return command(Console(as_json, quiet), *args, **kwargs)

    return wrapper


def retyped(context: click.Context, *, without: Sequence[str], plus: Sequence[str]) -> str:
    """Return the command that a context is of, as one would type it to a shell.

    It has what was not left to its default, but for the parameters named in `without`.
    """
    words = [PROGRAM, str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in without or source is ParameterSource.DEFAULT:
            continue
        values = context.params[name]
        for value in values if parameter.multiple else (values,):
            words += _typed(parameter, value)
    return shlex.join([*words, *plus])


def _typed(parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [str(value)]
    names = parameter.opts if value is not False else parameter.secondary_opts
    # The long spelling says more.
    name = max(names, key=len)
    return [name] if isinstance(value, bool) else [name, str(value)]
