"""A deployment's folder: planned as texts, then written whole, with a README of what to do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import DEPLOYMENT, Manifest
from minitron_trt.build.trtllm.cluster.slurm import SlurmSettings
from minitron_trt.deploy.compose import compose_files
from minitron_trt.deploy.deployment import OWN_IMAGE, Deployment
from minitron_trt.deploy.gateway_pod import KEYS_FILE
from minitron_trt.deploy.hub_model import HubModel
from minitron_trt.deploy.manifests import (
    BASE,
    OVERLAY,
    PICKER_FILE,
    chart_files,
    kustomize_files,
)
from minitron_trt.deploy.served_facts import ServedFacts, read_facts
from minitron_trt.deploy.settings import (
    COMPOSE,
    DYNAMO,
    HPA,
    KEDA,
    KSERVE,
    LEADERWORKERSET,
    NONE,
    ON_KUBERNETES,
    SLURM,
    DeploySettings,
)
from minitron_trt.deploy.slurm_files import SCRIPT_NAME, slurm_files
from minitron_trt.deploy.storage import CLAIM, HUB, IMAGE, Storage
from minitron_trt.deploy.workloads import ssh_secret
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.outputs import check_output, staged
from minitron_trt.version import __version__

README: Final = "README.md"
_CONTAINERFILE: Final = "image/Containerfile"
_SERVER_CONTAINERFILE: Final = "image/Server.Containerfile"
_OF_KUBERNETES: Final = (
    "gpu_product",
    "image_pull_secret",
    "keys_secret",
    "route",
    "inference_pool",
)


@dataclass(frozen=True, slots=True)
class PlannedFiles:
    """The texts of a deployment by their paths, and the commands that come after."""

    deployment: Deployment
    texts: Mapping[str, str]
    steps: tuple[str, ...]


def plan_files(
    source: Path | HubModel,
    settings: DeploySettings,
    *,
    image: str | None = None,
    gpu: str | None = None,
    helm: bool = False,
    job: Mapping[str, Any] | None = None,
    token: str | None = None,
) -> PlannedFiles:
    """Return the files of a deployment of a repository or of a model; nothing is written.

    `token` is for a model on the hub. `job` has the options of Slurm's job, None for those that
    were not given.
    """
    options = {name: value for name, value in (job or {}).items() if value not in (None, ())}
    if options and settings.target != SLURM:
        raise UsageError(f"--{next(iter(options))} is for --target slurm, not {settings.target}")
    if not settings.on_kubernetes:
        _refuse_of_kubernetes(settings, helm=helm)
    if settings.target == DYNAMO:
        _refuse_before_dynamo(settings)
    if isinstance(source, HubModel):
        facts, settings = _of_hub(source, settings, image=image, gpu=gpu, token=token)
    else:
        facts = read_facts(
            source,
            image=image,
            gpu=gpu,
            drain_s=settings.drain_s,
            local=settings.target == SLURM,
        )
    deployment = Deployment(facts, settings)
    if settings.target == COMPOSE:
        texts = compose_files(deployment)
    elif settings.target == SLURM:
        texts = slurm_files(deployment, SlurmSettings(**options))
    else:
        texts = {**kustomize_files(deployment), **(chart_files(deployment) if helm else {})}
    texts |= _images(deployment)
    steps = _steps(deployment)
    return PlannedFiles(deployment, {**texts, README: _readme(deployment, steps)}, steps)


def _of_hub(
    model: HubModel,
    settings: DeploySettings,
    *,
    image: str | None,
    gpu: str | None,
    token: str | None,
) -> tuple[ServedFacts, DeploySettings]:
    """Return what a model will be once Pods have made its repository, and the settings for that."""
    if not settings.on_kubernetes:
        raise UsageError(
            f"--model is for {', '.join(ON_KUBERNETES)}; for --target {settings.target} make the "
            f"repository first: minitron-trt convert {model.hub_id} --format hf -o model, then "
            "minitron-trt triton-repo model -o repository"
        )
    with model.as_repository(token) as (repository, commit):
        try:
            facts = read_facts(repository, image=image, gpu=gpu, drain_s=settings.drain_s)
        except (UnsupportedError, UsageError) as error:
            # The scratch folder is nobody's business.
            raise type(error)(_named(str(error), repository, model.hub_id)) from error
    named = f"{model.hub_id}@{commit}"
    storage = f"{HUB}:{named}"
    return (
        replace(facts, repository=named),
        replace(settings, storage=storage, precision=model.precision),
    )


def _named(text: str, repository: Path, hub_id: str) -> str:
    for path in sorted(repository.rglob("*"), reverse=True):
        text = text.replace(str(path), hub_id)
    return text.replace(str(repository), hub_id).replace("make the repository again", "try again")


def _refuse_of_kubernetes(settings: DeploySettings, *, helm: bool) -> None:
    """Refuse what was asked for and would have no effect without Kubernetes."""
    asked = {"helm": helm, **{name: getattr(settings, name) for name in _OF_KUBERNETES}}
    for name, value in asked.items():
        if value:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} is for what runs on Kubernetes, not for {settings.target}")
    storage = Storage.parse(settings.storage)
    if storage.form != CLAIM:
        raise UsageError(
            f"--storage {storage} is for Kubernetes; --target {settings.target} takes the "
            "repository's folder as it is"
        )


def _refuse_before_dynamo(settings: DeploySettings) -> None:
    """Refuse what Dynamo's frontend has no use for."""
    if settings.keys_secret:
        raise UsageError(
            "--keys-secret is for the gateway; Dynamo's frontend knows no keys: check them in what "
            "stands before it"
        )
    if settings.inference_pool:
        raise UsageError("--inference-pool is not for --target dynamo, whose router picks servers")


def write_files(files: PlannedFiles, output: Path, *, overwrite: bool = False) -> None:
    """Write the folder whole, or not at all."""
    deployment = files.deployment
    inputs = () if deployment.storage.form == HUB else (Path(deployment.facts.repository),)
    check_output(output, overwrite=overwrite, kind=DEPLOYMENT, inputs=inputs)
    with staged(output, overwrite=overwrite) as scratch:
        for name, text in files.texts.items():
            path = scratch / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        source = {"path": files.deployment.facts.repository}
        Manifest(DEPLOYMENT, source, files.deployment.to_json()).write(scratch)


def _images(deployment: Deployment) -> dict[str, str]:
    """Return how the images are made that no registry has."""
    settings = deployment.settings
    texts = {}
    if settings.target != SLURM and settings.gateway_image is None:
        what, extra, index = "The gateway", "gateway", ""
        if settings.target == DYNAMO:
            what, extra = "Dynamo's frontend, and what puts a Triton behind it", "dynamo"
            index = " --extra-index-url https://pypi.nvidia.com"
        texts[_CONTAINERFILE] = (
            f"# {what}. Build it in a folder with a wheel of minitron-trt (make package).\n"
            "FROM python:3.12-slim\n"
            f"COPY minitron_trt-{__version__}-py3-none-any.whl /tmp/\n"
            f"RUN pip install --no-cache-dir{index} "
            f"'/tmp/minitron_trt-{__version__}-py3-none-any.whl[{extra}]'\n"
            f"USER {settings.user}\n"
        )
    if deployment.nodes > 1 and settings.target != SLURM:
        texts[_SERVER_CONTAINERFILE] = (
            "# The server's image with sshd, by which mpirun starts ranks on other nodes.\n"
            f"FROM {deployment.facts.image}\n"
            "RUN apt-get update \\\n"
            "    && apt-get install --yes --no-install-recommends openssh-server \\\n"
            "    && rm -rf /var/lib/apt/lists/* && mkdir -p /run/sshd \\\n"
            f"    && useradd --uid {settings.user} --no-create-home --home-dir /tmp ranks\n"
        )
    return texts


def _steps(deployment: Deployment) -> tuple[str, ...]:
    """Return the commands, in their order."""
    settings, name = deployment.settings, deployment.name
    build = f"docker build -t {OWN_IMAGE} -f {_CONTAINERFILE} DIST"
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


def _needs(deployment: Deployment) -> tuple[str, ...]:
    """Return what a cluster must have for the files, and what it must be told."""
    settings, target = deployment.settings, deployment.settings.target
    front = "frontends" if target == DYNAMO else "gateways"
    scaled = settings.autoscaler != NONE
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
        f"the metrics server, for the {front}' autoscaler": scaled,
        "Gateway API": settings.route,
        "Gateway API's inference extension": settings.inference_pool,
        "Prometheus Operator, whose Prometheus chooses the PodMonitor and the PrometheusRule": True,
    }
    own_image = (
        "",
        f"Push `{OWN_IMAGE}` to a registry that the nodes pull from, and name it in the overlay",
        "(`newName`) or by --gateway-image.",
    )
    return (
        "The cluster needs:",
        "",
        *(f"- {need}" for need, wanted in needs.items() if wanted),
        "  (that of kube-prometheus-stack by the label `release`: give it to them in the overlay)",
        *(() if settings.gateway_image else own_image),
    )


def _about_keys(settings: DeploySettings) -> tuple[str, ...]:
    if settings.target == DYNAMO:
        return (
            "Dynamo's frontend checks no keys: what stands before it, such as the Gateway of",
            "`--route`, must. The network policies let nobody else ask.",
        )
    return ("Keys are in no file of this folder: `keys.txt` has one a line, and stays with you.",)


def _readme(deployment: Deployment, steps: tuple[str, ...]) -> str:
    facts, settings = deployment.facts, deployment.settings
    need = facts.gpu
    gpus = (
        f"{deployment.gpus().value} GPU(s) of SM{need.sm} (sized for {need.gpu})"
        if need
        else "no GPU"
    )
    lines = [
        f"# {settings.name}",
        "",
        f"Written by minitron-trt {__version__} for `--target {settings.target}`: the repository",
        f"`{facts.repository}` (runtime {facts.runtime}) on {deployment.nodes} node(s),",
        f"each with {gpus}.",
        "",
        "In this order:",
        "",
        *(f"    {step}" for step in steps),
        "",
        "After a change, `minitron-trt deploy check .` compares the files with the engine, with",
        "each other and with Kubernetes' schemas.",
        "",
        *_about_keys(settings),
    ]
    if settings.on_kubernetes:
        lines += ["", *_needs(deployment)]
    if settings.target == COMPOSE:
        lines += [
            "",
            f"The gateway reads it as user {settings.user}: chown {settings.user} keys.txt.",
        ]
    if settings.on_kubernetes and deployment.storage.form == CLAIM:
        folder = f"/{deployment.storage.folder}" if deployment.storage.folder else ""
        lines += [
            "",
            f"The volume claim `{deployment.storage.place}` must be readable from every node, and",
            f"have the repository's files in its folder `{folder or '/'}`.",
        ]
    if deployment.storage.form == HUB:
        lines += [
            "",
            "Each Pod fetches the model from the hub and converts it before its server starts, so",
            "every new replica waits for that. Convert once, and use --storage, where it matters.",
            f"A gated model's token is in the Secret `{settings.hub_token}`, made from a file:",
            "",
            f"    kubectl --namespace {settings.name} create secret generic {settings.hub_token} "
            "--from-file=token=token.txt",
        ]
    if deployment.nodes > 1 and settings.on_kubernetes:
        lines += [
            "",
            f"A replica spans {deployment.nodes} nodes. The server's image needs sshd: build",
            f"`{_SERVER_CONTAINERFILE}`, and name the result in the overlay or by --image.",
        ]
    if settings.inference_pool:
        lines += [
            "",
            f"The endpoint picker, your Service `{settings.name}-epp`, is that of llm-d's router",
            "(0.10 or later), with these options:",
            "",
            f"    --pool-name {settings.name} --pool-namespace {settings.name} "
            f"--config-file {PICKER_FILE}",
        ]
    if settings.on_kubernetes:
        lines += [
            "",
            f"`{BASE}/` stays as it is; what differs from place to place is `{OVERLAY}/`.",
        ]
    return "\n".join(lines) + "\n"
