"""Charts as PNG or SVG, by the name of their file."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron_trt.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: Final = (".png", ".svg")


def check_picture(path: Path) -> None:
    """Raise UsageError for a name that says neither PNG nor SVG, MissingExtraError for no library.

    What takes hours must not end with either.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"{path} is neither PNG nor SVG; name it with {' or '.join(FORMATS)}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise MissingExtraError("matplotlib", "plot", "--plot") from None


def picture(figure: Figure, path: Path) -> bytes:
    """Return a figure in the format of a file's name."""
    from matplotlib import rc_context

    blob = BytesIO()
    # Without a date and with names of its own for parts, equal figures are equal files.
    metadata = {"Date": None} if path.suffix == ".svg" else {}
    with rc_context({"svg.hashsalt": "minitron-trt"}):
        figure.savefig(blob, format=path.suffix[1:], dpi=150, metadata=metadata)
    return blob.getvalue()
