"""What every container that this tool starts has in common: mounts, checks, failures in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from minitron_trt.errors import ProcessError, UnsupportedError
from minitron_trt.host.processes import output_of

_ASK_S: Final = 60.0
_CANNOT_RUN: Final = 125


def check_docker(image: str, instead: str) -> None:
    """Raise when docker, its daemon or the image is absent, with what to do (or `instead`)."""
    if shutil.which("docker") is None:
        raise UnsupportedError(
            f"--runner docker needs docker, which is not installed; install it, or {instead}"
        )
    if output_of(("docker", "info"), _ASK_S) is None:
        raise ProcessError("docker's daemon does not answer; start it, or join its group")
    if output_of(("docker", "image", "inspect", image), _ASK_S) is None:
        raise UnsupportedError(f"image {image} is absent; run: docker pull {image}")


def explain_docker(code: int, tail: str) -> str | None:
    """Say what a failure of docker itself means; None when it is that of what it ran."""
    if "could not select device driver" in tail or "nvidia-container-cli" in tail:
        return (
            "docker cannot give GPUs to a container; install nvidia-container-toolkit and restart "
            "docker"
        )
    if code == _CANNOT_RUN:
        line = tail.strip().splitlines()[-1] if tail.strip() else "nothing"
        return f"docker could not run the container; it said: {line}"
    return None


def mount_option(source: Path, target: str | Path, *, read_only: bool = False) -> str:
    """Return the option that shows a file or folder of this machine in a container."""
    end = ",readonly" if read_only else ""
    # --mount separates its fields by commas, and quotes as CSV does.
    fields = [f"source={source.resolve()}", f"target={target}"]
    quoted = [
        '"' + field.replace('"', '""') + '"' if {",", '"'} & set(field) else field
        for field in fields
    ]
    return f"--mount=type=bind,{','.join(quoted)}{end}"
