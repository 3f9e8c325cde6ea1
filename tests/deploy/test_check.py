"""`deploy check`: what is written is right, and each thing that people change wrongly is named."""

from __future__ import annotations

import copy
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned

from minitron_trt.deploy.check.claims import amount_of, read_claims
from minitron_trt.deploy.check.deployment_check import check_deployment, read_deployment
from minitron_trt.deploy.check.engine_rules import check_claims, check_placement
from minitron_trt.deploy.check.files import Document, FieldPath, objects, read_documents
from minitron_trt.deploy.check.graph_rules import check_graphs
from minitron_trt.deploy.check.reference_rules import check_references
from minitron_trt.deploy.check.schema_rules import Definitions, check_schemas
from minitron_trt.deploy.settings import (
    COMPOSE,
    DYNAMO,
    KSERVE,
    KUBERNETES,
    LEADERWORKERSET,
    SLURM,
    TARGETS,
)
from minitron_trt.deploy.writing import write_files
from minitron_trt.errors import BadInputError
from minitron_trt.triton_repo.check.report import Severity

pytestmark = pytest.mark.slow
# As kubectl get crds -o yaml writes them, or as the operator's sources have them.
CRDS = os.environ.get("DYNAMO_CRDS", "")
Deployed = Callable[[str], Path]


@pytest.fixture(scope="module")
def written(repository_of: RepositoryOf, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    """Return what writes the deployment of a target, once."""

    @cache
    def write(target: str) -> Path:
        options = {"gpus_per_node": 1} if target == LEADERWORKERSET else {}
        if target == KUBERNETES:
            options |= {"route": "public", "inference_pool": True}  # type: ignore[dict-item]
        if target == DYNAMO:
            options |= {"route": "ingress/public"}  # type: ignore[dict-item]
        output = tmp_path_factory.mktemp("check") / target
        write_files(planned(repository_of("H100"), target, **options), output)
        return output

    return write


@pytest.fixture
def copied(written: Deployed, tmp_path: Path) -> Deployed:
    """Return what copies the deployment of a target, to be changed."""
    return lambda target: shutil.copytree(written(target), tmp_path / "deployment")


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_written_has_nothing_wrong(target: str, written: Deployed) -> None:
    report = check_deployment(written(target))

    assert [f.message for f in report.findings if f.severity is not Severity.NOTE] == []


@pytest.mark.parametrize("name", ["server", "triton"])
def test_a_container_put_before_the_servers_is_not_taken_for_it(
    name: str, copied: Deployed
) -> None:
    folder = copied(KUBERNETES)
    path = folder / "base/server.yaml"
    text = path.read_text().replace("- name: server\n", f"- name: {name}\n")
    place = text.index(f"- name: {name}\n")
    indent = text[:place].rpartition("\n")[2]
    before = f"- name: logs\n{indent}  image: example.org/trtllm:25.12\n{indent}"
    path.write_text(text[:place] + before + text[place:])

    report = check_deployment(folder)
    assert [finding.message for finding in report.errors] == []


@pytest.mark.skipif(not CRDS, reason="DYNAMO_CRDS names no definitions of Dynamo's operator")
def test_a_graph_keeps_to_the_operators_own_definition(written: Deployed) -> None:
    report = check_deployment(written(DYNAMO), (Path(CRDS),))

    assert [f.message for f in report.findings if "nvidia.com" in f.message] == []
    assert report.errors == ()


# By target and file: what stands there, what somebody makes of it, and what is said of that. Those
# of a target are tried together.
DAMAGES = {
    (KUBERNETES, "base/server.yaml"): [
        ("- '9'  # the engine's SM90", "- '8'", "cannot run the engine for SM90; expected In 9"),
        (
            "operator: Gt\n                values:\n                - '",
            "operator: Gt\n                values:\n                - '1' #",
            "GPUs with more than 1 MiB, below the forecast",
        ),
        (
            "            memory: ",
            "            memory: 1Gi #",
            "below the forecast; expected at least",
        ),
        ("sizeLimit: ", "sizeLimit: 64Mi  # ", "67.1 MB, below the forecast"),
        ("nvidia.com/gpu: 2", "nvidia.com/gpu: 1", "1 GPU(s); expected 2: tp 2 x pp 1"),
        (
            "failureThreshold: 13",
            "failureThreshold: 4",
            "probes give up after 40 s, while the engine may still load; "
            "expected at least the 63 s of a start: 60 s + 501 MB at 200 MB/s",
        ),
        (
            "GracePeriodSeconds: 35",
            "GracePeriodSeconds: 20",
            "running requests are cut; expected at least 35",
        ),
        (
            "tritonserver:26.07-",
            "tritonserver:25.12-",
            "25.12 has TensorRT-LLM 1.1.0; expected an image with 1.2.1",
        ),
    ],
    (KUBERNETES, "base/services.yaml"): [
        ("clusterIP:", "clusterIp:", "('clusterIp' was unexpected); expected Kubernetes 1.37"),
        (
            "targetPort: http",
            "targetPort: web",
            "Deployment llama has no port web; expected one of",
        ),
        (
            "---\n",
            "---\napiVersion: v1\nkind: Secret\nmetadata:\n  name: k\nstringData:\n  a: b\n---\n",
            "a Secret's values stand here",
        ),
    ],
    (KUBERNETES, "base/network-policies.yaml"): [
        (
            "component: gateway\n    ports:",
            "component: web\n    ports:",
            "spec.ingress.0.from.0.podSelector: no Pod here has the labels",
        ),
        ("port: 8002", "port: 9102", "Deployment llama has no port 9102"),
    ],
    (KUBERNETES, "endpoint-picker.yaml"): [
        ("port: 8002", "port: 9102", "no server has the port 9102"),
    ],
    (KUBERNETES, "base/gateway.yaml"): [
        (
            "grpc://llama-headless:8001",
            "grpc://llama-server:9",
            "Service llama-server has no port 9",
        ),
        (
            "- name: HOME\n          value: /tmp",
            "- name: HF_TOKEN\n          value: hf_abc",
            "HF_TOKEN has its value in plain text",
        ),
    ],
    (KUBERNETES, "base/routes.yaml"): [
        ("- name: llama-gateway", "- name: gateway", "there is no Service gateway here"),
    ],
    (KUBERNETES, "base/autoscaling.yaml"): [
        ("kind: Deployment", "kind: StatefulSet", "there is no StatefulSet llama here"),
    ],
    (KUBERNETES, "base/kustomization.yaml"): [
        ("- routes.yaml\n", "", "routes.yaml lies beside it and is not listed"),
    ],
    (LEADERWORKERSET, "base/server.yaml"): [
        (
            "sizeLimit: ",
            "sizeLimit: 1Mi  # ",
            "LeaderWorkerSet llama spec.leaderWorkerTemplate.workerTemplate",
        ),
        ("workingDir: /tmp", "workDir: /tmp", "'workDir' was unexpected"),
    ],
    (LEADERWORKERSET, "base/disruptions.yaml"): [
        ("      - server\n      - worker", "      - web", "app.kubernetes.io/component In ['web']"),
    ],
    (LEADERWORKERSET, "base/services.yaml"): [
        (
            "  name: llama-server\n",
            "  name: llama\n",
            "LeaderWorkerSet llama makes a Service of this name",
        ),
    ],
    (KSERVE, "base/server.yaml"): [
        ("workingDir: /tmp", "workDir: /tmp", "llama spec.predictor.containers.0: "),
        ("GracePeriodSeconds: 35", "GracePeriodSeconds: 25", "running requests are cut"),
    ],
    (DYNAMO, "base/graph.yaml"): [
        ("sizeLimit: ", "sizeLimit: 64Mi  # ", "67.1 MB, below the forecast"),
        ("GracePeriodSeconds: 35", "GracePeriodSeconds: 25", "running requests are cut"),
        ("imagePullPolicy", "imagePolicy", "'imagePolicy' was unexpected"),
        ("- name: main\n", "- name: worker\n", "no container is named main"),
        (
            "grpc://127.0.0.1:8001",
            "grpc://127.0.0.1:8009",
            "no container beside it has the port of grpc://127.0.0.1:8009",
        ),
        ("value: '9345'", "value: '9555'", "DYN_TCP_RPC_PORT is 9555, which is no port of the Pod"),
    ],
    (DYNAMO, "base/routes.yaml"): [
        ("- name: llama-frontend", "- name: llama", "there is no Service llama here"),
    ],
    (DYNAMO, "base/autoscaling.yaml"): [
        (
            "name: llama-worker",
            "name: llama",
            "there is no DynamoGraphDeploymentScalingAdapter llama here",
        ),
    ],
    (COMPOSE, "compose.yaml"): [
        ("count: 2", "count: 1", "1 GPU(s); expected 2"),
        ("stop_grace_period: 30s", "stop_grace_period: 10s", "10 s to end"),
        (
            "      HOME: /tmp\n    user",
            "      API_KEY: abc\n    user",
            "API_KEY has its value in plain text",
        ),
    ],
    (SLURM, "serve.sbatch"): [
        ("--mem=", "--mem=4096 #", "4.29 GB, below"),
        ("--nodes=1", "--nodes=2", "2 nodes; expected 1"),
    ],
}
# What hides others, with its file of --target kubernetes: these are tried by themselves.
HIDING = [
    (
        "base/server.yaml",
        "nvidia.com/gpu.compute.major",
        "zone",
        "no node is required to have nvidia.com/gpu.compute.major",
    ),
    ("base/server.yaml", "startupProbe", "readinessProbeOld", "probes give up after 60 s"),
    ("base/services.yaml", "apiVersion: v1\nkind", "kind", "an object without apiVersion or kind"),
    (
        "base/services.yaml",
        "component: server\n  ports",
        "component: web\n  ports",
        "no Pod here has the labels",
    ),
    (
        "base/services.yaml",
        "  name: llama-server\n",
        "  name: Llama_1\n",
        "'Llama_1' is no name that Kubernetes allows",
    ),
    ("base/services.yaml", "kind: Service\n", "kind: [Service\n", "not YAML that can be read"),
    (
        "base/services.yaml",
        "kind: Service\n",
        "kind: Service\nalso: &a [*a]\n",
        "an alias *a; write out what it stands for",
    ),
    ("base/services.yaml", "  ports:\n", "  ports: none\n  others:\n", "is not of type 'array'"),
]
Damage = tuple[str, str, str, str]


def unsaid(folder: Path, damages: list[Damage]) -> list[str]:
    """Damage files, and return what the check should say of that and does not."""
    for name, old, new, _said in damages:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))
    messages = [finding.message for finding in check_deployment(folder).errors if finding.line]
    return [said for *_, said in damages if not any(said in message for message in messages)]


@pytest.mark.parametrize("target", TARGETS)
def test_what_will_not_work_is_named(target: str, copied: Deployed) -> None:
    damages = [
        (name, *damage) for (of, name), rows in DAMAGES.items() for damage in rows if of == target
    ]

    assert damages
    assert unsaid(copied(target), damages) == []


@pytest.mark.parametrize("damage", HIDING)
def test_what_hides_other_faults_is_named(damage: Damage, copied: Deployed) -> None:
    assert unsaid(copied(KUBERNETES), [damage]) == []


@pytest.mark.parametrize(
    ("product", "can_run"),
    [
        ("NVIDIA-H100-80GB-HBM3", True),
        ("NVIDIA-A100-SXM4-80GB", False),
        ("Somebodys-Own-GPU", False),
    ],
)
def test_nodes_may_be_chosen_by_their_product(
    copied: Deployed, product: str, *, can_run: bool
) -> None:
    folder = copied(KUBERNETES)
    path = folder / "base/server.yaml"
    chosen = path.read_text().replace("nvidia.com/gpu.compute.minor", "zone")
    chosen = chosen.replace("nvidia.com/gpu.compute.major", "nvidia.com/gpu.product")
    path.write_text(chosen.replace("- '9'", f"- {product}"))
    documents, _ = read_documents(folder)

    found = list(check_placement(documents, read_deployment(folder)))
    assert (found == []) is can_run


def test_gpus_may_be_had_by_a_resource_claim(copied: Deployed) -> None:
    folder = copied(KUBERNETES)
    path = folder / "base/server.yaml"
    claimed = path.read_text().replace("nvidia.com/gpu.compute.m", "zone.m")
    path.write_text(re.sub(r"( +)limits:\n", r"\1claims: [{name: gpus}]\n\g<0>", claimed))
    deployment = read_deployment(folder)
    without = re.sub(r" +nvidia.com/gpu: 2.*\n", "", path.read_text())

    for text, errors in ((without, 0), (without.replace("claims:", "unclaimed:"), 3)):
        path.write_text(text)
        documents, _ = read_documents(folder)
        claims = [
            found
            for each in read_claims(folder, documents)
            for found in check_claims(each, deployment)
        ]
        assert len([*claims, *check_placement(documents, deployment)]) == errors


@pytest.mark.parametrize(
    ("option", "key", "value"),
    [
        ("--gpus-per-node=h100:2", "gpus", 2),
        ("--gres=gpu:h100:8", "gpus", 8),
        ("--gres=shard:1,gpu:2", "gpus", 2),
        ("--gres=gpu", "gpus", 1),
        ("--gres=shard:1", "gpus", None),
        ("--mem=0", "memory", math.inf),
        ("--mem 64G # of 512", "memory", 64 * 2**30),
        ("--mem='512'", "memory", 512 * 2**20),
        ("--signal=B:TERM", "grace", 60),
        ("--signal=B:TERM@130", "grace", 130),
        ("--nodes=2-4", "nodes", 2),
        ("--comment=mem=4", "memory", None),
        ("--gpus=h100:2", "gpus", 2),
        ("--gpus=8 --nodes=2", "gpus", 4),
        ("-N2 -G 8", "gpus", 4),
        ("--ntasks=1 -N 2", "nodes", 2),
        ("--gpus-per-node=2 --gpus=8", "gpus", 2),
        ("--exclusive", "gpus", math.inf),
        ("--exclusive --gpus-per-node=2", "gpus", 2),
        ("--exclusive=user", "gpus", None),
        ("--gpus-per-task=1", "gpus", math.inf),
        ("--tres-per-task=cpu:4,gres/gpu:1", "gpus", math.inf),
        ("--tres-per-task=cpu:4", "gpus", None),
        ("--comment='two words", "gpus", None),
        ("--nodes=2\n\n  # more\n#SBATCH --nodes=3\ntrue\n#SBATCH --nodes=4", "nodes", 3),
        ("--gres=gpu:2\n#SBATCH --gres=shard:1", "gpus", None),
    ],
)
def test_options_of_sbatch_are_read_as_slurm_reads_them(
    option: str, key: str, value: float | None, tmp_path: Path
) -> None:
    (tmp_path / "serve.sbatch").write_text(f"#!/bin/bash\n#SBATCH {option}\n")
    (claims,) = read_claims(tmp_path, [])
    claim = claims.numbers.get(key)

    assert (claim and claim.value) == value


def documents_of(folder: Path, text: str, name: str = "own.yaml") -> list[Document]:
    """Return the documents of a folder that has this file alone."""
    (folder / name).write_text(text)
    documents, findings = read_documents(folder)
    assert findings == []
    return documents


def places(value: Any, at: FieldPath = ()) -> Iterator[FieldPath]:
    """Yield where values stand in a document, of each list the first and what is in it."""
    below = value.items() if isinstance(value, dict) else enumerate(value[:1])
    for key, each in below:
        yield (*at, key)
        if isinstance(each, dict | list):
            yield from places(each, (*at, key))


@pytest.mark.parametrize("target", TARGETS)
def test_a_value_of_another_type_ends_no_rule(target: str, written: Deployed) -> None:
    folder = written(target)
    deployment, (documents, _) = read_deployment(folder), read_documents(folder)
    for number, document in enumerate(documents):
        for *around, last in places(document.value):
            edited = Document(document.file, copy.deepcopy(document.value), document.root)
            parent = edited.at(*around)
            parent[last] = 5 if isinstance(parent[last], dict | list) else [{}]
            changed = [*documents[:number], edited, *documents[number + 1 :]]

            for claims in read_claims(folder, changed):
                list(check_claims(claims, deployment))
            found = objects(changed)
            list(check_placement(found, deployment))
            list(check_graphs(found))
            list(check_references(folder, changed))


@pytest.mark.parametrize(
    ("group", "kind", "name", "is_allowed"),
    [
        ("v1", "ConfigMap", "kube-root-ca.crt", True),
        ("v1", "ConfigMap", "a" * 254, False),
        ("v1", "Service", "llama", True),
        ("v1", "Service", "llama.example", False),
        ("v1", "Service", "a" * 64, False),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "system:auth_Delegator", True),
        ("rbac.authorization.k8s.io/v1", "ClusterRole", "auth/delegator", False),
    ],
)
def test_names_are_those_that_kubernetes_takes(
    group: str, kind: str, name: str, is_allowed: bool, tmp_path: Path
) -> None:
    named = {"apiVersion": group, "kind": kind, "metadata": {"name": name}}
    documents = documents_of(tmp_path, json.dumps(named))

    assert ([*check_references(tmp_path, documents)] == []) is is_allowed


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("HF_TOKEN", True),
        ("apiToken", True),
        ("NGC_API_KEY", True),
        ("PGPASSWORD", True),
        ("AWS_SECRET_ACCESS_KEY", True),
        ("TOKENIZERS_PARALLELISM", False),
        ("MAX_TOKENS", False),
        ("HF_TOKEN_PATH", False),
        ("SECRET_NAME", False),
        ("TOKEN_TTL_SECONDS", False),
        ("GOOGLE_APPLICATION_CREDENTIALS", False),
        ("AWS_CREDENTIALS", True),
    ],
)
def test_variables_of_secrets_are_told_by_their_names(
    name: str, is_secret: bool, tmp_path: Path
) -> None:
    pod = {"spec": {"containers": [{"name": "server", "env": [{"name": name, "value": "x"}]}]}}
    labelled = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "server"}}
    documents = documents_of(tmp_path, json.dumps({**labelled, **pod}))
    found = [finding.message for finding in check_references(tmp_path, documents)]

    assert any("in plain text" in message for message in found) is is_secret


def _reserving(*devices: object) -> object:
    return {"deploy": {"resources": {"reservations": {"devices": devices}}}}


@pytest.mark.parametrize(
    ("server", "count"),
    [
        (_reserving({"count": 2}), 2),
        (_reserving({"count": "all"}), math.inf),
        (_reserving({"driver": "nvidia"}), math.inf),
        (_reserving({"device_ids": ["0", "3"]}), 2),
        (_reserving({"count": [2]}), 0),
        (_reserving({"count": "${GPUS:-2}"}), math.inf),
        (_reserving({"capabilities": ["tpu"]}, {"capabilities": ["gpu"], "count": 2}), 2),
        ({"gpus": "all"}, math.inf),
        ({"gpus": [{"driver": "nvidia", "count": 2}]}, 2),
        ({"runtime": "nvidia"}, math.inf),
        ({"gpus": []}, None),
    ],
)
def test_gpus_are_counted_as_compose_reserves_them(
    server: object, count: float | None, tmp_path: Path
) -> None:
    services = {"services": {"server": server}}
    documents = documents_of(tmp_path, json.dumps(services), "compose.yaml")
    (claims,) = read_claims(tmp_path, documents)
    claim = claims.numbers.get("gpus")

    assert (claim and claim.value) == count


@pytest.mark.parametrize(
    ("environment", "is_secret"),
    [
        ({"HF_TOKEN": "word"}, True),
        (["HF_TOKEN=word"], True),
        ({"HF_TOKEN": "${HF_TOKEN}"}, False),
        (["HF_TOKEN=${HF_TOKEN}"], False),
        ({"HF_TOKEN": "$HF_TOKEN"}, False),
        ({"HF_TOKEN": "$$word"}, True),
        ({"HF_HUB_DISABLE_IMPLICIT_TOKEN": True}, False),
        (["HF_HUB_DISABLE_IMPLICIT_TOKEN=1"], False),
        ({"API_KEY": "$(HF_TOKEN)"}, False),
        ({"PASSWORD": "1234"}, True),
        ({"HF_TOKEN": None}, False),
        (["HF_TOKEN"], False),
    ],
)
def test_secrets_in_a_compose_file_are_found_in_either_form(
    environment: object, is_secret: bool, tmp_path: Path
) -> None:
    services = {"services": {"server": {"environment": environment}}}
    documents = documents_of(tmp_path, json.dumps(services), "compose.yaml")

    assert bool([*check_references(tmp_path, documents)]) is is_secret


ALIASES = """\
x-usual: &usual
  mem_limit: 1g
  gpus: &all all
services:
  server: {<<: *usual, mem_limit: 2g, shm_size: 3g}
  other: {gpus: *all}
"""


def test_aliases_and_merges_stand_for_what_they_name(tmp_path: Path) -> None:
    (claims,) = read_claims(tmp_path, documents_of(tmp_path, ALIASES, "compose.yaml"))

    assert {name: (claim.value, claim.line) for name, claim in claims.numbers.items()} == {
        "gpus": (math.inf, 3),
        "memory": (2 * 2**30, 5),
        "shm": (3 * 2**30, 5),
    }


OVERLAY = """\
resources: [../../base, https://example.org/extra.yaml, own.yaml]
patches:
- {path: memory.yaml}
- {path: ./replicas.yaml, target: {kind: Deployment, name: llama-gateway}}
configMapGenerator:
- {name: settings, files: [settings.yaml=given.yaml]}
"""
PATCH = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: llama}
spec: {template: {spec: {containers: [{name: server, env: [{name: HF_TOKEN, value: %s}]}]}}}
"""


def test_what_overlays_add_and_patch_is_no_error(copied: Deployed) -> None:
    folder = copied(KUBERNETES)
    for name in ("staging", "trial"):
        overlay = folder / "overlays" / name
        overlay.mkdir()
        (overlay / "kustomization.yaml").write_text(OVERLAY)
        (overlay / "memory.yaml").write_text(PATCH % "''")
        (overlay / "replicas.yaml").write_text("- {op: add, path: /spec/replicas, value: 3}\n")
        (overlay / "given.yaml").write_text("- 1\n")
        own = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: own}\n"
        listed = "apiVersion: v1\nkind: List\nitems:\n- kind: ConfigMap\n"
        (overlay / "own.yaml").write_text(f"{listed}  apiVersion: v1\n  metadata: {{name: own}}\n")

    assert check_deployment(folder).errors == ()

    (overlay / "memory.yaml").write_text(PATCH % "word")
    (overlay / "own.yaml").write_text(f"{own}---\n{own}")
    (overlay / "other.yaml").write_text("- 1\n")
    messages = {(f.file.rpartition("/")[2], f.message) for f in check_deployment(folder).errors}
    known = ("HF_TOKEN has its value", "another object has this", "lies beside it", "no object")
    assert [part for part in known if not any(part in said for _, said in messages)] == []
    assert {name for name, _ in messages} == {
        *("memory.yaml", "own.yaml", "kustomization.yaml", "other.yaml")
    }


@pytest.mark.parametrize(
    ("target", "name", "beside"),
    [
        (KUBERNETES, "base/server.yaml", "  strategy:\n"),
        (LEADERWORKERSET, "base/server.yaml", "  startupPolicy: LeaderCreated\n"),
        (DYNAMO, "base/graph.yaml", "    scalingAdapter: {}\n"),
    ],
)
def test_replicas_beside_an_autoscaler_are_warned_of(
    target: str, name: str, beside: str, copied: Deployed
) -> None:
    folder = copied(target)
    text = (folder / name).read_text()
    indent = beside[: len(beside) - len(beside.lstrip())]
    (folder / name).write_text(text.replace(beside, f"{indent}replicas: 4\n{beside}"))
    report = check_deployment(folder)
    warned = [f.message for f in report.findings if f.severity is Severity.WARNING]

    assert warned
    assert all("4 replicas, though an autoscaler has them" in message for message in warned)
    assert report.errors == ()


def test_a_predictor_has_more_than_a_pods_fields(copied: Deployed) -> None:
    folder = copied(KSERVE)
    path = folder / "base/server.yaml"
    own = "canaryTrafficPercent: 10", "logger: {mode: all}", "timeout: 600", "scaleTarget: 4"
    beside = "".join(f"    {field}\n" for field in own)
    text = path.read_text()
    path.write_text(text.replace("  predictor:\n", f"  predictor:\n{beside}"))

    assert path.read_text() != text
    assert check_deployment(folder).errors == ()


def crd(schema: object) -> str:
    """Return a definition of KEDA's kind that knows only what the test is about."""
    properties = {"spec": {"type": "object", "properties": schema}}
    return json.dumps(
        {
            "kind": "List",
            "items": [
                {
                    "kind": "CustomResourceDefinition",
                    "spec": {
                        "group": "keda.sh",
                        "names": {"kind": "ScaledObject"},
                        "versions": [
                            {
                                "name": "v1alpha1",
                                "schema": {"openAPIV3Schema": {"properties": properties}},
                            }
                        ],
                    },
                }
            ],
        }
    )


def test_a_clusters_own_kinds_have_the_schemas_that_it_gives(
    written: Deployed, tmp_path: Path
) -> None:
    path = tmp_path / "crds.yaml"
    path.write_text(crd({"minReplicaCount": {"type": "string"}}))
    report = check_deployment(written(KUBERNETES), (path,))
    messages = [f.message for f in report.errors if f.file == "base/autoscaling.yaml"]

    assert any("2 is not of type 'string'" in message for message in messages)
    assert any("('advanced', " in message for message in messages), messages
    assert not any("keda" in finding.message for finding in report.findings if not finding.line)


@pytest.mark.parametrize(
    ("quantity", "value"),
    [
        ("64Gi", 64 * 2**30),
        ("64G", 64e9),
        ("1Pi", 2**50),
        ("64e9", 64e9),
        ("1E", 1e18),
        ("512m", 0.512),
        (1.5, 1.5),
        ("1.", 1),
        ("64GB", None),
        ("much", None),
        (True, None),
    ],
)
def test_quantities_are_those_of_kubernetes(quantity: object, value: float | None) -> None:
    assert amount_of(quantity) == value


def test_a_generator_of_secrets_has_none_in_plain_text(tmp_path: Path) -> None:
    named = "secretGenerator: [{name: a, envs: [hub.env]}, {name: b, %s: [HF_TOKEN=word]}]\n"
    for key, count in (("literals", 1), ("envs", 0)):
        documents = documents_of(tmp_path, named % key, "kustomization.yaml")

        assert len([*check_references(tmp_path, documents)]) == count


OTHERS = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: "llama:system:auth-delegator"}
---
apiVersion: v1
kind: Service
metadata: {name: exporter, namespace: a}
spec: {selector: {app: exporter}, ports: [{port: 9400}]}
---
apiVersion: v1
kind: Service
metadata: {name: exporter, namespace: b}
spec: {selector: {app: nightly}}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: exporter, namespace: a}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: exporter}
spec:
  template:
    metadata: {labels: {app: exporter}}
    spec:
      containers: [{name: exporter, ports: [{containerPort: 9400}]}]
      volumes:
      - {name: a, configMap: {name: kube-root-ca.crt}}
      - {name: b, configMap: {name: elsewhere, optional: true}}
      - {name: c, configMap: {name: generated}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: nightly}
spec: {jobTemplate: {spec: {template: {metadata: {labels: {app: nightly}}, spec: {}}}}}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: store}
spec:
  volumeClaimTemplates: [{metadata: {name: data}}]
  template: {spec: {containers: [{name: store, volumeMounts: [{name: data, mountPath: /d}]}]}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: scaled}
---
apiVersion: keda.sh/v1alpha1
kind: ScaledObject
metadata: {name: scaled}
spec: {scaleTargetRef: {name: scaled}}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: everywhere}
spec: {selector: {matchLabels: {app: elsewhere}}, namespaceSelector: {any: true}}
---
apiVersion: monitoring.coreos.com/v1
kind: PodMonitor
metadata: {name: by-number}
spec: {selector: {matchLabels: {app: exporter}}, podMetricsEndpoints: [{portNumber: 9400}]}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: open}
spec:
  podSelector: {matchLabels: {app: exporter}}
  ingress: [{ports: [{protocol: TCP}, {port: 9000, endPort: 9999}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: routes}
spec:
  rules:
  - backendRefs:
    - {name: elsewhere, namespace: c, port: 80}
    - {group: gateway.envoyproxy.io, kind: Backend, name: outside}
---
apiVersion: v1
kind: Pod
metadata: {name: single, labels: {app: single}}
spec: {volumes: [{name: a, configMap: {name: nowhere}}]}
"""


def test_objects_of_others_are_taken_as_a_cluster_takes_them(tmp_path: Path) -> None:
    (tmp_path / "others.yaml").write_text(OTHERS)
    generator = "resources: [others.yaml]\nconfigMapGenerator: [{name: generated}]\n"
    (tmp_path / "kustomization.yaml").write_text(generator)
    documents, _ = read_documents(tmp_path)

    (found,) = check_references(tmp_path, documents)
    assert "there is no ConfigMap nowhere here" in found.message


def test_fields_of_any_name_and_nulls_are_as_a_cluster_takes_them(tmp_path: Path) -> None:
    fields = {
        "format": {"type": "string"},
        "properties": {"type": "object", "properties": {"required": {"type": "string"}}},
        "empty": {"type": "string"},
        "gone": {"type": "string", "nullable": True},
        "template": {"type": "object", "x-kubernetes-embedded-resource": True, "properties": {}},
    }
    spec = {"type": "object", "required": ["gone", "format"], "properties": fields}
    documents = documents_of(
        tmp_path,
        "apiVersion: example.org/v1\nkind: Own\nmetadata: {name: own}\n"
        "spec: {format: a, properties: {required: b}, empty: null, gone: null,\n"
        "  template: {kind: Pod}}\n",
    )
    kind = ("example.org/v1", "Own")

    def messages(spec: object) -> list[str]:
        definitions = Definitions({kind: {"properties": {"spec": spec}}})
        return [finding.message for finding in check_schemas(documents, definitions)]

    assert messages(spec) == []
    beside = [{"required": ["format"], "properties": {"format": {"enum": ["a"]}}}]
    assert messages({**spec, "anyOf": beside, "allOf": beside}) == []
    plain = {**fields, "template": {"type": "object", "properties": {}}}
    (message,) = messages({**spec, "properties": plain})
    assert "('kind' was unexpected)" in message
    (message,) = messages({**spec, "required": ["empty"]})
    assert "'empty' is a required property" in message


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, "0 is less than or equal"),
        ({"type": "integer", "minimum": -1, "exclusiveMinimum": True}, None),
        ({"pattern": "^b"}, "'a' does not match '^b'"),
        ({"pattern": r"^\pL+\z"}, None),
        ({"pattern": "^[[:alpha:]]$"}, None),
        ({"allOf": [{"$ref": "http://127.0.0.1:1/"}]}, None),
        ({"type": "words"}, "--crds: the schema of Own is none at $.properties.a.type: 'words'"),
        ({"enum": 5}, "--crds: the schema of Own is none at $.properties.a.enum: 5"),
        (5, "--crds: the schema of Own is none at $.properties.a: 5"),
    ],
)
def test_a_clusters_schema_is_openapis_and_gos(
    schema: object, said: str | None, tmp_path: Path
) -> None:
    value = 0 if "minimum" in str(schema) else "a"
    own = {"apiVersion": "example.org/v1", "kind": "Own", "metadata": {"name": "own"}, "a": value}
    documents = documents_of(tmp_path, json.dumps(own))
    definitions = Definitions({("example.org/v1", "Own"): {"properties": {"a": schema}}})
    try:
        found = [finding.message for finding in check_schemas(documents, definitions)]
    except BadInputError as error:
        found = [str(error)]

    assert len(found) == (0 if said is None else 1)
    assert said is None or said in found[0]


def test_the_command_ends_with_3_and_names_the_worst(
    copied: Deployed, command: Callable[..., Result]
) -> None:
    folder = copied(COMPOSE)
    (folder / "compose.yaml").write_text("services: [\n")
    result = command("deploy", "check", folder)

    assert result.exit_code == 3
    assert result.stderr.startswith("error: ")
    assert "compose.yaml:2 not YAML that can be read" in result.stderr


@pytest.mark.parametrize(
    "crds", ["nothing", "kind: Pod\n", "items:\n", "{", "a: &a [*a]", "a: 2026-13-01"]
)
def test_definitions_that_are_none_are_refused(
    crds: str, written: Deployed, tmp_path: Path, command: Callable[..., Result]
) -> None:
    path = tmp_path / "crds.yaml"
    if crds != "nothing":
        path.write_text(crds)
    result = command("deploy", "check", written(COMPOSE), "--crds", path)

    assert result.exit_code == 3
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_is_no_deployment_is_refused(
    repository_of: RepositoryOf, tmp_path: Path, command: Callable[..., Result]
) -> None:
    for folder, said in ((tmp_path, "has no minitron.json"), (repository_of("H100"), "repository")):
        result = command("deploy", "check", folder)

        assert (result.exit_code, said in result.stderr) == (3, True)
