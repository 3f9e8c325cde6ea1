"""What the commands share with the terminal: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import resource
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import click
import cloup
from click.core import ParameterSource

from minitron_trt.config_file import read_config
from minitron_trt.errors import one_line, visible
from minitron_trt.progress import progress_bar, progress_lines
from minitron_trt.tables import folded, output_width
from minitron_trt.version import __version__

R = TypeVar("R")
PROGRAM: Final = "minitron-trt"
BYTES: Final = "bytes"
Advance = Callable[[int], None]
"""Tell a progress display that so much more is done."""

PATH: Final = click.Path(path_type=Path, readable=False)
"""A path as an option or argument; who reads it says in one line that it cannot be read."""

log = logging.getLogger("minitron_trt")


class ShowProgress(Protocol):
    """Show how far some work is, under a label: how much of a total, in the unit of the work."""

    def __call__(
        self, label: str, total: int, unit: str = BYTES
    ) -> contextlib.AbstractContextManager[Advance]:
        """Return a block of the work, and what it calls with each part that is done."""


def size_text(size_bytes: float) -> str:
    """Return a size with the unit that suits it, decimal as disks are sold."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.2f} GB"


def coloured(text: str, colour: str) -> str:
    """Return a part of a result in a colour, where stdout is a terminal."""
    return click.style(text, colour) if sys.stdout.isatty() else text


def show_piece(text: str) -> None:
    """Print a piece of a model's text; on a terminal what that would obey is shown instead."""
    # Without `color` click would take escape sequences out of what goes through a pipe.
    click.echo(visible(text) if sys.stdout.isatty() else text, nl=False, color=True)


def no_progress(_: int) -> None:
    """Tell nobody."""


def no_display(
    label: str, total: int, unit: str = BYTES
) -> contextlib.AbstractContextManager[Advance]:
    """Show nothing: the display of a stage that a program calls without one."""
    return contextlib.nullcontext(no_progress)


def _counted(unit: str) -> Callable[[float], str]:
    return lambda number: f"{number:,.0f} {unit}"


@dataclass(frozen=True, slots=True)
class Console:
    """The output side of one command."""

    as_json: bool = False
    quiet: bool = False

    def result(self, record: Mapping[str, Any], text: str) -> None:
        """Print the result on stdout: the record as one JSON object with --json, else the text.

        Whatever stdout is, it gets the text as it is: colours are for `coloured` to leave out.
        """
        shown = json.dumps(record, ensure_ascii=False) if self.as_json else text
        # Of a file's name that is no UTF-8, which an escape stands for in JSON as well. Without
        # `color` click would take the escape sequences out of a model's text in a pipe.
        click.echo(shown.encode(errors="backslashreplace").decode(), color=True)

    @contextlib.contextmanager
    def progress(self, label: str, total: int, unit: str = BYTES) -> Iterator[Advance]:
        """Show how far it is, rate and time left: a bar on a terminal, else a line now and then."""
        if self.quiet:
            yield no_progress
            return
        display = progress_bar if sys.stderr.isatty() else progress_lines
        with display(label, total, size_text if unit == BYTES else _counted(unit)) as advance:
            yield advance


class _LineHandler(logging.Handler):
    """Write log records to stderr as one line each."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one record; what is worse than a note begins with its level."""
        prefix = f"{record.levelname.lower()}: " if record.levelno >= logging.WARNING else ""
        text = self.format(record).strip()
        # The trace of a fault has lines; everything else is one. What is worse than a note may end
        # with a command, which is pasted whole.
        line = prefix + (text if record.exc_info else one_line(text))
        width = None if prefix else output_width(sys.stderr)
        click.echo(folded(line, width), err=True)


def _configure_logging(verbose: int, quiet: bool) -> None:
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.INFO
    log.handlers = [_LineHandler()]
    log.setLevel(level)
    log.propagate = False
    if verbose:
        return
    # What libraries say in passing is no news of this program's; bars are for people.
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if quiet or not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


_OUTPUT: Final = cloup.OptionGroup("Output and settings")
_SHARED: Final = (
    cloup.option(
        "--config",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=read_config,
        group=_OUTPUT,
        help="YAML or TOML file of `option: value` lines; what is typed here wins",
    ),
    cloup.option(
        "--json",
        "as_json",
        is_flag=True,
        group=_OUTPUT,
        help="Print one JSON object with the result",
    ),
    cloup.option("-v", "--verbose", count=True, group=_OUTPUT, help="Say more on stderr"),
    cloup.option(
        "-q", "--quiet", is_flag=True, group=_OUTPUT, help="Say nothing but errors on stderr"
    ),
)


def console_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command --config, --json, -v and -q, and a Console as its first argument."""

    @functools.wraps(command)
    def wrapper(*args: Any, as_json: bool, verbose: int, quiet: bool, **kwargs: Any) -> R:
        _configure_logging(verbose, quiet)
        with _told(click.get_current_context()):
            return command(Console(as_json, quiet), *args, **kwargs)

    wrapped: Callable[..., R] = wrapper
    for option in reversed(_SHARED):
        wrapped = option(wrapped)
    return wrapped


@contextlib.contextmanager
def _told(context: click.Context) -> Iterator[None]:
    """Say under -v what runs, with every option and where it is from, and what it took."""
    if not log.isEnabledFor(logging.DEBUG):
        yield
        return
    start = time.monotonic()
    log.debug("minitron-trt %s, Python %s, in %s", __version__, sys.version.split()[0], Path.cwd())
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        # Secrets are left out, since a line has the value.
        if source is not None and name in context.params and name not in _SECRET:
            origin = source.name.lower().replace("_", " ")
            log.debug("%s %r (%s)", name, context.params[name], origin)
    try:
        yield
    finally:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        log.debug(
            "%.2f s, %.2f s of a processor, at most %s of memory",
            time.monotonic() - start,
            usage.ru_utime + usage.ru_stime,
            size_text(usage.ru_maxrss * 1024),
        )


_SECRET: Final = frozenset({"api_key", "token", "headers", "restrict_admin"})


def retyped(context: click.Context, *, without: Sequence[str], plus: Sequence[str]) -> str:
    """Return the command that a context is of, as one would type it to a shell.

    It has what was not left to its default, but for the parameters named in `without`. What a file
    of options said is typed, and the file is not named.
    """
    words = [PROGRAM, str(context.info_name)]
    for parameter in context.command.params:
        name = str(parameter.name)
        source = context.get_parameter_source(name)
        if name in without or name not in context.params or source is ParameterSource.DEFAULT:
            continue
        values = context.params[name]
        for value in values if parameter.multiple else (values,):
            words += _typed(parameter, value)
    return shlex.join([*words, *plus])


def _typed(parameter: click.Parameter, value: Any) -> list[str]:
    if isinstance(parameter, click.Argument):
        return [str(value)]
    names = parameter.opts if value is not False else parameter.secondary_opts
    # A file of options may say null, or false of a flag that has no other side.
    if value is None or not names:
        return []
    # The long spelling says more.
    name = max(names, key=len)
    if isinstance(parameter, click.Option) and parameter.count:
        return [name] * value
    return [name] if isinstance(value, bool) else [name, str(value)]
