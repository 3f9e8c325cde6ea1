"""`--runner kubernetes`: a Job on a volume claim, and a Pod by which folders get on and off it."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import yaml

from minitron_trt.build.recipe.engine_recipe import COMPILER
from minitron_trt.build.trtllm.cluster.cluster_job import (
    CPUS,
    ClusterJob,
    building_script,
    partial_of,
)
from minitron_trt.errors import UsageError

MODELS_AT: Final = PurePosixPath("/models")
COMPONENT: Final = "app.kubernetes.io/component"
"""The label that says what an object of the file is for."""
BUILD: Final = "build"
FILES: Final = "files"
_SHM_GIB: Final = 2
_FILES_S: Final = 3600
_FILES_MEMORY: Final = "256Mi"
_NAME: Final = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


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
                if not _NAME.fullmatch(value):
                    raise UsageError(
                        f"{option} {value!r} is no name of Kubernetes; expected small letters, "
                        "digits and -"
                    )
        if self.user < 1:
            raise UsageError(f"--user {self.user} is root or no user; expected 1 or more")

    def kubectl(self, *words: str) -> str:
        """Return a command for these settings' namespace."""
        where = ("--namespace", self.namespace) if self.namespace else ()
        return shlex.join(("kubectl", *where, *words))


def kubernetes_file(job: ClusterJob, settings: KubernetesSettings, name: str) -> str:
    """Return the YAML of both objects; `kubectl -l` takes one of them by its component."""
    pod, build = _files_pod(job, settings, name), kubernetes_job(job, settings, name)
    text: str = yaml.dump_all((pod, build), Dumper=_Dumper, sort_keys=False, width=1000)
    return text


def on_claim(folder: Path) -> PurePosixPath:
    """Return where a folder of this machine lies in the containers."""
    return MODELS_AT / folder.name


def kubernetes_job(job: ClusterJob, settings: KubernetesSettings, name: str) -> dict[str, Any]:
    """Return a Job that reads and writes a volume claim, on a node with the target's GPUs."""
    checkpoint, output = on_claim(job.checkpoint), on_claim(job.build.output)
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
        "command": ["bash", "-c", _literal("\n".join(script) + "\n")],
        "resources": {"limits": resources, "requests": resources},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(settings, name, name, component=BUILD),
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": job.time_limit_s,
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
    major, minor = divmod(job.build.recipe.target.sm, 10)
    secrets = [{"name": secret} for secret in settings.image_pull_secret]
    user = settings.user
    return {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **({"imagePullSecrets": secrets} if secrets else {}),
        # Labels of NVIDIA's GPU feature discovery.
        "nodeSelector": {
            "nvidia.com/gpu.compute.major": str(major),
            "nvidia.com/gpu.compute.minor": str(minor),
        },
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": user,
            # The claim's folders are given to this group.
            "fsGroup": user,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
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
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
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


def _literal(text: str) -> str:
    """Return what Kubernetes makes `text` of: it fills in $(NAME), and takes $$ for a $."""
    return text.replace("$", "$$")


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """YAML as people write it: no anchors, and text of several lines stands line by line."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)
