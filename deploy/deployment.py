"""Every number of a deployment, derived from the repository and the settings, with its reason.

What is an assumption says so; each stands here once, as a constant.

    a rank's host memory    an engine is read into memory before it goes to the GPU, and a rank has
                            2 GiB for CUDA, Triton and the runtime
    a text process          20 MB, and 0.7 kB for each entry of the vocabulary (docs/serving.md)
    /dev/shm                64 MiB for each Python process, which is the largest request that Triton
                            takes, and 1 GiB where ranks talk by NCCL, as its documentation advises
    processors              2 for a rank, 1 for each text process up to 4, a quarter of one beyond
    a start                 a minute, and all bytes at the disk's speed; a probe waits twice as long
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import ceil
from typing import Any, Final

from minitron_trt.build.recipe.engine_memory import KV_FRACTION
from minitron_trt.console import size_text
from minitron_trt.deploy.served_facts import ENDPOINTS, ServedFacts
from minitron_trt.deploy.settings import LEADERWORKERSET, SLURM, DeploySettings
from minitron_trt.deploy.storage import FETCH, HUB, Storage
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.triton_repo.serving.docker_launch import STOP_MARGIN_S
from minitron_trt.version import __version__
from minitron_trt.yaml_text import Figure

MIB: Final = 2**20
GIB: Final = 2**30
RANK_HOST_BYTES: Final = 2 * GIB
TEXT_PROCESS_BYTES: Final = 20_000_000
VOCABULARY_BYTES: Final = 700
REGION_BYTES: Final = 64 * MIB
NCCL_SHM_BYTES: Final = GIB
SCRATCH_BYTES: Final = 2 * GIB
START_S: Final = 60
PROBE_S: Final = 10
PRE_STOP_S: Final = 5
RANK_CPUS: Final = 2
OWN_IMAGE: Final = f"minitron-trt:{__version__}"
"""The image that the Containerfile beside the files makes."""
_BUSY_PROCESSES: Final = 4
_MULTI_NODE: Final = (LEADERWORKERSET, SLURM)


@dataclass(frozen=True, slots=True)
class Deployment:
    """A repository and settings that go together; UnsupportedError where they do not."""

    facts: ServedFacts
    settings: DeploySettings

    def __post_init__(self) -> None:
        self._check_scale()
        ranks, room = self.facts.ranks, self.settings.gpus_per_node
        if ranks <= room:
            return
        need = f"{self.facts.repository} has {ranks} ranks, a node {room} GPUs (--gpus-per-node)"
        if ranks % room:
            raise UnsupportedError(
                f"{need}; expected a multiple: convert with other --tp and --pp, or use nodes of "
                "another size"
            )
        if self.settings.target not in _MULTI_NODE:
            raise UnsupportedError(
                f"{need}; --target {self.settings.target} has one node: use --target "
                f"{' or '.join(_MULTI_NODE)}"
            )
        if room % self.facts.tp and self.facts.tp % room:
            raise UnsupportedError(
                f"{need}; tp {self.facts.tp} neither divides nor fills nodes, so tensor "
                "parallelism would cross them unevenly: convert with --tp that does"
            )

    def _check_scale(self) -> None:
        """Refuse a plan of another engine; UsageError."""
        scale, facts = self.settings.scale, self.facts
        if scale is None:
            return
        planned = (scale.gpu, scale.tp)
        own = (facts.gpu.gpu if facts.gpu else "no GPU", facts.tp)
        if planned != own:
            raise UsageError(
                f"--plan is of {planned[0]} with tp {planned[1]}, {facts.repository} of {own[0]} "
                f"with tp {own[1]}; plan for what it runs on, or name the GPU with --gpu"
            )
        if scale.concurrency > facts.batch:
            raise UsageError(
                f"--plan has {scale.concurrency} sequences at once, {facts.repository} takes "
                f"{facts.batch}; plan with --max-batch-size {facts.batch}"
            )

    @property
    def name(self) -> str:
        """Return the name that all objects begin with."""
        return self.settings.name

    @property
    def storage(self) -> Storage:
        """Return where the repository comes from."""
        return Storage.parse(self.settings.storage)

    @property
    def nodes(self) -> int:
        """Return over how many nodes a replica's ranks are spread."""
        return max(self.facts.ranks // self.settings.gpus_per_node, 1)

    @property
    def node_ranks(self) -> int:
        """Return how many ranks a node has."""
        return self.facts.ranks // self.nodes

    @property
    def text_processes(self) -> int:
        """Return how many Python processes handle text, on the node of rank 0."""
        return sum(self.facts.processes.values())

    def replicas(self) -> Figure:
        """Return how many replicas there are at least."""
        count, scale = self.settings.replicas, self.settings.scale
        why = scale.what if scale and scale.replicas == count else "--replicas"
        return Figure(count, why, "server.replicas")

    def most_replicas(self) -> Figure:
        """Return how many replicas there are at most."""
        count, scale = self.settings.max_replicas, self.settings.scale
        why = scale.what if scale and scale.most_replicas == count else "--max-replicas"
        return Figure(count, why, "autoscaling.maxReplicas")

    def gpus(self) -> Figure:
        """Return the GPUs of a Pod."""
        over = f" over {self.nodes} nodes" if self.nodes > 1 else ""
        why = f"tp {self.facts.tp} x pp {self.facts.pp}{over}, a GPU a rank"
        return Figure(self.node_ranks, why, "server.gpus")

    def gpu_mib(self) -> Figure:
        """Return the memory that a GPU must exceed, as node labels have it, in MiB."""
        need = self.facts.gpu
        assert need is not None
        why = (
            f"weights {size_text(need.weights_bytes)}, activations "
            f"{size_text(need.activation_bytes)}, runtime {size_text(need.reserve_bytes)}, "
            f"cache of {self.facts.max_seq_len} tokens {size_text(need.longest_bytes)} / "
            f"{KV_FRACTION}"
        )
        # A text, as what is compared with labels must be.
        return Figure(str(need.needed_bytes // MIB), why, "server.gpuMemoryMiB")

    def node_bytes(self) -> int:
        """Return what a node reads of the repository before it is ready."""
        need = self.facts.gpu
        if need is None or self.nodes == 1:
            return self.facts.repository_bytes
        return self.node_ranks * need.weights_bytes

    def startup_s(self) -> int:
        """Return how long a start may be expected to take."""
        return START_S + ceil(self.node_bytes() / (self.settings.disk_mb_s * 1_000_000))

    def startup_reason(self) -> str:
        """Return what a start's time comes of."""
        return f"{START_S} s + {size_text(self.node_bytes())} at {self.settings.disk_mb_s} MB/s"

    def prepared_s(self) -> int:
        """Return how long the init containers may be expected to take, at the disk's speed."""
        # A fetch writes all bytes; a conversion of what was fetched reads and writes them again.
        passes = {FETCH: 1, HUB: 3}.get(self.storage.form, 0)
        return ceil(passes * self.facts.repository_bytes / (self.settings.disk_mb_s * 1_000_000))

    def startup_failures(self) -> Figure:
        """Return how many probes may fail before a start counts as failed."""
        why = f"2 x ({self.startup_reason()}) / {PROBE_S} s"
        return Figure(ceil(2 * self.startup_s() / PROBE_S), why, "server.startupFailures")

    def grace_s(self) -> Figure:
        """Return how long a Pod with a server may take to end."""
        return self._grace_s("server", "Triton's exit timeout")

    def front_grace_s(self, component: str) -> Figure:
        """Return how long a Pod of what stands before the servers may take to end."""
        return self._grace_s(component, "--drain")

    def _grace_s(self, component: str, limit: str) -> Figure:
        drain = self.settings.drain_s
        why = f"preStop {PRE_STOP_S} + {limit} {drain} + {STOP_MARGIN_S} to end"
        return Figure(PRE_STOP_S + drain + STOP_MARGIN_S, why, f"{component}.graceSeconds")

    def shm_bytes(self) -> int:
        """Return the size of /dev/shm."""
        nccl = NCCL_SHM_BYTES if self.facts.ranks > 1 else 0
        # The runtime's own process, of Python for llmapi and reference, is one more.
        return (self.text_processes + 1) * REGION_BYTES + nccl

    def shm(self) -> Figure:
        """Return the size of /dev/shm, as a quantity."""
        nccl = f", {NCCL_SHM_BYTES // GIB} GiB for NCCL" if self.facts.ranks > 1 else ""
        region = f"{REGION_BYTES // MIB} MiB"
        why = f"{region} for each of {self.text_processes + 1} Python processes{nccl}"
        return Figure(quantity(self.shm_bytes()), why, "server.shm")

    def memory_bytes(self) -> int:
        """Return the host memory of a Pod; what lies in /dev/shm counts."""
        text = self.text_processes * (TEXT_PROCESS_BYTES + VOCABULARY_BYTES * self.facts.vocab)
        ranks = self.node_ranks * RANK_HOST_BYTES
        return self.loaded_bytes() + ranks + text + self.shm_bytes()

    def loaded_bytes(self) -> int:
        """Return the bytes of weights that a node holds in memory while it loads."""
        need = self.facts.gpu
        return self.facts.repository_bytes if need is None else self.node_ranks * need.weights_bytes

    def memory(self) -> Figure:
        """Return the host memory, as a quantity."""
        why = (
            f"weights read {size_text(self.loaded_bytes())}, {RANK_HOST_BYTES // GIB} GiB for each "
            f"of {self.node_ranks} rank(s), {self.text_processes} text processes for "
            f"{self.facts.vocab} tokens, /dev/shm"
        )
        return Figure(quantity(self.memory_bytes()), why, "server.memory")

    def cpus(self) -> Figure:
        """Return the processors of a Pod."""
        busy = min(self.text_processes, _BUSY_PROCESSES)
        count = self.node_ranks * RANK_CPUS + busy + ceil((self.text_processes - busy) / 4)
        why = (
            f"{RANK_CPUS} for each of {self.node_ranks} rank(s), 1 for {busy} of "
            f"{self.text_processes} text processes, 1/4 for the rest"
        )
        return Figure(str(count), why, "server.cpu")

    def ephemeral(self) -> Figure:
        """Return the local disk of a Pod."""
        held = self.facts.repository_bytes
        fetched = {FETCH: held, HUB: 2 * held}.get(self.storage.form, 0)
        why = f"{SCRATCH_BYTES // GIB} GiB for kernels compiled at run time and logs"
        if fetched:
            again = ", and converted" if self.storage.form == HUB else ""
            why += f", {size_text(held)} fetched{again}"
        return Figure(quantity(SCRATCH_BYTES + fetched), why, "server.ephemeralStorage")

    def image(self) -> Figure:
        """Return the server's image."""
        return Figure(self.facts.image, self.facts.image_why, "server.image")

    def own_image(self) -> Figure:
        """Return the image that has minitron-trt: the gateway's."""
        image = self.settings.gateway_image
        why = "named by --gateway-image" if image else "made by image/Containerfile"
        return Figure(image or OWN_IMAGE, why, "gateway.image")

    def to_json(self) -> dict[str, Any]:
        """Return the record that a manifest keeps, from which `check` derives every number."""
        return {"server": self.facts.to_json(), "settings": asdict(self.settings)}


def quantity(size_bytes: int) -> str:
    """Return bytes as a quantity of Kubernetes, in whole MiB."""
    return f"{ceil(size_bytes / MIB)}Mi"


def port(name: str) -> Figure:
    """Return one of the server's ports: http, grpc or metrics."""
    return Figure(getattr(ENDPOINTS, f"{name}_port"), f"Triton's {name} port")
