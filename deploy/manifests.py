"""The files for Kubernetes: objects by what they are about, as a kustomize base or a Helm chart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import REPOSITORY, Manifest, sha256
from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.dynamo_graph import (
    dynamo_graph,
    dynamo_policies,
    dynamo_routes,
    frontend_autoscaler,
    graph_scale_target,
)
from minitron_trt.deploy.gateway_pod import gateway_deployment
from minitron_trt.deploy.monitoring import dashboard_map, pod_monitor, prometheus_rule
from minitron_trt.deploy.pods import (
    DIGESTS,
    FETCH_SCRIPT,
    FRONTEND,
    SCRIPTS,
    SERVER,
    metadata,
    needs_scripts,
)
from minitron_trt.deploy.reachability import (
    inference_pool,
    network_policies,
    picker_config,
    routes,
    services,
)
from minitron_trt.deploy.scaling import (
    adapter_values,
    autoscaler,
    disruption_budgets,
    gateway_autoscaler,
    scale_target,
)
from minitron_trt.deploy.settings import DYNAMO, HPA, KSERVE, LEADERWORKERSET
from minitron_trt.deploy.storage import FETCH
from minitron_trt.deploy.workloads import (
    LEADER_SCRIPT,
    WORKER_SCRIPT,
    inference_service,
    leader_worker_set,
    server_deployment,
)
from minitron_trt.triton_repo.serving.command_line import MPIRUN_WRAPPER
from minitron_trt.version import __version__
from minitron_trt.yaml_text import Figure, Scalar, figures_of, template_text, yaml_text

BASE: Final = "base"
OVERLAY: Final = "overlays/production"
PICKER_FILE: Final = "endpoint-picker.yaml"
_ABOUT: Final = {
    "server": "The servers: one Pod, or one group of Pods, is a replica.",
    "graph": "Dynamo's frontend and workers: a worker is a Triton with what puts it behind Dynamo.",
    "gateway": "OpenAI's API before the servers. Its keys are in a Secret that is made by hand.",
    "services": "Names in the cluster: all servers, each server by its own address, the gateway.",
    "network-policies": "Who reaches whom; whatever is not named here does not.",
    "routes": "Ways in from outside, by Gateway API.",
    "disruptions": "Nodes are drained one Pod at a time.",
    "autoscaling": "Replicas by what there is to do.",
    "monitoring": "What Prometheus scrapes, and the alerts on it.",
    "dashboard": "The dashboard, as Grafana's sidecar finds it.",
    "scripts": "Programs that the containers run beside the image's own.",
}
Objects = Mapping[str, list[dict[str, Any]]]


def objects_of(deployment: Deployment) -> Objects:
    """Return the objects of a deployment, by the name of the file that they stand in."""
    is_graph = deployment.settings.target == DYNAMO
    files = _behind_dynamo(deployment) if is_graph else _behind_gateway(deployment)
    files |= {
        "monitoring": [pod_monitor(deployment), prometheus_rule(deployment)],
        "dashboard": [dashboard_map(deployment)],
        "scripts": [_scripts(deployment)] if needs_scripts(deployment) else [],
    }
    return {name: objects for name, objects in files.items() if objects}


def _behind_gateway(deployment: Deployment) -> dict[str, list[dict[str, Any]]]:
    """Return servers with the gateway before them, and who may reach them."""
    return {
        "server": [_workload(deployment)],
        "gateway": [gateway_deployment(deployment), *gateway_autoscaler(deployment)],
        "services": services(deployment),
        "network-policies": network_policies(deployment),
        "routes": [*routes(deployment), *inference_pool(deployment)],
        "disruptions": disruption_budgets(deployment),
        "autoscaling": autoscaler(deployment, scale_target(deployment)),
    }


def _behind_dynamo(deployment: Deployment) -> dict[str, list[dict[str, Any]]]:
    """Return what is there of a graph of Dynamo's, whose Services its operator makes."""
    return {
        "graph": [dynamo_graph(deployment)],
        "network-policies": dynamo_policies(deployment),
        "routes": dynamo_routes(deployment),
        "disruptions": disruption_budgets(deployment, FRONTEND),
        "autoscaling": [
            *autoscaler(deployment, graph_scale_target(deployment)),
            *frontend_autoscaler(deployment),
        ],
    }


def _workload(deployment: Deployment) -> dict[str, Any]:
    writers = {LEADERWORKERSET: leader_worker_set, KSERVE: inference_service}
    return writers.get(deployment.settings.target, server_deployment)(deployment)


def _scripts(deployment: Deployment) -> dict[str, Any]:
    programs: dict[str, str] = {}
    if deployment.facts.ranks > 1:
        programs[MPIRUN_WRAPPER.name] = MPIRUN_WRAPPER.read_text(encoding="utf-8")
    if deployment.nodes > 1:
        for script in (LEADER_SCRIPT, WORKER_SCRIPT):
            programs[script.name] = script.read_text(encoding="utf-8")
    if deployment.storage.form == FETCH:
        programs[FETCH_SCRIPT.name] = FETCH_SCRIPT.read_text(encoding="utf-8")
        programs[DIGESTS] = digests_text(Path(deployment.facts.repository))
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(deployment.settings, SERVER, f"-{SCRIPTS}"),
        "data": programs,
    }


def digests_text(repository: Path) -> str:
    """Return the digest of every file of a repository, as sha256sum writes a list."""
    Manifest.read(repository, REPOSITORY)
    # A manifest does not list the manifests below its folder, such as that of an engine.
    paths = sorted(path for path in repository.rglob("*") if path.is_file())
    return "".join(f"{sha256(path)}  {path.relative_to(repository)}\n" for path in paths)


def kustomize_files(deployment: Deployment) -> dict[str, str]:
    """Return a kustomize base and an overlay, by their paths."""
    objects = objects_of(deployment)
    files = {
        f"{BASE}/{name}.yaml": f"# {_ABOUT[name]}\n{yaml_text(found)}"
        for name, found in objects.items()
    }
    base = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{name}.yaml" for name in objects],
    }
    overlay = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": deployment.name,
        "resources": [f"../../{BASE}"],
        "images": _images(deployment),
    }
    files[f"{BASE}/kustomization.yaml"] = yaml_text([base])
    files[f"{OVERLAY}/kustomization.yaml"] = _OVERLAY_ABOUT + yaml_text([overlay])
    if deployment.settings.autoscaler == HPA:
        files["prometheus-adapter-values.yaml"] = _ADAPTER_ABOUT + yaml_text(
            [adapter_values(deployment)]
        )
    if deployment.settings.inference_pool:
        files[PICKER_FILE] = _PICKER_ABOUT + yaml_text([picker_config(deployment)])
    return files


_OVERLAY_ABOUT: Final = (
    "# What differs from place to place: namespace, images (by digest if you have it), patches.\n"
)
_ADAPTER_ABOUT: Final = (
    "# Values of prometheus-adapter's chart: the external metrics that the autoscaler asks for.\n"
)
_PICKER_ABOUT: Final = "# What the pool's endpoint picker is given by --config-file.\n"


def _images(deployment: Deployment) -> list[dict[str, Any]]:
    images: list[dict[str, Any]] = []
    for figure in dict.fromkeys((deployment.image(), deployment.own_image())):
        name, at, digest = str(figure.value).partition("@")
        head, colon, tag = name.rpartition(":")
        # A colon may be of a registry's port.
        tagged = colon and "/" not in tag
        if at:
            images.append({"name": head if tagged else name, "digest": digest})
        elif tagged:
            images.append({"name": head, "newTag": Figure(tag, figure.why)})
    return images


def chart_files(deployment: Deployment) -> dict[str, str]:
    """Return a Helm chart, whose values are the numbers of the base, by the files' paths."""
    objects = objects_of(deployment)
    knobs = {
        figure.knob: figure
        for found in objects.values()
        for figure in figures_of(found)
        if figure.knob is not None
    }
    chart = {
        "apiVersion": "v2",
        "name": deployment.name,
        "description": f"{deployment.name} on Triton, written by minitron-trt",
        "type": "application",
        "version": "1.0.0",
        "appVersion": __version__,
    }
    return {
        "chart/Chart.yaml": yaml_text([chart]),
        "chart/values.yaml": yaml_text([_nested(knobs)]),
        "chart/values.schema.json": json.dumps(_schema(knobs), indent=2) + "\n",
        **{
            f"chart/templates/{name}.yaml": f"# {_ABOUT[name]}\n{template_text(found)}"
            for name, found in objects.items()
        },
    }


def _nested(knobs: Mapping[str, Figure]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for place, figure in knobs.items():
        group, _, name = place.partition(".")
        tree.setdefault(group, {})[name] = figure
    return tree


def _schema(knobs: Mapping[str, Figure]) -> dict[str, Any]:
    groups: dict[str, Any] = {}
    for place, figure in knobs.items():
        group, _, name = place.partition(".")
        groups.setdefault(group, {})[name] = {
            "type": _type(figure.value),
            "description": figure.why,
        }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "additionalProperties": False,
        # What Helm itself gives to every chart.
        "properties": {"global": {"type": "object"}, **{n: _group(g) for n, g in groups.items()}},
        "required": sorted(groups),
    }


def _group(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "properties": properties,
        "required": sorted(properties),
    }


def _type(value: Scalar) -> str:
    return "string" if isinstance(value, str) else "integer"
