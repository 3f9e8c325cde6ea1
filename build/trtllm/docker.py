"""`--runner docker`: the image of a version builds the engine, with what it needs and no more."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.build.containers import Container
from minitron_trt.errors import ProcessError, UnsupportedError

CHECKPOINT_AT: Final = "/checkpoint"
OUTPUT_AT: Final = "/output"
TIMING_AT: Final = "/timing"
_ASK_S: Final = 60.0


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
            _mount(self.checkpoint, CHECKPOINT_AT, read_only=True),
            _mount(self.output, OUTPUT_AT),
            *([_mount(self.timing, TIMING_AT, read_only=True)] if self.timing else ()),
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
        if shutil.which("docker") is None:
            raise UnsupportedError(
                "--runner docker needs docker, which is not installed; install it, or use "
                "--runner slurm or kubernetes"
            )
        if _fails("docker", "info"):
            raise ProcessError("docker's daemon does not answer; start it, or join its group")
        if _fails("docker", "image", "inspect", self.container.image):
            raise UnsupportedError(
                f"image {self.container.image} is absent; run: docker pull {self.container.image}"
            )


def explain_docker(code: int, tail: str) -> str | None:
    """Say what a failure of docker itself means; None when it is the compiler's."""
    if "could not select device driver" in tail or "nvidia-container-cli" in tail:
        return (
            "docker cannot give GPUs to a container; install nvidia-container-toolkit and restart "
            "docker"
        )
    if code == 125:
        line = tail.strip().splitlines()[-1] if tail.strip() else "nothing"
        return f"docker could not run the container; it said: {line}"
    if code == 127:
        return "the image has no trtllm-build; choose another with --trtllm-version"
    return None


def _mount(source: Path, target: str, *, read_only: bool = False) -> str:
    end = ",readonly" if read_only else ""
    # --mount separates its fields by commas, and quotes as CSV does.
    field = f"source={source.resolve()}"
    quoted = '"' + field.replace('"', '""') + '"' if {",", '"'} & set(field) else field
    return f"--mount=type=bind,{quoted},target={target}{end}"


def _fails(*argv: str) -> bool:
    try:
        result = subprocess.run(argv, capture_output=True, timeout=_ASK_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return True
    return result.returncode != 0
