"""The `minitron-trt` command: the group, its lazy commands and the one error boundary."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

import click
import cloup

from minitron_trt.errors import BadInputError, MinitronError, one_line
from minitron_trt.host.termination import Terminated, terminable
from minitron_trt.version import __version__

# By text, since importing a command's module loads what the other commands do not need.
COMMANDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "convert": "minitron_trt.convert.command:convert",
        "build": "minitron_trt.build.command:build",
        "plan": "minitron_trt.build.plan.command:plan",
        "check": "minitron_trt.triton_repo.check.command:check",
        "triton-repo": "minitron_trt.triton_repo.command:triton_repo",
        "serve": "minitron_trt.triton_repo.serving.command:serve",
        "generate": "minitron_trt.clients.command:generate",
        "chat": "minitron_trt.chat.command:chat",
        "gateway": "minitron_trt.gateway.command:gateway",
        "dynamo-worker": "minitron_trt.dynamo_worker.command:dynamo_worker",
        "pack": "minitron_trt.registry.command:pack",
        "push": "minitron_trt.registry.command:push",
        "pull": "minitron_trt.registry.command:pull",
        "verify": "minitron_trt.convert.verification.command:verify",
        "deploy": "minitron_trt.deploy.command:deploy",
        "migrate": "minitron_trt.migrate.command:migrate",
        "bench": "minitron_trt.loadtest.command:bench",
        "eval": "minitron_trt.evaluate.command:evaluate",
        "doctor": "minitron_trt.doctor:doctor",
        "sample": "minitron_trt.samples.command:sample",
        "demo": "minitron_trt.demo:demo",
        "docs": "minitron_trt.documentation:docs",
        "completion": "minitron_trt.completion:completion",
    }
)
SECTIONS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        "From a model to an answer": (
            "convert",
            "plan",
            "build",
            "check",
            "triton-repo",
            "serve",
            "generate",
            "chat",
            "gateway",
            "dynamo-worker",
            "deploy",
            "pack",
            "push",
            "pull",
            "migrate",
        ),
        "To begin with": ("doctor", "sample", "demo", "docs", "completion"),
        "How good it is": ("verify", "eval", "bench"),
    }
)
"""The commands as help shows them; those of no section come last."""
INTERRUPTED: Final = 130
"""The exit code of a program that Ctrl-C ended, as shells count: 128 and the signal's number."""
LEFT: Final = 141
"""The exit code of a program whose reader left, by the same count: 128 and SIGPIPE's number."""
TERMINATED: Final = 143
"""The exit code of a program that SIGTERM ended, by the same count."""


class StageGroup(cloup.Group):
    """Load commands on demand; turn errors into one line and an exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the commands in the order in which a user meets them."""
        shown = [name for names in SECTIONS.values() for name in names]
        return [*shown, *(name for name in COMMANDS if name not in shown)]

    def list_sections(
        self, ctx: click.Context, include_default_section: bool = True
    ) -> list[cloup.Section]:
        """Return the sections of the help, the commands loaded."""
        shown = {name for names in SECTIONS.values() for name in names}
        titles = {**SECTIONS, "More": tuple(name for name in COMMANDS if name not in shown)}
        sections = []
        for title, names in titles.items():
            commands = {name: self.get_command(ctx, name) for name in names}
            sections.append(cloup.Section(title, {n: c for n, c in commands.items() if c}))
        return sections

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the module of one command."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute = COMMANDS[cmd_name].split(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)
        return command

    def handle_bad_command_name(
        self, bad_name: str, valid_names: list[str], error: click.UsageError
    ) -> click.UsageError:
        """Return what is said of a command that there is not, with the nearest that there is."""
        return super().handle_bad_command_name(bad_name, list(COMMANDS), error)

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command inside the error boundary."""
        try:
            with terminable():
                return super().invoke(ctx)
        except MinitronError as error:
            click.echo(one_line(f"error: {error}"), err=True)
            ctx.exit(error.exit_code)
        except (KeyboardInterrupt, click.Abort) as error:
            click.echo("interrupted", err=True)
            ctx.exit(TERMINATED if isinstance(error, Terminated) else INTERRUPTED)
        except click.ClickException as error:
            # click says that nobody assigns it; it prints what a user typed as it is.
            vars(error)["message"] = one_line(error.message)
            raise
        except click.exceptions.Exit:
            raise
        except BrokenPipeError:
            # The reader of our output left, as head does; there is nobody to tell.
            _discard_stdout()
            ctx.exit(LEFT)
        except OSError as error:
            ctx.exit(_refused(error))
        except Exception as error:
            # The trace is for a report, not for a user: the log shows it with -v only.
            logging.getLogger("minitron_trt").debug("", exc_info=error)
            click.echo(
                one_line(
                    f"error: a fault in minitron-trt ({type(error).__name__}: {error}); "
                    "run again with -v and report what it prints"
                ),
                err=True,
            )
            ctx.exit(MinitronError.exit_code)

    def main(self, *args: Any, **kwargs: Any) -> Any:
        """Run the program, its help included, which a full disk may keep from being printed."""
        try:
            return super().main(*args, **kwargs)
        except OSError as error:
            sys.exit(_refused(error))


def _refused(error: OSError) -> int:
    """Say what the operating system refused, and return the exit code.

    What is written names its folder in an error of its own, so a name that is left is an input's;
    without a name it is a stream, such as a full disk behind stdout.
    """
    if error.filename is not None:
        name = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename
        click.echo(one_line(f"error: {name} cannot be read: {error.strerror}"), err=True)
        return BadInputError.exit_code
    with contextlib.suppress(OSError):
        click.echo(f"error: the output cannot be written: {error.strerror}", err=True)
    _discard_stdout()
    return MinitronError.exit_code


def _discard_stdout() -> None:
    """Have what stdout still holds go nowhere: it would fail once more when Python ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


HELP: Final = """Convert, build and serve NVIDIA Minitron models.

From a Hugging Face checkpoint to an answer from Triton:

\b
    minitron-trt sample solar-llama -o model
    minitron-trt convert model -o checkpoint
    minitron-trt triton-repo checkpoint -o repository
    minitron-trt serve repository
    minitron-trt generate "Complete the paragraph: our solar system is"

Results go to stdout, progress and logs to stderr.
"""


@cloup.group(
    cls=StageGroup,
    help=HELP,
    context_settings=cloup.Context.settings(help_option_names=["-h", "--help"]),
)
@click.version_option(__version__, "-V", "--version", prog_name="minitron-trt")
def main() -> None:
    """Parse the options that come before the command."""
