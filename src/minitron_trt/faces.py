"""Names that a package offers its users and loads only when one of them is used (PEP 562)."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping


def lazy_face(
    package: str, homes: Mapping[str, str]
) -> tuple[list[str], Callable[[str], object], Callable[[], list[str]]]:
    """Return a package's `__all__`, `__getattr__` and `__dir__`; `homes` has each name's module.

    Importing the package then costs nothing: its commands start, and its clients install, without
    the libraries that other names of the same face need. Type checkers cannot follow a table, so a
    package writes the same names a second time as imports under `if TYPE_CHECKING`.

    A name must not be that of a submodule: importing the submodule would take the name's place.
    """

    def load(name: str) -> object:
        """Return what a name stands for, and keep it as the package's own."""
        if name not in homes:
            # The words of Python's own error; `from package import submodule` relies on the kind.
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return list(homes), load, names
