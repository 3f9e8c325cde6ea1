"""Helm fills in the chart, kustomize puts the overlay together, and both come to the base."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned

from minitron_trt.deploy.settings import DYNAMO, KSERVE, KUBERNETES, LEADERWORKERSET
from minitron_trt.deploy.writing import write_files

HELM: Final = os.environ.get("HELM", "")
KUBECTL: Final = os.environ.get("KUBECTL", "")
pytestmark = pytest.mark.skipif(
    not (HELM and KUBECTL),
    reason="make test-helm fetches Helm and kubectl, and names them by HELM and KUBECTL",
)
OPTIONS: Final[dict[str, dict[str, Any]]] = {
    KUBERNETES: {"autoscaler": "hpa", "inference_pool": True},
    LEADERWORKERSET: {"gpus_per_node": 1},
    KSERVE: {"autoscaler": "none"},
    DYNAMO: {},
}
Objects = dict[tuple[str, str], dict[str, Any]]


def written(target: str, repository_of: RepositoryOf, folder: Path) -> Path:
    """Write a deployment of a target, with a chart."""
    files = planned(
        repository_of("H100"), target, helm=True, route="ingress/public", **OPTIONS[target]
    )
    write_files(files, folder)
    return folder


def objects(*texts: str) -> Objects:
    """Return the objects of files, by their kinds and names."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = (each for text in texts for each in yaml.load_all(text, Loader=loader) if each)
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


def base(folder: Path) -> Objects:
    """Return the objects of the kustomize base."""
    paths = sorted((folder / "base").glob("*.yaml"))
    return objects(*(path.read_text() for path in paths if path.stem != "kustomization"))


def told(*words: str | Path) -> str:
    """Return what Helm or kubectl print; they must end well."""
    done = subprocess.run(
        [str(word) for word in words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("target", OPTIONS)
def test_both_come_to_the_base(target: str, repository_of: RepositoryOf, tmp_path: Path) -> None:
    folder = written(target, repository_of, tmp_path / "deployment")
    told(HELM, "lint", "--strict", folder / "chart")
    by_helm = objects(told(HELM, "template", "llama", folder / "chart"))
    by_kustomize = objects(told(KUBECTL, "kustomize", folder / "overlays/production"))

    assert by_helm == base(folder)
    namespaces = [each["metadata"].pop("namespace") for each in by_kustomize.values()]
    assert by_kustomize == base(folder)
    assert set(namespaces) == {"llama"}


@pytest.mark.parametrize("target", OPTIONS)
def test_an_image_of_the_overlay_reaches_every_server(
    target: str, repository_of: RepositoryOf, tmp_path: Path
) -> None:
    folder = written(target, repository_of, tmp_path / "deployment")
    overlay = folder / "overlays/production/kustomization.yaml"
    before = (folder / "base").glob("*.yaml")
    servers = sum(path.read_text().count("image: nvcr.io/") for path in before)
    overlay.write_text(
        overlay.read_text().replace("newTag: 26.07-trtllm-python-py3", "newTag: own")
    )

    assert told(KUBECTL, "kustomize", overlay.parent).count("tritonserver:own") == servers > 0


def test_a_value_reaches_what_it_is_of_and_a_wrong_one_is_refused(
    repository_of: RepositoryOf, tmp_path: Path
) -> None:
    chart = written(KUBERNETES, repository_of, tmp_path / "deployment") / "chart"
    values = "server.memory=9Gi,server.replicas=4,gateway.maxReplicas=99"
    found = objects(told(HELM, "template", "llama", chart, "--set", values))
    pod = found["Deployment", "llama"]["spec"]["template"]["spec"]

    assert pod["containers"][0]["resources"]["limits"]["memory"] == "9Gi"
    assert found["HorizontalPodAutoscaler", "llama"]["spec"]["minReplicas"] == 4
    assert found["HorizontalPodAutoscaler", "llama-gateway"]["spec"]["maxReplicas"] == 99
    with pytest.raises(AssertionError, match="got string, want integer"):
        told(HELM, "template", "llama", chart, "--set", "server.gpus=two")
