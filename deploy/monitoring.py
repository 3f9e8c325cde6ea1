"""What is watched: the Pods' metrics, alerts on them, and the dashboard."""

from __future__ import annotations

import json
from typing import Any, Final

from minitron_trt.build.plan.traffic.waiting_limit import limit_by_slots
from minitron_trt.deploy.dashboard import dashboard
from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.metric_names import (
    BLOCKS,
    ERRORS,
    FIRST_TOKEN,
    REQUESTS,
    SUCCESSES,
    TOKEN_TIME,
)
from minitron_trt.deploy.pods import INSTANCE, SERVER, metadata, selector
from minitron_trt.triton_repo.contract.model_names import ENSEMBLE, TENSORRT_LLM_BLS
from minitron_trt.triton_repo.runtimes.runtime_names import TRTLLM
from minitron_trt.yaml_text import Figure

KV_SHARE: Final = 0.85
"""How full KV caches may be before there should be another replica."""
KV_ALARM: Final = 0.97
ERROR_SHARE: Final = 0.01
# The models that clients ask. Their steps count a request once more.
_OUTSIDE: Final = f"{ENSEMBLE}|{TENSORRT_LLM_BLS}"


def selection(deployment: Deployment) -> str:
    """Return the labels of a deployment's series, as the PodMonitor makes them."""
    label = INSTANCE.replace(".", "_").replace("/", "_")
    return f'{label}="{deployment.name}"'


def waiting_query(deployment: Deployment, *, also: str = "") -> str:
    """Return the requests that wait, of all replicas whose series have these labels, too."""
    return f'sum({REQUESTS}{{{selection(deployment)}{also},request_type="waiting"}})'


def kv_query(deployment: Deployment, *, also: str = "") -> str:
    """Return the share of the KV caches in use, of all such replicas: 0 to 1."""
    blocks = f"{BLOCKS}{{{selection(deployment)}{also},kv_cache_block_type="
    return f'sum({blocks}"used"}}) / sum({blocks}"max"}})'


def waiting_limit(deployment: Deployment) -> Figure:
    """Return how many requests may wait per replica before there should be another one."""
    scale = deployment.settings.scale
    if scale is not None:
        why = f"{scale.what}: {scale.waiting_reason}"
        return Figure(str(scale.waiting), why, "autoscaling.waitingPerReplica")
    limit = limit_by_slots(concurrent(deployment))
    return Figure(str(limit.requests), limit.reason, "autoscaling.waitingPerReplica")


def concurrent(deployment: Deployment) -> int:
    """Return how many sequences a replica runs at once: its batch, or what its cache holds."""
    need = deployment.facts.gpu
    return max(min(deployment.facts.batch, need.sequences if need else deployment.facts.batch), 1)


def pod_monitor(deployment: Deployment) -> dict[str, Any]:
    """Return what prometheus-operator scrapes."""
    settings = deployment.settings
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PodMonitor",
        "metadata": metadata(settings, SERVER),
        "spec": {
            "selector": {"matchLabels": selector(settings, SERVER)},
            "podTargetLabels": [INSTANCE],
            "podMetricsEndpoints": [
                {"port": "metrics", "interval": Figure("15s", "four values a minute")}
            ],
        },
    }


def prometheus_rule(deployment: Deployment) -> dict[str, Any]:
    """Return the alerts."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": metadata(deployment.settings, SERVER),
        "spec": {"groups": [{"name": deployment.name, "rules": list(_alerts(deployment))}]},
    }


def _alerts(deployment: Deployment) -> list[dict[str, Any]]:
    settings, chosen = deployment.settings, selection(deployment)
    waiting = f'avg({REQUESTS}{{{chosen},request_type="waiting"}})'
    alerts = [
        _alert(
            "NoServer",
            f"absent({REQUESTS}{{{chosen}}})",
            "5m",
            "No server of the deployment publishes metrics",
        ),
        _alert(
            "RequestsWait",
            f"{waiting} > {waiting_limit(deployment).value}",
            "5m",
            "{{ $value }} requests wait on each replica: there are too few",
        ),
        _alert(
            "KvCacheFull",
            f"{kv_query(deployment)} > {KV_ALARM}",
            "10m",
            "KV caches are {{ $value | humanizePercentage }} full: sequences are paused or wait",
        ),
        _alert(
            "Errors",
            f"{_error_share(deployment)} > {ERROR_SHARE}",
            "5m",
            "{{ $value | humanizePercentage }} of requests fail",
        ),
        _alert(
            "FirstTokenLate",
            f"{_first_token(deployment)} > {settings.ttft_s:g}",
            "10m",
            f"The 99th percentile of the time to first token is above {settings.ttft_s:g} s",
        ),
    ]
    # TensorRT-LLM's C++ backend publishes no time between tokens.
    if deployment.facts.runtime != TRTLLM:
        alerts.append(
            _alert(
                "TokensSlow",
                f"{_quantile(TOKEN_TIME, chosen)} > {settings.itl_s:g}",
                "10m",
                f"The 99th percentile of the time between tokens is above {settings.itl_s:g} s",
            )
        )
    return alerts


def _alert(name: str, query: str, after: str, summary: str) -> dict[str, Any]:
    return {
        "alert": f"Minitron{name}",
        "expr": query,
        "for": Figure(after, "shorter peaks are for the autoscaler"),
        "labels": {"severity": "warning"},
        "annotations": {"summary": summary},
    }


def _error_share(deployment: Deployment) -> str:
    """Return the share of requests that fail; of an engine, Triton's own count has to do."""
    chosen = selection(deployment)
    failed, ended = f"{ERRORS}{{{chosen}}}", f"{SUCCESSES}{{{chosen}}}"
    if deployment.facts.runtime == TRTLLM:
        outside = f'{chosen},model=~"{_OUTSIDE}"'
        failed = f"nv_inference_request_failure{{{outside}}}"
        ended = f"nv_inference_request_success{{{outside}}}"
    rates = [f"sum(rate({metric}[5m]))" for metric in (failed, ended)]
    return f"{rates[0]} / ({rates[0]} + {rates[1]})"


def _first_token(deployment: Deployment) -> str:
    chosen = selection(deployment)
    if deployment.facts.runtime == TRTLLM:
        # The C++ backend publishes no time to the first token. This is Triton's own histogram, in
        # ms, since 24.11.
        metric = "nv_inference_first_response_histogram_ms"
        outside = f'{chosen},model=~"{_OUTSIDE}"'
        return f"{_quantile(metric, outside)} / 1000"
    return _quantile(FIRST_TOKEN, chosen)


def _quantile(metric: str, chosen: str) -> str:
    return f"histogram_quantile(0.99, sum by (le) (rate({metric}_bucket{{{chosen}}}[5m])))"


def dashboard_map(deployment: Deployment) -> dict[str, Any]:
    """Return the dashboard as Grafana's sidecar finds it."""
    described = metadata(deployment.settings, SERVER, "-dashboard")
    # The label that the sidecar of Grafana's chart looks for.
    described["labels"] = {**described["labels"], "grafana_dashboard": "1"}
    text = json.dumps(dashboard(), indent=1, ensure_ascii=False) + "\n"
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": described,
        "data": {"minitron-trt.json": text},
    }
