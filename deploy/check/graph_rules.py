"""A graph of Dynamo's against itself: what its operator wants, and what it makes of the graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from minitron_trt.deploy.check.claims import PodTemplate, pod_templates, ports_of
from minitron_trt.deploy.check.files import Document, FieldPath, entries, words
from minitron_trt.deploy.dynamo_graph import (
    ADAPTER,
    FIXED_PORTS,
    FRONTEND_TYPE,
    GRAPH,
    HTTP_PORT,
    MAIN,
)
from minitron_trt.triton_repo.check.report import Finding, Severity


def check_graphs(documents: list[Document]) -> Iterator[Finding]:
    """Check that each component has the container that the operator looks for, and its ports."""
    for document, place, component in _components(documents):
        if component.get("scalingAdapter") is not None:
            path = ("spec", "components", place, "replicas")
            yield from replicas_beside_autoscaler(document, path)
    for pod in pod_templates(documents):
        if pod.document.kind != GRAPH:
            continue
        containers = entries(pod.spec.get("containers"))
        if all(container.get("name") != MAIN for _, container in containers):
            yield pod.document.finding(
                (*pod.spec_path, "containers"),
                f"no container is named {MAIN}",
                expected="one: the operator tells it where frontend and workers find each other",
            )
        for place, container in containers:
            within = (*pod.spec_path, "containers", place)
            yield from _triton_beside(pod, within, container)
            yield from _fixed_ports(pod, within, container)


def replicas_beside_autoscaler(document: Document, path: FieldPath) -> Iterator[Finding]:
    """Warn of replicas of something that an autoscaler scales."""
    if (found := document.at(*path)) is not None:
        yield document.finding(
            path,
            f"{found} replicas, though an autoscaler has them: applied again, the files take its "
            "replicas away, or are refused",
            remedy="leave them out",
            severity=Severity.WARNING,
        )


def _triton_beside(
    pod: PodTemplate, path: FieldPath, container: dict[str, Any]
) -> Iterator[Finding]:
    command = words(container.get("command"))
    if "dynamo-worker" not in command or "--url" not in command[:-1]:
        return
    place = command.index("--url") + 1
    url = command[place]
    try:
        number = urlsplit(url).port
    except ValueError:
        number = None
    if number not in ports_of(pod):
        yield pod.document.finding(
            (*path, "command", place),
            f"no container beside it has the port of {url}",
            expected="Triton's gRPC port",
        )


def _fixed_ports(pod: PodTemplate, path: FieldPath, container: dict[str, Any]) -> Iterator[Finding]:
    for place, variable in entries(container.get("env")):
        name, value = str(variable.get("name")), str(variable.get("value"))
        if name in FIXED_PORTS and value not in words(ports_of(pod)):
            yield pod.document.finding(
                (*path, "env", place, "value"),
                f"{name} is {value}, which is no port of the Pod; network policies would close it",
                expected="the containerPort of its name",
            )


def adapters_of(documents: list[Document]) -> set[tuple[str, str]]:
    """Return the kind and name of what the operator makes to scale components by."""
    return {
        (ADAPTER, _made_name(document, component))
        for document, _, component in _components(documents)
        if component.get("scalingAdapter") is not None
    }


def services_of(documents: list[Document]) -> dict[str, list[Any]]:
    """Return the Services that the operator makes of frontends, with their ports."""
    return {
        _made_name(document, component): [HTTP_PORT]
        for document, _, component in _components(documents)
        if component.get("type") == FRONTEND_TYPE
    }


def _components(documents: list[Document]) -> Iterator[tuple[Document, int, dict[str, Any]]]:
    """Yield the components of all graphs, each with its place in its own."""
    for document in documents:
        if document.kind == GRAPH:
            for place, component in entries(document.at("spec", "components")):
                yield document, place, component


def _made_name(document: Document, component: dict[str, Any]) -> str:
    """Return the name of what the operator makes for a component."""
    return f"{document.name}-{str(component.get('name')).lower()}"
