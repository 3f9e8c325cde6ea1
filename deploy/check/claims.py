"""What files promise a server, whatever their format: GPUs, memory and times, with the places."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Final

from minitron_trt.build.trtllm.cluster.pod_parts import COMPONENT, GPU
from minitron_trt.deploy.check.files import Document, FieldPath, entries, mapping, words
from minitron_trt.deploy.compose import COMPOSE_NAME
from minitron_trt.deploy.dynamo_graph import GRAPH
from minitron_trt.deploy.pods import SERVER, WORKER
from minitron_trt.deploy.slurm_files import SCRIPT_NAME
from minitron_trt.deploy.workloads import KSERVE_CONTAINER
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.report import Finding, Severity

# Kubernetes' suffixes. Its m is a thousandth, of bytes as of processors: 512m are no megabytes.
_UNITS: Final = {
    "m": 0.001,
    "": 1,
    **{f"{letter}i": 1024**power for power, letter in enumerate("KMGTPE", 1)},
    **{letter: 1000**power for power, letter in enumerate("kMGTPE", 1)},
}
_QUANTITY: Final = re.compile(r"(\d+(?:\.\d*)?(?:[eE][-+]?\d{1,2})?)([A-Za-z]*)")
_SECONDS: Final = re.compile(r"(?:(\d+)m)?(?:(\d+)s)?")
_SBATCH: Final = "#SBATCH"
_SHORT: Final = {"-N": "nodes", "-G": "gpus"}
_EXIT: Final = re.compile(r"--exit-timeout-secs=(\d+)")
_TEMPLATES: Final[Mapping[str, tuple[FieldPath, ...]]] = {
    "Pod": ((),),
    **dict.fromkeys(
        ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet", "Job"), (("spec", "template"),)
    ),
    "CronJob": (("spec", "jobTemplate", "spec", "template"),),
    "LeaderWorkerSet": (
        ("spec", "leaderWorkerTemplate", "leaderTemplate"),
        ("spec", "leaderWorkerTemplate", "workerTemplate"),
    ),
}


@dataclass(frozen=True, slots=True)
class Claim:
    """A number that a file promises, and where; `finding` makes one of it."""

    value: float
    file: str
    field: str
    line: int

    def finding(self, found: str, *, expected: str, remedy: str = "") -> Finding:
        """Return what is wrong with it."""
        return Finding(
            Severity.ERROR,
            file=self.file,
            field=self.field,
            found=found,
            expected=expected,
            remedy=remedy,
            line=self.line,
        )


@dataclass(frozen=True, slots=True)
class ServerClaims:
    """What one server is promised: bytes, seconds and counts; what nothing is said of is absent."""

    what: Claim
    numbers: Mapping[str, Claim]


@dataclass(frozen=True, slots=True)
class PodTemplate:
    """A Pod that an object makes: where its template stands, its labels and its spec."""

    document: Document
    path: FieldPath
    labels: Mapping[str, str]
    spec: Mapping[str, Any]

    @property
    def component(self) -> str:
        """Return what the Pod is for."""
        return str(self.labels.get(COMPONENT, ""))

    @property
    def spec_path(self) -> FieldPath:
        """Return where its spec stands."""
        # KServe's predictor has a Pod's fields among its own.
        return self.path if self.document.kind == "InferenceService" else (*self.path, "spec")

    @property
    def container(self) -> Mapping[str, Any]:
        """Return the container that does what the Pod is for; others may stand beside it."""
        return dict(entries(self.spec.get("containers"))).get(self._place, {})

    @property
    def container_path(self) -> FieldPath:
        """Return where that container stands."""
        return (*self.spec_path, "containers", self._place)

    @property
    def claims_devices(self) -> bool:
        """Say whether its GPUs come by resource claims, which choose them by rules of their own."""
        return bool(entries(mapping(self.container.get("resources")).get("claims")))

    @property
    def _place(self) -> int:
        """Return its place: that of its name, else that of one with a GPU, else the first."""
        containers = entries(self.spec.get("containers"))
        names = (self.component, KSERVE_CONTAINER)
        named = [place for place, each in containers if each.get("name") in names]
        with_gpu = [
            place
            for place, each in containers
            if GPU in mapping(mapping(each.get("resources")).get("limits"))
        ]
        return next(iter((*named, *with_gpu)), 0)


def pod_templates(documents: list[Document]) -> Iterator[PodTemplate]:
    """Yield the Pods of every whole object that makes some."""
    for document in (each for each in documents if not each.is_patch):
        if document.kind == "InferenceService":
            path: FieldPath = ("spec", "predictor")
            predictor = document.at(*path)
            if isinstance(predictor, dict):
                found = mapping(predictor.get("labels"))
                yield PodTemplate(document, path, found, predictor)
        for path in (*_TEMPLATES.get(document.kind, ()), *_components(document)):
            spec = document.at(*path, "spec")
            if isinstance(spec, dict):
                found = mapping(document.at(*path, "metadata", "labels"))
                yield PodTemplate(document, path, found, spec)


def _components(document: Document) -> Iterator[FieldPath]:
    """Yield where a graph of Dynamo's has the templates of its components."""
    if document.kind == GRAPH:
        for place, _ in entries(document.at("spec", "components")):
            yield ("spec", "components", place, "podTemplate")


def ports_of(pod: PodTemplate) -> list[Any]:
    """Return the ports of a Pod's containers, by name and by number, whatever stands there."""
    ports = [
        port
        for _, container in entries(pod.spec.get("containers"))
        for _, port in entries(container.get("ports"))
    ]
    named = (port.get(key) for port in ports for key in ("name", "containerPort"))
    return [each for each in named if each is not None]


def read_claims(folder: Path, documents: list[Document]) -> Iterator[ServerClaims]:
    """Yield what is promised to each server, of whatever format the files are."""
    for pod in pod_templates(documents):
        if pod.component in (SERVER, WORKER):
            yield _of_pod(pod)
    for document in documents:
        if document.file == COMPOSE_NAME and isinstance(document.at("services", SERVER), dict):
            yield _of_compose(document)
    if (folder / SCRIPT_NAME).is_file():
        yield _of_script(read_text(folder / SCRIPT_NAME))


def _of_pod(pod: PodTemplate) -> ServerClaims:
    container = pod.container_path
    resources = (*container, "resources", "limits")
    shm: FieldPath = next(
        (
            (*pod.spec_path, "volumes", place, "emptyDir", "sizeLimit")
            for place, volume in entries(pod.spec.get("volumes"))
            if mapping(volume.get("emptyDir")).get("medium") == "Memory"
        ),
        (),
    )
    places: dict[str, FieldPath] = {
        "gpus": (*resources, GPU),
        "memory": (*resources, "memory"),
        "shm": shm,
        "grace": (*pod.spec_path, "terminationGracePeriodSeconds"),
        "pre_stop": (*container, "lifecycle", "preStop", "sleep", "seconds"),
    }
    numbers = {
        name: _claim(pod.document, path, value)
        for name, path in places.items()
        if path and (value := amount_of(pod.document.at(*path))) is not None
    }
    if pod.claims_devices:
        numbers.setdefault("gpus", _claim(pod.document, (*container, "resources"), math.inf))
    if pod.component == SERVER:
        # Without a startup probe, the first liveness probes that fail end the Pod.
        probes = [(*container, name) for name in ("startupProbe", "livenessProbe")]
        for probe in (path for path in probes if mapping(pod.document.at(*path))):
            numbers["startup"] = _claim(pod.document, probe, _patience(pod.document.at(*probe)))
            break
    argv = words(pod.container.get("command")) + words(pod.container.get("args"))
    numbers |= _exit_timeout(argv, _claim(pod.document, (*container, "args"), 0))
    return ServerClaims(_claim(pod.document, container, 0), numbers)


def _patience(probe: Mapping[str, Any]) -> float:
    """Return the seconds after which a probe that never succeeds counts as failed."""
    # What Kubernetes takes where the file does not say.
    period, failures, delay = (
        amount_of(probe.get(name, default)) or 0
        for name, default in (
            ("periodSeconds", 10),
            ("failureThreshold", 3),
            ("initialDelaySeconds", 0),
        )
    )
    return delay + period * failures


def _claim(document: Document, path: FieldPath, value: float) -> Claim:
    return Claim(value, document.file, document.field(*path), document.line(*path))


def _exit_timeout(argv: list[str], place: Claim) -> dict[str, Claim]:
    match = next((found for word in argv if (found := _EXIT.fullmatch(word))), None)
    if match is None:
        return {}
    return {"exit_timeout": Claim(int(match[1]), place.file, place.field, place.line)}


def _of_compose(document: Document) -> ServerClaims:
    service = ("services", SERVER)
    places: dict[str, FieldPath] = {
        "memory": (*service, "mem_limit"),
        "shm": (*service, "shm_size"),
    }
    numbers = {
        name: _claim(document, path, value)
        for name, path in places.items()
        if (value := amount_of(document.at(*path), binary=True)) is not None
    }
    if reserved := _compose_gpus(document, service):
        numbers["gpus"] = _claim(document, *reserved)
    times: dict[str, FieldPath] = {
        "grace": (*service, "stop_grace_period"),
        "startup": (*service, "healthcheck", "start_period"),
    }
    for name, path in times.items():
        # Both parts are optional, so that an empty text matches as well.
        match = _SECONDS.fullmatch(str(document.at(*path) or ""))
        if match and match[0]:
            seconds = int(match[1] or 0) * 60 + int(match[2] or 0)
            numbers[name] = _claim(document, path, seconds)
    argv = words(document.at(*service, "command"))
    numbers |= _exit_timeout(argv, _claim(document, (*service, "command"), 0))
    return ServerClaims(_claim(document, service, 0), numbers)


def _compose_gpus(document: Document, service: FieldPath) -> tuple[FieldPath, float] | None:
    """Return where a service asks for GPUs, and for how many, in any of the three forms."""
    forms: tuple[FieldPath, ...] = (
        (*service, "deploy", "resources", "reservations", "devices"),
        (*service, "gpus"),
    )
    for path in forms:
        if document.at(*path) == "all":
            return path, math.inf
        if devices := entries(document.at(*path)):
            place, device = next((each for each in devices if _is_gpu(each[1])), devices[0])
            return (*path, place), _reserved(device)
    runtime = (*service, "runtime")
    # Docker's older form; which GPUs there are then, a variable of the image says.
    return (runtime, math.inf) if document.at(*runtime) == "nvidia" else None


def _is_gpu(device: Mapping[str, Any]) -> bool:
    return "gpu" in words(device.get("capabilities")) or device.get("driver") == "nvidia"


def _reserved(device: Mapping[str, Any]) -> float:
    """Return how many GPUs compose reserves: so many, those named, or all that there are (inf)."""
    if isinstance(named := device.get("device_ids"), list):
        return len(named)
    count = device.get("count", "all")
    # What compose fills in from the shell may be any number.
    is_open = count == "all" or str(count).startswith("$")
    return math.inf if is_open else amount_of(count) or 0


def _of_script(text: str) -> ServerClaims:
    """Return what a script of Slurm asks for, of each node."""
    # Of what follows the first command, sbatch reads nothing.
    head = takewhile(lambda line: line.strip()[:1] in ("", "#"), text.splitlines())
    given = {
        option: (word, number)
        for number, line in enumerate(head, 1)
        for option, word in _sbatch_options(line)
    }
    numbers: dict[str, Claim] = {}
    for key, options in _SLURM.items():
        for option in (each for each in options if each in given):
            word, number = given[option]
            if key not in numbers and (value := options[option](word)) is not None:
                numbers[key] = Claim(value, SCRIPT_NAME, f"--{option}", number)
    gpus, nodes = numbers.get("gpus"), numbers.get("nodes")
    if gpus and nodes and gpus.field == "--gpus":
        numbers["gpus"] = replace(gpus, value=gpus.value / max(nodes.value, 1))
    timeout = _EXIT.search(text)
    if timeout:
        before = text[: timeout.start()].count("\n")
        numbers["exit_timeout"] = Claim(int(timeout[1]), SCRIPT_NAME, timeout[0], before + 1)
    return ServerClaims(Claim(0, SCRIPT_NAME, "", 1), numbers)


def _sbatch_options(line: str) -> Iterator[tuple[str, str]]:
    """Yield the options of a line by their long names, with their values; it may have several."""
    if not line.startswith(_SBATCH):
        return
    try:
        rest = shlex.split(line.removeprefix(_SBATCH), comments=True)
    except ValueError:
        # A quotation without an end, which sbatch refuses by itself.
        return
    for place, word in enumerate(rest):
        name, equals, value = word.partition("=")
        if word[:2] in _SHORT:
            name, equals, value = f"--{_SHORT[word[:2]]}", word[2:], word[2:]
        if not name.startswith("--"):
            continue
        # A value may follow a space as well as an equals sign.
        after = rest[place + 1] if place + 1 < len(rest) else ""
        yield name.removeprefix("--"), value if equals else after


def _slurm_count(word: str) -> float:
    # A type may come first: h100:2.
    return amount_of(word.rpartition(":")[2]) or 0


def _slurm_gres(word: str) -> float | None:
    shares = [share.split(":") for share in word.split(",")]
    counts = [amount_of(share[-1]) for share in shares if share[0] == "gpu"]
    # gpu and gpu:h100 are one.
    return (1 if counts[0] is None else counts[0]) if counts else None


def _slurm_bytes(word: str) -> float:
    # Without a unit MiB; 0 is all that a node has.
    size = amount_of(f"{word}M" if word.isdigit() else word, binary=True)
    return math.inf if size == 0 else size or 0


# By number: the options of sbatch that say it, the one that is heeded before the others first. Each
# gives 0 for what is no amount, None where it says nothing of the number.
_SLURM: Final[Mapping[str, Mapping[str, Callable[[str], float | None]]]] = {
    "gpus": {
        "gpus-per-node": _slurm_count,
        "gres": _slurm_gres,
        # Of the whole job.
        "gpus": _slurm_count,
        # How many a node has by its tasks is not counted here: it may be all of them.
        "gpus-per-task": lambda _: math.inf,
        "tres-per-task": lambda word: math.inf if "gres/gpu" in word else None,
        "exclusive": lambda word: None if word in ("user", "mcs") else math.inf,
    },
    "memory": {"mem": _slurm_bytes},
    # B:TERM@130: so many seconds before its end a job hears of it; 60 where it does not say.
    "grace": {"signal": lambda word: amount_of(word.partition("@")[2] or "60") or 0},
    # Of a range, 2-4, the least is what a job may count on.
    "nodes": {"nodes": lambda word: amount_of(word.partition("-")[0]) or 0},
}


def amount_of(value: Any, *, binary: bool = False) -> float | None:
    """Return what a quantity comes to; None where it is none. `binary`: m and g are of 1024."""
    match = _QUANTITY.fullmatch(str(value)) if isinstance(value, str | int | float) else None
    if match is None or isinstance(value, bool):
        return None
    unit = match[2]
    if binary and unit:
        unit = f"{unit[0].upper()}i"
    return float(match[1]) * _UNITS[unit] if unit in _UNITS else None
