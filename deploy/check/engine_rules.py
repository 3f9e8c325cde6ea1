"""What files promise a server against what its engine takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from minitron_trt.build.containers import find_container, same_version
from minitron_trt.build.trtllm.cluster.pod_parts import GPU, capability_labels
from minitron_trt.console import size_text
from minitron_trt.deploy.check.claims import PodTemplate, ServerClaims, pod_templates
from minitron_trt.deploy.check.files import Document, FieldPath, entries, mapping, words
from minitron_trt.deploy.deployment import MIB, Deployment
from minitron_trt.deploy.pods import SERVER, WORKER
from minitron_trt.errors import MinitronError, UnsupportedError
from minitron_trt.gpus import find_gpu
from minitron_trt.triton_repo.check.report import Finding
from minitron_trt.triton_repo.runtimes.runtime_names import TRTLLM

_MEMORY_LABEL: Final = f"{GPU}.memory"
_PRODUCT_LABEL: Final = f"{GPU}.product"
_REQUIRED: Final = "requiredDuringSchedulingIgnoredDuringExecution"


def check_claims(claims: ServerClaims, deployment: Deployment) -> Iterator[Finding]:
    """Check GPUs, memory and times against the forecast."""
    numbers = claims.numbers
    if deployment.facts.gpu is not None:
        gpus = numbers.get("gpus")
        # All GPUs of a machine, inf, may be as many as are needed.
        if gpus is None or gpus.value not in (deployment.node_ranks, math.inf):
            there = "no GPUs" if gpus is None else f"{gpus.value:.0f} GPU(s)"
            why = deployment.gpus().why
            yield (gpus or claims.what).finding(there, expected=f"{deployment.node_ranks}: {why}")
    nodes = numbers.get("nodes")
    if nodes is not None and nodes.value != deployment.nodes:
        yield nodes.finding(f"{nodes.value:.0f} nodes", expected=f"{deployment.nodes}")
    yield from _sizes(claims, deployment)
    yield from _times(claims, deployment)


def _sizes(claims: ServerClaims, deployment: Deployment) -> Iterator[Finding]:
    forecasts = {
        "memory": (deployment.memory_bytes(), deployment.memory().why),
        "shm": (deployment.shm_bytes(), deployment.shm().why),
    }
    for name, (needed, why) in forecasts.items():
        claim = claims.numbers.get(name)
        if claim is not None and claim.value < needed:
            yield claim.finding(
                f"{size_text(int(claim.value))}, below the forecast",
                expected=f"at least {size_text(needed)}: {why}",
            )


def _times(claims: ServerClaims, deployment: Deployment) -> Iterator[Finding]:
    numbers, start = claims.numbers, deployment.startup_s()
    startup = numbers.get("startup")
    if startup is not None and startup.value < start:
        yield startup.finding(
            f"probes give up after {startup.value:.0f} s, while the engine may still load",
            expected=f"at least the {start} s of a start: {deployment.startup_reason()}",
        )
    grace, timeout = numbers.get("grace"), numbers.get("exit_timeout")
    if grace is not None and timeout is not None:
        before = numbers["pre_stop"].value if "pre_stop" in numbers else 0
        # Triton ends by itself at its timeout, and needs a moment more than that.
        if grace.value <= before + timeout.value:
            yield grace.finding(
                f"{grace.value:.0f} s to end, of which preStop takes {before:.0f} s and Triton's "
                f"exit timeout {timeout.value:.0f} s: running requests are cut",
                expected=f"at least {deployment.grace_s().value}",
            )


@dataclass(frozen=True, slots=True)
class _Requirement:
    """One thing that a node must have, and where the file says so."""

    key: str
    operator: str
    values: tuple[str, ...]
    path: FieldPath


def check_placement(documents: list[Document], deployment: Deployment) -> Iterator[Finding]:
    """Check that servers go to nodes which can run the engine, with an image that can."""
    for pod in pod_templates(documents):
        if pod.component in (SERVER, WORKER):
            yield from _nodes(pod, deployment)
            yield from _image(pod, deployment)


def _nodes(pod: PodTemplate, deployment: Deployment) -> Iterator[Finding]:
    need = deployment.facts.gpu
    if need is None:
        return
    required = list(_requirements(pod))
    # A product says what its GPUs can do.
    products = [_sm_of(name) for each in required if _is_product(each) for name in each.values]
    is_chosen = pod.claims_devices or (bool(products) and set(products) == {need.sm})
    for key, value in capability_labels(need.sm).items():
        known = [each for each in required if each.key == key]
        if not (known or is_chosen):
            yield pod.document.finding(
                pod.spec_path,
                f"no node is required to have {key}",
                expected=f"{key} {value}: the engine runs on SM{need.sm} alone",
            )
        for each in known:
            if each.operator != "In" or set(each.values) != {value}:
                yield pod.document.finding(
                    each.path,
                    f"{key} {each.operator} {', '.join(each.values)}, whose GPUs cannot run the "
                    f"engine for SM{need.sm}",
                    expected=f"In {value}",
                )
    for each in required:
        yield from _of_gpu(pod, each, deployment)


def _of_gpu(pod: PodTemplate, each: _Requirement, deployment: Deployment) -> Iterator[Finding]:
    """Check a requirement about the GPU's memory or product."""
    need = deployment.facts.gpu
    assert need is not None
    if each.key == _MEMORY_LABEL and each.operator == "Gt":
        needed = need.needed_bytes // MIB
        if not each.values or not each.values[0].isdigit() or int(each.values[0]) < needed:
            yield pod.document.finding(
                each.path,
                f"GPUs with more than {', '.join(each.values)} MiB, below the forecast",
                expected=f"{needed}: {deployment.gpu_mib().why}",
            )
    if _is_product(each):
        for product in each.values:
            sm = _sm_of(product)
            if sm is not None and sm != need.sm:
                yield pod.document.finding(
                    each.path,
                    f"{product} is SM{sm}",
                    expected=f"a product of SM{need.sm}, for which the engine is",
                )


def _is_product(each: _Requirement) -> bool:
    return each.key == _PRODUCT_LABEL and each.operator == "In"


def _sm_of(product: str) -> int | None:
    """Return the SM of a product as its node's label has it; None where it is not known."""
    words = product.split("-")
    # A label ends in what tells products of one GPU apart, such as 80GB-HBM3.
    for end in range(len(words), 0, -1):
        try:
            return find_gpu("-".join(words[:end])).sm
        except MinitronError:
            continue
    return None


def _requirements(pod: PodTemplate) -> Iterator[_Requirement]:
    """Yield what nodes must have; each of several terms must do by itself, as any may hold."""
    for key, value in mapping(pod.spec.get("nodeSelector")).items():
        path = (*pod.spec_path, "nodeSelector", key)
        yield _Requirement(key, "In", (str(value),), path)
    place = ("affinity", "nodeAffinity", _REQUIRED, "nodeSelectorTerms")
    for number, term in entries(pod.document.at(*pod.spec_path, *place)):
        for index, each in entries(term.get("matchExpressions")):
            yield _Requirement(
                str(each.get("key")),
                str(each.get("operator")),
                tuple(words(each.get("values"))),
                (*pod.spec_path, *place, number, "matchExpressions", index),
            )


def _image(pod: PodTemplate, deployment: Deployment) -> Iterator[Finding]:
    image, version = str(pod.container.get("image", "")), deployment.facts.tensorrt_llm
    if deployment.facts.runtime != TRTLLM or version is None or "trtllm" not in image:
        return
    try:
        container = find_container(image)
    # The name of an image of one's own does not say what is in it.
    except UnsupportedError:
        return
    if not same_version(container.trtllm, version):
        yield pod.document.finding(
            (*pod.container_path, "image"),
            f"{container.tag} has TensorRT-LLM {container.trtllm}",
            expected=f"an image with {version}, which built the engine: {deployment.facts.image}",
        )
