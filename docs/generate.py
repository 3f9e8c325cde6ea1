"""Write docs/cli.md from the commands' own help; with --check, fail when it is out of date."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from minitron_trt.cli import COMMANDS, main

PAGE = Path(__file__).with_name("cli.md")
# Given, since click would fold the help to whatever terminal `make docs` runs on.
WIDTH = 88


def page() -> str:
    """Return the page: the help of the group, then of every command."""
    sections = ["# Command line", "Made by `make docs` from `--help`.", _section((), main)]
    group = click.Context(main, info_name="minitron-trt")
    for name in COMMANDS:
        command = main.get_command(group, name)
        assert command is not None
        sections.append(_section((name,), command))
        if isinstance(command, click.Group):
            sections += [_section((name, each), part) for each, part in command.commands.items()]
    return "\n\n".join(sections) + "\n"


def _section(path: tuple[str, ...], command: click.Command) -> str:
    name = " ".join(("minitron-trt", *path))
    context = command.context_class(
        command,
        info_name=name,
        terminal_width=WIDTH,
        max_content_width=WIDTH,
        **main.context_settings,
    )
    return f"## {name}\n\n```\n{command.get_help(context)}\n```"


if __name__ == "__main__":
    if "--check" not in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is out of date; run: make docs")
