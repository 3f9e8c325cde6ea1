"""`minitron-trt triton-repo` and `minitron-trt serve`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import click

from minitron_trt.console import Console, console_options


@click.command("triton-repo")
@click.argument("artifact", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder to write the model repository to",
)
@click.option(
    "--runtime",
    type=click.Choice(["reference"]),
    default="reference",
    show_default=True,
    help="What generates the tokens",
)
@click.option(
    "--max-batch-size",
    type=click.IntRange(1),
    default=8,
    show_default=True,
    help="Sequences generated at once",
)
@click.option(
    "--max-seq-len",
    type=click.IntRange(1),
    help="Tokens of a prompt and its answer together  [default: the model's, at most 4096]",
)
@click.option(
    "--max-queue-size",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Requests that may wait for a place",
)
@click.option("--overwrite", is_flag=True, help="Replace a repository that is already there")
@console_options
def triton_repo(
    console: Console, artifact: Path, output: Path, runtime: str, overwrite: bool, **options: Any
) -> None:
    """Write a Triton model repository.

    ARTIFACT is a checkpoint folder. The models are preprocessing, tensorrt_llm, postprocessing,
    ensemble and tensorrt_llm_bls, with TensorRT-LLM's tensors.

    Example: minitron-trt triton-repo checkpoint -o repository
    """
    from minitron_trt.triton_repo.repository import ServingRecipe, emit_repository

    recipe = ServingRecipe(**options)
    repository = emit_repository(artifact, output, recipe, overwrite=overwrite)
    console.result(
        {"repository": str(output), "runtime": runtime, "models": list(repository.configs)},
        f"{output}: {', '.join(repository.configs)} ({runtime} runtime)",
    )


@click.command()
@click.argument("repository", type=click.Path(path_type=Path))
@click.option(
    "--runner",
    type=click.Choice(["embedded"]),
    default="embedded",
    show_default=True,
    help="Which tritonserver: embedded is the one of the nvidia-pytriton wheel",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on")
@click.option("--http-port", type=int, default=8000, show_default=True, help="HTTP port")
@click.option("--grpc-port", type=int, default=8001, show_default=True, help="gRPC port")
@click.option("--metrics-port", type=int, default=8002, show_default=True, help="Prometheus port")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    help="Seconds until every model must be ready",
)
@click.option("--log-file", type=click.Path(path_type=Path), help="Keep the server's log here")
@console_options
def serve(
    console: Console,
    repository: Path,
    runner: str,
    timeout_s: float,
    log_file: Path | None,
    **addresses: Any,
) -> None:
    """Run Triton on a model repository until Ctrl-C.

    Example: minitron-trt serve repository --http-port 9000
    """
    from minitron_trt.triton_repo.installation import check_packages, find_embedded
    from minitron_trt.triton_repo.launch import Endpoints, TritonServer
    from minitron_trt.triton_repo.repository import ModelRepository

    models = ModelRepository.open(repository)
    check_packages(models.runtime)
    endpoints = Endpoints(**addresses)
    # A service manager's way to stop is the same as a person's; a shell's background job would
    # otherwise ignore the latter.
    for stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(stop, _interrupt)
    server = TritonServer(
        find_embedded(), repository, endpoints, timeout_s=timeout_s, log_file=log_file
    )
    with server:
        record = {
            "grpc": endpoints.grpc_url,
            "http": endpoints.http_url,
            "metrics": f"http://{endpoints.host}:{endpoints.metrics_port}/metrics",
            "models": list(models.configs),
            "pid": server.pid,
        }
        console.result(record, describe(record))
        try:
            server.wait()
        except KeyboardInterrupt:
            click.echo("stopping", err=True)


def describe(record: dict[str, Any]) -> str:
    """Return where the server can be reached, and how, as text."""
    return "\n".join(
        (
            f"ready: {', '.join(record['models'])}",
            f"  gRPC     {record['grpc']}",
            f"  HTTP     {record['http']}",
            f"  metrics  {record['metrics']}",
            f'try: minitron-trt generate "Our solar system is" --url {record["grpc"]}',
            "Ctrl-C stops it",
        )
    )


def _interrupt(_: int, __: FrameType | None) -> None:
    raise KeyboardInterrupt
