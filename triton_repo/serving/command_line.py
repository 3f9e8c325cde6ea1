"""The server's command line: one tritonserver, or one per rank below mpirun."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, TRTLLM
from minitron_trt.triton_repo.serving.served_repository import ServedRepository
from minitron_trt.triton_repo.serving.server_options import ServerOptions

MPIRUN_WRAPPER: Final = Path(__file__).with_name("mpirun_wrapper.py")
# Two ranks would get a core each, models and tokenizers included.
_MPIRUN: Final = ("mpirun", "--allow-run-as-root", "--bind-to", "none")
_NO_SERVICE: Final = ("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false")
# Triton 2.59 brought --http-max-input-size; an earlier one does not start with it.
_INPUT_BOUNDED: Final = "25.06"
LLMAPI_LAUNCH: Final = "trtllm-llmapi-launch"


@dataclass(frozen=True, slots=True)
class Program:
    """Where things are on the machine, or in the container, that runs the server.

    The names of its regions in /dev/shm begin with `shm_prefix`; `release` is that of NVIDIA's
    image whose Triton it is ("26.07"), None where nothing says it.
    """

    server: str
    repository: Path
    backends: Path | None = None
    python: str = "python3"
    mpirun_wrapper: Path = MPIRUN_WRAPPER
    gpus: int = 0
    shm_prefix: str = "prefix"
    release: str | None = None


def is_multi_model(served: ServedRepository, options: ServerOptions) -> bool:
    """Say whether TensorRT-LLM orders workers itself: for several engines in one server."""
    return served.runtime == TRTLLM and (options.multi_model or len(served.generators) > 1)


def rank_count(served: ServedRepository, options: ServerOptions) -> int:
    """Return how many tritonservers there are."""
    return 1 if is_multi_model(served, options) else served.world_size


def environment_of(served: ServedRepository, options: ServerOptions) -> Mapping[str, str]:
    """Return the variables that the server needs wherever it runs."""
    # Model folders are artifacts: no caches are written into them.
    variables = {"PYTHONDONTWRITEBYTECODE": "1"}
    if is_multi_model(served, options):
        variables |= {"TRTLLM_ORCHESTRATOR": "1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES": "1"}
    return variables


def command_line(
    program: Program, served: ServedRepository, options: ServerOptions
) -> tuple[str, ...]:
    """Return the command that serves a repository with an engine of any number of ranks."""
    multi_model = is_multi_model(served, options)
    ranks = rank_count(served, options)
    # The configs are whole, and to have a Python model complete its own Triton starts a process.
    first = _server(program, ["--disable-auto-complete-config", *options.arguments()])
    # Releases are YY.MM, and so in order as text.
    if served.max_request_bytes and (program.release or "") >= _INPUT_BOUNDED:
        first.append(f"--http-max-input-size={served.max_request_bytes}")
    if multi_model:
        # The workers have the GPUs; the server itself takes nothing of them.
        first += ["--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"]
        first += [f"--cuda-memory-pool-byte-size={gpu}:0" for gpu in range(program.gpus)]
    if ranks == 1 and not multi_model:
        return (*first, _shm_option(program, 0))
    # TensorRT-LLM's own program: LLM's workers are then mpirun's ranks, and not spawned by itself.
    launch = [LLMAPI_LAUNCH] if served.runtime == LLMAPI else []
    command = [program.python, str(program.mpirun_wrapper), *_MPIRUN]
    if ranks > 1:
        command.append("--tag-output")
    for rank in range(ranks):
        server = first if rank == 0 else _server(program, _worker(served))
        if rank:
            # mpirun's mark between the programs of different ranks.
            command.append(":")
        command += ["-n", "1", *launch, *server, _shm_option(program, rank)]
    return tuple(command)


def _shm_option(program: Program, rank: int) -> str:
    # Of its own for each rank: they share /dev/shm, and Triton's default names are all the same.
    return f"--backend-config=python,shm-region-prefix-name={program.shm_prefix}{rank}_"


def _server(program: Program, arguments: list[str]) -> list[str]:
    backends = [f"--backend-directory={program.backends}"] if program.backends else []
    return [
        program.server,
        f"--model-repository={program.repository}",
        *backends,
        *arguments,
    ]


def _worker(served: ServedRepository) -> list[str]:
    """Return what ranks above 0 get: the engine's model and no way to reach them."""
    return [
        "--disable-auto-complete-config",
        *_NO_SERVICE,
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in served.generators),
    ]
