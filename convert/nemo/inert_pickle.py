"""Pickles read as records that do nothing: every class in them is a name, every call a note of it.

`torch.load(..., weights_only=True)` builds tensors, so it needs the weights in memory, and reads no
`.metadata` of a distributed checkpoint at all. Only shapes, types and places are wanted of either.
This reader therefore knows what may be named in one, and gives for each a class of its own making
that keeps its arguments and state: nothing of torch is imported, called or built. A pickle that
names anything else is refused with that name.
"""

from __future__ import annotations

import collections
import io
import pickle
from collections.abc import Callable, Collection
from typing import Any, Final

from minitron_trt.errors import BadInputError

DAMAGE: Final = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a damaged pickle makes the standard library raise."""


class Note:
    """What a pickle says of one object: the name of its class, the arguments and the state."""

    __slots__ = ("arguments", "state")
    name = ""
    arguments: tuple[Any, ...]
    state: Any

    # Pickle calls a class, or its __new__ alone, as the opcode says: both keep the arguments.
    def __new__(cls, *arguments: Any) -> Note:  # noqa: D102
        note = super().__new__(cls)
        note.arguments, note.state = arguments, {}
        return note

    def __init__(self, *arguments: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def field(self, name: str) -> Any:
        """Return a field of the state; BadInputError where there is none."""
        if not isinstance(self.state, dict) or name not in self.state:
            raise BadInputError(f"a {self.name} has no {name}")
        return self.state[name]

    def get(self, name: str) -> Any:
        """Return a field of the state; None where there is none."""
        return self.state.get(name) if isinstance(self.state, dict) else None


def read_pickle(
    data: bytes, names: Collection[str], what: str, persistent: Callable[[Any], Any] | None = None
) -> Any:
    """Return a pickle's object, where everything but plain data is a `Note`.

    `names` are the classes and functions that it may name, as `module.name`; `persistent` makes
    what torch keeps outside the pickle. BadInputError names any other, and `what` was read.
    """
    reader = _InertUnpickler(data, names, what, persistent)
    try:
        return reader.load()
    except BadInputError:
        raise
    except DAMAGE as error:
        raise BadInputError(
            f"{what} is a damaged pickle ({type(error).__name__}: {error}); download it again"
        ) from error


# Python's own, not the one in C: that makes room for as many objects as a damaged file numbers.
class _InertUnpickler(pickle._Unpickler):
    def __init__(
        self,
        data: bytes,
        names: Collection[str],
        what: str,
        persistent: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(io.BytesIO(data))
        self._names, self._what, self._persistent = names, what, persistent
        # Of this pickle alone: what it does to them ends with it.
        self._classes: dict[str, type[Note]] = {}

    def find_class(self, module: str, name: str) -> Any:
        """Return a class that keeps notes in place of the one that a pickle names."""
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return collections.OrderedDict
        if full not in self._names:
            raise BadInputError(
                f"{self._what} names {full}, which could run code and is refused; expected weights "
                "only"
            )
        if full not in self._classes:
            self._classes[full] = type(name, (Note,), {"__slots__": (), "name": full})
        return self._classes[full]

    def persistent_load(self, pid: Any) -> Any:
        """Return what stands for a storage."""
        if self._persistent is None:
            raise BadInputError(f"{self._what} refers to data outside it; expected none")
        return self._persistent(pid)
