"""`serve --runner docker`: the image of the engine's version, with what it needs and no more."""

from __future__ import annotations

import logging
import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import Final

from minitron_trt.build.containers import REPOSITORY, find_container
from minitron_trt.build.security_bulletins import holes_of, release_of
from minitron_trt.errors import UnsupportedError
from minitron_trt.host.docker import check_docker, explain_docker, mount_option
from minitron_trt.host.machine import local_gpus
from minitron_trt.triton_repo.runtimes.runtime_names import REFERENCE
from minitron_trt.triton_repo.serving.command_line import (
    MPIRUN_WRAPPER,
    Program,
    command_line,
    environment_of,
    is_multi_model,
    rank_count,
)
from minitron_trt.triton_repo.serving.launch import Launch
from minitron_trt.triton_repo.serving.served_repository import ServedRepository, runs_anywhere
from minitron_trt.triton_repo.serving.server_options import ANYWHERE, Endpoints, ServerOptions, Tls

log = logging.getLogger(__name__)

INSIDE: Final = Path("/minitron-trt")
"""Where a container has what this tool brings."""
_TLS: Final = INSIDE / "tls"
STOP_MARGIN_S: Final = 10
"""How much longer than its drain a server may take to end."""
# Triton's own user in NVIDIA's images, for when this tool runs as root.
_TRITON_USER: Final = "1000:1000"
# The Python backend's tensors pass through /dev/shm; ranks and their GPUs talk through it.
_SHM: Final = "--shm-size=2g"


def plan_docker(
    served: ServedRepository, options: ServerOptions, image: str | None = None
) -> Launch:
    """Return the launch of a container; docker is not called until it is prepared."""
    name = f"minitron-trt-{secrets.token_hex(4)}"
    chosen = choose_image(served, image)
    holes = holes_of(chosen.removeprefix(f"{REPOSITORY}:"))
    if holes:
        log.warning("%s", holes)
    gpus = (len(options.gpus) or len(local_gpus())) if is_multi_model(served, options) else 0
    program = program_in(chosen, served, gpus=gpus)
    argv = (
        "docker",
        "run",
        "--rm",
        "--init",
        "--pull=never",
        f"--name={name}",
        f"--stop-timeout={options.drain_s + STOP_MARGIN_S}",
        *_gpus(served, options),
        *_ports(options.endpoints),
        *_confinement(),
        *_variables(served, options),
        *_mounts(served, options),
        chosen,
        *command_line(program, served, _inside(options)),
    )
    return Launch(
        runner="docker",
        argv=argv,
        models=served.models,
        ranks=rank_count(served, options),
        check=lambda: check_docker(chosen, "use --runner local in NVIDIA's container"),
        remove=("docker", "rm", "--force", name),
        explain=explain_docker,
        holes=holes,
    )


def program_in(image: str, served: ServedRepository, *, gpus: int = 0) -> Program:
    """Return where things are in a container of an image; `gpus` are an orchestrator's."""
    return Program(
        server="tritonserver",
        repository=served.mount,
        mpirun_wrapper=INSIDE / MPIRUN_WRAPPER.name,
        gpus=gpus,
        release=release_of(image.rpartition(":")[2]),
    )


def choose_image(served: ServedRepository, name: str | None) -> str:
    """Return the full name of the image of a tag or name, or of the engine's version."""
    if served.runtime == REFERENCE:
        raise UnsupportedError(
            f"{served.folder} is for the reference runtime, which needs minitron-trt beside the "
            "server; no image has it: use --runner embedded"
        )
    if name is None:
        return served.find_image()
    if {"/", ":"} & set(name):
        # A full name, perhaps of an image of one's own.
        return name
    container = find_container(name)
    served.check_version(container.trtllm, f"image {name}")
    return container.image


def _inside(options: ServerOptions) -> ServerOptions:
    """Return the options as seen in the container: docker publishes what listens anywhere there."""
    endpoints = replace(options.endpoints, host=ANYWHERE, metrics_host=ANYWHERE)
    tls = options.tls
    if tls is not None:
        tls = Tls(
            cert=_TLS / "cert.pem", key=_TLS / "key.pem", ca=_TLS / "ca.pem" if tls.ca else None
        )
    return replace(options, endpoints=endpoints, tls=tls)


def _gpus(served: ServedRepository, options: ServerOptions) -> tuple[str, ...]:
    if options.gpus:
        # A CSV field of its own: the quotes are docker's, not a shell's.
        return (f'--gpus="device={",".join(options.gpus)}"',)
    if runs_anywhere(served.runtime):
        return ()
    return ("--gpus=all" if is_multi_model(served, options) else f"--gpus={served.world_size}",)


def _ports(endpoints: Endpoints) -> tuple[str, ...]:
    published = (
        (endpoints.host, endpoints.http_port),
        (endpoints.host, endpoints.grpc_port),
        (endpoints.metrics_host, endpoints.metrics_port),
    )
    return tuple(f"--publish={host}:{port}:{port}" for host, port in published)


def _confinement() -> tuple[str, ...]:
    user = f"{os.getuid()}:{os.getgid()}" if os.getuid() else _TRITON_USER
    return (
        f"--user={user}",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        "--read-only",
        # TensorRT-LLM's just-in-time kernels are loaded from where they are compiled to: exec.
        "--tmpfs=/tmp:rw,exec,nosuid,nodev",
        _SHM,
        # As NVIDIA's images recommend: pinned memory without limit, a stack of 64 MiB.
        "--ulimit=memlock=-1",
        "--ulimit=stack=67108864",
    )


def _variables(served: ServedRepository, options: ServerOptions) -> tuple[str, ...]:
    variables = container_environment(served, options)
    return tuple(f"--env={name}={value}" for name, value in variables.items())


def container_environment(served: ServedRepository, options: ServerOptions) -> dict[str, str]:
    """Return the variables of a container whose user has no entry in the image's passwd."""
    # Libraries look there for a name and a home.
    return {"HOME": "/tmp", "USER": "triton", **environment_of(served, options)}


def _mounts(served: ServedRepository, options: ServerOptions) -> tuple[str, ...]:
    mounts = {served.mount: served.folder, **{path: path for path in served.outside}}
    if rank_count(served, options) > 1 or is_multi_model(served, options):
        mounts[INSIDE / MPIRUN_WRAPPER.name] = MPIRUN_WRAPPER
    if options.tls:
        names = ("cert.pem", "key.pem", "ca.pem")
        # There are two files where clients show no certificate.
        mounts |= {_TLS / name: path for name, path in zip(names, options.tls.files, strict=False)}
    return tuple(mount_option(source, target, read_only=True) for target, source in mounts.items())
