"""`--runner docker`: the image of a version builds the engine, with what it needs and no more."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.build.containers import Container
from minitron_trt.host.docker import check_docker, explain_docker, mount_option

CHECKPOINT_AT: Final = "/checkpoint"
OUTPUT_AT: Final = "/output"
TIMING_AT: Final = "/timing"
_NO_PROGRAM: Final = 127


@dataclass(frozen=True, slots=True)
class DockerRun:
    """A container for one build: read-only checkpoint, writable output, some GPUs, no network."""

    container: Container
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
            *("docker", "run", "--rm", "--init", f"--name={name}", "--network=none"),
            f"--gpus={self.gpus}",
            f"--user={os.getuid()}:{os.getgid()}",
            *("--env=HOME=/tmp", "--shm-size=2g", "--ulimit=memlock=-1", f"--workdir={OUTPUT_AT}"),
            *mounts,
            self.container.image,
            *command,
        ]

    def check(self) -> None:
        """Raise when docker, its daemon or the image is absent, with what to do."""
        check_docker(self.container.image, "use --runner slurm or kubernetes")


def explain_build(code: int, tail: str) -> str | None:
    """Say what a failure of docker itself means; None when it is the compiler's."""
    if code == _NO_PROGRAM:
        return "the image has no trtllm-build; choose another with --trtllm-version"
    return explain_docker(code, tail)
