"""Where a server runs: in the nvidia-pytriton wheel, in this machine's Triton, or in docker.

A runner turns a repository and options into a `Launch`; `choose` finds the one that can.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from minitron_trt.build.security_bulletins import release_of
from minitron_trt.errors import MinitronError, UnsupportedError, UsageError
from minitron_trt.host.machine import local_gpus, trtllm_version
from minitron_trt.triton_repo.model_config import PYTHON_BACKEND, TRTLLM_BACKEND
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, TRTLLM
from minitron_trt.triton_repo.serving.command_line import (
    LLMAPI_LAUNCH,
    Program,
    command_line,
    environment_of,
    is_multi_model,
    rank_count,
)
from minitron_trt.triton_repo.serving.docker_launch import plan_docker
from minitron_trt.triton_repo.serving.installation import (
    EMBEDDED_HOLES,
    EMBEDDED_PURPOSE,
    SERVER,
    Installation,
    check_packages,
    find_embedded,
    find_local,
)
from minitron_trt.triton_repo.serving.launch import Launch
from minitron_trt.triton_repo.serving.relocation import view_of
from minitron_trt.triton_repo.serving.served_repository import ServedRepository, runs_anywhere
from minitron_trt.triton_repo.serving.server import TritonServer
from minitron_trt.triton_repo.serving.server_options import ServerOptions

EMBEDDED: Final = "embedded"
LOCAL: Final = "local"
DOCKER: Final = "docker"
RUNNERS: Final = (EMBEDDED, LOCAL, DOCKER)


def choose(runtime: str) -> str:
    """Return the runner that can serve a runtime here; UnsupportedError names the ways."""
    local = find_local()
    if runs_anywhere(runtime):
        return _choose_for_anywhere(local)
    if local is not None and local.has(TRTLLM_BACKEND):
        return LOCAL
    if shutil.which("docker"):
        return DOCKER
    problem = f"{local.binary} has no tensorrtllm backend" if local else f"there is no {SERVER}"
    raise UnsupportedError(
        f"runtime {runtime} needs NVIDIA's Triton with TensorRT-LLM; {problem} and no "
        "docker: run minitron-trt serve inside NVIDIA's container, or install docker"
    )


def _choose_for_anywhere(local: Installation | None) -> str:
    try:
        find_embedded()
    except MinitronError:
        # Its words say what to install, which is the shortest way to a server here.
        if local is None or not local.has(PYTHON_BACKEND):
            raise
        return LOCAL
    return EMBEDDED


def plan(
    served: ServedRepository,
    options: ServerOptions,
    scratch: Path,
    runner: str | None = None,
    image: str | None = None,
) -> Launch:
    """Return how to serve a repository; nothing is started or written.

    `scratch` is a folder for the launch's own files.
    """
    runner = runner or choose(served.runtime)
    if options.tls:
        options.tls.check()
    if options.gpus and len(options.gpus) < rank_count(served, options):
        raise UsageError(
            f"--gpus names {len(options.gpus)}; {served.folder} has {served.world_size} ranks, "
            "each on a GPU of its own"
        )
    if runner == DOCKER:
        return plan_docker(served, options, image)
    if image is not None:
        raise UsageError(f"--image is for --runner docker; this is {runner}")
    if runner == LOCAL:
        return _plan_local(served, options, scratch)
    return _plan_embedded(served, options, scratch)


@contextlib.contextmanager
def running_server(
    repository: Path, options: ServerOptions, runner: str | None = None, **settings: Any
) -> Iterator[TritonServer]:
    """Serve a repository inside the block; `settings` are those of TritonServer."""
    served = ServedRepository.open(repository)
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as scratch:
        launch = plan(served, options, Path(scratch), runner)
        with TritonServer(launch, options, **settings) as server:
            yield server


def _plan_embedded(served: ServedRepository, options: ServerOptions, scratch: Path) -> Launch:
    installation = find_embedded()
    check_packages(served.runtime)
    if (address := options.endpoints.open_address) and not options.insecure_embedded:
        raise UsageError(
            f"{address} lets other machines reach the embedded server. {EMBEDDED_PURPOSE} "
            "--insecure-embedded says that you know"
        )
    if rank_count(served, options) > 1:
        raise UnsupportedError(
            f"the embedded server runs one rank; {served.folder} is for {served.world_size}: use "
            "--runner local in NVIDIA's container, or --runner docker"
        )
    return _on_this_machine(EMBEDDED, installation, served, options, scratch)


def _plan_local(served: ServedRepository, options: ServerOptions, scratch: Path) -> Launch:
    installation = find_local()
    if installation is None:
        raise UnsupportedError(
            f"--runner local needs a {SERVER} on PATH or in /opt/tritonserver; there is none: run "
            "it in NVIDIA's container, or use --runner docker"
        )
    backend = TRTLLM_BACKEND if served.runtime == TRTLLM else PYTHON_BACKEND
    if not installation.has(backend):
        raise UnsupportedError(
            f"{installation.binary} has no {backend} backend, which {served.folder} needs; use "
            "NVIDIA's image with TensorRT-LLM"
        )
    if (version := trtllm_version()) is not None:
        served.check_version(version, "this machine")
    if rank_count(served, options) > 1 or is_multi_model(served, options):
        for program in ("mpirun", LLMAPI_LAUNCH) if served.runtime == LLMAPI else ("mpirun",):
            if shutil.which(program) is None:
                raise UnsupportedError(
                    f"{served.folder} needs {program} for its ranks, which is not on PATH; it is "
                    "in NVIDIA's image with TensorRT-LLM"
                )
    return _on_this_machine(LOCAL, installation, served, options, scratch)


def _on_this_machine(
    runner: str,
    installation: Installation,
    served: ServedRepository,
    options: ServerOptions,
    scratch: Path,
) -> Launch:
    gathered = scratch / "backends"
    # By chance: regions of this prefix are removed at the end, and may be no other server's.
    shm_prefix = f"minitron-trt-{secrets.token_hex(6)}-"
    view = view_of(served, scratch / "models")
    program = Program(
        server=str(installation.binary),
        repository=view.folder,
        backends=installation.backends or gathered,
        python=sys.executable,
        gpus=(len(options.gpus) or len(local_gpus())) if is_multi_model(served, options) else 0,
        shm_prefix=shm_prefix,
        release=release_of(installation.release),
    )
    environment = {**installation.environment, **environment_of(served, options)}
    if options.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(options.gpus)
    return Launch(
        runner=runner,
        argv=command_line(program, served, options),
        models=served.models,
        ranks=rank_count(served, options),
        environment=environment,
        links={**installation.backend_links(gathered), **view.links},
        texts=view.texts,
        holes=EMBEDDED_HOLES if runner == EMBEDDED else None,
        shm_prefix=shm_prefix,
        # The reference runtime's end stops threads; LLM has processes of its own to end.
        must_finalize=served.runtime != REFERENCE,
    )
