"""The commands that pages show, and how each is run where no GPU, hub or cluster is.

A block of `bash` is what a reader types, one of `console` what is then on the screen, the commands
after `$ `. A comment `# needs WHAT` says for the rest of its block what this machine lacks. Doubles
stand in place of that: a small model for one of the hub, programs that play docker and the GPU.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
# Made from --help, which is what the program says.
_GENERATED: Final = frozenset({"cli.md"})
_BLOCK: Final = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NEEDS: Final = re.compile(r"# needs (.+)")
_PROGRAM: Final = "minitron-trt"


@dataclass(frozen=True)
class ShownCommand:
    """A command of a page: its words, where its output goes, and what it needs beside this tool."""

    words: tuple[str, ...]
    needs: str = ""
    output: str = ""

    @property
    def is_ours(self) -> bool:
        return self.words[0] == _PROGRAM

    def __str__(self) -> str:
        return shlex.join(self.words)


def pages() -> list[Path]:
    """Return the pages that people wrote."""
    written = (path for path in (ROOT / "docs").rglob("*.md") if path.name not in _GENERATED)
    return [ROOT / "README.md", *sorted(written)]


def shown_commands(page: Path) -> list[ShownCommand]:
    """Return the commands of a page, in its order."""
    return [
        command
        for language, text in _BLOCK.findall(page.read_text(encoding="utf-8"))
        for command in _commands(language, text.replace("\\\n", " "))
    ]


def hidden_commands(page: Path) -> list[str]:
    """Return lines that look like commands and stand where nothing runs them."""
    return [
        line
        for language, text in _BLOCK.findall(page.read_text(encoding="utf-8"))
        if language not in ("bash", "console")
        for line in text.splitlines()
        if line.removeprefix("$ ").startswith(f"{_PROGRAM} ")
    ]


def _commands(language: str, text: str) -> Iterator[ShownCommand]:
    needs = ""
    for line in text.splitlines():
        if match := _NEEDS.match(line):
            needs = match[1]
        elif language == "bash" or (language == "console" and line.startswith("$ ")):
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if ">" in words:
                words, output = words[: words.index(">")], words[-1]
            else:
                output = ""
            if words:
                yield ShownCommand(tuple(words), needs, output)
