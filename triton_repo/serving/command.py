"""`minitron-trt serve`."""

from __future__ import annotations

import contextlib
import logging
import shlex
import signal
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
import cloup

from minitron_trt.console import PATH, Console, console_options
from minitron_trt.drain_option import drain_option
from minitron_trt.host.machine import cache_home
from minitron_trt.option_types import POSITIVE
from minitron_trt.tables import folded, output_width
from minitron_trt.triton_repo.serving.front_process import (
    DYNAMO,
    GATEWAY,
    FrontProcess,
    front_argv,
)
from minitron_trt.triton_repo.serving.model_options import ModelOptions, model_options
from minitron_trt.triton_repo.serving.server_options import (
    ADMIN_PROTOCOLS,
    Endpoints,
    ServerOptions,
    Tls,
)

if TYPE_CHECKING:
    from minitron_trt.triton_repo.serving.launch import Launch
    from minitron_trt.triton_repo.serving.server import TritonServer

log = logging.getLogger(__name__)

_PORT = click.IntRange(1, 65535)


@cloup.command()
@cloup.argument("source")
@model_options
@cloup.option_group(
    "Server",
    cloup.option(
        "--runner",
        type=click.Choice(["embedded", "local", "docker"]),
        help="Which tritonserver: that of the nvidia-pytriton wheel, one on PATH or in /opt, or "
        "that of NVIDIA's image  [default: the first that can serve the repository]",
    ),
    cloup.option("--image", help="Tag of NVIDIA's image for docker  [default: the engine's]"),
    cloup.option("--gpus", help="Device ids, like 0,1  [default: as many as the engine has ranks]"),
    cloup.option(
        "--multi-model", is_flag=True, help="TensorRT-LLM's orchestrator spawns the ranks"
    ),
    drain_option("after SIGTERM or Ctrl-C; a second one kills"),
    cloup.option(
        "--timeout",
        "timeout_s",
        type=POSITIVE,
        default=300.0,
        show_default=True,
        help="Seconds until every model must be ready",
    ),
    cloup.option(
        "--log-file",
        type=PATH,
        help="Keep the server's log here; of several ranks, in FILE.rank0 ...",
    ),
    cloup.option(
        "--gateway", "has_gateway", is_flag=True, help="Run minitron-trt gateway before the server"
    ),
    cloup.option(
        "--gateway-options",
        "gateway_words",
        metavar="OPTIONS",
        help="Options of the gateway in one word, like '--port 9001 --api-keys keys.txt'",
    ),
    cloup.option(
        "--frontend",
        type=click.Choice([DYNAMO]),
        help="Run minitron-trt dynamo-worker before the server, for NVIDIA Dynamo's frontend",
    ),
    cloup.option(
        "--frontend-options",
        "frontend_words",
        metavar="OPTIONS",
        help="Options of the worker in one word, like '--discovery-backend file'",
    ),
    cloup.option("--dry-run", is_flag=True, help="Print the commands and start nothing"),
)
@cloup.option_group(
    "Addresses",
    cloup.option("--host", default="127.0.0.1", show_default=True, help="Address of HTTP and gRPC"),
    cloup.option("--http-port", type=_PORT, default=8000, show_default=True, help="HTTP port"),
    cloup.option("--grpc-port", type=_PORT, default=8001, show_default=True, help="gRPC port"),
    cloup.option(
        "--metrics-port", type=_PORT, default=8002, show_default=True, help="Prometheus port"
    ),
    cloup.option(
        "--metrics-host", default="127.0.0.1", show_default=True, help="Address of the metrics"
    ),
)
@cloup.option_group(
    "Who may do what",
    cloup.option(
        "--grpc-tls-cert",
        type=PATH,
        help="PEM certificate: gRPC speaks TLS. Triton's HTTP cannot: put a proxy before it",
    ),
    cloup.option("--grpc-tls-key", type=PATH, help="PEM key of the certificate"),
    cloup.option(
        "--grpc-tls-ca", type=PATH, help="PEM of who signs clients' certificates, then asked"
    ),
    cloup.option(
        "--restrict-admin",
        metavar="HEADER=VALUE",
        help="What calls other than inference, health and metadata must send; gRPC clients send "
        "triton-grpc-protocol-HEADER. The machine's users see it in the process list  [default: "
        "nobody can make such calls]",
    ),
    cloup.option(
        "--allow-api",
        "allow_apis",
        type=click.Choice([*ADMIN_PROTOCOLS, "all"]),
        multiple=True,
        help="Let every client make these calls, in Triton's words; may be repeated",
    ),
    cloup.option(
        "--insecure-embedded",
        is_flag=True,
        help="Let the embedded server, which has known holes, listen beyond this machine",
    ),
)
@console_options
def serve(
    console: Console,
    source: str,
    model: ModelOptions,
    runner: str | None,
    image: str | None,
    timeout_s: float,
    log_file: Path | None,
    dry_run: bool,
    **options: Any,
) -> None:
    """Run Triton on a model or a model repository.

    It runs until SIGTERM or Ctrl-C. SOURCE is a repository that triton-repo wrote, or another
    Triton repository. Or it is a model: a folder, a GGUF file, a NeMo archive, a hub id, a
    checkpoint or an engine. That is first made into a repository, with an engine where this machine
    can build and serve one; what is made is kept below ~/.cache and found the next time. Models
    cannot be loaded or unloaded while it runs.

    Example: minitron-trt serve repository --http-port 9000

    Example: minitron-trt serve nvidia/Minitron-4B-Base
    """
    from minitron_trt.triton_repo.serving.runners import plan
    from minitron_trt.triton_repo.serving.served_repository import ServedRepository
    from minitron_trt.triton_repo.serving.server import TritonServer

    server_options = _server_options(options)
    # What is wrong with them is said before a model is converted.
    argvs = _front_argvs(source, options, server_options)
    repository = _repository(console, source, model, runner=runner, dry_run=dry_run)
    if repository is None:
        return
    served = ServedRepository.open(repository)
    if DYNAMO in argvs:
        argvs[DYNAMO] = (*argvs[DYNAMO], str(repository))
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as scratch:
        launch = plan(served, server_options, Path(scratch), runner, image)
        if dry_run:
            record = {"runner": launch.runner, "argv": launch.argv, "ranks": launch.ranks}
            console.result(record, shlex.join(launch.argv))
            return
        _warn_of_open_apis(server_options)
        server = TritonServer(launch, server_options, timeout_s=timeout_s, log_file=log_file)
        fronts = [FrontProcess(name, argv, server_options.drain_s) for name, argv in argvs.items()]
        _run_until_stopped(server, launch, console, fronts)


def _front_argvs(
    source: str, chosen: dict[str, Any], options: ServerOptions
) -> dict[str, tuple[str, ...]]:
    """Return the command lines of what is to stand before the server, by its name."""
    argvs = {}
    gateway, worker = chosen["gateway_words"], chosen["frontend_words"]
    if chosen["has_gateway"] or gateway is not None:
        argvs[GATEWAY] = front_argv(GATEWAY, gateway or "", options)
    if chosen["frontend"] == DYNAMO:
        name = model_name(source)
        named = () if name is None else ("--model-name", name)
        argvs[DYNAMO] = front_argv(DYNAMO, worker or "", options, defaults=named)
    elif worker is not None:
        raise click.UsageError("--frontend-options is for --frontend dynamo")
    return argvs


def model_name(source: str) -> str | None:
    """Return what a model is called, which its repository does not tell; None of a repository."""
    from minitron_trt.triton_repo.serving.served_repository import names_model

    if not names_model(source):
        return None
    path = Path(source)
    return path.resolve().name if path.exists() else source


def _repository(
    console: Console, source: str, model: ModelOptions, *, runner: str | None, dry_run: bool
) -> Path | None:
    """Return the repository, of a model made first; None where a dry run has said how it is."""
    from minitron_trt.triton_repo.serving.served_repository import names_model

    if not names_model(source):
        model.refuse_for(source)
        return Path(source)
    # All the stages, of which a repository needs none.
    from minitron_trt.triton_repo.serving.preparation import prepare

    preparation = prepare(source, model, runner)
    if dry_run:
        console.result(preparation.to_json(), preparation.text)
        return None
    log.info("%s", preparation.reason)
    return preparation.carry_out(cache_home() / "models", console.progress)


def _warn_of_open_apis(options: ServerOptions) -> None:
    if not options.endpoints.is_local and options.allowed_apis:
        log.warning(
            "whoever reaches %s can also operate the server: that is what --allow-api %s says",
            options.endpoints.host,
            ", ".join(options.allowed_apis),
        )


def _run_until_stopped(
    server: TritonServer, launch: Launch, console: Console, fronts: Sequence[FrontProcess]
) -> None:
    signals = _StopSignals()
    signals.install()
    with contextlib.ExitStack() as running:
        for front in fronts:
            running.enter_context(front)
        running.enter_context(server)
        signals.server = server
        try:
            record = _record(launch, server.options, server.pid)
            for front in fronts:
                record |= front.record if front.name == GATEWAY else {front.name: front.record}
            console.result(record, folded(describe(record), output_width()))
            server.wait(lambda: _check(fronts))
        except KeyboardInterrupt:
            log.info("stopping")
            # Before the server: what is under way in them is still to be answered by it.
            for front in fronts:
                front.stop()
        if not server.stop():
            log.warning("requests or streams were open at the end; they were cut")


def _check(fronts: Sequence[FrontProcess]) -> None:
    for front in fronts:
        front.check()


class _StopSignals:
    """What SIGTERM and Ctrl-C do: the first interrupts, one more hurries the server."""

    def __init__(self) -> None:
        self.server: TritonServer | None = None
        self._came = False

    def install(self) -> None:
        """Take both signals, also where a shell's background job would ignore one of them."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._take)

    def _take(self, _: int, __: FrameType | None) -> None:
        if not self._came:
            self._came = True
            raise KeyboardInterrupt
        if self.server is not None:
            self.server.hurry()


def _server_options(chosen: dict[str, Any]) -> ServerOptions:
    """Return the options of `serve` that are the server's, by their names on its command line."""
    gpus, allowed = chosen["gpus"], chosen["allow_apis"]
    return ServerOptions(
        endpoints=Endpoints(**{item.name: chosen[item.name] for item in fields(Endpoints)}),
        tls=_tls(
            cert=chosen["grpc_tls_cert"], key=chosen["grpc_tls_key"], ca=chosen["grpc_tls_ca"]
        ),
        admin=chosen["restrict_admin"],
        allowed_apis=ADMIN_PROTOCOLS if "all" in allowed else allowed,
        insecure_embedded=chosen["insecure_embedded"],
        drain_s=chosen["drain_s"],
        gpus=tuple(gpus.split(",")) if gpus else (),
        multi_model=chosen["multi_model"],
    )


def _tls(*, cert: Path | None, key: Path | None, ca: Path | None) -> Tls | None:
    if cert and key:
        return Tls(cert=cert.absolute(), key=key.absolute(), ca=ca and ca.absolute())
    if cert or key or ca:
        raise click.UsageError("TLS needs both --grpc-tls-cert and --grpc-tls-key")
    return None


def _record(launch: Launch, options: ServerOptions, pid: int) -> dict[str, Any]:
    return {
        "runner": launch.runner,
        "grpc": options.grpc_url,
        "http": options.endpoints.http_url,
        "metrics": options.endpoints.metrics_url,
        "models": list(launch.models),
        "ranks": launch.ranks,
        "pid": pid,
    }


def describe(record: dict[str, Any]) -> str:
    """Return where the server can be reached, and how, as text."""
    return "\n".join(
        (
            f"ready: {', '.join(record['models'])} ({record['runner']})",
            f"  gRPC     {record['grpc']}",
            f"  HTTP     {record['http']}",
            f"  metrics  {record['metrics']}",
            *((f"  OpenAI   {record['openai']}",) if "openai" in record else ()),
            *((f"  page     {record['page']}",) if "page" in record else ()),
            *((f"  Dynamo   {record[DYNAMO]['endpoint']}",) if DYNAMO in record else ()),
            f'try: minitron-trt generate "Our solar system is" --url {shlex.quote(record["grpc"])}',
            "Ctrl-C stops it",
        )
    )
