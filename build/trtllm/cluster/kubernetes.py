"""`--runner kubernetes`: a Job on a volume claim, and a Pod by which folders get on and off it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

from minitron_trt.build.recipe.engine_recipe import COMPILER
from minitron_trt.build.trtllm.cluster.cluster_job import (
    CPUS,
    ClusterJob,
    building_script,
    fits_a_line,
    partial_of,
)
from minitron_trt.build.trtllm.cluster.pod_parts import (
    COMPONENT,
    capability_labels,
    check_user,
    container_security,
    gpu_tolerations,
    is_name,
    literal,
    pod_security,
)
from minitron_trt.errors import UsageError
from minitron_trt.yaml_text import yaml_text

MODELS_AT: Final = PurePosixPath("/models")
BUILD: Final = "build"
FILES: Final = "files"
# What NVIDIA's docker commands give these images; a container has 64 MiB unless told.
_SHM_GIB: Final = 2
_FILES_S: Final = 3600
_FILES_MEMORY: Final = "256Mi"


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """Where the Job runs and as whom; None leaves it to the cluster."""

    claim: str = "models"
    namespace: str | None = None
    image_pull_secret: tuple[str, ...] = ()
    user: int = 10000

    def __post_init__(self) -> None:
        names = {"--claim": (self.claim,), "--image-pull-secret": self.image_pull_secret}
        names |= {"--namespace": (self.namespace,)} if self.namespace else {}
        for option, values in names.items():
            for value in values:
                if not is_name(value):
                    raise UsageError(
                        f"{option} {value!r} is no name of Kubernetes; expected small letters, "
                        "digits and -"
                    )
        check_user(self.user)

    def kubectl(self, *words: str) -> str:
        """Return a command for these settings' namespace."""
        where = ("--namespace", self.namespace) if self.namespace else ()
        return shlex.join(("kubectl", *where, *words))


def kubernetes_file(job: ClusterJob, settings: KubernetesSettings, name: str) -> str:
    """Return the YAML of both objects; `kubectl -l` takes one of them by its component."""
    pod, build = _files_pod(job, settings, name), kubernetes_job(job, settings, name)
    return yaml_text((pod, build))


def on_claim(folder: Path) -> PurePosixPath:
    """Return where a folder of this machine lies in the containers.

    UsageError for a name that is no UTF-8 or has lines: a Job is YAML, and its API takes JSON.
    """
    if not fits_a_line(folder.name):
        raise UsageError(f"{folder} has a name that a Job of Kubernetes cannot hold; rename it")
    return MODELS_AT / folder.name


def kubernetes_job(job: ClusterJob, settings: KubernetesSettings, name: str) -> dict[str, Any]:
    """Return a Job that reads and writes a volume claim, on a node with the target's GPUs."""
    checkpoint, output = on_claim(job.checkpoint), on_claim(job.output)
    argv = job.build.recipe.argv(str(checkpoint), str(partial_of(output)))
    script = building_script(
        output, [shlex.join(argv)], checkpoint=checkpoint, overwrite=job.build.overwrite
    )
    # What lies in /dev/shm counts as the container's memory.
    memory = f"{job.memory_gib + _SHM_GIB}Gi"
    resources = {
        "cpu": str(CPUS),
        "memory": memory,
        "nvidia.com/gpu": str(job.build.workers),
    }
    container = {
        **_container(job, COMPILER, {"shm": "/dev/shm"}),
        "command": ["bash", "-c", literal("\n".join(script) + "\n")],
        "resources": {"limits": resources, "requests": resources},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(settings, name, name, component=BUILD),
        "spec": {
            # What failed once, for want of memory or of a kernel, fails again.
            "backoffLimit": 0,
            "activeDeadlineSeconds": job.time_limit_s,
            # A day to read its log, then the cluster sweeps it.
            "ttlSecondsAfterFinished": 86400,
            "template": {
                "metadata": {"labels": _labels(name, BUILD)},
                "spec": _pod_spec(job, settings, container),
            },
        },
    }


def _files_pod(job: ClusterJob, settings: KubernetesSettings, name: str) -> dict[str, Any]:
    """Return a Pod that has the claim for an hour and does nothing, so that one can copy."""
    limits = {"cpu": "1", "memory": _FILES_MEMORY}
    container = {
        **_container(job, FILES, {}),
        # As its first process it would not heed SIGTERM by itself.
        "command": ["bash", "-c", f"trap exit TERM; sleep {_FILES_S} & wait"],
        "resources": {"limits": limits, "requests": limits},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": _metadata(settings, files_name(name), name, component=FILES),
        "spec": {**_pod_spec(job, settings, container), "activeDeadlineSeconds": _FILES_S},
    }


def files_name(name: str) -> str:
    """Return the name of the Pod beside a Job."""
    return f"{name}-{FILES}"


def _pod_spec(
    job: ClusterJob, settings: KubernetesSettings, container: dict[str, Any]
) -> dict[str, Any]:
    secrets = [{"name": secret} for secret in settings.image_pull_secret]
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"imagePullSecrets": secrets} if secrets else {}),
        "nodeSelector": capability_labels(job.build.recipe.target.sm),
        "tolerations": gpu_tolerations(),
        "securityContext": pod_security(settings.user),
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": {"claimName": settings.claim}},
            {"name": "tmp", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": f"{_SHM_GIB}Gi"}},
        ],
    }


def _container(job: ClusterJob, name: str, mounts: dict[str, str]) -> dict[str, Any]:
    places = {"models": str(MODELS_AT), "tmp": "/tmp", **mounts}
    return {
        "name": name,
        "image": job.build.image_name,
        "imagePullPolicy": "IfNotPresent",
        "workingDir": "/tmp",
        "env": [{"name": "HOME", "value": "/tmp"}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": container_security(),
        "volumeMounts": [{"name": name, "mountPath": at} for name, at in places.items()],
    }


def _metadata(
    settings: KubernetesSettings, name: str, job_name: str, *, component: str
) -> dict[str, Any]:
    where = {"namespace": settings.namespace} if settings.namespace else {}
    return {"name": name, **where, "labels": _labels(job_name, component)}


def _labels(job_name: str, component: str) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": COMPILER,
        "app.kubernetes.io/instance": job_name,
        COMPONENT: component,
        "app.kubernetes.io/managed-by": "minitron-trt",
    }
