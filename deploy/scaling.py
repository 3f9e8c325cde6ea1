"""How many replicas there are: a budget for disruptions, KEDA or Kubernetes' autoscalers."""

from __future__ import annotations

from typing import Any, Final

from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.gateway_pod import BUSY_PERCENT, least_gateways, most_gateways
from minitron_trt.deploy.monitoring import KV_SHARE, kv_query, waiting_limit, waiting_query
from minitron_trt.deploy.pods import GATEWAY, SERVER, metadata, replica_selector, selector
from minitron_trt.deploy.settings import (
    HPA,
    KEDA,
    KSERVE,
    LEADERWORKERSET,
    NONE,
    DeploySettings,
)
from minitron_trt.yaml_text import Figure

# Kubernetes' own default.
CALM_S: Final = 300
_PODS_UP: Final = 2


def disruption_budgets(deployment: Deployment, front: str = GATEWAY) -> list[dict[str, Any]]:
    """Return that nodes are drained one Pod at a time, of servers and of what is before them.

    Of several Pods in a replica any takes the others with it, so that all of them count.
    """
    settings = deployment.settings
    before = {"matchLabels": selector(settings, front)}
    return [
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": metadata(settings, component, suffix),
            "spec": {
                "maxUnavailable": Figure(1, "one Pod at a time"),
                # What is not ready serves nobody, and must not keep a node from being drained.
                "unhealthyPodEvictionPolicy": "AlwaysAllow",
                "selector": chosen,
            },
        }
        for component, suffix, chosen in (
            (SERVER, "", replica_selector(deployment)),
            (front, f"-{front}", before),
        )
    ]


def autoscaler(deployment: Deployment, target: dict[str, str]) -> list[dict[str, Any]]:
    """Return the autoscaler of `target`, an object by apiVersion, kind and name."""
    writers = {KEDA: _scaled_object, HPA: _pod_autoscaler}
    chosen = deployment.settings.autoscaler
    return [writers[chosen](deployment, target)] if chosen in writers else []


def gateway_autoscaler(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the autoscaler of the gateways."""
    settings = deployment.settings
    target = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": f"{deployment.name}-{GATEWAY}",
    }
    return front_autoscaler(
        settings, GATEWAY, target, least=least_gateways(settings), most=most_gateways(settings)
    )


def front_autoscaler(
    settings: DeploySettings,
    component: str,
    target: dict[str, str],
    *,
    least: Figure,
    most: Figure,
) -> list[dict[str, Any]]:
    """Return the autoscaler of what stands before the servers, whose work is its processor's."""
    if settings.autoscaler == NONE:
        return []
    busy = Figure(BUSY_PERCENT, "per cent of its processor: tokens wait for each other beyond")
    return [
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": metadata(settings, component, f"-{component}"),
            "spec": {
                "scaleTargetRef": target,
                "minReplicas": least,
                "maxReplicas": most,
                "metrics": [
                    {
                        "type": "Resource",
                        "resource": {
                            "name": "cpu",
                            "target": {"type": "Utilization", "averageUtilization": busy},
                        },
                    }
                ],
            },
        }
    ]


def scale_target(deployment: Deployment) -> dict[str, str]:
    """Return what has the server's replicas."""
    if deployment.settings.target == LEADERWORKERSET:
        version = "leaderworkerset.x-k8s.io/v1"
        return {"apiVersion": version, "kind": "LeaderWorkerSet", "name": deployment.name}
    # KServe names the Deployment that it makes.
    suffix = "-predictor" if deployment.settings.target == KSERVE else ""
    return {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{deployment.name}{suffix}"}


def _calm(deployment: Deployment) -> Figure:
    start = deployment.prepared_s() + deployment.startup_s()
    why = f"{CALM_S // 60} minutes, and not below the {start} s that a start takes"
    return Figure(max(CALM_S, start), why, "autoscaling.calmSeconds")


def _kv_percent() -> Figure:
    return Figure(str(round(100 * KV_SHARE)), "per cent of the KV caches", "autoscaling.kvPercent")


def _behaviour(deployment: Deployment) -> dict[str, Any]:
    return {
        "scaleUp": {"policies": [_pace(deployment)]},
        "scaleDown": {
            "stabilizationWindowSeconds": _calm(deployment),
            "policies": [_policy(1)],
        },
    }


def _pace(deployment: Deployment) -> dict[str, Any]:
    # At two a minute hundreds of replicas would take a quarter of an hour to be a tenth more.
    tenth = deployment.settings.replicas // 10
    if tenth <= _PODS_UP:
        return _policy(_PODS_UP)
    return _policy(tenth, ", a tenth of the replicas")


def _policy(pods: int, reason: str = "") -> dict[str, Any]:
    minute = Figure(60, "seconds")
    return {
        "type": "Pods",
        "value": Figure(pods, f"Pods a minute{reason}"),
        "periodSeconds": minute,
    }


def _scaled_object(deployment: Deployment, target: dict[str, str]) -> dict[str, Any]:
    server = deployment.settings.prometheus
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": metadata(deployment.settings, SERVER),
        "spec": {
            "scaleTargetRef": target,
            "minReplicaCount": deployment.replicas(),
            "maxReplicaCount": deployment.most_replicas(),
            "advanced": {
                "horizontalPodAutoscalerConfig": {"behavior": _behaviour(deployment)},
            },
            "triggers": [
                {
                    "type": "prometheus",
                    "name": "waiting",
                    # The sum of all replicas, divided by their number.
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": server,
                        "query": waiting_query(deployment),
                        "threshold": waiting_limit(deployment),
                    },
                },
                {
                    "type": "prometheus",
                    "name": "kv-cache",
                    "metricType": "Value",
                    "metadata": {
                        "serverAddress": server,
                        "query": f"100 * {kv_query(deployment)}",
                        "threshold": _kv_percent(),
                    },
                },
            ],
        },
    }


def _pod_autoscaler(deployment: Deployment, target: dict[str, str]) -> dict[str, Any]:
    """Return the autoscaler that asks prometheus-adapter for external metrics."""
    name = deployment.name.replace("-", "_")
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": metadata(deployment.settings, SERVER),
        "spec": {
            "scaleTargetRef": target,
            "minReplicas": deployment.replicas(),
            "maxReplicas": deployment.most_replicas(),
            "behavior": _behaviour(deployment),
            "metrics": [
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": f"{name}_waiting"},
                        "target": {
                            "type": "AverageValue",
                            "averageValue": waiting_limit(deployment),
                        },
                    },
                },
                {
                    "type": "External",
                    "external": {
                        "metric": {"name": f"{name}_kv_cache_percent"},
                        "target": {"type": "Value", "value": _kv_percent()},
                    },
                },
            ],
        },
    }


def adapter_values(deployment: Deployment) -> dict[str, Any]:
    """Return the values of prometheus-adapter's chart that make the external metrics."""
    name = deployment.name.replace("-", "_")
    # The adapter asks for a metric of the autoscaler's namespace, and fills that in.
    also = ",<<.LabelMatchers>>"
    queries = {
        f"{name}_waiting": waiting_query(deployment, also=also),
        f"{name}_kv_cache_percent": f"100 * {kv_query(deployment, also=also)}",
    }
    namespace = {"namespace": {"resource": "namespace"}}
    return {
        "rules": {
            "external": [
                {
                    # What the query sums first: the adapter learns of a metric by its series.
                    "seriesQuery": query.partition("(")[2].partition(")")[0].replace(also, ""),
                    "resources": {"overrides": namespace},
                    "name": {"as": metric},
                    "metricsQuery": query,
                }
                for metric, query in queries.items()
            ]
        }
    }
