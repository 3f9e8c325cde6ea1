"""`--target dynamo`: a DynamoGraphDeployment of a frontend and workers, each beside its Triton.

Dynamo's operator makes Pods and Services of it. It adds the variables by which frontend and workers
find each other to the containers named `main`, and the service account that they need for that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.build.trtllm.cluster.pod_parts import container_security
from minitron_trt.deploy.deployment import Deployment, port
from minitron_trt.deploy.pods import (
    FRONTEND,
    SERVER,
    home,
    http_probe,
    initial,
    labels,
    lifecycle,
    metadata,
    own_container,
    own_replicas,
    placement,
    probe_period,
    selector,
    server_container,
    server_placement,
    volumes,
)
from minitron_trt.deploy.reachability import (
    dns,
    fetch_egress,
    http_route,
    monitoring_peer,
    network_policy,
    route_peer,
    tcp,
)
from minitron_trt.deploy.scaling import front_autoscaler
from minitron_trt.deploy.settings import DeploySettings
from minitron_trt.yaml_text import Figure

GRAPH_API: Final = "nvidia.com/v1beta1"
GRAPH: Final = "DynamoGraphDeployment"
ADAPTER: Final = "DynamoGraphDeploymentScalingAdapter"
WORKERS: Final = "worker"
"""The component of the workers; the operator's names of what is made for it end so."""
DYNAMO_VERSION: Final = "1.6.1"
MAIN: Final = "main"
FRONTEND_TYPE: Final = "frontend"
HTTP_PORT: Final = 8000
SYSTEM_PORT: Final = 9090
_REQUESTS: Final = "DYN_TCP_RPC_PORT"
_RESPONSES: Final = "DYN_TCP_RESPONSE_STREAM_PORT"
FIXED_PORTS: Final[Mapping[str, int]] = MappingProxyType({_REQUESTS: 9345, _RESPONSES: 9346})
"""The ports that Dynamo would choose as it goes, by the variables that fix them."""
# So many times a request goes on at another worker before it fails.
_MIGRATIONS: Final = 3
_FRONTENDS: Final = Figure(2, "one may go", "frontend.replicas")
# The port of the Service, and that of the API server behind it: Kubernetes leaves open whether a
# policy sees the one or the other.
_ANY_API_PORTS: Final = (443, 6443)


def dynamo_graph(deployment: Deployment) -> dict[str, Any]:
    """Return the graph; the operator's own defaults fill what is left out."""
    return {
        "apiVersion": GRAPH_API,
        "kind": GRAPH,
        "metadata": metadata(deployment.settings, SERVER),
        "spec": {"components": [_frontend(deployment), _workers(deployment)]},
    }


def graph_scale_target(deployment: Deployment, component: str = WORKERS) -> dict[str, str]:
    """Return what has a component's replicas: an adapter that the operator makes."""
    return {"apiVersion": GRAPH_API, "kind": ADAPTER, "name": f"{deployment.name}-{component}"}


def frontend_autoscaler(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the autoscaler of the frontends."""
    settings = deployment.settings
    most = Figure(
        max(settings.max_replicas, int(_FRONTENDS.value)),
        "one for each of the most replicas",
        "frontend.maxReplicas",
    )
    target = graph_scale_target(deployment, FRONTEND)
    return front_autoscaler(settings, FRONTEND, target, least=_FRONTENDS, most=most)


def _replicas(settings: DeploySettings, least: Figure) -> dict[str, Any]:
    """Return the replicas of a component, or that an autoscaler has them."""
    return own_replicas(settings, least) or {"scalingAdapter": {}}


def _version() -> Figure:
    return Figure(DYNAMO_VERSION, "of ai-dynamo in the image, whose tag does not tell")


def _frontend(deployment: Deployment) -> dict[str, Any]:
    settings = deployment.settings
    grace = deployment.front_grace_s(FRONTEND)
    spec = placement(settings, FRONTEND, grace=grace, nodes={})
    return {
        "name": FRONTEND,
        "type": FRONTEND_TYPE,
        **_replicas(settings, _FRONTENDS),
        "runtimeVersionOverride": _version(),
        "podTemplate": {
            "metadata": {"labels": labels(settings, FRONTEND)},
            "spec": {
                **_with_account(spec),
                "containers": [_frontend_container(deployment)],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            },
        },
    }


def _with_account(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a Pod that may ask Kubernetes who else is there."""
    return {key: value for key, value in spec.items() if key != "automountServiceAccountToken"}


def _frontend_container(deployment: Deployment) -> dict[str, Any]:
    return {
        "name": MAIN,
        **own_container(deployment),
        "command": ["python3", "-m", "dynamo.frontend"],
        "args": [
            *("--http-port", str(HTTP_PORT)),
            # Triton tells nobody which blocks its cache holds, so that workers are chosen by load.
            *("--router-mode", "least-loaded"),
            *("--migration-limit", str(_MIGRATIONS)),
        ],
        "env": [home(), _port_variable(_RESPONSES)],
        "ports": [
            {"name": "http", "containerPort": _http()},
            {"name": "responses", "containerPort": _fixed(_RESPONSES)},
        ],
        "resources": _amounts("frontend", "router and tokenizer", held="110 MB before any request"),
        **_probes("http", seen="a frontend without workers is left out soon"),
        "lifecycle": lifecycle(),
        "securityContext": container_security(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }


def _workers(deployment: Deployment) -> dict[str, Any]:
    settings = deployment.settings
    return {
        "name": WORKERS,
        "type": "worker",
        **_replicas(settings, deployment.replicas()),
        "runtimeVersionOverride": _version(),
        "sharedMemorySize": Figure("0", "the server's own is below, of the size that it needs"),
        "podTemplate": {
            "metadata": {"labels": labels(settings, SERVER)},
            "spec": {
                **_with_account(server_placement(deployment)),
                **initial(deployment),
                "containers": [
                    server_container(deployment, deployment.facts.argv),
                    _worker_container(deployment),
                ],
                "volumes": [*volumes(deployment), {"name": "worker-tmp", "emptyDir": {}}],
            },
        },
    }


def _worker_container(deployment: Deployment) -> dict[str, Any]:
    settings, facts = deployment.settings, deployment.facts
    return {
        "name": MAIN,
        **own_container(deployment),
        "command": [
            *("minitron-trt", "dynamo-worker", facts.mount),
            *("--url", f"grpc://127.0.0.1:{port('grpc').value}"),
            *("--model-name", settings.name),
            *("--drain", str(settings.drain_s)),
            *("--timeout", str(2 * deployment.startup_s())),
        ],
        "env": [home(), _port_variable(_REQUESTS)],
        "ports": [
            {"name": "system", "containerPort": _system()},
            {"name": "requests", "containerPort": _fixed(_REQUESTS)},
        ],
        "resources": _amounts("worker", "one process, whose work is passing on", held="125 MB"),
        # Its own server of health begins when Triton has loaded.
        "startupProbe": {
            **http_probe("/live", "system"),
            "periodSeconds": probe_period(),
            "failureThreshold": deployment.startup_failures(),
        },
        **_probes("system", seen="a worker that has left is seen soon"),
        "securityContext": container_security(),
        "volumeMounts": [
            deployment.storage.mount(facts.mount),
            {"name": "worker-tmp", "mountPath": "/tmp"},
        ],
    }


def _probes(port_name: str, *, seen: str) -> dict[str, Any]:
    """Return the probes of Dynamo's own server of health."""
    return {
        "readinessProbe": {**http_probe("/health", port_name), "periodSeconds": Figure(5, seen)},
        "livenessProbe": {
            **http_probe("/live", port_name),
            "periodSeconds": probe_period(),
            "failureThreshold": Figure(6, "a minute"),
        },
    }


def _amounts(component: str, why: str, *, held: str) -> dict[str, Any]:
    amounts = {
        "cpu": Figure("1", why, f"{component}.cpu"),
        "memory": Figure("1Gi", f"{held}; room for prompts and answers", f"{component}.memory"),
        "ephemeral-storage": Figure(
            "256Mi", "tokenizer and its log", f"{component}.ephemeralStorage"
        ),
    }
    return {"requests": amounts, "limits": amounts}


def _port_variable(name: str) -> dict[str, Any]:
    number = str(FIXED_PORTS[name])
    return {"name": name, "value": Figure(number, "fixed, for the network policies")}


def _http() -> Figure:
    return Figure(HTTP_PORT, "the operator's port of a frontend")


def _system() -> Figure:
    return Figure(SYSTEM_PORT, "the operator's port of health and metadata")


def _fixed(variable: str) -> Figure:
    return Figure(FIXED_PORTS[variable], variable)


def dynamo_policies(deployment: Deployment) -> list[dict[str, Any]]:
    """Return who may reach frontend and workers, and whom they may reach."""
    settings = deployment.settings
    frontends = {"podSelector": {"matchLabels": selector(settings, FRONTEND)}}
    workers = {"podSelector": {"matchLabels": selector(settings, SERVER)}}
    kubernetes = {"ports": [tcp(Figure(each, "Kubernetes' API")) for each in _ANY_API_PORTS]}
    monitoring = monitoring_peer(settings)
    # The frontend knows no keys: only what stands before it may ask.
    askers = [route_peer(settings.route), monitoring]
    return [
        network_policy(
            deployment,
            SERVER,
            "",
            ingress=[
                {"from": [frontends], "ports": [tcp(_fixed(_REQUESTS)), tcp(_system())]},
                {"from": [monitoring], "ports": [tcp(port("metrics")), tcp(_system())]},
            ],
            egress=[
                {"to": [frontends], "ports": [tcp(_fixed(_RESPONSES))]},
                dns(),
                kubernetes,
                *fetch_egress(deployment),
            ],
        ),
        network_policy(
            deployment,
            FRONTEND,
            f"-{FRONTEND}",
            ingress=[
                {"from": askers, "ports": [tcp(_http())]},
                {"from": [workers], "ports": [tcp(_fixed(_RESPONSES))]},
            ],
            egress=[
                {"to": [workers], "ports": [tcp(_fixed(_REQUESTS)), tcp(_system())]},
                dns(),
                kubernetes,
            ],
        ),
    ]


def dynamo_routes(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the route of Gateway API to the Service that the operator makes of the frontend."""
    settings = deployment.settings
    if settings.route is None:
        return []
    return [http_route(settings, settings.route, FRONTEND, _http())]
