"""What to do with a deployment's files: the commands, and the README that has them."""

from __future__ import annotations

import shlex
from typing import Final

from minitron_trt.deploy.containerfiles import CONTAINERFILE, SERVER_CONTAINERFILE
from minitron_trt.deploy.deployment import OWN_IMAGE, Deployment
from minitron_trt.deploy.gateway_pod import KEYS_FILE
from minitron_trt.deploy.manifests import BASE, OVERLAY, PICKER_FILE
from minitron_trt.deploy.settings import (
    COMPOSE,
    DYNAMO,
    HPA,
    KEDA,
    KSERVE,
    LEADERWORKERSET,
    NONE,
    SLURM,
)
from minitron_trt.deploy.slurm_files import SCRIPT_NAME
from minitron_trt.deploy.storage import CLAIM, HUB, IMAGE
from minitron_trt.deploy.workloads import ssh_secret
from minitron_trt.version import __version__

README: Final = "README.md"


def commands(deployment: Deployment) -> tuple[str, ...]:
    """Return the commands, in their order."""
    settings, name = deployment.settings, deployment.name
    build = f"docker build -t {OWN_IMAGE} -f {CONTAINERFILE} DIST"
    images = () if settings.gateway_image else (build,)
    if settings.target == SLURM:
        return (f"sbatch --export=ALL,KEYS=keys.txt {SCRIPT_NAME}",)
    if settings.target == COMPOSE:
        folder = shlex.quote(deployment.facts.repository)
        return (*images, f"MODELS={folder} KEYS=$PWD/{KEYS_FILE} docker compose up --detach")
    keys = (
        f"kubectl --namespace {name} create secret generic {settings.keys} "
        f"--from-file={KEYS_FILE}=keys.txt",
    )
    ssh = (
        "ssh-keygen -q -t ed25519 -N '' -f id_ed25519",
        f"kubectl --namespace {name} create secret generic {ssh_secret(deployment)} "
        "--from-file=id_ed25519 --from-file=id_ed25519.pub",
    )
    return (
        *images,
        f"kubectl create namespace {name}",
        *(() if settings.target == DYNAMO else keys),
        *(ssh if deployment.nodes > 1 else ()),
        f"kubectl apply --server-side --kustomize {OVERLAY}",
    )


def readme_text(deployment: Deployment, *, chart: bool) -> str:
    """Return the README; `chart` says that there is one beside the kustomize base."""
    settings = deployment.settings
    paragraphs = [
        f"# {settings.name}",
        _summary(deployment),
        *(_needs(deployment) if settings.on_kubernetes else ()),
        "In this order:",
        _shown(*commands(deployment)),
        *(_chart(deployment) if chart else ()),
        *_own_image(deployment),
        _keys(deployment),
        *(_hub_model(deployment) if deployment.storage.form == HUB else ()),
        *(_picker(deployment) if settings.inference_pool else ()),
    ]
    if settings.on_kubernetes:
        paragraphs.append(
            f"`{BASE}/` stays as it is; what differs from place to place is `{OVERLAY}/`."
        )
    paragraphs.append(
        "After a change, `minitron-trt deploy check .` compares the files with the engine, with\n"
        "each other and with Kubernetes' schemas."
    )
    return "\n\n".join(paragraphs) + "\n"


def _shown(*words: str) -> str:
    """Return commands as Markdown shows them."""
    return "\n".join(f"    {each}" for each in words)


def _summary(deployment: Deployment) -> str:
    facts, need = deployment.facts, deployment.facts.gpu
    gpus = "no GPU"
    if need is not None:
        gpus = f"{deployment.gpus().value} GPU(s) of SM{need.sm} (sized for {need.gpu})"
    return (
        f"Written by minitron-trt {__version__} for `--target {deployment.settings.target}`: the "
        f"repository\n`{facts.repository}` (runtime {facts.runtime}) on {deployment.nodes} "
        f"node(s),\neach with {gpus}."
    )


def _needs(deployment: Deployment) -> list[str]:
    """Return what a cluster must have for the files, and what it must be told."""
    settings, target = deployment.settings, deployment.settings.target
    front = "frontends" if target == DYNAMO else "gateways"
    images = deployment.storage.form == IMAGE
    needs = {
        # Images as volumes, or a preStop that sleeps.
        f"Kubernetes {'1.35' if images else '1.30'} or later, whose network heeds policies": True,
        "NVIDIA's GPU Operator, or its device plugin and feature discovery": deployment.facts.gpu,
        "LeaderWorkerSet": target == LEADERWORKERSET,
        "KServe, for the mode Standard": target == KSERVE,
        "Dynamo's operator": target == DYNAMO,
        "KEDA": settings.autoscaler == KEDA,
        "prometheus-adapter, with `prometheus-adapter-values.yaml`": settings.autoscaler == HPA,
        f"the metrics server, for the {front}' autoscaler": settings.autoscaler != NONE,
        "Gateway API": settings.route,
        "Gateway API's inference extension": settings.inference_pool,
        "Prometheus Operator, whose Prometheus chooses the PodMonitor and the PrometheusRule\n"
        "  (that of kube-prometheus-stack by the label `release`: give it to them in the "
        "overlay)": True,
    }
    paragraphs = [
        "The cluster needs:",
        "\n".join(f"- {need}" for need, wanted in needs.items() if wanted),
    ]
    if deployment.storage.form == CLAIM:
        folder = f"/{deployment.storage.folder}"
        paragraphs.append(
            f"The volume claim `{deployment.storage.place}` must be readable from every node, and\n"
            f"have the repository's files in its folder `{folder}`."
        )
    if deployment.nodes > 1:
        paragraphs.append(
            f"A replica spans {deployment.nodes} nodes. The server's image needs sshd: build\n"
            f"`{SERVER_CONTAINERFILE}`, and name the result in the overlay or by --image."
        )
    return paragraphs


def _chart(deployment: Deployment) -> tuple[str, ...]:
    name = deployment.name
    return (
        "The chart has the same objects. To install it, in place of the last command:",
        _shown(f"helm upgrade --install {name} chart --namespace {name}"),
    )


def _own_image(deployment: Deployment) -> tuple[str, ...]:
    """Return what is to be known of the image with minitron-trt, where it is built here."""
    settings = deployment.settings
    if settings.gateway_image or settings.target == SLURM:
        return ()
    built = "`DIST` is a folder with the wheel of minitron-trt (`make package`)."
    if not settings.on_kubernetes:
        return (built,)
    return (
        f"{built} Push `{OWN_IMAGE}`\nto a registry that the nodes pull from, and name it in the "
        "overlay (`newName`) or by\n--gateway-image.",
    )


def _keys(deployment: Deployment) -> str:
    settings = deployment.settings
    if settings.target == DYNAMO:
        return (
            "Dynamo's frontend checks no keys: what stands before it, such as the Gateway of\n"
            "`--route`, must. The network policies let nobody else ask."
        )
    about = "Keys are in no file of this folder: `keys.txt` has one a line, and stays with you."
    if settings.target == COMPOSE:
        user = settings.user
        about += f"\nThe gateway reads it as user {user}: chown {user} keys.txt."
    return about


def _hub_model(deployment: Deployment) -> tuple[str, ...]:
    secret = deployment.settings.hub_token
    return (
        "Each Pod fetches the model from the hub and converts it before its server starts, so\n"
        "every new replica waits for that. Convert once, and use --storage, where it matters.\n"
        f"A gated model's token is in the Secret `{secret}`, made from a file:",
        _shown(
            f"kubectl --namespace {deployment.name} create secret generic {secret} "
            "--from-file=token=token.txt"
        ),
    )


def _picker(deployment: Deployment) -> tuple[str, ...]:
    name = deployment.name
    return (
        f"The endpoint picker, your Service `{name}-epp`, is that of llm-d's router\n"
        "(0.10 or later), with these options:",
        _shown(f"--pool-name {name} --pool-namespace {name} --config-file {PICKER_FILE}"),
    )
