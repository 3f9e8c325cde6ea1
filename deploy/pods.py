"""The Pods of a server: its containers, where they may run, and how they start and end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from minitron_trt.build.trtllm.cluster.pod_parts import (
    COMPONENT,
    GPU,
    capability_labels,
    container_security,
    gpu_tolerations,
    literal,
    pod_security,
)
from minitron_trt.deploy.deployment import PRE_STOP_S, PROBE_S, Deployment, port
from minitron_trt.deploy.served_facts import CLOSED
from minitron_trt.deploy.settings import NONE, DeploySettings
from minitron_trt.deploy.storage import FETCH, HUB, HUB_FOLDER, VOLUME
from minitron_trt.triton_repo.serving.docker_launch import INSIDE
from minitron_trt.yaml_text import Figure

SERVER: Final = "server"
WORKER: Final = "worker"
GATEWAY: Final = "gateway"
FRONTEND: Final = "frontend"
SCRIPTS: Final = "scripts"
FETCH_SCRIPT: Final = Path(__file__).with_name("fetch_repository.py")
DIGESTS: Final = "files.sha256"
"""The list of a fetched repository's files, as sha256sum writes one."""
INSTANCE: Final = "app.kubernetes.io/instance"
_CLOSED_ENVIRONMENT: Final = "CLOSED"
_PREPARED: Final = "/prepared"
"""Where the init containers have the volume, of which the server sees the repository alone."""


def labels(settings: DeploySettings, component: str) -> dict[str, str]:
    """Return the labels of an object, by which selectors find it too."""
    return {
        "app.kubernetes.io/name": "minitron-trt",
        INSTANCE: settings.name,
        COMPONENT: component,
        "app.kubernetes.io/managed-by": "minitron-trt",
    }


def selector(settings: DeploySettings, component: str) -> dict[str, str]:
    """Return the labels that no other object's Pods have."""
    return {INSTANCE: settings.name, COMPONENT: component}


def replica_selector(deployment: Deployment) -> dict[str, Any]:
    """Return what selects all Pods of replicas: with their workers, where they have several."""
    if deployment.nodes == 1:
        return {"matchLabels": selector(deployment.settings, SERVER)}
    ranks = {"key": COMPONENT, "operator": "In", "values": [SERVER, WORKER]}
    return {"matchLabels": {INSTANCE: deployment.name}, "matchExpressions": [ranks]}


def metadata(settings: DeploySettings, component: str, suffix: str = "") -> dict[str, Any]:
    """Return the metadata of an object; its namespace is the overlay's."""
    return {"name": f"{settings.name}{suffix}", "labels": labels(settings, component)}


def own_replicas(settings: DeploySettings, least: Figure) -> dict[str, Figure]:
    """Return the replicas that an object has by itself: none where an autoscaler has them.

    The files are applied again after each change, and would take the autoscaler's replicas away.
    """
    return {} if settings.autoscaler != NONE else {"replicas": least}


def server_pod(deployment: Deployment, *, argv: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Return the template of a Pod with the server, or of the first of several."""
    settings = deployment.settings
    return {
        "metadata": {"labels": labels(settings, SERVER)},
        "spec": {
            **server_placement(deployment),
            **initial(deployment),
            "containers": [server_container(deployment, argv or deployment.facts.argv)],
            "volumes": volumes(deployment),
        },
    }


def server_container(deployment: Deployment, argv: tuple[str, ...]) -> dict[str, Any]:
    """Return the container of tritonserver, or of mpirun over several of them."""
    return {
        "name": SERVER,
        **base_container(deployment),
        # After the image's own entry point, as `serve --runner docker` has it.
        "args": [_argument(word) for word in argv],
        "env": environment(deployment.facts.environment),
        "ports": [{"name": name, "containerPort": port(name)} for name in _PORTS],
        "resources": resources(deployment),
        **_probes(deployment),
        "lifecycle": lifecycle(),
        "volumeMounts": mounts(deployment),
    }


def lifecycle() -> dict[str, Any]:
    """Return what happens before a container is told to end."""
    seconds = Figure(PRE_STOP_S, "until proxies have dropped the Pod")
    return {"preStop": {"sleep": {"seconds": seconds}}}


_PORTS: Final = ("http", "grpc", "metrics")


def base_container(deployment: Deployment) -> dict[str, Any]:
    """Return what every container of the server's image has."""
    return {
        "image": deployment.image(),
        "imagePullPolicy": "IfNotPresent",
        "workingDir": "/tmp",
        "securityContext": container_security(),
    }


def own_container(deployment: Deployment) -> dict[str, Any]:
    """Return what every container of the image with minitron-trt has."""
    return {
        "image": deployment.own_image(),
        "imagePullPolicy": "IfNotPresent",
        "workingDir": "/tmp",
    }


def home() -> dict[str, str]:
    """Return the variable of a home that can be written, for what libraries keep there."""
    return {"name": "HOME", "value": "/tmp"}


def _argument(word: str) -> str | Figure:
    """Return a word of the command line as Kubernetes passes it on.

    The header that Triton's closed calls ask for ends with the Pod's UID.
    """
    if word.startswith("--grpc-max-connection-age="):
        return Figure(word, "ms, after which gateways ask who else is there")
    if word.endswith(f":{CLOSED}"):
        return f"{literal(word)}$({_CLOSED_ENVIRONMENT})"
    return literal(word)


def environment(variables: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the variables of a container; the first has the Pod's UID, for closed calls."""
    uid = {"fieldRef": {"fieldPath": "metadata.uid"}}
    return [
        {"name": _CLOSED_ENVIRONMENT, "valueFrom": uid},
        *({"name": name, "value": literal(value)} for name, value in variables.items()),
    ]


def resources(deployment: Deployment) -> dict[str, Any]:
    """Return requests that are limits, too: nobody takes from the Pod what it was promised."""
    amounts: dict[str, Any] = {
        "cpu": deployment.cpus(),
        "memory": deployment.memory(),
        "ephemeral-storage": deployment.ephemeral(),
    }
    if deployment.facts.gpu is not None:
        amounts[GPU] = deployment.gpus()
    return {"requests": amounts, "limits": amounts}


def _probes(deployment: Deployment) -> dict[str, Any]:
    ready = http_probe("/v2/health/ready", "http")
    return {
        "startupProbe": {
            **ready,
            "periodSeconds": probe_period(),
            "failureThreshold": deployment.startup_failures(),
        },
        "readinessProbe": {
            **ready,
            "periodSeconds": Figure(5, "a full server is left out soon"),
            "failureThreshold": Figure(2, "one late answer is none"),
        },
        "livenessProbe": {
            **http_probe("/v2/health/live", "http"),
            "periodSeconds": probe_period(),
            "failureThreshold": Figure(6, "a minute: a long prompt may hold a server up"),
        },
    }


def http_probe(path: str, port_name: str) -> dict[str, Any]:
    """Return what a probe asks, and how long it waits for an answer."""
    patience = Figure(5, "seconds for an answer")
    return {"httpGet": {"path": path, "port": port_name}, "timeoutSeconds": patience}


def probe_period() -> Figure:
    """Return how often a container is probed, where nothing hurries."""
    return Figure(PROBE_S, "seconds between probes")


def server_placement(deployment: Deployment) -> dict[str, Any]:
    """Return where a Pod with ranks may run, as whom, and how long its end may take."""
    nodes = _gpu_placement(deployment)
    return placement(deployment.settings, SERVER, grace=deployment.grace_s(), nodes=nodes)


def placement(
    settings: DeploySettings, component: str, *, grace: Figure, nodes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what all Pods have: as whom they run, apart from each other, and how they end."""
    secrets = [{"name": name} for name in settings.image_pull_secret]
    return {
        "automountServiceAccountToken": False,
        # Or every Service of the namespace would put its variables into the environment.
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        **({"imagePullSecrets": secrets} if secrets else {}),
        "securityContext": _security(settings),
        **nodes,
        "topologySpreadConstraints": [
            {
                "maxSkew": Figure(1, "replicas on different nodes, where there are enough"),
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": selector(settings, component)},
            }
        ],
    }


def _security(settings: DeploySettings) -> dict[str, Any]:
    """Return the security context of a Pod of anybody's but root."""
    return pod_security(settings.user) | {
        name: Figure(settings.user, "--user") for name in ("runAsUser", "runAsGroup", "fsGroup")
    }


def _gpu_placement(deployment: Deployment) -> dict[str, Any]:
    """Return the nodes whose GPUs can run the engine, by NVIDIA's feature discovery."""
    need = deployment.facts.gpu
    if need is None:
        return {}
    why = f"the engine's SM{need.sm}"
    expressions: list[dict[str, Any]] = [
        {"key": key, "operator": "In", "values": [Figure(value, why)]}
        for key, value in capability_labels(need.sm).items()
    ]
    expressions.append({"key": f"{GPU}.memory", "operator": "Gt", "values": [deployment.gpu_mib()]})
    if deployment.settings.gpu_product:
        products = list(deployment.settings.gpu_product)
        expressions.append({"key": f"{GPU}.product", "operator": "In", "values": products})
    terms = {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    return {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}},
        "tolerations": gpu_tolerations(),
    }


def initial(deployment: Deployment) -> dict[str, Any]:
    """Return the containers that bring a repository, where it is not mounted."""
    containers = {FETCH: _fetch, HUB: _prepare}.get(deployment.storage.form)
    return {} if containers is None else {"initContainers": containers(deployment)}


def _fetch(deployment: Deployment) -> list[dict[str, Any]]:
    amounts = {
        "cpu": Figure("1", "one connection"),
        "memory": Figure("512Mi", "Python, and blocks of 1 MiB"),
        "ephemeral-storage": deployment.ephemeral(),
    }
    container = {
        "name": "fetch",
        **base_container(deployment),
        "command": ["python3", str(INSIDE / FETCH_SCRIPT.name)],
        "args": [deployment.storage.place, str(INSIDE / DIGESTS), deployment.facts.mount],
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [
            deployment.storage.mount(deployment.facts.mount, read_only=False),
            {"name": "tmp", "mountPath": "/tmp"},
            {"name": SCRIPTS, "mountPath": str(INSIDE), "readOnly": True},
        ],
    }
    return [container]


def _prepare(deployment: Deployment) -> list[dict[str, Any]]:
    """Return a model's way from the hub to a repository; it may begin anew, over what is there."""
    hub_id, _, commit = deployment.storage.place.partition("@")
    facts, precision = deployment.facts, deployment.settings.precision
    model, repository = f"{_PREPARED}/model", f"{_PREPARED}/{HUB_FOLDER}"
    form = ("--format", "hf", "--precision", precision, "--revision", commit)
    ranks = ("--tp", str(facts.tp), "--pp", str(facts.pp))
    steps = {
        "convert": ("convert", hub_id, "-o", model, *form, "--overwrite"),
        "triton-repo": ("triton-repo", model, "-o", repository, *ranks, "--overwrite"),
    }
    secret = {"name": deployment.settings.hub_token, "key": "token", "optional": True}
    of_hub: list[dict[str, Any]] = [
        {"name": "HF_HOME", "value": f"{_PREPARED}/hub"},
        {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": secret}},
    ]
    return [
        _step(deployment, name, words, of_hub if name == "convert" else [])
        for name, words in steps.items()
    ]


def _step(
    deployment: Deployment, name: str, words: tuple[str, ...], variables: list[dict[str, Any]]
) -> dict[str, Any]:
    amounts = {
        "cpu": Figure("2", "a conversion reads, rounds and writes at once"),
        "memory": Figure("1Gi", "tensors pass through buffers of some MB; Python, tokenizer"),
        "ephemeral-storage": deployment.ephemeral(),
    }
    return {
        "name": name,
        **own_container(deployment),
        "command": ["minitron-trt", *words],
        "env": [home(), *variables],
        "resources": {"requests": amounts, "limits": amounts},
        "securityContext": container_security(),
        "volumeMounts": [
            {"name": VOLUME, "mountPath": _PREPARED, "readOnly": False},
            {"name": "tmp", "mountPath": "/tmp"},
        ],
    }


def needs_scripts(deployment: Deployment) -> bool:
    """Say whether the containers need programs of this tool."""
    return deployment.facts.ranks > 1 or deployment.storage.form == FETCH


def volumes(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the volumes of a Pod."""
    scripts = {
        "configMap": {"name": f"{deployment.name}-scripts", "defaultMode": Figure(0o444, "0444")}
    }
    return [
        {"name": VOLUME, **deployment.storage.volume()},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": deployment.shm()}},
        *([{"name": SCRIPTS, **scripts}] if needs_scripts(deployment) else ()),
    ]


def mounts(deployment: Deployment) -> list[dict[str, Any]]:
    """Return where a server's container has them."""
    scripts = {"name": SCRIPTS, "mountPath": str(INSIDE), "readOnly": True}
    return [
        deployment.storage.mount(deployment.facts.mount),
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
        *([scripts] if needs_scripts(deployment) else ()),
    ]
