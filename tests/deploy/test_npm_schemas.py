"""The kinds of KEDA, Gateway API and prometheus-operator by the schemas that npm has of them."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned

MODULES: Final = os.environ.get("CRD_MODULES")
pytestmark = pytest.mark.skipif(
    MODULES is None, reason="make test-crds installs the schemas and names them by CRD_MODULES"
)
PACKAGES: Final = {
    "gateway.networking.k8s.io/v1": "gateway-api",
    "keda.sh/v1alpha1": "keda",
    "monitoring.coreos.com/v1": "prometheus-operator",
}
KINDS: Final = ("GRPCRoute", "HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject")
PROGRAM: Final = """
import fs from "fs";
const said = [];
for (const [path, object] of JSON.parse(fs.readFileSync(0))) {
    const kinds = await import(path);
    try {
        new kinds[object.kind](object).validate();
        said.push("");
    } catch (error) {
        said.push(error.message);
    }
}
console.log(JSON.stringify(said));
"""


def told(folder: Path, objects: list[dict[str, Any]]) -> list[str]:
    """Return what the packages say of each object; "" where it is right."""
    assert MODULES is not None
    # Node looks for packages beside the program.
    (folder / "node_modules").symlink_to(MODULES)
    (folder / "validate.mjs").write_text(PROGRAM)
    pairs = [
        (f"@kubernetes-models/{PACKAGES[each['apiVersion']]}/{each['apiVersion']}", each)
        for each in objects
    ]
    argv = ["node", str(folder / "validate.mjs")]
    done = subprocess.run(
        argv, input=json.dumps(pairs), capture_output=True, text=True, check=True, timeout=120
    )
    said: list[str] = json.loads(done.stdout)
    return said


def test_what_is_written_keeps_to_the_schemas(repository_of: RepositoryOf, tmp_path: Path) -> None:
    texts = planned(repository_of("H100"), route="public", inference_pool=True).texts
    objects = [
        each
        for name, text in texts.items()
        if name.startswith("base/")
        for each in yaml.safe_load_all(text)
        if each.get("kind") in KINDS
    ]
    broken = {**objects[0], "spec": "none"}

    assert {each["kind"] for each in objects} == set(KINDS)
    *said, of_broken = told(tmp_path, [*objects, broken])
    assert said == [""] * len(objects)
    assert of_broken
