"""How the images are made that no registry has."""

from __future__ import annotations

from typing import Final

from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.settings import DYNAMO, SLURM
from minitron_trt.version import __version__

CONTAINERFILE: Final = "image/Containerfile"
SERVER_CONTAINERFILE: Final = "image/Server.Containerfile"


def containerfiles(deployment: Deployment) -> dict[str, str]:
    """Return the Containerfiles of a deployment by their paths; a job of Slurm builds none."""
    settings = deployment.settings
    if settings.target == SLURM:
        return {}
    texts = {}
    if settings.gateway_image is None:
        texts[CONTAINERFILE] = _of_minitron_trt(deployment)
    if deployment.nodes > 1:
        texts[SERVER_CONTAINERFILE] = _of_server(deployment)
    return texts


def _of_minitron_trt(deployment: Deployment) -> str:
    what, extra, index = "The gateway", "gateway", ""
    if deployment.settings.target == DYNAMO:
        what, extra = "Dynamo's frontend, and what puts a Triton behind it", "dynamo"
        index = " --extra-index-url https://pypi.nvidia.com"
    wheel = f"minitron_trt-{__version__}-py3-none-any.whl"
    return (
        f"# {what}. Build it in a folder with a wheel of minitron-trt (make package).\n"
        "FROM python:3.12-slim\n"
        f"COPY {wheel} /tmp/\n"
        f"RUN pip install --no-cache-dir{index} '/tmp/{wheel}[{extra}]'\n"
        f"USER {deployment.settings.user}\n"
    )


def _of_server(deployment: Deployment) -> str:
    return (
        "# The server's image with sshd, by which mpirun starts ranks on other nodes.\n"
        f"FROM {deployment.facts.image}\n"
        "RUN apt-get update \\\n"
        "    && apt-get install --yes --no-install-recommends openssh-server \\\n"
        "    && rm -rf /var/lib/apt/lists/* && mkdir -p /run/sshd \\\n"
        f"    && useradd --uid {deployment.settings.user} --no-create-home --home-dir /tmp ranks\n"
    )
