"""Where TensorRT-LLM's compiler runs: the names that `--runner` takes."""

from typing import Final

LOCAL: Final = "local"
DOCKER: Final = "docker"
SLURM: Final = "slurm"
KUBERNETES: Final = "kubernetes"
CLUSTERS: Final = (SLURM, KUBERNETES)
RUNNERS: Final = (LOCAL, DOCKER, *CLUSTERS)
