"""What is written for one node and for two, of each GPU, and what every file has."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned

from minitron_trt.deploy.settings import COMPOSE, DYNAMO, KSERVE, LEADERWORKERSET, SLURM

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "golden" / "deploy"
GPUS = ("A100", "L40", "H100", "B200")
# Versions, and variables that are switches.
VERSIONS = re.compile(r"^\s*(apiVersion|version|appVersion|value|PYTHONDONTWRITEBYTECODE): ")
NUMBER = re.compile(r"^\s*(- )?[\w./-]+: '?\d+(\.\d+)?(Mi|Gi|m|s)?'?$")


def check(name: str, text: str, repository: Path) -> None:
    """To accept a change: read the new text, then copy it to tests/golden/deploy."""
    path = GOLDEN / name

    assert text.replace(str(repository), "REPOSITORY") == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("gpu", GPUS)
def test_a_replica_on_one_node(gpu: str, repository_of: RepositoryOf) -> None:
    repository = repository_of(gpu)
    files = planned(repository).texts

    check(f"{gpu.lower()}-one-node.yaml", files["base/server.yaml"], repository)


@pytest.mark.parametrize("gpu", GPUS)
def test_a_replica_on_two_nodes(gpu: str, repository_of: RepositoryOf) -> None:
    repository = repository_of(gpu)
    files = planned(repository, LEADERWORKERSET, gpus_per_node=1).texts

    check(f"{gpu.lower()}-two-nodes.yaml", files["base/server.yaml"], repository)


@pytest.mark.parametrize("gpu", ["H100", "L40"])
def test_a_graph_of_dynamos(gpu: str, repository_of: RepositoryOf) -> None:
    repository = repository_of(gpu)
    files = planned(repository, DYNAMO, route="ingress/public").texts
    beside = ("network-policies", "routes", "disruptions", "autoscaling")
    text = "".join(f"---\n{files[f'base/{name}.yaml']}" for name in ("graph", *beside))

    check(f"{gpu.lower()}-dynamo.yaml", text, repository)


OTHERS = ("gateway", "services", "network-policies", "routes", "autoscaling", "monitoring")


def test_what_stands_beside_the_server(repository_of: RepositoryOf) -> None:
    repository = repository_of("H100")
    options: dict[str, Any] = {"route": "ingress/public", "inference_pool": True}
    files = planned(repository, **options).texts
    overlay, picker = files["overlays/production/kustomization.yaml"], files["endpoint-picker.yaml"]
    text = "".join(f"---\n{files[f'base/{name}.yaml']}" for name in OTHERS)

    check("beside.yaml", f"{text}---\n{overlay}---\n{picker}", repository)


def test_compose_and_slurm(repository_of: RepositoryOf) -> None:
    repository = repository_of("L40")

    check("compose.yaml", planned(repository, COMPOSE).texts["compose.yaml"], repository)
    check("serve.sbatch", planned(repository, SLURM).texts["serve.sbatch"], repository)


def test_a_job_over_two_nodes(repository_of: RepositoryOf) -> None:
    repository = repository_of("H100")
    files = planned(repository, SLURM, gpus_per_node=1).texts

    check("two-nodes.sbatch", files["serve.sbatch"], repository)


@pytest.mark.parametrize("target", [LEADERWORKERSET, KSERVE, DYNAMO, COMPOSE])
def test_every_number_says_where_it_comes_from(target: str, repository_of: RepositoryOf) -> None:
    options = {} if target == COMPOSE else {"autoscaler": "hpa", "route": "public"}
    files = planned(repository_of("B200"), target, **options).texts
    silent = [
        f"{name}: {line}"
        for name, text in files.items()
        if name.endswith(".yaml") and "scripts" not in name and "dashboard" not in name
        for line in text.splitlines()
        if NUMBER.match(line) and not VERSIONS.match(line)
    ]

    assert silent == []


def test_a_chart_of_its_own_values_is_the_base(repository_of: RepositoryOf) -> None:
    """With Helm's simplest part done by hand: a value in place of its name, quoted or not."""
    files = planned(repository_of("H100"), helm=True, route="public").texts
    values = yaml.safe_load(files["chart/values.yaml"])

    def fill(match: re.Match[str]) -> str:
        value = values[match[1]][match[2]]
        return json.dumps(value) if match[3] else str(value)

    bases = {name for name in files if name.startswith("base/")} - {"base/kustomization.yaml"}
    assert {f"chart/templates/{name.removeprefix('base/')}" for name in bases} == {
        name for name in files if name.startswith("chart/templates/")
    }
    for name in bases:
        template = files[f"chart/templates/{name.removeprefix('base/')}"]
        text = re.sub(r"\{\{ \.Values\.(\w+)\.(\w+)( \| quote)? \}\}", fill, template)
        text = text.replace('{{ "{{" }}', "{{")
        assert list(yaml.safe_load_all(text)) == list(yaml.safe_load_all(files[name]))


def test_the_values_of_a_chart_keep_to_its_schema(repository_of: RepositoryOf) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    files = planned(repository_of("H100"), helm=True).texts
    schema = json.loads(files["chart/values.schema.json"])
    values = yaml.safe_load(files["chart/values.yaml"])
    jsonschema.validate(values, schema)
    values["server"]["gpus"] = "two"

    with pytest.raises(jsonschema.ValidationError, match="is not of type 'integer'"):
        jsonschema.validate(values, schema)
