"""A cluster's job as a file beside the engine that it will write, and what to type next."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from minitron_trt.build.runner_names import KUBERNETES, SLURM
from minitron_trt.build.trtllm.cluster.cluster_job import ClusterJob
from minitron_trt.build.trtllm.cluster.kubernetes import (
    BUILD,
    FILES,
    KubernetesSettings,
    files_name,
    kubernetes_file,
    on_claim,
)
from minitron_trt.build.trtllm.cluster.pod_parts import COMPONENT
from minitron_trt.build.trtllm.cluster.slurm import SlurmSettings, slurm_script
from minitron_trt.errors import UsageError
from minitron_trt.outputs import write_output

_SUFFIXES: Final = {SLURM: ".sbatch", KUBERNETES: ".yaml"}
_OURS: Final = "minitron-trt"
"""What every job file has in it: a word by which one is known again."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """What only a job on a cluster has."""

    slurm: SlurmSettings = field(default_factory=SlurmSettings)
    kubernetes: KubernetesSettings = field(default_factory=KubernetesSettings)


@dataclass(frozen=True, slots=True)
class JobFile:
    """A job's file, its name, and the commands of each step that come after it is written."""

    path: Path
    name: str
    text: str
    submit: str
    steps: dict[str, tuple[str, ...]]

    def write(self) -> None:
        """Write the file; UsageError where a file of somebody else has its name."""
        if self.path.is_file() and _OURS not in self.path.read_text(errors="replace"):
            raise UsageError(
                f"{self.path} exists and is no job file of this tool; move it, or choose another -o"
            )
        write_output(self.path, self.text)


def job_file(job: ClusterJob, runner: str, settings: ClusterSettings) -> JobFile:
    """Return the file of a job for a runner, and what to do with it."""
    path = job.output.with_name(job.output.name + _SUFFIXES[runner])
    if runner == SLURM:
        name, text = job.named(lambda name: slurm_script(job, settings.slurm, name))
        submit = shlex.join(("sbatch", str(path)))
        return JobFile(path, name, text, submit, {"build the engine": (submit,)})
    kubernetes = settings.kubernetes
    name, text = job.named(lambda name: kubernetes_file(job, kubernetes, name))
    steps = _kubernetes_steps(job, kubernetes, path=path, name=name)
    return JobFile(path, name, text, steps["build the engine"][0], steps)


def _kubernetes_steps(
    job: ClusterJob, settings: KubernetesSettings, *, path: Path, name: str
) -> dict[str, tuple[str, ...]]:
    """Return the commands; the Pod goes before the Job comes, as some claims let only one in."""
    kubectl, pod = settings.kubectl, files_name(name)
    checkpoint, output = job.build.checkpoint.folder, job.output
    begin = (
        kubectl("apply", "-f", str(path), "-l", f"{COMPONENT}={FILES}"),
        kubectl("wait", "--for=condition=Ready", f"pod/{pod}", "--timeout=30m"),
    )
    end = kubectl("delete", "pod", pod)
    return {
        "put the checkpoint on the claim": (
            *begin,
            kubectl("cp", str(checkpoint), f"{pod}:{on_claim(job.checkpoint)}"),
            end,
        ),
        "build the engine": (
            kubectl("apply", "-f", str(path), "-l", f"{COMPONENT}={BUILD}"),
            kubectl("logs", "--follow", "--pod-running-timeout=1h", f"job/{name}"),
        ),
        "bring the engine back": (
            *begin,
            kubectl("cp", f"{pod}:{on_claim(output)}", str(output)),
            end,
        ),
    }
