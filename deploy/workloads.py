"""What runs the servers: a Deployment, a LeaderWorkerSet over several nodes, or KServe."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.pods import (
    SCRIPTS,
    SERVER,
    WORKER,
    base_container,
    environment,
    initial,
    labels,
    metadata,
    mounts,
    own_replicas,
    probe_period,
    resources,
    selector,
    server_container,
    server_placement,
    server_pod,
    volumes,
)
from minitron_trt.deploy.settings import NONE
from minitron_trt.triton_repo.serving.docker_launch import INSIDE
from minitron_trt.yaml_text import Figure

# Above 1023: a lower one may want a capability, and the container has none.
SSH_PORT: Final = 2222
KSERVE_CONTAINER: Final = "kserve-container"
"""The name by which KServe knows the container that serves."""
_SSH_AT: Final = "/ssh"
LEADER_SCRIPT: Final = Path(__file__).with_name("leader.sh")
WORKER_SCRIPT: Final = Path(__file__).with_name("worker.sh")


def server_deployment(deployment: Deployment) -> dict[str, Any]:
    """Return a Deployment whose Pods have a replica each."""
    settings = deployment.settings
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata(settings, SERVER),
        "spec": {
            **own_replicas(settings, deployment.replicas()),
            "selector": {"matchLabels": selector(settings, SERVER)},
            "strategy": {"rollingUpdate": _rolling()},
            "progressDeadlineSeconds": Figure(
                2 * (deployment.prepared_s() + deployment.startup_s())
                + deployment.settings.drain_s
                + 60,
                "an end, and a start at half the expected speed",
                "server.progressSeconds",
            ),
            "template": server_pod(deployment),
        },
    }


def _rolling() -> dict[str, Figure]:
    return {
        "maxSurge": Figure(0, "GPUs for one more are seldom free"),
        "maxUnavailable": Figure(1, "one replica at a time"),
    }


def leader_worker_set(deployment: Deployment) -> dict[str, Any]:
    """Return groups of Pods, each a replica; one that ends takes its group with it."""
    settings = deployment.settings
    size = Figure(
        deployment.nodes,
        f"{deployment.facts.ranks} ranks over nodes of {settings.gpus_per_node} GPUs",
        "server.nodes",
    )
    # Ranks of MPI do not come back one by one: a group begins anew, whichever Pod of it ended.
    template: dict[str, Any] = {"size": size, "restartPolicy": "RecreateGroupOnPodRestart"}
    if deployment.nodes == 1:
        template["workerTemplate"] = server_pod(deployment)
    else:
        template |= {"leaderTemplate": _leader(deployment), "workerTemplate": _worker(deployment)}
    return {
        "apiVersion": "leaderworkerset.x-k8s.io/v1",
        "kind": "LeaderWorkerSet",
        "metadata": metadata(settings, SERVER),
        "spec": {
            **own_replicas(settings, deployment.replicas()),
            # Not LeaderReady: a leader is ready when the ranks of its workers have loaded.
            "startupPolicy": "LeaderCreated",
            "rolloutStrategy": {
                "type": "RollingUpdate",
                "rollingUpdateConfiguration": _rolling(),
            },
            "leaderWorkerTemplate": template,
        },
    }


def _leader(deployment: Deployment) -> dict[str, Any]:
    script = ("/bin/bash", str(INSIDE / LEADER_SCRIPT.name))
    pod = server_pod(deployment, argv=(*script, *deployment.facts.argv))
    spec = pod["spec"]
    container = spec["containers"][0]
    ranks = {"name": "NODE_RANKS", "value": Figure(str(deployment.node_ranks), "ranks of a Pod")}
    container["env"] = [*container["env"], ranks]
    _add_keys(deployment, spec)
    # Probes count from the server's start, not while the other nodes still fetch the image.
    waiting = _waiting(deployment, script, [ranks])
    spec["initContainers"] = [*spec.get("initContainers", ()), waiting]
    return pod


def _waiting(
    deployment: Deployment, script: tuple[str, ...], variables: list[dict[str, Any]]
) -> dict[str, Any]:
    """Return the container that ends when all other Pods take connections."""
    amounts = {
        "cpu": Figure("100m", "it waits"),
        "memory": Figure("64Mi", "a shell"),
        "ephemeral-storage": Figure("16Mi", "the hosts' names"),
    }
    needed = ("tmp", SCRIPTS)
    return {
        "name": "wait",
        **base_container(deployment),
        "args": [*script, "true"],
        "env": variables,
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [mount for mount in mounts(deployment) if mount["name"] in needed],
    }


def _worker(deployment: Deployment) -> dict[str, Any]:
    """Return the template of the other Pods: sshd, below which mpirun starts their ranks."""
    alive = {"tcpSocket": {"port": "ssh"}, "periodSeconds": probe_period()}
    container = {
        "name": WORKER,
        **base_container(deployment),
        "args": ["/bin/bash", str(INSIDE / WORKER_SCRIPT.name)],
        "env": environment(deployment.facts.environment),
        "ports": [{"name": "ssh", "containerPort": Figure(SSH_PORT, "sshd as no root user")}],
        "resources": resources(deployment),
        "readinessProbe": alive,
        "livenessProbe": alive,
        "volumeMounts": mounts(deployment),
    }
    # Clients are sent to the first Pod only; the others have a component of their own.
    spec = {
        **server_placement(deployment),
        **initial(deployment),
        "containers": [container],
        "volumes": volumes(deployment),
    }
    _add_keys(deployment, spec)
    return {"metadata": {"labels": labels(deployment.settings, WORKER)}, "spec": spec}


def ssh_secret(deployment: Deployment) -> str:
    """Return the name of the Secret with the key by which the first Pod reaches the others."""
    return f"{deployment.name}-ssh"


def _add_keys(deployment: Deployment, spec: dict[str, Any]) -> None:
    secret = {"secretName": ssh_secret(deployment), "defaultMode": Figure(0o440, "0440")}
    spec["volumes"] = [*spec["volumes"], {"name": "ssh", "secret": secret}]
    container = spec["containers"][0]
    mount = {"name": "ssh", "mountPath": _SSH_AT, "readOnly": True}
    container["volumeMounts"] = [*container["volumeMounts"], mount]


def inference_service(deployment: Deployment) -> dict[str, Any]:
    """Return an InferenceService of KServe whose predictor is our container, as a Deployment."""
    settings = deployment.settings
    pod = server_pod(deployment)
    container = server_container(deployment, deployment.facts.argv)
    described = metadata(settings, SERVER)
    # KServe would lead whoever comes from outside to Triton, past the gateway and its keys.
    described["labels"] |= {"networking.kserve.io/visibility": "cluster-local"}
    scaled = settings.autoscaler != NONE
    described["annotations"] = {
        "serving.kserve.io/deploymentMode": "Standard",
        # The autoscaler beside it knows the queue, KServe's does not.
        "serving.kserve.io/autoscalerClass": "external" if scaled else "none",
    }
    replicas = {} if scaled else {"minReplicas": deployment.replicas()}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": described,
        "spec": {
            "predictor": {
                **replicas,
                "deploymentStrategy": {"type": "RollingUpdate", "rollingUpdate": _rolling()},
                "labels": pod["metadata"]["labels"],
                **pod["spec"],
                "containers": [{**container, "name": KSERVE_CONTAINER}],
            }
        },
    }
