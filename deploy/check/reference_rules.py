"""Files against each other: names, selectors, ports, references, and no secrets in plain text."""

from __future__ import annotations

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from minitron_trt.build.trtllm.cluster.pod_parts import is_name
from minitron_trt.deploy.check.claims import PodTemplate, pod_templates, ports_of
from minitron_trt.deploy.check.files import (
    KUSTOMIZATIONS,
    Document,
    FieldPath,
    entries,
    mapping,
    objects,
    patch_files,
    words,
)
from minitron_trt.deploy.check.graph_rules import (
    adapters_of,
    replicas_beside_autoscaler,
    services_of,
)
from minitron_trt.deploy.dynamo_graph import GRAPH
from minitron_trt.deploy.pods import SERVER
from minitron_trt.deploy.reachability import PICKER
from minitron_trt.triton_repo.check.report import Finding

# DNS's limits: of a whole name, and of one of its labels, which a Service's name becomes.
_LONGEST_NAME: Final = 253
_LONGEST_SERVICE: Final = 63
_RBAC: Final = "rbac.authorization.k8s.io/"
# Kubernetes makes it in every namespace.
_USUAL_MAP: Final = "kube-root-ca.crt"
# Not TOKENIZERS_PARALLELISM or MAX_TOKENS, nor what says where the secret is, or something of it.
_SECRET_WORD: Final = re.compile(
    r"(?i)(token(?![a-z])|password|passwd|secret|api_?key|(?<!application_)credential)"
    r"(?!.*_(?:file|path|dir|name|url|type|policy|length|limit|count|ttl|seconds|ms)$)"
)
# A switch (HF_HUB_DISABLE_IMPLICIT_TOKEN=1), or another variable of the container.
_NO_SECRET: Final = re.compile(r"(?i)true|false|yes|no|on|off|[01]|\$\(\w+\)")
# What kustomize fetches from elsewhere: a URL, or a repository of git.
_REMOTE: Final = re.compile(r"://|\?ref=|^git@|^github\.com/")
# Kinds that choose Pods, and where.
_SELECTORS: Final[Mapping[str, FieldPath]] = {
    "Service": ("spec", "selector"),
    "Deployment": ("spec", "selector"),
    "PodDisruptionBudget": ("spec", "selector"),
    "NetworkPolicy": ("spec", "podSelector"),
    "PodMonitor": ("spec", "selector"),
    "InferencePool": ("spec", "selector"),
}

# What the controllers of other kinds make, by its kind and what is put to the object's name.
_MADE: Final[Mapping[str, tuple[tuple[str, str], ...]]] = {
    "LeaderWorkerSet": (("Service", ""), ("StatefulSet", "")),
    "InferenceService": (
        ("Deployment", "-predictor"),
        ("Service", "-predictor"),
        ("HTTPRoute", ""),
        ("HTTPRoute", "-predictor"),
    ),
}


def check_references(folder: Path, documents: list[Document]) -> Iterator[Finding]:
    """Check everything that one object says of another."""
    found = objects(documents)
    pods = list(pod_templates(found))
    yield from _names(found)
    yield from _selectors(found, pods)
    yield from _scale_targets(found)
    yield from _routes(found)
    for pod in pods:
        yield from _volumes(pod, documents)
        yield from _gateway(pod, found)
    for document in documents:
        yield from _plain_secrets(document)
        yield from _picker(document, pods)
    yield from _resources(folder, documents)


def _names(documents: list[Document]) -> Iterator[Finding]:
    overlays: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for each in documents:
        overlays[_identity(each)].append(_overlay(each))
    for each in documents:
        is_allowed, expected = _name_rule(each)
        if not is_allowed:
            yield each.finding(
                ("metadata", "name"),
                f"{each.name!r} is no name that Kubernetes allows",
                expected=expected,
            )
        # Two of different overlays are never applied together.
        namesakes = Counter(overlays[_identity(each)])
        if namesakes[_overlay(each)] > 1 or (namesakes[""] and len(namesakes) > 1):
            yield each.finding(
                ("metadata", "name"), "another object has this kind and this name, too"
            )
    made = _made(documents)
    for each in documents:
        if maker := made.get((each.kind, each.name)):
            yield each.finding(
                ("metadata", "name"),
                f"{maker} makes a {each.kind} of this name, and would find this one in its place",
                expected="another name",
            )


def _name_rule(document: Document) -> tuple[bool, str]:
    """Return whether Kubernetes takes an object's name, and what it takes."""
    name = document.name
    if str(document.value.get("apiVersion")).startswith(_RBAC):
        # As of a part of a URL's path: system:auth-delegator.
        return name not in ("", ".", "..") and not {*"/%"} & {*name}, "a name without / and %"
    if document.kind == "Service":
        fits = is_name(name) and "." not in name and len(name) <= _LONGEST_SERVICE
        return fits, f"small letters, digits and -, at most {_LONGEST_SERVICE}"
    fits = is_name(name) and len(name) <= _LONGEST_NAME
    return fits, f"small letters, digits, - and ., at most {_LONGEST_NAME}"


def _identity(document: Document) -> tuple[str, ...]:
    """Return what tells an object from all others of a cluster: two that agree in it are one."""
    group = str(document.value.get("apiVersion", "")).rpartition("/")[0]
    return group, document.kind, str(document.at("metadata", "namespace") or ""), document.name


def _overlay(document: Document) -> str:
    """Return the overlay that a file is of; "" for what is in all of them."""
    return posixpath.dirname(document.file) if document.file.startswith("overlays/") else ""


def _made(documents: list[Document]) -> dict[tuple[str, str], str]:
    """Return what controllers make, by kind and name, and of which object."""
    made = {
        (kind, f"{each.name}{suffix}"): f"{each.kind} {each.name}"
        for each in documents
        for kind, suffix in _MADE.get(each.kind, ())
    }
    made |= dict.fromkeys(adapters_of(documents), GRAPH)
    return made | dict.fromkeys((("Service", name) for name in services_of(documents)), GRAPH)


def _selectors(documents: list[Document], pods: list[PodTemplate]) -> Iterator[Finding]:
    for each in documents:
        path = _SELECTORS.get(each.kind)
        for place in (*([path] if path else ()), *_peers(each)):
            selector = each.at(*place)
            if not isinstance(selector, dict) or each.at("spec", "namespaceSelector"):
                continue
            # A Service has labels alone.
            if each.kind == "Service":
                selector = {"matchLabels": selector}
            chosen = [pod for pod in pods if _chooses(selector, pod.labels)]
            if not chosen:
                yield each.finding(
                    place, f"no Pod here has {_text(selector)}", expected="the labels of a Pod"
                )
            for pod in chosen if place == path else ():
                yield from _ports(each, pod)


def _peers(policy: Document) -> Iterator[FieldPath]:
    """Yield where a policy chooses Pods of its own namespace whom it lets in, or reach."""
    if policy.kind != "NetworkPolicy":
        return
    for direction, peers in (("ingress", "from"), ("egress", "to")):
        for number, rule in entries(policy.at("spec", direction)):
            for place, peer in entries(rule.get(peers)):
                if "namespaceSelector" not in peer and peer.get("podSelector"):
                    yield ("spec", direction, number, peers, place, "podSelector")


def _chooses(selector: Mapping[str, Any], labels: Mapping[str, Any]) -> bool:
    """Say whether a selector chooses a Pod; of expressions those with In are known."""
    return all(labels.get(key) == value for key, value in _wanted(selector).items()) and all(
        str(labels.get(str(each.get("key")))) in words(each.get("values"))
        for _, each in entries(selector.get("matchExpressions"))
        if each.get("operator") == "In"
    )


def _wanted(selector: Mapping[str, Any]) -> dict[str, Any]:
    return mapping(selector.get("matchLabels"))


def _text(selector: Mapping[str, Any]) -> str:
    """Return what a selector wants."""
    some = [
        f"{each.get('key')} {each.get('operator')} {each.get('values')}"
        for _, each in entries(selector.get("matchExpressions"))
    ]
    wanted = [f"{key}={value}" for key, value in _wanted(selector).items()]
    return f"the labels {', '.join((*wanted, *some))}"


def _ports(document: Document, pod: PodTemplate) -> Iterator[Finding]:
    """Check the ports that an object names in the Pods that it chooses."""
    there = ports_of(pod)
    wanted: list[tuple[FieldPath, Any]] = []
    if document.kind == "Service":
        for place, port in entries(document.at("spec", "ports")):
            path: FieldPath = ("spec", "ports", place)
            wanted.append((path, port.get("targetPort", port.get("port"))))
    if document.kind == "PodMonitor":
        for place, port in entries(document.at("spec", "podMetricsEndpoints")):
            number = port.get("port", port.get("portNumber"))
            wanted.append((("spec", "podMetricsEndpoints", place, "port"), number))
    if document.kind == "InferencePool":
        for place, port in entries(document.at("spec", "targetPorts")):
            wanted.append((("spec", "targetPorts", place), port.get("number")))
    if document.kind == "NetworkPolicy":
        for rule, each in entries(document.at("spec", "ingress")):
            for place, port in entries(each.get("ports")):
                path = ("spec", "ingress", rule, "ports", place)
                # A range may reach beyond what the Pod has.
                wanted.append((path, None if "endPort" in port else port.get("port")))
    for path, port in wanted:
        # A policy without a number opens all.
        if port is not None and port not in there:
            names = ", ".join(map(str, sorted(there, key=str)))
            yield document.finding(
                path,
                f"{pod.document.kind} {pod.document.name} has no port {port}",
                expected=f"one of {names}",
            )


def _scale_targets(documents: list[Document]) -> Iterator[Finding]:
    there = {(each.kind, each.name): each for each in documents}
    made = _made(documents)
    for each in documents:
        target = each.at("spec", "scaleTargetRef")
        if not isinstance(target, dict):
            continue
        # KEDA's need not say the kind.
        named = (str(target.get("kind", "Deployment")), str(target.get("name")))
        if named in there:
            yield from replicas_beside_autoscaler(there[named], ("spec", "replicas"))
        elif named not in made:
            yield each.finding(
                ("spec", "scaleTargetRef"),
                f"there is no {named[0]} {named[1]} here",
                expected="what has the server's replicas",
            )


def _routes(documents: list[Document]) -> Iterator[Finding]:
    services = {each.name: _service_ports(each) for each in documents if each.kind == "Service"}
    services |= services_of(documents)
    pools = {each.name for each in documents if each.kind == "InferencePool"}
    for each in documents:
        if each.kind not in ("HTTPRoute", "GRPCRoute"):
            continue
        for rule, found in entries(each.at("spec", "rules")):
            for place, backend in entries(found.get("backendRefs")):
                path: FieldPath = ("spec", "rules", rule, "backendRefs", place)
                name, port = str(backend.get("name")), backend.get("port")
                kind = backend.get("kind", "Service")
                if "namespace" in backend or kind not in ("Service", "InferencePool"):
                    # What is elsewhere, or of a gateway's own kinds, is not for this folder.
                    continue
                if kind == "InferencePool":
                    if name not in pools:
                        yield each.finding(path, f"there is no InferencePool {name} here")
                elif name not in services:
                    yield each.finding(path, f"there is no Service {name} here")
                elif port not in services[name]:
                    yield each.finding(path, f"Service {name} has no port {port}")


def _service_ports(service: Document) -> list[Any]:
    return [port.get("port") for _, port in entries(service.at("spec", "ports"))]


def _volumes(pod: PodTemplate, documents: list[Document]) -> Iterator[Finding]:
    maps = {each.name for each in documents if each.kind == "ConfigMap"} | {_USUAL_MAP}
    for each in (each for each in documents if each.is_kustomization):
        maps |= {str(made.get("name")) for _, made in entries(each.at("configMapGenerator"))}
    volumes = entries(pod.spec.get("volumes"))
    claims = entries(pod.document.at("spec", "volumeClaimTemplates"))
    names = [volume.get("name") for _, volume in volumes]
    names += [mapping(claim.get("metadata")).get("name") for _, claim in claims]
    for place, volume in volumes:
        source = mapping(volume.get("configMap"))
        name = source.get("name")
        if name is not None and name not in maps and not source.get("optional"):
            path: FieldPath = (*pod.spec_path, "volumes", place)
            yield pod.document.finding(path, f"there is no ConfigMap {name} here")
    for number, container in entries(pod.spec.get("containers")):
        for place, mount in entries(container.get("volumeMounts")):
            if mount.get("name") not in names:
                path = (*pod.spec_path, "containers", number, "volumeMounts", place)
                yield pod.document.finding(path, f"the Pod has no volume {mount.get('name')}")


def _gateway(pod: PodTemplate, documents: list[Document]) -> Iterator[Finding]:
    """Check that the URL by which a gateway asks Triton is that of a Service with such a port."""
    command = words(pod.container.get("command"))
    if "--url" not in command[:-1]:
        return
    place = command.index("--url") + 1
    path: FieldPath = (*pod.container_path, "command", place)
    try:
        parts = urlsplit(command[place])
        port = parts.port
    except ValueError as error:
        yield pod.document.finding(path, f"no URL: {error}")
        return
    services = {each.name: each for each in documents if each.kind == "Service"}
    # The host may be NAME.NAMESPACE.svc, too.
    name = (parts.hostname or "").partition(".")[0]
    if name not in services:
        yield pod.document.finding(path, f"there is no Service {name} here")
    elif port not in _service_ports(services[name]):
        yield pod.document.finding(path, f"Service {name} has no port {port}")


def _picker(document: Document, pods: list[PodTemplate]) -> Iterator[Finding]:
    """Check that an endpoint picker reads metrics where the servers have them."""
    if document.kind != PICKER:
        return
    there = [port for pod in pods if pod.component == SERVER for port in ports_of(pod)]
    for place, plugin in entries(document.at("plugins")):
        port = mapping(plugin.get("parameters")).get("port")
        if port is not None and port not in there:
            yield document.finding(
                ("plugins", place, "parameters", "port"), f"no server has the port {port}"
            )


def _plain_secrets(document: Document) -> Iterator[Finding]:
    is_secret = document.kind == "Secret" and (document.at("data") or document.at("stringData"))
    shown: list[FieldPath] = [("metadata", "name")] if is_secret else []
    for place, made in entries(document.at("secretGenerator")) if document.is_kustomization else ():
        if made.get("literals"):
            shown.append(("secretGenerator", place, "literals"))
    for path in shown:
        yield document.finding(
            path,
            "a Secret's values stand here, where everybody who has the files can read them",
            remedy="make it with kubectl create secret, and leave it out of the folder",
        )
    for path, name, value in _variables(document.value, ()):
        if _SECRET_WORD.search(name) and value and not _NO_SECRET.fullmatch(value):
            yield document.finding(
                path,
                f"{name} has its value in plain text",
                remedy="take it from a Secret: valueFrom.secretKeyRef",
            )


def _variables(value: Any, path: FieldPath) -> Iterator[tuple[FieldPath, str, str]]:
    """Yield the variables of an object's containers, or of a compose file's services."""
    if isinstance(value, dict):
        name, text = value.get("name"), value.get("value")
        if path and path[-2:-1] == ("env",) and isinstance(name, str) and isinstance(text, str):
            yield path, name, text
        for key, below in value.items():
            if key == "environment":
                for place, variable, each in _of_compose(below):
                    # Compose fills it in from the shell, so that nothing stands here; $$ is a $.
                    if not each.startswith("$") or each.startswith("$$"):
                        yield (*path, key, place), variable, each
            yield from _variables(below, (*path, key))
    if isinstance(value, list):
        for place, below in enumerate(value):
            yield from _variables(below, (*path, place))


def _of_compose(environment: Any) -> Iterator[tuple[str | int, str, str]]:
    """Yield a service's variables with their places, of either form: NAME: value, or NAME=value."""
    if isinstance(environment, dict):
        for name, value in environment.items():
            yield str(name), str(name), "" if value is None else str(value)
    for place, word in enumerate(words(environment)):
        name, _, value = word.partition("=")
        yield place, name, value


def _resources(folder: Path, documents: list[Document]) -> Iterator[Finding]:
    """Check that a kustomization names files that are there, and all of those beside it."""
    for document in documents:
        if not document.is_kustomization:
            continue
        beside = (folder / document.file).parent
        listed = words(document.at("resources"))
        for place, name in enumerate(listed):
            if not (_REMOTE.search(name) or (beside / name).exists()):
                yield document.finding(("resources", place), f"{name} is not there")
        named, patches = {*map(posixpath.normpath, listed), *KUSTOMIZATIONS}, patch_files(document)
        for path in sorted(beside.glob("*.yaml")):
            is_patch = path.relative_to(folder).as_posix() in patches
            if path.name not in named and not is_patch:
                yield document.finding(
                    ("resources",), f"{path.name} lies beside it and is not listed"
                )
