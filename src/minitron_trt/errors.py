"""Every error this toolkit raises on purpose, one class per thing a user can do about it.

    MinitronError            1  a fault of ours
    ├── OutputError          1  the disk or the folder could not take the output
    ├── UsageError           2  an option does not make sense
    ├── BadInputError        3  a source, checkpoint, engine or repository is not what it should be
    ├── UnsupportedError     4  model, precision, architecture and version do not go together
    │   └── MissingExtraError   4  an optional dependency is not installed
    ├── ProcessError         5  a compiler or server process failed
    └── ServerError          6  the server did not answer a request as it should
        ├── UnreachableError     6  nothing that speaks the protocol answered in time
        └── RefusedError         6  the server answered with an error

The number is the exit code of the command. A message is one line: what was found, what was
expected, what to do; no full stop at the end.
"""

from typing import ClassVar, Final

_LONGEST: Final = 4000
_KEPT_END: Final = 1000


def one_line(text: str) -> str:
    """Return a message as a terminal shows it in one line.

    Newlines, control characters and what is no Unicode in names and values are escaped; of a
    message that a value made huge the middle is cut out.
    """
    if len(text) > _LONGEST:
        cut = len(text) - _LONGEST
        head, end = text[: _LONGEST - _KEPT_END], text[-_KEPT_END:]
        text = f"{head} … {cut} characters … {end}"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class MinitronError(Exception):
    """Base class of every error this toolkit raises on purpose."""

    exit_code: ClassVar[int] = 1


class OutputError(MinitronError):
    """The disk or the folder could not take the output."""


class UsageError(MinitronError):
    """An option does not make sense."""

    exit_code = 2


class BadInputError(MinitronError):
    """A source, checkpoint, engine or repository is not what it should be."""

    exit_code = 3


class UnsupportedError(MinitronError):
    """Model, precision, architecture and version do not go together."""

    exit_code = 4


_ON_NVIDIAS_INDEX: Final = frozenset({"tensorrt", "trtllm"})
"""The extras whose packages, or parts of them, PyPI does not have."""


def install_command(extra: str) -> str:
    """Return the command that installs an extra."""
    command = f"pip install 'minitron-trt[{extra}]'"
    if extra in _ON_NVIDIAS_INDEX:
        command += " --extra-index-url https://pypi.nvidia.com"
    return command


class MissingExtraError(UnsupportedError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs {package}, which is not installed; run: {install_command(extra)}"
        )


class ProcessError(MinitronError):
    """A compiler or server process failed."""

    exit_code = 5


class ServerError(MinitronError):
    """The server did not answer a request as it should."""

    exit_code = 6


class UnreachableError(ServerError):
    """Nothing that speaks the protocol answered in time."""


class RefusedError(ServerError):
    """The server answered with an error."""
