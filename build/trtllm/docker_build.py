"""`--runner docker`: the image of a version builds the engine, with what it needs and no more."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.build.job import BuildJob
from minitron_trt.build.trtllm.compiler_process import Outcome, run_job
from minitron_trt.build.trtllm.finished_engine import finish, image_facts
from minitron_trt.build.trtllm.timing_cache import TIMING_NAME, TimingCache
from minitron_trt.host.docker import check_docker, explain_docker, mount_option
from minitron_trt.outputs import staged

CHECKPOINT_AT: Final = "/checkpoint"
OUTPUT_AT: Final = "/output"
TIMING_AT: Final = "/timing"
_NO_PROGRAM: Final = 127
_REMOVE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class DockerRun:
    """A container for one build: read-only checkpoint, writable output, some GPUs, no network."""

    image: str
    checkpoint: Path
    output: Path
    timing: Path | None
    gpus: int

    def argv(self, command: list[str], name: str) -> list[str]:
        """Return the command line that runs `command` in a container of a name."""
        mounts = [
            mount_option(self.checkpoint, CHECKPOINT_AT, read_only=True),
            mount_option(self.output, OUTPUT_AT),
            *([mount_option(self.timing, TIMING_AT, read_only=True)] if self.timing else ()),
        ]
        return [
            "docker",
            "run",
            "--rm",
            # As process 1, trtllm-build would ignore SIGTERM and leave ended workers as zombies.
            "--init",
            "--pull=never",
            f"--name={name}",
            "--network=none",
            f"--gpus={self.gpus}",
            f"--user={os.getuid()}:{os.getgid()}",
            "--env=HOME=/tmp",
            # As NVIDIA's own commands for these images have it.
            "--shm-size=2g",
            "--ulimit=memlock=-1",
            f"--workdir={OUTPUT_AT}",
            *mounts,
            self.image,
            *command,
        ]

    def check(self) -> None:
        """Raise when docker, its daemon or the image is absent, with what to do."""
        check_docker(self.image, "use --runner slurm or kubernetes")


def build_docker(job: BuildJob) -> Outcome:
    """Build in the image of the recipe's version; an error says what docker lacks."""
    with staged(job.output, overwrite=job.overwrite) as scratch:
        _docker_run(job, scratch).check()
        try:
            ran = run_job(job, docker_argv(job, scratch), explain=_explain)
        except BaseException:
            # The container outlives a client that was killed.
            subprocess.run(
                ("docker", "rm", "--force", _container_name()),
                capture_output=True,
                timeout=_REMOVE_S,
                check=False,
            )
            raise
        # The process here is docker's client; the compiler's memory is in its log.
        outcome = Outcome(ran.seconds, ran.reported_bytes)
        finish(job, scratch, outcome, image_facts(job))
    return outcome


def docker_argv(job: BuildJob, output: Path) -> list[str]:
    """Return the whole command line of a build in docker that writes to `output`."""
    command, timing = job.recipe.argv(CHECKPOINT_AT, OUTPUT_AT), TimingCache.of(job)
    if timing is not None:
        source, written = f"{TIMING_AT}/{timing.path.name}", f"{OUTPUT_AT}/{TIMING_NAME}"
        command += timing.arguments(source, written)
    return _docker_run(job, output).argv(command, name=_container_name())


def _docker_run(job: BuildJob, output: Path) -> DockerRun:
    timing = TimingCache.of(job)
    return DockerRun(
        image=job.image_name,
        checkpoint=job.checkpoint.folder,
        output=output,
        # Without a cache there is nothing to mount; the new one is written to the output.
        timing=timing.folder if timing is not None and timing.path.is_file() else None,
        gpus=job.workers,
    )


def _container_name() -> str:
    """Return the name of this process's container."""
    return f"minitron-trt-{os.getpid()}"


def _explain(code: int, tail: str) -> str | None:
    """Say what a failure of docker itself means; None when it is the compiler's."""
    if code == _NO_PROGRAM:
        return "the image has no trtllm-build; choose another with --trtllm-version"
    return explain_docker(code, tail)
