"""What whoever deploys decides, beside what the repository says."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from minitron_trt.build.trtllm.cluster.pod_parts import check_user, is_name
from minitron_trt.deploy.planned_scale import PlannedScale
from minitron_trt.drain_option import DRAIN_S
from minitron_trt.errors import UsageError
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.registry.image_reference import check_image

KUBERNETES: Final = "kubernetes"
LEADERWORKERSET: Final = "leaderworkerset"
KSERVE: Final = "kserve"
DYNAMO: Final = "dynamo"
COMPOSE: Final = "compose"
SLURM: Final = "slurm"
ON_KUBERNETES: Final = (KUBERNETES, LEADERWORKERSET, KSERVE, DYNAMO)
TARGETS: Final = (*ON_KUBERNETES, COMPOSE, SLURM)
KEDA: Final = "keda"
HPA: Final = "hpa"
NONE: Final = "none"
AUTOSCALERS: Final = (KEDA, HPA, NONE)
CONVERTIBLE: Final = tuple(
    name for name, known in PRECISIONS.items() if known.in_hf and not known.calibrated
)
"""The precisions to which a Pod can convert a model at its start, without calibration."""
# Services want a letter first; the longest suffix, ours or a controller's, must fit into 63.
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME: Final = 40
REPLICAS: Final = 2
MAX_REPLICAS: Final = 8


@dataclass(frozen=True, slots=True)
class DeploySettings:
    """A deployment's name, size, objectives and surroundings; storage is as `--storage` has it."""

    target: str
    name: str
    storage: str
    gpus_per_node: int = 8
    replicas: int = REPLICAS
    max_replicas: int = MAX_REPLICAS
    disk_mb_s: int = 200
    drain_s: int = DRAIN_S
    ttft_s: float = 2.0
    itl_s: float = 0.1
    # No user of a node has it: checkov, too, asks for 10,000 or more (CKV_K8S_40).
    user: int = 10000
    gpu_product: tuple[str, ...] = ()
    image_pull_secret: tuple[str, ...] = ()
    gateway_image: str | None = None
    keys_secret: str | None = None
    monitoring_namespace: str = "monitoring"
    prometheus: str = "http://prometheus-operated.monitoring.svc:9090"
    autoscaler: str = KEDA
    route: str | None = None
    inference_pool: bool = False
    precision: str = "bf16"  # of a model that the Pods convert
    scale: PlannedScale | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            raise UsageError(
                f"--name {self.name!r} is no name of Kubernetes; expected a small letter, then "
                f"small letters, digits and -, at most {LONGEST_NAME}"
            )
        names = {
            "--image-pull-secret": self.image_pull_secret,
            "--keys-secret": () if self.keys_secret is None else (self.keys_secret,),
            "--monitoring-namespace": (self.monitoring_namespace,),
            "--route": () if self.route is None else tuple(self.route.split("/")),
        }
        for option, values in names.items():
            for value in values:
                if not is_name(value):
                    raise UsageError(
                        f"{option} {value!r} is no name of Kubernetes; expected small letters, "
                        "digits and -"
                    )
        if self.route is not None and self.route.count("/") > 1:
            raise UsageError(f"--route {self.route!r}; expected GATEWAY or NAMESPACE/GATEWAY")
        check_web_url("--prometheus", self.prometheus)
        check_user(self.user)
        if self.gateway_image is not None:
            check_image("--gateway-image", self.gateway_image)
        if self.max_replicas < self.replicas:
            raise UsageError(
                f"--max-replicas {self.max_replicas} is below --replicas {self.replicas}"
            )

    @property
    def on_kubernetes(self) -> bool:
        """Say whether a cluster of Kubernetes runs the servers."""
        return self.target in ON_KUBERNETES

    @property
    def keys(self) -> str:
        """Return the name of the Secret with the gateway's API keys."""
        return self.keys_secret or f"{self.name}-gateway-keys"

    @property
    def hub_token(self) -> str:
        """Return the name of the Secret with the hub's token, which gated models need."""
        return f"{self.name}-hub-token"


def check_web_url(option: str, url: str) -> None:
    """Raise UsageError for what is no http or https URL, or has secrets, which files would show."""
    try:
        parts = urlsplit(url)
        # Only now is a port that is no number a ValueError.
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(
            f"{option}: {url!r} is no http or https URL; expected one like https://example.org/path"
        )
    if parts.username or parts.password or parts.query:
        raise UsageError(
            f"{option}: the URL has a user, a password or a query, which would stand in plain text "
            "in the files; leave it out"
        )
