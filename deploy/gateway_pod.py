"""The gateway as a Deployment of its own: OpenAI's API before the servers, with its keys."""

from __future__ import annotations

from math import ceil
from typing import Any, Final

from minitron_trt.build.trtllm.cluster.pod_parts import container_security
from minitron_trt.deploy.deployment import Deployment, port
from minitron_trt.deploy.pods import (
    GATEWAY,
    home,
    http_probe,
    labels,
    lifecycle,
    metadata,
    own_container,
    own_replicas,
    placement,
    probe_period,
    selector,
)
from minitron_trt.deploy.settings import DeploySettings
from minitron_trt.gateway.command import PORT
from minitron_trt.triton_repo.serving.server_options import ANYWHERE
from minitron_trt.yaml_text import Figure

_LEAST: Final = 2
# Per cent of its processor that a gateway may be busy: beyond, tokens wait for each other.
BUSY_PERCENT: Final = 70
# Of a replica without a plan: four so busy pass on 9,500 tokens/s, which is many.
_OF_A_REPLICA: Final = 4
# Microseconds of a processor for a streamed token: docs/performance.md, "Clients and the gateway".
_TOKEN_US: Final = 295
KEYS_AT: Final = "/keys"
KEYS_FILE: Final = "keys.txt"


def gateway_argv(
    deployment: Deployment, server: str, *, keys: str = f"{KEYS_AT}/{KEYS_FILE}"
) -> tuple[str, ...]:
    """Return the command line of a gateway before the servers at a host."""
    # gRPC, though a token costs more by it: it asks every server of the name in turn, while a
    # connection of HTTP stays with one.
    return (
        *("minitron-trt", "gateway", "--host", ANYWHERE, "--port", str(PORT)),
        *("--url", f"grpc://{server}:{port('grpc').value}"),
        *("--api-keys", keys),
        *("--drain", str(deployment.settings.drain_s)),
    )


def gateway_memory() -> Figure:
    """Return the gateway's host memory, as a quantity."""
    return Figure("512Mi", "256 sequences at a time, bodies of 1 MiB", "gateway.memory")


def gateway_deployment(deployment: Deployment) -> dict[str, Any]:
    """Return the Deployment of the gateway."""
    settings = deployment.settings
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(settings, GATEWAY, "-gateway"),
        "spec": {
            **own_replicas(settings, least_gateways(settings)),
            "selector": {"matchLabels": selector(settings, GATEWAY)},
            "template": {
                "metadata": {"labels": labels(settings, GATEWAY)},
                "spec": _pod(deployment),
            },
        },
    }


def least_gateways(settings: DeploySettings) -> Figure:
    """Return how many there are at least: what a plan's tokens need, and one that may go."""
    scale, knob = settings.scale, "gateway.replicas"
    if scale is None:
        return Figure(_LEAST, "one may go", knob)
    busy = ceil(scale.tokens_per_s * _TOKEN_US / 1e6 / (BUSY_PERCENT / 100))
    why = (
        f"{scale.what}: {scale.tokens_per_s:,.0f} tokens/s at {_TOKEN_US / 1e3:g} ms each, "
        f"{BUSY_PERCENT} % busy, and one may go"
    )
    return Figure(max(busy + 1, _LEAST), why, knob)


def most_gateways(settings: DeploySettings) -> Figure:
    """Return how many there are at most: as many as the most replicas of the server need."""
    knob = "gateway.maxReplicas"
    if settings.scale is None:
        why = f"{_OF_A_REPLICA} for each of the most replicas"
        return Figure(_OF_A_REPLICA * settings.max_replicas, why, knob)
    least = least_gateways(settings)
    grown = ceil(int(least.value) * settings.max_replicas / settings.replicas)
    return Figure(grown, f"{least.value}, as many times as there may be more replicas", knob)


def _pod(deployment: Deployment) -> dict[str, Any]:
    settings = deployment.settings
    grace = deployment.front_grace_s(GATEWAY)
    return {
        **placement(settings, GATEWAY, grace=grace, nodes={}),
        "containers": [_container(deployment)],
        "volumes": [
            # Made by whoever deploys: keys stand in no file of this folder.
            {
                "name": "keys",
                "secret": {"secretName": settings.keys, "defaultMode": Figure(0o440, "0440")},
            },
            {"name": "tmp", "emptyDir": {}},
        ],
    }


def _container(deployment: Deployment) -> dict[str, Any]:
    amounts = {
        "cpu": Figure("1", "one process, which uses one", "gateway.cpu"),
        "memory": gateway_memory(),
        "ephemeral-storage": Figure("64Mi", "its log", "gateway.ephemeralStorage"),
    }
    return {
        "name": GATEWAY,
        **own_container(deployment),
        "command": list(gateway_argv(deployment, f"{deployment.name}-headless")),
        "env": [home()],
        "ports": [{"name": "openai", "containerPort": Figure(PORT, "the gateway's port")}],
        "resources": {"requests": amounts, "limits": amounts},
        # /health says whether Triton is ready, so only readiness goes by it.
        "readinessProbe": {
            **http_probe("/health", "openai"),
            "periodSeconds": Figure(5, "Triton's end is seen soon"),
        },
        "livenessProbe": {
            "tcpSocket": {"port": "openai"},
            "periodSeconds": probe_period(),
        },
        "lifecycle": lifecycle(),
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": "keys", "mountPath": KEYS_AT, "readOnly": True},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }
