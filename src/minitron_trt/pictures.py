"""Charts as PNG or SVG, by the name of their file, and as a part of a page."""

from __future__ import annotations

import re
from html import escape
from io import BytesIO, StringIO
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


def inline_svg(figure: Figure, title: str) -> str:
    """Return a figure as an element of a page, its lines and words in the page's colour."""
    from matplotlib import rc_context

    text = StringIO()
    # Words stay words: they can be searched, and are drawn in the reader's font.
    with rc_context({"svg.hashsalt": "minitron-trt", "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :]
    # Of a page's several pictures the parts must not share names, and namespaces are its own.
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg).replace("#000000", "currentColor")
    return svg.replace("<svg", f'<svg class="chart" role="img" aria-label="{escape(title)}"', 1)
