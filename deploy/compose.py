"""`--target compose`: the server and its gateway on one machine."""

from __future__ import annotations

from typing import Any, Final

from minitron_trt.deploy.deployment import PROBE_S, Deployment
from minitron_trt.deploy.gateway_pod import (
    KEYS_AT,
    KEYS_FILE,
    gateway_argv,
    gateway_memory,
)
from minitron_trt.deploy.pods import GATEWAY, SERVER
from minitron_trt.deploy.served_facts import ENDPOINTS
from minitron_trt.gateway.command import PORT
from minitron_trt.triton_repo.serving.command_line import MPIRUN_WRAPPER
from minitron_trt.triton_repo.serving.docker_launch import INSIDE, STOP_MARGIN_S
from minitron_trt.yaml_text import Figure, yaml_text

COMPOSE_NAME: Final = "compose.yaml"
_ABOUT: Final = """\
# The server and the gateway before it. Only the gateway is reached from outside this machine's
# containers. MODELS is the folder of the repository, KEYS the file of the gateway's keys.
"""
_LIVE: Final = "import urllib.request as r; r.urlopen('http://127.0.0.1:{port}{path}', timeout=5)"


def compose_files(deployment: Deployment) -> dict[str, str]:
    """Return the compose file, and the program that it needs for several ranks."""
    files = {COMPOSE_NAME: _ABOUT + yaml_text([compose_file(deployment)])}
    if deployment.facts.ranks > 1:
        files[MPIRUN_WRAPPER.name] = MPIRUN_WRAPPER.read_text(encoding="utf-8")
    return files


def compose_file(deployment: Deployment) -> dict[str, Any]:
    """Return the file as a value."""
    return {
        "name": deployment.name,
        "services": {SERVER: _server(deployment), GATEWAY: _gateway(deployment)},
        # Nothing in it reaches further: the server has no way out.
        "networks": {"inside": {"internal": True}, "outside": {}},
    }


def _confinement(deployment: Deployment) -> dict[str, Any]:
    return {
        "user": f"{deployment.settings.user}:{deployment.settings.user}",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "restart": "unless-stopped",
    }


def _server(deployment: Deployment) -> dict[str, Any]:
    facts = deployment.facts
    mounts = [f"${{MODELS:?the folder of the repository}}:{facts.mount}:ro"]
    if facts.ranks > 1:
        mounts.append(f"./{MPIRUN_WRAPPER.name}:{INSIDE / MPIRUN_WRAPPER.name}:ro")
    drain = deployment.settings.drain_s
    grace = Figure(
        f"{drain + STOP_MARGIN_S}s", f"Triton's exit timeout {drain} + {STOP_MARGIN_S} to end"
    )
    return {
        "image": deployment.image(),
        "command": [_literal(word) for word in facts.argv],
        "environment": dict(facts.environment),
        **_confinement(deployment),
        # exec: kernels that are compiled at run time are loaded from there. The mode is named, as
        # an image may have a /tmp that only root writes to.
        "tmpfs": ["/tmp:rw,exec,nosuid,nodev,mode=1777"],
        "shm_size": _lower(deployment.shm()),
        # Of processors there is no limit: docker refuses one above what the machine has.
        "mem_limit": _lower(deployment.memory()),
        "ulimits": {"memlock": -1, "stack": Figure(67108864, "64 MiB, as NVIDIA's images advise")},
        "stop_grace_period": grace,
        "volumes": mounts,
        "networks": ["inside"],
        "healthcheck": {
            "test": [
                *("CMD", "python3", "-c"),
                _LIVE.format(port=ENDPOINTS.http_port, path="/v2/health/ready"),
            ],
            "interval": Figure(f"{PROBE_S}s", "seconds between probes"),
            "timeout": Figure("10s", "for an answer, and Python's start"),
            "retries": Figure(6, "a minute: a long prompt may hold a server up"),
            "start_period": Figure(
                f"{2 * deployment.startup_s()}s", f"2 x ({deployment.startup_reason()})"
            ),
        },
        **_devices(deployment),
    }


def _lower(figure: Figure) -> Figure:
    """Return a quantity of Kubernetes as compose has it."""
    return Figure(str(figure.value).replace("Mi", "m"), figure.why)


def _literal(word: str) -> str:
    # Compose fills in $NAME, and takes $$ for a $.
    return word.replace("$", "$$")


def _devices(deployment: Deployment) -> dict[str, Any]:
    if deployment.facts.gpu is None:
        return {}
    device = {"driver": "nvidia", "count": deployment.gpus(), "capabilities": ["gpu"]}
    return {"deploy": {"resources": {"reservations": {"devices": [device]}}}}


def _gateway(deployment: Deployment) -> dict[str, Any]:
    drain = deployment.settings.drain_s
    return {
        "image": deployment.own_image(),
        "command": list(gateway_argv(deployment, SERVER)),
        "environment": {"HOME": "/tmp"},
        **_confinement(deployment),
        "tmpfs": ["/tmp:rw,nosuid,nodev,mode=1777"],
        "mem_limit": _lower(gateway_memory()),
        "stop_grace_period": Figure(
            f"{drain + STOP_MARGIN_S}s", f"--drain {drain} + {STOP_MARGIN_S} to end"
        ),
        "ports": [f"${{HOST:-127.0.0.1}}:{PORT}:{PORT}"],
        "volumes": [f"${{KEYS:?the file of the keys}}:{KEYS_AT}/{KEYS_FILE}:ro"],
        "networks": ["inside", "outside"],
        # Not when it is healthy: until Triton is ready the gateway says so itself, by a 503.
        "depends_on": {SERVER: {"condition": "service_started"}},
    }
