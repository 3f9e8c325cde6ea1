"""`--runner slurm`: an sbatch script for nodes that see the folders of this machine."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from minitron_trt.build.trtllm.cluster.cluster_job import (
    CPUS,
    ClusterJob,
    building_script,
    fits_a_line,
    partial_of,
)
from minitron_trt.build.trtllm.docker_build import CHECKPOINT_AT, OUTPUT_AT
from minitron_trt.errors import UsageError

PYXIS: Final = "pyxis"
APPTAINER: Final = "apptainer"
BARE: Final = "none"
CONTAINERS: Final = (PYXIS, APPTAINER, BARE)
# The forms of sbatch: minutes, minutes:seconds, hours:minutes:seconds, days-hours and so on.
_TIME: Final = re.compile(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}")
# TensorRT-LLM starts MPI, which takes the variables of a step for a launch by Slurm and ends, or
# hangs for more of its nodes. NVIDIA's documentation has one process below mpirun on Slurm's nodes.
ALONE: Final = """alone='unset "${!SLURM@}" "${!PMI@}"; exec mpirun -n 1 "$@"'"""
LAUNCH: Final = 'bash -c "$alone" -'
AS_ROOT: Final = "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1"

PYXIS_CHECK: Final = (
    "srun --help | grep -e --container-image > /dev/null || refuse"
    " \"this cluster's Slurm has no pyxis; write the job again with --container apptainer or"
    ' none"',
)
APPTAINER_CHECK: Final = (
    'command -v apptainer > /dev/null || refuse "this node has no apptainer; write the job'
    ' again with --container pyxis or none"',
)


@dataclass(frozen=True, slots=True)
class SlurmSettings:
    """What a cluster's users give to sbatch, and how a node comes by TensorRT-LLM."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None
    container: str = PYXIS
    sbatch: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.time is not None and not _TIME.fullmatch(self.time):
            raise UsageError(
                f"--time {self.time} is no time of Slurm; expected minutes, HH:MM:SS or D-HH:MM:SS"
            )
        for option, name in (("--partition", self.partition), ("--account", self.account)):
            # A line of the script is one #SBATCH, whatever quotes are around its words.
            if name is not None and not fits_a_line(name):
                raise UsageError(f"{option} {name!r} is no name of Slurm's; expected one line")
        for option in self.sbatch:
            if not option.startswith("-") or not fits_a_line(option):
                raise UsageError(
                    f"--sbatch {option!r} is no option of sbatch; expected one like --qos=high"
                )


def slurm_script(job: ClusterJob, settings: SlurmSettings, name: str) -> str:
    """Return an sbatch script that builds on a node's GPU; the engine appears when it is whole."""
    output = PurePosixPath(job.output.resolve())
    run = _RUNS[settings.container](job, partial_of(output))
    target = job.build.recipe.target
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in _options(job, settings, name)),
        f"# Written by minitron-trt: an engine for {target.label}.",
        *_ABOUT[settings.container],
        *building_script(
            output,
            [*gpu_check(target.sm, target.label), *run],
            checkpoint=PurePosixPath(job.checkpoint),
            overwrite=job.build.overwrite,
        ),
    ]
    return "\n".join(lines) + "\n"


def _options(job: ClusterJob, settings: SlurmSettings, name: str) -> list[str]:
    hours, rest = divmod(job.time_limit_s, 3600)
    minutes, seconds = divmod(rest, 60)
    options = [
        f"--job-name={name}",
        # One at a time of those that would write the same engine.
        "--dependency=singleton",
        f"--output={name}-%j.log",
        *([f"--partition={shlex.quote(settings.partition)}"] if settings.partition else ()),
        *([f"--account={shlex.quote(settings.account)}"] if settings.account else ()),
        f"--time={settings.time or f'{hours:02d}:{minutes:02d}:{seconds:02d}'}",
        "--nodes=1",
        "--ntasks=1",
        f"--cpus-per-task={CPUS}",
        f"--mem={job.memory_gib}G",
        f"--gpus-per-node={job.build.workers}",
    ]
    # The last of two equal options is the one that sbatch takes.
    return [*options, *settings.sbatch]


def gpu_check(sm: int, label: str) -> list[str]:
    """Return the lines that end a job on a node with other GPUs, before anything is loaded."""
    # As nvidia-smi writes it: SM90 is 9.0.
    wanted = f"{sm / 10:.1f}"
    return [
        "capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | sort -u) || true",
        f'[ "$capability" = {wanted} ] ||'
        f' refuse "this node has GPUs of compute capability ${{capability:-none}}, the engine is'
        f' for {label}, {wanted}; choose its partition"',
    ]


def pyxis_image(image: str) -> str:
    """Return an image as enroot has it, which divides a registry from the name by a #."""
    registry, slash, rest = image.partition("/")
    return (
        f"{registry}#{rest}" if slash and "." in registry and not image.startswith(".") else image
    )


def apptainer_image(image: str) -> str:
    """Return an image as apptainer has it: a file, or one of a registry."""
    return image if image.endswith(".sif") or "://" in image else f"docker://{image}"


def _pyxis(job: ClusterJob, partial: PurePosixPath) -> list[str]:
    step = (
        f"--container-image={pyxis_image(job.build.image_name)}",
        f"--container-mounts={_mounts(job, partial)}",
        f"--container-workdir={OUTPUT_AT}",
    )
    return [
        *PYXIS_CHECK,
        ALONE,
        AS_ROOT,
        *_step(step, job.build.recipe.argv(CHECKPOINT_AT, OUTPUT_AT)),
    ]


def _apptainer(job: ClusterJob, partial: PurePosixPath) -> list[str]:
    step = (
        # Neither the environment nor the home of whoever submits: Python's packages in them would
        # come before those of the image.
        "apptainer exec --nv --cleanenv --no-home",
        "--env=HOME=/tmp,OMPI_ALLOW_RUN_AS_ROOT=1,OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1",
        f"--bind={_mounts(job, partial)}",
        f"--pwd={OUTPUT_AT}",
        apptainer_image(job.build.image_name),
    )
    return [
        *APPTAINER_CHECK,
        ALONE,
        *_step(step, job.build.recipe.argv(CHECKPOINT_AT, OUTPUT_AT)),
    ]


def _bare(job: ClusterJob, partial: PurePosixPath) -> list[str]:
    return [
        'command -v trtllm-build > /dev/null || refuse "this node has no trtllm-build on its PATH;'
        ' load its module in your profile, or write the job again with --container pyxis"',
        ALONE,
        AS_ROOT,
        *_step((), job.build.recipe.argv(job.checkpoint, Path(partial))),
    ]


def _mounts(job: ClusterJob, partial: PurePosixPath) -> str:
    """Return what pyxis and apptainer alike take for the two folders of a build."""
    for path in (job.checkpoint, partial):
        if {":", ","} & set(str(path)):
            raise UsageError(
                f"{path}: a colon or comma in a path cannot be mounted in a job's container; "
                "rename, or use --container none"
            )
    return f"{job.checkpoint}:{CHECKPOINT_AT}:ro,{partial}:{OUTPUT_AT}"


def _step(options: Sequence[str], argv: Sequence[str]) -> list[str]:
    """Return the lines of a step that runs a compiler, an argument a line."""
    compiler, *arguments = argv
    lines = [
        # A step does not inherit the processors of a task from its job.
        f"srun --cpus-per-task={CPUS}",
        *(option if option.startswith("apptainer") else shlex.quote(option) for option in options),
        f"{LAUNCH} {compiler}",
        *(shlex.quote(argument) for argument in arguments),
    ]
    return [
        "    " * bool(place) + line + " \\" * (place < len(lines) - 1)
        for place, line in enumerate(lines)
    ]


_RUNS: Final = {PYXIS: _pyxis, APPTAINER: _apptainer, BARE: _bare}
_ABOUT: Final = {
    PYXIS: (
        "# pyxis is NVIDIA's plugin by which srun runs a step in a container image; enroot fetches",
        "# the image. Import it once with enroot, if nodes have no network, and name the file by",
        "# --image.",
    ),
    APPTAINER: (
        "# apptainer fetches the image on the node; pull it once to a .sif file and name that by",
        "# --image, if nodes have no network.",
    ),
    BARE: ("# trtllm-build runs as the node has it, without a container.",),
}
