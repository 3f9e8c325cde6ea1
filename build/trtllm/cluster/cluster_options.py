"""The options of `minitron-trt build` that only a job on a cluster has."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

import click
import cloup

from minitron_trt.build.runner_names import CLUSTERS, DOCKER, KUBERNETES, SLURM
from minitron_trt.build.trtllm.cluster.job_file import ClusterSettings
from minitron_trt.build.trtllm.cluster.kubernetes import KubernetesSettings
from minitron_trt.build.trtllm.cluster.slurm import SlurmSettings
from minitron_trt.build.trtllm.cluster.slurm_options import SLURM_NAMES, slurm_options

R = TypeVar("R")
_KUBERNETES_OPTIONS: Final = (
    cloup.option("--claim", help="Volume claim with the folders  [default: models]"),
    cloup.option("--namespace", help="Namespace  [default: kubectl's]"),
    cloup.option("--image-pull-secret", multiple=True, help="Secret of the registry"),
    cloup.option(
        "--user",
        type=int,
        help="Whom the job runs as, and the claim's group  [default: 10000]",
    ),
)
_OPTIONS: Final = (
    slurm_options(
        "Job of --runner slurm",
        whose_gpu="target",
        default_time="--timeout, or 4 h",
        bare_program="trtllm-build",
    ),
    cloup.option_group("Job of --runner kubernetes", *_KUBERNETES_OPTIONS),
)
_KUBERNETES: Final = tuple(field.name for field in fields(KubernetesSettings))
_RUNNERS: Final = {
    "image": (DOCKER, *CLUSTERS),
    **dict.fromkeys(SLURM_NAMES, (SLURM,)),
    **dict.fromkeys(_KUBERNETES, (KUBERNETES,)),
}


def cluster_options(command: Callable[..., R]) -> Callable[..., R]:
    """Give a command the options of a job, which come as `image` and `cluster`.

    One that the runner has no use for is a usage error.
    """

    @functools.wraps(command)
    def with_settings(*args: Any, runner: str, **kwargs: Any) -> R:
        """Call the command with settings in place of its options."""
        values = {name: kwargs.pop(name) for name in _RUNNERS}
        options = {name: value for name, value in values.items() if value not in (None, ())}
        for name in options:
            if runner not in _RUNNERS[name]:
                option = f"--{name.replace('_', '-')}"
                runners = " or ".join(_RUNNERS[name])
                raise click.UsageError(f"{option} is for --runner {runners}, not {runner}")
        cluster = ClusterSettings(
            slurm=SlurmSettings(**{name: options[name] for name in SLURM_NAMES if name in options}),
            kubernetes=KubernetesSettings(
                **{name: options[name] for name in _KUBERNETES if name in options}
            ),
        )
        return command(*args, runner=runner, image=options.get("image"), cluster=cluster, **kwargs)

    wrapped: Callable[..., R] = with_settings
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
