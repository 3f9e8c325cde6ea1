"""Which releases of Triton have known holes: NVIDIA's bulletins, as they were on 2026-11-26.

Each is published as https://github.com/NVIDIA/product-security/tree/main/YEAR/NUMBER.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_RELEASE: Final = re.compile(r"\d\d\.\d\d")


@dataclass(frozen=True, slots=True)
class Bulletin:
    """One of NVIDIA's bulletins: its worst hole for a server of text, and who has it no longer."""

    number: int
    published: str
    fixed_in: str
    severity: str
    cves: tuple[str, ...]
    hole: str


BULLETINS: Final = (
    Bulletin(
        number=5687,
        published="2025-08-04",
        fixed_in="25.07",
        severity="critical",
        cves=(
            "CVE-2025-23310",
            "CVE-2025-23311",
            "CVE-2025-23319",
            "CVE-2025-23320",
            "CVE-2025-23334",
        ),
        hole="one HTTP request ends the server or runs code in it",
    ),
    Bulletin(
        number=5828,
        published="2026-05-19",
        fixed_in="26.03",
        severity="critical",
        cves=("CVE-2026-24206", "CVE-2026-24207"),
        hole="restricted calls can be made without their header",
    ),
    Bulletin(
        number=5865,
        published="2026-08-18",
        fixed_in="26.06",
        severity="critical",
        cves=("CVE-2026-47627",),
        hole="a path in a request leads outside its folder",
    ),
    Bulletin(
        number=5875,
        published="2026-09-08",
        fixed_in="26.07",
        severity="high",
        cves=("CVE-2026-16497",),
        hole="a request can keep the server busy for ever",
    ),
)


def bulletins_of(release: str) -> tuple[Bulletin, ...]:
    """Return the bulletins whose holes a release, like 26.05, has; () where it names none."""
    tag = release_of(release)
    return tuple(bulletin for bulletin in BULLETINS if tag and tag < bulletin.fixed_in)


def holes_of(release: str) -> str | None:
    """Say what is known against a release in one sentence; None when nothing is."""
    bulletins = bulletins_of(release)
    if not bulletins:
        return None
    holes = "; ".join(
        f"{bulletin.hole} ({bulletin.severity}, {', '.join(bulletin.cves)}, NVIDIA's bulletin "
        f"{bulletin.number})"
        for bulletin in bulletins
    )
    mended = bulletins[-1].fixed_in
    return f"Triton {release_of(release)} has known holes: {holes}; {mended} has none of them"


def release_of(tag: str) -> str | None:
    """Return the release of an image's tag, like 26.05; None where it names none."""
    match = _RELEASE.match(tag)
    return match[0] if match else None
