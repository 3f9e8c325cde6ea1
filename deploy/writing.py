"""A deployment's folder: planned as texts, then written whole, with a README of what to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import DEPLOYMENT, Manifest
from minitron_trt.build.trtllm.cluster.slurm import SlurmSettings
from minitron_trt.deploy.compose import compose_files
from minitron_trt.deploy.containerfiles import containerfiles
from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.hub_model import HubModel
from minitron_trt.deploy.manifests import chart_files, kustomize_files
from minitron_trt.deploy.readme_text import README, commands, readme_text
from minitron_trt.deploy.served_facts import CONNECTION_AGE_S, ENDPOINTS, ServedFacts, read_facts
from minitron_trt.deploy.settings import (
    COMPOSE,
    DYNAMO,
    ON_KUBERNETES,
    SLURM,
    DeploySettings,
)
from minitron_trt.deploy.slurm_files import slurm_files
from minitron_trt.deploy.storage import CLAIM, HUB, Storage
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.outputs import check_output, staged
from minitron_trt.registry.image_reference import check_image
from minitron_trt.triton_repo.serving.server_options import Endpoints

# From settings to their options: elsewhere one server is started, and nothing watches it.
_OF_KUBERNETES: Final = {
    "gpu_product": "--gpu-product",
    "image_pull_secret": "--image-pull-secret",
    "keys_secret": "--keys-secret",
    "route": "--route",
    "inference_pool": "--inference-pool",
    "scale": "--plan",
    "replicas": "--replicas",
    "max_replicas": "--max-replicas",
    "autoscaler": "--autoscaler",
    "prometheus": "--prometheus",
    "monitoring_namespace": "--monitoring-namespace",
    "ttft_s": "--ttft",
    "itl_s": "--itl",
}


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
    # Slurm's containers are made of files as well: /images/server.sqsh.
    if image is not None and (settings.target != SLURM or not image.strip()):
        check_image("--image", image)
    if isinstance(source, HubModel):
        facts, settings = _of_hub(source, settings, image=image, gpu=gpu, token=token)
    else:
        facts = _read(source, settings, image=image, gpu=gpu)
    deployment = Deployment(facts, settings)
    if settings.target == COMPOSE:
        texts = compose_files(deployment)
    elif settings.target == SLURM:
        texts = slurm_files(deployment, SlurmSettings(**options))
    else:
        texts = {**kustomize_files(deployment), **(chart_files(deployment) if helm else {})}
    texts |= {**containerfiles(deployment), README: readme_text(deployment, chart=helm)}
    return PlannedFiles(deployment, texts, commands(deployment))


def _read(
    repository: Path, settings: DeploySettings, *, image: str | None, gpu: str | None
) -> ServedFacts:
    """Read a repository as the target has its server reached."""
    # Asked from its own node, or by the worker of Dynamo's beside it: nobody looks for others.
    is_alone = settings.target in (SLURM, DYNAMO)
    return read_facts(
        repository,
        image=image,
        gpu=gpu,
        drain_s=settings.drain_s,
        endpoints=Endpoints() if settings.target == SLURM else ENDPOINTS,
        connection_age_s=None if is_alone else CONNECTION_AGE_S,
    )


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
            facts = _read(repository, settings, image=image, gpu=gpu)
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
    # Backwards, so that a file comes before its folder, whose path is the beginning of its own.
    for path in sorted(repository.rglob("*"), reverse=True):
        text = text.replace(str(path), hub_id)
    return text.replace(str(repository), hub_id).replace("make the repository again", "try again")


def _refuse_of_kubernetes(settings: DeploySettings, *, helm: bool) -> None:
    """Refuse what was asked for and would have no effect without Kubernetes."""
    defaults = {field.name: field.default for field in fields(settings)}
    options = ["--helm"] if helm else []
    options += [
        option
        for name, option in _OF_KUBERNETES.items()
        if getattr(settings, name) != defaults[name]
    ]
    if options:
        raise UsageError(f"{options[0]} is for what runs on Kubernetes, not for {settings.target}")
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
