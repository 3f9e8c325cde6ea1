"""`minitron-trt demo`: the whole walk on this machine, each step as a person would type it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import cloup

from minitron_trt.console import PATH, Console, console_options
from minitron_trt.outputs import make_folder
from minitron_trt.samples import NAMES

if TYPE_CHECKING:
    from minitron_trt.triton_repo.serving.server_options import Endpoints

PROMPT: Final = "Complete the paragraph: our solar system is"
_STOP_S: Final = 30.0


@cloup.command()
@click.option("--model", help="Folder or hub id of a checkpoint  [default: a sample model]")
@click.option(
    "--sample",
    type=click.Choice(NAMES),
    default=NAMES[0],
    show_default=True,
    help="Which sample model",
)
@click.option("--prompt", default=PROMPT, show_default=True, help="Text to continue")
@click.option("--max-tokens", type=int, default=200, show_default=True, help="Tokens to generate")
@click.option("--keep", type=PATH, help="Keep every stage in this folder")
@console_options
def demo(
    console: Console,
    model: str | None,
    sample: str,
    prompt: str,
    max_tokens: int,
    keep: Path | None,
) -> None:
    """Walk from a model to streamed text.

    The steps are convert, triton-repo, serve and generate, each printed as you would type it.
    Needs no GPU; with the extra [rtx] an engine is built as well, while the server loads.

    Example: minitron-trt demo --model nvidia/Minitron-4B-Base
    """
    from minitron_trt.triton_repo.serving.installation import check_packages, find_embedded

    # Before the work, so that a missing package is not met at its end.
    find_embedded()
    check_packages("reference")
    with _folder(keep) as folder:
        walk = Walk(console, folder)
        if model is None:
            walk.run("sample", sample, "-o", "model")
        elif Path(model).exists():
            model = str(Path(model).absolute())
        walk.run("convert", model or "model", "-o", "checkpoint")
        walk.run("triton-repo", "checkpoint", "-o", "repository")
        with walk.serving("repository") as until_ready:
            # To load, a server needs one core: the engine is built on the others meanwhile.
            if _has_engine_builder():
                walk.run("build", "checkpoint", "-o", "engine", "--arch", "ada")
            endpoints = until_ready()
            answers = {
                name: walk.generate(prompt, max_tokens, url)
                for name, url in (("grpc", endpoints.grpc_url), ("http", endpoints.http_url))
            }
    record = {"seconds": walk.seconds, "answers": answers}
    console.result(record, f"done in {walk.total_s:.1f} s, nothing left running")


def _has_engine_builder() -> bool:
    """Return whether the TensorRT that builds without a GPU is installed."""
    return importlib.util.find_spec("tensorrt_rtx") is not None


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """Yield where the stages go: the folder to keep, or one that is removed afterwards."""
    if keep is not None:
        make_folder(keep)
        yield keep
        return
    folder = tempfile.mkdtemp(prefix="minitron-trt-demo-")
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Walk:
    """Runs commands of this tool inside a folder, shows them and keeps their times."""

    def __init__(self, console: Console, folder: Path) -> None:
        self.seconds: dict[str, float] = {}
        self._begin = time.monotonic()
        self._folder = folder
        self._quiet = console.quiet or console.as_json
        self._capture = console.as_json

    @property
    def total_s(self) -> float:
        """Return the seconds since the walk began, of which two steps may share some."""
        return time.monotonic() - self._begin

    def run(self, *arguments: str) -> str:
        """Run a command to its end; return what it printed when that is captured.

        A command that fails ends the walk with its own exit code: it has said why.
        """
        self._show(arguments)
        start = time.monotonic()
        result = subprocess.run(
            _argv(arguments),
            cwd=self._folder,
            stdout=subprocess.PIPE if self._capture else None,
            text=True,
            check=False,
        )
        if result.returncode:
            raise click.exceptions.Exit(result.returncode)
        self._note(arguments[0], start)
        return result.stdout or ""

    def generate(self, prompt: str, max_tokens: int, url: str) -> str:
        """Have the server continue a prompt; return the answer when output is captured."""
        form = ["--json"] if self._capture else []
        scheme = url.partition(":")[0]
        start = time.monotonic()
        output = self.run("generate", prompt, "--max-tokens", str(max_tokens), "--url", url, *form)
        del self.seconds["generate"]
        self.seconds[f"generate {scheme}"] = round(time.monotonic() - start, 3)
        return str(json.loads(output)["text"]) if output else ""

    @contextlib.contextmanager
    def serving(self, repository: str) -> Iterator[Callable[[], Endpoints]]:
        """Serve a repository inside the block, on free ports; it begins to load there.

        Yields what waits until it is loaded and returns where it is; Exit when it never is.
        """
        from minitron_trt.triton_repo.serving.server_options import free_endpoints

        endpoints = free_endpoints()
        ports = {
            "--http-port": endpoints.http_port,
            "--grpc-port": endpoints.grpc_port,
            "--metrics-port": endpoints.metrics_port,
        }
        options = (text for option, port in ports.items() for text in (option, str(port)))
        arguments = ("serve", repository, *options)
        self._show(arguments, background=True)
        begin = time.monotonic()
        server = subprocess.Popen(
            _argv((*arguments, "--json", "-q")), cwd=self._folder, stdout=subprocess.PIPE, text=True
        )
        said = server.stdout
        assert said is not None

        def until_ready() -> Endpoints:
            # It prints its addresses once every model is ready, and nothing when it fails.
            if not said.readline():
                raise click.exceptions.Exit(server.wait())
            self._note("serve", begin)
            return endpoints

        try:
            yield until_ready
        finally:
            stop = time.monotonic()
            server.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(_STOP_S)
            server.kill()
            server.wait()
            said.close()
        self._note("shut down", stop)

    def _show(self, arguments: tuple[str, ...], *, background: bool = False) -> None:
        if not self._quiet:
            end = " &" if background else ""
            click.secho(f"$ minitron-trt {shlex.join(arguments)}{end}", bold=True)

    def _note(self, name: str, start: float) -> None:
        self.seconds[name] = round(time.monotonic() - start, 3)
        if not self._quiet:
            click.secho(f"  {name}: {self.seconds[name]:.1f} s\n", dim=True)


def _argv(arguments: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "minitron_trt", *arguments]
