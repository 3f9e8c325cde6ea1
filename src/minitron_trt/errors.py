"""Every error this toolkit raises on purpose, one class per thing a user can do about it.

    MinitronError            1  a fault of ours
    ├── OutputError          1  the disk or the folder could not take the output
    ├── UsageError           2  an option does not make sense
    ├── BadInputError        3  a source, checkpoint, engine or repository is not what it should be
    ├── UnsupportedError     4  model, precision, architecture and version do not go together
    │   └── MissingExtraError   4  an optional dependency is not installed
    ├── ProcessError         5  a compiler or server process failed
    └── ServerError          6  the server did not answer a request as it should
        ├── UnreachableError        6  no server is there, or it went away
        │   └── ServerTimeoutError  6  the answer did not come within a limit of its request
        ├── ProtocolError           6  what came is not the protocol, or more than was to be taken
        ├── RequestCancelledError   6  the request was ended from elsewhere
        └── RefusedError            7  the server, or what its model declares, refuses the request

The number is the exit code of the command. A message is one line: what was found, what was
expected, what to do; no full stop at the end.
"""

import re
from typing import ClassVar, Final

_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST: Final = 4000
# What to do stands at the end of a message.
_KEPT_END: Final = 1000


def visible(text: str) -> str:
    """Return text with its control characters escaped, other than newline and tab.

    A terminal obeys them, and what a model or a server says is not to be obeyed.
    """
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


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


def an(noun: str) -> str:
    """Return `an engine`, `a checkpoint`."""
    return f"an {noun}" if noun[:1] in "aeiou" else f"a {noun}"


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


_ON_NVIDIAS_INDEX: Final = frozenset({"dynamo", "tensorrt", "trtllm"})
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
    """The server did not answer a request as it should.

    `is_passing` says that the same request may well succeed in a moment.
    """

    exit_code = 6
    is_passing = False


class UnreachableError(ServerError):
    """No server is there, or it went away before the answer was complete."""


class ServerTimeoutError(UnreachableError):
    """The answer did not come within a limit of its request."""


class ProtocolError(ServerError):
    """What came is not the protocol, or more than was to be taken."""


class RequestCancelledError(ServerError):
    """The request was ended from elsewhere: by the server, or by another thread."""


class RefusedError(ServerError):
    """The server, or what its model declares, turns the request down.

    `field` is the option that the reason names, None when it names none.
    """

    exit_code = 7

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
