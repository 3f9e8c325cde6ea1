"""The options of `minitron-trt build` that only a job on a cluster has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

import click

from minitron_trt.build.runners import CLUSTERS, DOCKER, KUBERNETES, SLURM
from minitron_trt.build.trtllm.cluster.job_file import ClusterSettings
from minitron_trt.build.trtllm.cluster.kubernetes import KubernetesSettings
from minitron_trt.build.trtllm.cluster.slurm import CONTAINERS, PYXIS, SlurmSettings

R = TypeVar("R")
_OPTIONS: Final = (
    click.option("--image", help="Image instead of NVIDIA's; for Slurm also a .sqsh or .sif file"),
    click.option("--partition", help="Slurm's partition, of nodes with the target's GPU"),
    click.option("--account", help="Slurm's account that pays"),
    click.option("--time", help="Slurm's time limit, like 2:00:00  [default: --timeout, or 4 h]"),
    click.option(
        "--container",
        type=click.Choice(CONTAINERS),
        help="How a Slurm node runs the image: by the plugin pyxis (with enroot), by apptainer, "
        f"or none: the node's own trtllm-build  [default: {PYXIS}]",
    ),
    click.option("--sbatch", multiple=True, help="Another option of sbatch, like --qos=high"),
    click.option("--claim", help="Kubernetes volume claim with the folders  [default: models]"),
    click.option("--namespace", help="Kubernetes namespace  [default: kubectl's]"),
    click.option("--image-pull-secret", multiple=True, help="Kubernetes secret of the registry"),
    click.option(
        "--user",
        type=int,
        help="Whom the Kubernetes job runs as, and the claim's group  [default: 10000]",
    ),
)
_SLURM: Final = tuple(field.name for field in fields(SlurmSettings))
_KUBERNETES: Final = tuple(field.name for field in fields(KubernetesSettings))
_RUNNERS: Final = {
    "image": (DOCKER, *CLUSTERS),
    **dict.fromkeys(_SLURM, (SLURM,)),
    **dict.fromkeys(_KUBERNETES, (KUBERNETES,)),
}


def cluster_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of a job, which come as `image` and `cluster`.

    One that the runner has no use for is a usage error.
    """

    @functools.wraps(command)
    def with_settings(*args: Any, runner: str, **kwargs: Any) -> R:
        values = {name: kwargs.pop(name) for name in _RUNNERS}
        options = {name: value for name, value in values.items() if value not in (None, ())}
        for name in options:
            if runner not in _RUNNERS[name]:
                option = f"--{name.replace('_', '-')}"
                runners = " or ".join(_RUNNERS[name])
                raise click.UsageError(f"{option} is for --runner {runners}, not {runner}")
        cluster = ClusterSettings(
            slurm=SlurmSettings(**{name: options[name] for name in _SLURM if name in options}),
            kubernetes=KubernetesSettings(
                **{name: options[name] for name in _KUBERNETES if name in options}
            ),
        )
        return command(*args, runner=runner, image=options.get("image"), cluster=cluster, **kwargs)

    wrapped: Callable[..., R] = with_settings
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
