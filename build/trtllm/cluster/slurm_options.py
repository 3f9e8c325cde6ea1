"""The options of a job on a Slurm cluster, which `build` and `deploy` share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any, Final, TypeVar

import click
import cloup

from minitron_trt.build.trtllm.cluster.slurm import CONTAINERS, PYXIS, SlurmSettings

C = TypeVar("C", bound=Callable[..., Any])
SLURM_NAMES: Final = tuple(field.name for field in fields(SlurmSettings))
"""The options' names, which are those of the fields of SlurmSettings."""


def slurm_options(
    title: str, *, whose_gpu: str, default_time: str, bare_program: str
) -> Callable[[C], C]:
    """Return a decorator: the command gets the options, each None or () where it is not given."""
    return cloup.option_group(
        title,
        cloup.option("--partition", help=f"Partition, of nodes with the {whose_gpu}'s GPU"),
        cloup.option("--account", help="Account that pays"),
        cloup.option("--time", help=f"Time limit, like 2:00:00  [default: {default_time}]"),
        cloup.option(
            "--container",
            type=click.Choice(CONTAINERS),
            help="How a node runs the image: by the plugin pyxis (with enroot), by apptainer, "
            f"or none: the node's own {bare_program}  [default: {PYXIS}]",
        ),
        cloup.option("--sbatch", multiple=True, help="Another option of sbatch, like --qos=high"),
    )
