"""Who reaches whom: services, routes, network policies, and a pool for an endpoint picker."""

from __future__ import annotations

from typing import Any, Final

from minitron_trt.deploy.deployment import Deployment, port
from minitron_trt.deploy.metric_names import BLOCKS, REQUESTS
from minitron_trt.deploy.pods import (
    GATEWAY,
    SERVER,
    WORKER,
    metadata,
    replica_selector,
    selector,
)
from minitron_trt.deploy.settings import DeploySettings
from minitron_trt.gateway.command import ANSWER_S, PORT
from minitron_trt.yaml_text import Figure

_NAMESPACE: Final = "kubernetes.io/metadata.name"
PICKER_PORT: Final = 9002
PICKER: Final = "EndpointPickerConfig"
_ENGINE: Final = {
    "name": "triton-tensorrt-llm",
    "queuedRequestsSpec": f"{REQUESTS}{{request_type=waiting}}",
    "runningRequestsSpec": f"{REQUESTS}{{request_type=scheduled}}",
    "kvUsageSpec": f"{BLOCKS}{{kv_cache_block_type=fraction}}",
}


def services(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the services: of all servers, of each by its own address (gRPC), of the gateway.

    None has the deployment's bare name: a LeaderWorkerSet makes a Service of its own name.
    """
    settings = deployment.settings
    one_address = {"clusterIP": "None"}
    server = {"selector": selector(settings, SERVER)}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(settings, SERVER, f"-{SERVER}"),
            "spec": {**server, "ports": [_service_port("http"), _service_port("grpc", "grpc")]},
        },
        {
            # A connection of gRPC lasts: a client that sees every server spreads its requests.
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(settings, SERVER, "-headless"),
            "spec": {**one_address, **server, "ports": [_service_port("grpc", "grpc")]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": metadata(settings, GATEWAY, "-gateway"),
            "spec": {
                "selector": selector(settings, GATEWAY),
                "ports": [
                    {
                        "name": "openai",
                        "port": _openai(),
                        "targetPort": "openai",
                        "appProtocol": "http",
                    }
                ],
            },
        },
    ]


def _service_port(name: str, protocol: str = "http") -> dict[str, Any]:
    return {
        "name": name,
        "port": port(name),
        "targetPort": name,
        "appProtocol": "kubernetes.io/h2c" if protocol == "grpc" else protocol,
    }


def network_policies(deployment: Deployment) -> list[dict[str, Any]]:
    """Return who may reach servers and gateway, and whom they may reach."""
    settings = deployment.settings
    gateways = {"podSelector": {"matchLabels": selector(settings, GATEWAY)}}
    servers = {"podSelector": {"matchLabels": selector(settings, SERVER)}}
    group = {"podSelector": replica_selector(deployment)}
    ingress: list[dict[str, Any]] = [
        {"from": [gateways], "ports": _ports("http", "grpc")},
        {"from": [monitoring_peer(settings)], "ports": _ports("metrics")},
    ]
    egress: list[dict[str, Any]] = []
    if deployment.nodes > 1:
        # MPI and NCCL choose their ports as they go.
        ingress.append({"from": [group]})
        egress += [{"to": [group]}, dns()]
    egress += fetch_egress(deployment)
    if settings.inference_pool:
        # The route's gateway forwards Triton's API; the picker, beside its pool, reads metrics.
        ingress += [
            {"from": [route_peer(settings.route)], "ports": _ports("http", "grpc")},
            {"from": [{"podSelector": {}}], "ports": _ports("metrics")},
        ]
    workers = []
    if deployment.nodes > 1:
        inside = [{"from": [group]}]
        workers.append(network_policy(deployment, WORKER, "-worker", ingress=inside, egress=egress))
    return [
        network_policy(deployment, SERVER, "", ingress=ingress, egress=egress),
        *workers,
        network_policy(
            deployment,
            GATEWAY,
            "-gateway",
            # From anywhere: it has its own fence, the keys.
            ingress=[{"ports": [tcp(_openai())]}],
            egress=[{"to": [servers], "ports": _ports("http", "grpc")}, dns()],
        ),
    ]


def _openai() -> Figure:
    return Figure(PORT, "the gateway's port")


def network_policy(
    deployment: Deployment,
    component: str,
    suffix: str,
    *,
    ingress: list[dict[str, Any]],
    egress: list[dict[str, Any]],
) -> dict[str, Any]:
    """Return the policy of a component's Pods."""
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": metadata(deployment.settings, component, suffix),
        "spec": {
            "podSelector": {"matchLabels": selector(deployment.settings, component)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": ingress,
            "egress": egress,
        },
    }


def _ports(*names: str) -> list[dict[str, Any]]:
    return [tcp(port(name)) for name in names]


def tcp(number: Figure) -> dict[str, Any]:
    """Return a port that a policy opens."""
    return {"protocol": "TCP", "port": number}


def dns() -> dict[str, Any]:
    """Return that names may be asked for."""
    return {"ports": [{"protocol": kind, "port": Figure(53, "names")} for kind in ("UDP", "TCP")]}


def fetch_egress(deployment: Deployment) -> list[dict[str, Any]]:
    """Return where a repository may be fetched from, if it is."""
    if not deployment.storage.is_scratch:
        return []
    why = "of what is fetched"
    web = [tcp(Figure(each, why)) for each in (80, 443)]
    return [dns(), {"ports": web}]


def monitoring_peer(settings: DeploySettings) -> dict[str, Any]:
    """Return who may read metrics."""
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE: settings.monitoring_namespace}}}


def route_peer(route: str | None) -> dict[str, Any]:
    """Return where a route's gateway is: in its namespace, or in the deployment's own."""
    namespace, slash, _ = (route or "").partition("/")
    if not slash:
        return {"podSelector": {}}
    return {"namespaceSelector": {"matchLabels": {_NAMESPACE: namespace}}}


def routes(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the routes of Gateway API: OpenAI's API, and Triton's own where it is offered."""
    settings = deployment.settings
    if settings.route is None:
        return []
    if not settings.inference_pool:
        return [http_route(settings, settings.route, GATEWAY, _openai())]
    pool = _pool_rule(settings.name)
    return [
        http_route(settings, settings.route, GATEWAY, _openai(), pool),
        _grpc_route(deployment, settings.route),
    ]


def http_route(
    settings: DeploySettings, route: str, component: str, number: Figure, *more: dict[str, Any]
) -> dict[str, Any]:
    """Return the route of OpenAI's API to the Service of a component, and of what else is ruled."""
    service = {"name": f"{settings.name}-{component}", "port": number}
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        # KServe makes routes of an InferenceService's bare name.
        "metadata": metadata(settings, component, f"-{component}"),
        "spec": {"parentRefs": _parents(route), "rules": [_rule("/v1", service), *more]},
    }


def _rule(prefix: str, backend: dict[str, Any]) -> dict[str, Any]:
    return {
        "matches": [{"path": {"type": "PathPrefix", "value": prefix}}],
        "backendRefs": [backend],
        "timeouts": {"request": Figure(f"{ANSWER_S:.0f}s", "for a whole answer")},
    }


def _parents(route: str) -> list[dict[str, str]]:
    namespace, slash, name = route.rpartition("/")
    return [{"name": name, **({"namespace": namespace} if slash else {})}]


def _pool_rule(name: str) -> dict[str, Any]:
    pool = {"group": "inference.networking.k8s.io", "kind": "InferencePool", "name": name}
    return _rule("/v2/models", pool)


def _grpc_route(deployment: Deployment, route: str) -> dict[str, Any]:
    """Return the route of Triton's gRPC, which goes past the gateway and its keys."""
    settings = deployment.settings
    return {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "GRPCRoute",
        "metadata": metadata(settings, SERVER, "-grpc"),
        "spec": {
            "parentRefs": _parents(route),
            "rules": [
                {
                    "matches": [{"method": {"service": "inference.GRPCInferenceService"}}],
                    "backendRefs": [{"name": f"{settings.name}-{SERVER}", "port": port("grpc")}],
                }
            ],
        },
    }


def inference_pool(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the pool of servers that an endpoint picker chooses from."""
    settings = deployment.settings
    if not settings.inference_pool:
        return []
    return [
        {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": metadata(settings, SERVER),
            "spec": {
                "selector": {"matchLabels": selector(settings, SERVER)},
                "targetPorts": [{"number": port("http")}],
                "endpointPickerRef": {
                    "name": f"{settings.name}-epp",
                    "port": {"number": Figure(PICKER_PORT, "the endpoint picker's own default")},
                    # Without its picker, any server is better than none.
                    "failureMode": "FailOpen",
                },
            },
        }
    ]


def picker_config(deployment: Deployment) -> dict[str, Any]:
    """Return what the endpoint picker of llm-d's router is told of TensorRT-LLM's metrics.

    It picks by them alone: Triton's own requests are none that it could read.
    """
    scorers = ("queue-scorer", "kv-cache-utilization-scorer")
    parser = "passthrough-parser"
    return {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": PICKER,
        "plugins": [
            {"type": "metrics-data-source", "parameters": {"port": port("metrics")}},
            {
                "type": "core-metrics-extractor",
                "parameters": {"defaultEngine": _ENGINE["name"], "engineConfigs": [_ENGINE]},
            },
            *({"type": name} for name in (*scorers, parser)),
        ],
        "schedulingProfiles": [
            {"name": "default", "plugins": [{"pluginRef": name} for name in scorers]}
        ],
        "requestHandler": {"parsers": [{"pluginRef": parser}]},
    }
