"""`minitron-trt completion`: what a shell needs to complete this command's words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

import click
import cloup
from click.shell_completion import get_completion_class

from minitron_trt.console import PROGRAM, Console, console_options
from minitron_trt.errors import UsageError

SHELLS: Final = ("bash", "zsh", "fish")
# click derives this name from the program's, and looks for it when the program starts.
VARIABLE: Final = "_MINITRON_TRT_COMPLETE"


@cloup.command()
@cloup.argument("shell", type=click.Choice(SHELLS), required=False)
@console_options
def completion(console: Console, shell: str | None) -> None:
    """Print the script that completes commands, options and values.

    SHELL is bash, zsh or fish; the one that you use unless told. Once, for bash:
    minitron-trt completion bash >> ~/.bashrc (zsh: ~/.zshrc; fish:
    ~/.config/fish/completions/minitron-trt.fish).

    Example: minitron-trt completion zsh
    """
    shell = shell or Path(os.environ.get("SHELL", "")).name
    if shell not in SHELLS:
        raise UsageError(f"the shell is {shell!r}; expected one of {', '.join(SHELLS)}: name it")
    script = get_completion_class(shell)
    assert script is not None
    root = click.get_current_context().find_root().command
    text = script(root, {}, PROGRAM, VARIABLE).source()
    console.result({"shell": shell, "script": text}, text)
