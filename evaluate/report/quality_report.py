"""The page that joins what was found out about a model, for whoever decides about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import sha256
from minitron_trt.evaluate.report.sections import Section
from minitron_trt.html_page import folded, page, table

_MARKS: Final = {
    True: '<span class="good">✓</span> ',
    False: '<span class="bad">✗</span> ',
    None: "",
}


@dataclass(frozen=True, slots=True)
class FileOfReport:
    """What a report was made from, by which a reader finds it again."""

    name: str
    sha256: str  # empty of a folder
    written: str

    @classmethod
    def of(cls, path: Path) -> FileOfReport:
        """Return what tells a file or folder from others."""
        digest = sha256(path) if path.is_file() else ""
        written = datetime.fromtimestamp(path.stat().st_mtime).strftime("%Y-%m-%d %H:%M")
        return cls(str(path), digest, written)


def report_page(title: str, sections: Sequence[Section], files: Sequence[FileOfReport]) -> str:
    """Return the page of sections and the files that they are from."""
    brief = "".join(
        f'<dt><a href="#part{at}">{escape(section.title)}</a></dt>'
        f"<dd>{_MARKS[section.is_good]}{escape(section.summary)}</dd>"
        for at, section in enumerate(sections)
    )
    parts = [f"<dl>{brief}</dl>"]
    for at, section in enumerate(sections):
        parts += [
            f'<section id="part{at}"><h2>{escape(section.title)}</h2>',
            f"<p>{_MARKS[section.is_good]}{escape(section.summary)}.</p>",
            *_picture(section),
            *section.parts,
            "</section>",
        ]
    rows = [[file.name, file.written, file.sha256] for file in files]
    parts.append(folded("Made from", table(["file", "written", "SHA-256"], rows, texts=3)))
    return page(title, parts, note="Made by minitron-trt eval report.")


def _picture(section: Section) -> list[str]:
    if section.figure is None:
        return []
    from minitron_trt.pictures import inline_svg

    return [inline_svg(section.figure, section.title)]
