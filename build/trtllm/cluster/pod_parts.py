"""What every Pod of this tool has: labels, where its GPUs are, and what it may not do."""

from __future__ import annotations

import re
from typing import Any, Final

from minitron_trt.errors import UsageError

COMPONENT: Final = "app.kubernetes.io/component"
"""The label that says what an object of a file is for."""
GPU: Final = "nvidia.com/gpu"
"""The resource, and the taint, of NVIDIA's GPUs."""
# As Kubernetes validates it (IsValidUserID of k8s.io/apimachinery).
_LARGEST_USER: Final = 2**31 - 1
_NAME: Final = re.compile(r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?")


def is_name(text: str) -> bool:
    """Say whether Kubernetes takes a name for an object."""
    return _NAME.fullmatch(text) is not None


def capability_labels(sm: int) -> dict[str, str]:
    """Return the labels by which NVIDIA's GPU feature discovery marks nodes of an architecture."""
    major, minor = divmod(sm, 10)
    return {f"{GPU}.compute.major": str(major), f"{GPU}.compute.minor": str(minor)}


def gpu_tolerations() -> list[dict[str, str]]:
    """Return what lets a Pod on nodes that are kept for GPUs."""
    return [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]


def check_user(user: int) -> None:
    """Raise UsageError for a number that Kubernetes does not take as a user, or that is root."""
    if not 1 <= user <= _LARGEST_USER:
        raise UsageError(f"--user {user} is root or no user; expected 1 to {_LARGEST_USER}")


def pod_security(user: int) -> dict[str, Any]:
    """Return the security context of a Pod; volumes are given to the user's group."""
    return {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": user,
        "fsGroup": user,
        # Else the kubelet would walk through all files of the claim before each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    """Return the security context of a container."""
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def literal(text: str) -> str:
    """Return what Kubernetes makes `text` of: it fills in $(NAME), and takes $$ for a $."""
    return text.replace("$", "$$")
