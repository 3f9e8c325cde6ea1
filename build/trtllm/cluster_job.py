"""`--runner slurm` and `--runner kubernetes`: job files that build an engine on a cluster."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.build.containers import Container
from minitron_trt.build.job import BuildJob
from minitron_trt.build.trtllm.docker_build import CHECKPOINT_AT, OUTPUT_AT
from minitron_trt.errors import UsageError

MODELS_AT: Final = "/models"
_CPUS: Final = 8
_TIME_LIMIT_S: Final = 4 * 3600
_GIB: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class ClusterJob:
    """A build in an image, on a node with the target's GPUs."""

    build: BuildJob
    container: Container

    @property
    def name(self) -> str:
        """Return the job's name: what Kubernetes takes as a label."""
        recipe = self.build.recipe
        text = f"build-{recipe.model.name}-sm{recipe.target.sm}".lower()
        return re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:63].strip("-")

    @property
    def checkpoint(self) -> Path:
        """Return the checkpoint's folder, as the cluster's nodes are expected to see it."""
        return self.build.checkpoint.folder.resolve()

    @property
    def memory_gib(self) -> int:
        """Return the memory to ask for, in whole GiB."""
        return -(-self.build.host_bytes // _GIB)

    @property
    def time_limit_s(self) -> int:
        """Return when the cluster ends the job."""
        return int(self.build.timeout_s or _TIME_LIMIT_S)


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job as a file beside the engine that it will write, and the command that submits it."""

    path: Path
    text: str
    submit: str


def job_file(job: ClusterJob, runner: str, *, claim: str) -> JobFile:
    """Return the file of a job for `slurm` or `kubernetes`; only the latter has a volume claim."""
    output = job.build.output
    if runner == "slurm":
        path = output.with_name(f"{output.name}.sbatch")
        return JobFile(path, slurm_script(job), f"sbatch {path}")
    path = output.with_name(f"{output.name}.yaml")
    return JobFile(path, yaml_text(kubernetes_job(job, claim)), f"kubectl apply -f {path}")


def slurm_script(job: ClusterJob) -> str:
    """Return an sbatch script for a cluster with pyxis; the engine appears when it is whole."""
    hours, rest = divmod(job.time_limit_s, 3600)
    recipe, output = job.build.recipe, job.build.output
    partial = output.resolve().with_name(f".{output.name}.partial")
    for path in (job.checkpoint, partial):
        if {":", ","} & set(str(path)):
            raise UsageError(
                f"{path}: a colon or comma in a path cannot be mounted by pyxis; rename"
            )
    mounts = f"{job.checkpoint}:{CHECKPOINT_AT}:ro,{partial}:{OUTPUT_AT}"
    command = shlex.join(recipe.argv(CHECKPOINT_AT, OUTPUT_AT))
    image = job.container.image.replace("nvcr.io/", "nvcr.io#", 1)
    target, capability = recipe.target, f"{recipe.target.sm / 10:.1f}"
    lines = [
        "#!/bin/bash",
        f"#SBATCH --job-name={job.name}",
        "#SBATCH --nodes=1",
        f"#SBATCH --gpus-per-node={job.build.workers}",
        f"#SBATCH --cpus-per-task={_CPUS}",
        f"#SBATCH --mem={job.memory_gib}G",
        f"#SBATCH --time={hours:02d}:{rest // 60:02d}:00",
        f"#SBATCH --output={job.name}-%j.log",
        f"# An engine for {target.label}: submit to a partition with such GPUs.",
        "set -euo pipefail",
        "found=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1)",
        f'if [ "$found" != "{capability}" ]; then',
        f'    echo "this node has a GPU of compute capability $found, not {capability}" >&2',
        "    exit 1",
        "fi",
        f"partial={shlex.quote(str(partial))}",
        'rm -rf -- "$partial"',
        'mkdir -p -- "$partial"',
        f"srun --container-image={shlex.quote(image)} \\",
        f"    --container-mounts={shlex.quote(mounts)} \\",
        f"    --container-workdir={OUTPUT_AT} \\",
        f"    {command}",
        f'mv -T -- "$partial" {shlex.quote(str(output.resolve()))}',
    ]
    return "\n".join(lines) + "\n"


def kubernetes_job(job: ClusterJob, claim: str) -> dict[str, Any]:
    """Return a Job that reads and writes a volume claim, on nodes with the target's GPUs."""
    recipe = job.build.recipe
    major, minor = divmod(recipe.target.sm, 10)
    resources = {"nvidia.com/gpu": str(job.build.workers), "memory": f"{job.memory_gib}Gi"}
    source, output = f"{MODELS_AT}/{job.checkpoint.name}", f"{MODELS_AT}/{job.build.output.name}"
    container = {
        "name": "trtllm-build",
        "image": job.container.image,
        "command": recipe.argv(source, output),
        "workingDir": "/tmp",
        "resources": {"limits": resources, "requests": {"cpu": str(_CPUS), **resources}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "models", "mountPath": MODELS_AT},
            {"name": "shm", "mountPath": "/dev/shm"},
        ],
    }
    labels = {"app.kubernetes.io/name": job.name, "app.kubernetes.io/managed-by": "minitron-trt"}
    pod = {
        "restartPolicy": "Never",
        # Labels of NVIDIA's GPU feature discovery.
        "nodeSelector": {
            "nvidia.com/gpu.compute.major": str(major),
            "nvidia.com/gpu.compute.minor": str(minor),
        },
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
        ],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job.name, "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": job.time_limit_s,
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def yaml_text(record: dict[str, Any]) -> str:
    """Return a record of objects, lists and scalars as YAML; scalars are quoted as in JSON."""
    return "\n".join(_yaml_lines(record)) + "\n"


def _yaml_lines(value: Any, indent: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, (dict, list)) and inner:
                yield f"{indent}{key}:"
                yield from _yaml_lines(inner, f"{indent}  ")
            else:
                yield f"{indent}{key}: {json.dumps(inner, ensure_ascii=False)}"
        return
    for inner in value:
        if isinstance(inner, dict) and inner:
            first, *others = _yaml_lines(inner, f"{indent}  ")
            yield f"{indent}- {first.lstrip()}"
            yield from others
        else:
            yield f"{indent}- {json.dumps(inner, ensure_ascii=False)}"
