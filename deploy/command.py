"""`minitron-trt deploy`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click
import cloup

from minitron_trt.build.trtllm.cluster.slurm_options import SLURM_NAMES, slurm_options
from minitron_trt.console import PATH, Console, console_options
from minitron_trt.deploy.planned_scale import read_planned_scale
from minitron_trt.deploy.settings import (
    AUTOSCALERS,
    CONVERTIBLE,
    KEDA,
    LONGEST_NAME,
    MAX_REPLICAS,
    REPLICAS,
    TARGETS,
    DeploySettings,
)
from minitron_trt.drain_option import drain_option
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.gpus import complete_gpu
from minitron_trt.option_types import DURATION

if TYPE_CHECKING:
    from minitron_trt.deploy.hub_model import HubModel

_WRITE: Final = "write"
_OF_MODEL: Final = ("model", "revision", "precision", "tp", "pp")


class _WritesByDefault(cloup.Group):
    """A group whose first command may be left out: `deploy REPOSITORY` writes."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the command there where none is named."""
        if args and args[0] not in self.commands and args[0] not in ctx.help_option_names:
            args = [_WRITE, *args]
        return super().parse_args(ctx, args)


@cloup.group(cls=_WritesByDefault)
def deploy() -> None:
    """Write files by which Kubernetes, compose or Slurm serve.

    `write` may be left out: minitron-trt deploy repository --target kubernetes -o deployment
    """


@deploy.command(_WRITE)
@cloup.argument("repository", type=PATH, required=False)
@cloup.option_group(
    "Deployment",
    cloup.option("-o", "--output", required=True, type=PATH, help="Folder to write"),
    cloup.option(
        "--target", required=True, type=click.Choice(TARGETS), help="What will run the server"
    ),
    cloup.option("--name", help="Name of everything  [default: the repository's]"),
    cloup.option("--overwrite", is_flag=True, help="Replace a deployment that is there"),
    cloup.option("--dry-run", is_flag=True, help="Print the files and write nothing"),
    cloup.option("--helm", is_flag=True, help="Write a Helm chart beside the kustomize base"),
)
@cloup.option_group(
    "A model in place of a repository",
    cloup.option(
        "--model",
        help="Hub id, like nvidia/Minitron-4B-Base, that each Pod fetches and converts at its "
        "start, for the runtime llmapi",
    ),
    cloup.option("--revision", help="Its branch, tag or commit"),
    cloup.option(
        "--token",
        envvar="HF_TOKEN",
        help="Hub token, to read it here  [env: HF_TOKEN]",
    ),
    cloup.option(
        "--precision",
        type=click.Choice(CONVERTIBLE),
        help="Number format of its weights  [default: bf16]",
    ),
    cloup.option("--tp", type=click.IntRange(1), help="Its tensor parallelism  [default: 1]"),
    cloup.option("--pp", type=click.IntRange(1), help="Its pipeline parallelism  [default: 1]"),
)
@cloup.option_group(
    "Server",
    cloup.option("--image", help="Tag or name of the server's image  [default: the engine's]"),
    cloup.option(
        "--gpu",
        shell_complete=complete_gpu,
        help="GPU that it runs on  [default: the typical one of the engine's SM]",
    ),
    cloup.option(
        "--gpu-product",
        multiple=True,
        help="Only nodes with this label nvidia.com/gpu.product; may be repeated",
    ),
    cloup.option(
        "--gpus-per-node",
        type=click.IntRange(1),
        default=8,
        show_default=True,
        help="GPUs of a node; more ranks are spread over several",
    ),
    cloup.option(
        "--storage",
        default="claim:models",
        show_default=True,
        help="Where Pods find the repository: claim:NAME[/FOLDER], image:REFERENCE (an OCI image "
        "as a volume), or fetch:URL (fetched and checked at the start)",
    ),
    cloup.option(
        "--disk",
        "disk_mb_s",
        type=click.IntRange(1),
        default=200,
        show_default=True,
        help="MB/s at which a node reads it, by which probes wait",
    ),
    drain_option("when a server is stopped"),
    cloup.option(
        "--user", type=int, default=10000, show_default=True, help="User id of its processes"
    ),
    cloup.option("--image-pull-secret", multiple=True, help="Secret of the registry"),
)
@cloup.option_group(
    "Gateway",
    cloup.option(
        "--gateway-image",
        help="Its image, or that of Dynamo's frontend and workers  [default: what "
        "image/Containerfile makes]",
    ),
    cloup.option("--keys-secret", help="Secret with its API keys  [default: NAME-gateway-keys]"),
    cloup.option("--route", help="Gateway API: [NAMESPACE/]GATEWAY that leads to it"),
    cloup.option(
        "--inference-pool",
        is_flag=True,
        help="Offer Triton's own API by a pool for an endpoint picker, and its gRPC, past the "
        "gateway",
    ),
)
@cloup.option_group(
    "Replicas and objectives",
    cloup.option(
        "--plan",
        type=PATH,
        help="What plan --rate … --json printed of one GPU and precision: replicas, and when there "
        "should be more",
    ),
    cloup.option(
        "--replicas", type=click.IntRange(1), help="At least  [default: 2, or the plan's]"
    ),
    cloup.option(
        "--max-replicas",
        type=click.IntRange(1),
        help="At most  [default: 8, or the plan's for a slower GPU]",
    ),
    cloup.option(
        "--autoscaler",
        type=click.Choice(AUTOSCALERS),
        default=KEDA,
        show_default=True,
        help="KEDA, or Kubernetes' own with prometheus-adapter",
    ),
    cloup.option(
        "--prometheus",
        default="http://prometheus-operated.monitoring.svc:9090",
        show_default=True,
        help="Where KEDA asks",
    ),
    cloup.option(
        "--monitoring-namespace",
        default="monitoring",
        show_default=True,
        help="Namespace that may read metrics",
    ),
    cloup.option(
        "--ttft",
        "ttft_s",
        type=DURATION,
        default=2.0,
        show_default=True,
        help="Seconds to the first token, of which an alert tells, or 200ms",
    ),
    cloup.option(
        "--itl",
        "itl_s",
        type=DURATION,
        default=0.1,
        show_default=True,
        help="Seconds between tokens, of which an alert tells, or 20ms",
    ),
)
@slurm_options(
    "Job of --target slurm",
    whose_gpu="engine",
    default_time="a day",
    bare_program="minitron-trt",
)
@console_options
def write(
    console: Console,
    repository: Path | None,
    output: Path,
    name: str | None,
    overwrite: bool,
    dry_run: bool,
    helm: bool,
    image: str | None,
    gpu: str | None,
    token: str | None,
    **options: Any,
) -> None:
    """Write the files, in which every number says where it comes from.

    REPOSITORY is a folder that triton-repo wrote; --model has one made by the Pods themselves.

    Example: minitron-trt deploy repository --target kubernetes --gpu L40 -o deployment
    """
    from minitron_trt.deploy.writing import plan_files, write_files

    source = _source(repository, {key: options.pop(key) for key in _OF_MODEL})
    job = {key: options.pop(key) for key in SLURM_NAMES}
    place = source if isinstance(source, Path) else Path(source.hub_id)
    options |= _scale(options.pop("plan"), options)
    settings = DeploySettings(name=name or name_of(place), **options)
    files = plan_files(source, settings, image=image, gpu=gpu, helm=helm, job=job, token=token)
    if dry_run:
        text = "\n".join(f"=== {path}\n{content}" for path, content in files.texts.items())
        console.result({"files": dict(files.texts)}, text)
        return
    write_files(files, output, overwrite=overwrite)
    record = {"deployment": str(output), "files": list(files.texts), "next": list(files.steps)}
    steps = "\n".join(f"  {step}" for step in files.steps)
    console.result(
        record, f"{output}: {len(files.texts)} files; next, as its README.md says:\n{steps}"
    )


def _source(repository: Path | None, of_model: dict[str, Any]) -> Path | HubModel:
    """Return what is deployed; UsageError unless that is a repository or a model."""
    from minitron_trt.deploy.hub_model import HubModel

    model = of_model.pop("model")
    given = {key: value for key, value in of_model.items() if value is not None}
    if (repository is None) == (model is None):
        raise click.UsageError("give the folder of a repository, or --model with a hub id")
    if repository is None:
        return HubModel(model, **given)
    if given:
        raise UsageError(f"--{next(iter(given))} goes with --model; a repository is made already")
    return repository


def _scale(plan: Path | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the replicas, by the options, else the plan, and what else the plan says."""
    scale = None if plan is None else read_planned_scale(plan)
    least = options["replicas"] or max(scale.replicas if scale else 0, REPLICAS)
    most = options["max_replicas"] or (max(scale.most_replicas, least) if scale else MAX_REPLICAS)
    return {"scale": scale, "replicas": least, "max_replicas": most}


@deploy.command("check")
@cloup.argument("folder", type=PATH)
@cloup.option(
    "--crds",
    multiple=True,
    type=PATH,
    help="Definitions of the cluster's own kinds, as kubectl get crds -o yaml writes them; may be "
    "repeated",
)
@console_options
def check(console: Console, folder: Path, crds: tuple[Path, ...]) -> None:
    """Compare the files with schemas, with the engine and with each other.

    FOLDER is one that deploy wrote, however it was edited since. Exits with 3 when something will
    not work.

    Example: minitron-trt deploy check deployment --crds crds.yaml
    """
    from minitron_trt.deploy.check.deployment_check import check_deployment
    from minitron_trt.triton_repo.check.command import describe_repository

    report = check_deployment(folder, crds)
    record = report.to_json()
    console.result({"deployment": record.pop("repository"), **record}, describe_repository(report))
    if report.errors:
        first = report.errors[0]
        raise BadInputError(f"{folder} has {report.summary}; {first.place} {first.message}")


def name_of(repository: Path) -> str:
    """Return a repository's name as Kubernetes takes it."""
    text = re.sub(r"[^a-z0-9]+", "-", repository.resolve().name.lower()).strip("-")
    name = text if text[:1].isalpha() else f"m-{text}"
    return name[:LONGEST_NAME].rstrip("-")
