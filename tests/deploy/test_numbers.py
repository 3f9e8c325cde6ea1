"""Each number changes when what it comes from does, and what cannot be is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import shutil
import threading
import urllib.parse
from collections.abc import Callable
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import Result
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned, settings_of

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.deploy import fetch_repository
from minitron_trt.deploy.command import name_of
from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.dynamo_graph import dynamo_graph
from minitron_trt.deploy.manifests import digests_text, objects_of
from minitron_trt.deploy.planned_scale import PlannedScale
from minitron_trt.deploy.served_facts import CLOSED, ServedFacts, read_facts
from minitron_trt.deploy.settings import (
    AUTOSCALERS,
    DYNAMO,
    KSERVE,
    KUBERNETES,
    LEADERWORKERSET,
)
from minitron_trt.deploy.workloads import inference_service
from minitron_trt.errors import UnsupportedError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe
from minitron_trt.yaml_text import Figure, figures_of

pytestmark = pytest.mark.slow

GB = 10**9


@pytest.fixture(scope="module")
def facts(repository_of: RepositoryOf) -> ServedFacts:
    """What is read of a repository for an H100."""
    return read_facts(repository_of("H100"), image=None, gpu=None, drain_s=20)


def numbers(deployment: Deployment) -> dict[str, Any]:
    """Return what the files let people set, by its name."""
    found = (figure for each in objects_of(deployment).values() for figure in figures_of(each))
    return {figure.knob: figure.value for figure in found if figure.knob}


def gpu(facts: ServedFacts, **changes: Any) -> dict[str, Any]:
    """Return the change of what each rank takes of its GPU."""
    assert facts.gpu is not None
    return {"gpu": dataclasses.replace(facts.gpu, **changes)}


SCALE = PlannedScale(
    rate=100.0,
    tokens_per_s=30_000.0,
    gpu="H100-SXM",
    tp=2,
    concurrency=64,
    replicas=2,
    most_replicas=8,
    waiting=3,
    waiting_reason="so many get slots in time",
)
# A source, and all the numbers that come from it.
SOURCES: dict[str, tuple[Callable[[ServedFacts], dict[str, Any]], dict[str, Any], set[str]]] = {
    "weights": (
        lambda facts: gpu(facts, weights_bytes=9 * GB),
        {},
        {"server.gpuMemoryMiB", "server.memory"},
    ),
    "activations": (lambda f: gpu(f, activation_bytes=3 * GB), {}, {"server.gpuMemoryMiB"}),
    "runtime": (lambda f: gpu(f, reserve_bytes=4 * GB), {}, {"server.gpuMemoryMiB"}),
    "cache": (lambda f: gpu(f, longest_bytes=4 * GB), {}, {"server.gpuMemoryMiB"}),
    "sequences": (lambda f: gpu(f, sequences=16), {}, {"autoscaling.waitingPerReplica"}),
    "batch": (lambda _: {"batch": 24}, {}, {"autoscaling.waitingPerReplica"}),
    "vocabulary": (lambda _: {"vocab": 256_000}, {}, {"server.memory"}),
    "processes": (
        lambda _: {"processes": {"preprocessing": 9, "postprocessing": 1, "tensorrt_llm_bls": 32}},
        {},
        {"server.memory", "server.shm", "server.cpu"},
    ),
    "ranks": (
        lambda _: {"tp": 4},
        {},
        {"server.gpus", "server.memory", "server.cpu"},
    ),
    "image": (lambda _: {"image": "registry.example/triton:1"}, {}, {"server.image"}),
    "engine-bytes": (
        lambda _: {"repository_bytes": 90 * GB},
        {},
        {"server.startupFailures", "server.progressSeconds", "autoscaling.calmSeconds"},
    ),
    "disk": (
        lambda _: {},
        {"disk_mb_s": 1},
        {"server.startupFailures", "server.progressSeconds", "autoscaling.calmSeconds"},
    ),
    "drain": (
        lambda _: {},
        {"drain_s": 90},
        {"server.graceSeconds", "gateway.graceSeconds", "server.progressSeconds"},
    ),
    "replicas": (lambda _: {}, {"replicas": 5}, {"server.replicas"}),
    "max-replicas": (
        lambda _: {},
        {"max_replicas": 50},
        {"autoscaling.maxReplicas", "gateway.maxReplicas"},
    ),
    "plan": (
        lambda _: {},
        {"scale": SCALE},
        {"autoscaling.waitingPerReplica", "gateway.replicas", "gateway.maxReplicas"},
    ),
    "fetch": (
        lambda _: {},
        {"storage": "fetch:https://example.org"},
        {"server.ephemeralStorage", "server.progressSeconds"},
    ),
    "gateway-image": (lambda _: {}, {"gateway_image": "gateway:2"}, {"gateway.image"}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_number_changes_with_its_source_and_with_nothing_else(
    source: str, facts: ServedFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is fetched would be read for its digests.
    monkeypatch.setattr("minitron_trt.deploy.manifests.digests_text", lambda _: "")
    change, options, changing = SOURCES[source]
    before = numbers(Deployment(facts, settings_of()))
    changed = dataclasses.replace(facts, **change(facts))
    after = numbers(Deployment(changed, settings_of(**options)))

    assert {name for name in before if before[name] != after[name]} == changing


# What a graph of Dynamo's has otherwise: its operator rolls workers, and no gateway is before them.
OF_GRAPHS = {
    "server.progressSeconds": None,
    "gateway.graceSeconds": "frontend.graceSeconds",
    "gateway.replicas": None,
    "gateway.maxReplicas": None,
}
# And what only a graph has.
OF_GRAPHS_ALONE = {"max-replicas": {"frontend.maxReplicas"}}


@pytest.mark.parametrize("source", [name for name in SOURCES if name != "gateway-image"])
def test_a_number_of_a_graph_changes_with_its_source(
    source: str, facts: ServedFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("minitron_trt.deploy.manifests.digests_text", lambda _: "")
    change, options, changing = SOURCES[source]
    before = numbers(Deployment(facts, settings_of(DYNAMO)))
    changed = dataclasses.replace(facts, **change(facts))
    after = numbers(Deployment(changed, settings_of(DYNAMO, **options)))

    expected = {OF_GRAPHS.get(name, name) for name in changing} - {None}
    expected |= OF_GRAPHS_ALONE.get(source, set())
    assert {name for name in before if before[name] != after[name]} == expected


def test_a_worker_waits_and_drains_as_its_triton_does(facts: ServedFacts) -> None:
    graph = dynamo_graph(Deployment(facts, settings_of(DYNAMO, drain_s=90, disk_mb_s=1)))
    spec = graph["spec"]["components"][1]["podTemplate"]["spec"]
    command = spec["containers"][1]["command"]
    start = Deployment(facts, settings_of(DYNAMO, disk_mb_s=1)).startup_s()

    assert command[-4:] == ["--drain", "90", "--timeout", str(2 * start)]
    assert spec["terminationGracePeriodSeconds"].value == 90 + 15


def test_every_number_that_people_may_set_has_a_source_above(facts: ServedFacts) -> None:
    """But for those of the gateway, which has the same size before every server."""
    alike = {"gateway.cpu", "gateway.memory", "gateway.ephemeralStorage"}
    sources = set().union(*(changing for _, _, changing in SOURCES.values()))

    known = numbers(Deployment(facts, settings_of()))
    assert set(known) - alike - {"autoscaling.kvPercent"} == sources


def test_a_quantized_folder_is_sized_and_placed_by_its_own_formats(tmp_path: Path) -> None:
    """Those too that convert does not read."""
    model = tmp_path / "model"
    shutil.copytree(sample_folder("solar-llama"), model)
    emit_repository(model, tmp_path / "plain", ServingRecipe())
    formats = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8"}
    (model / "hf_quant_config.json").write_text(json.dumps({"quantization": formats}))
    emit_repository(model, tmp_path / "quantized", ServingRecipe())

    plain, quantized = (
        read_facts(tmp_path / name, image=None, gpu="B200", drain_s=20).gpu
        for name in ("plain", "quantized")
    )

    assert plain is not None
    assert quantized is not None
    assert plain.longest_bytes == 2 * quantized.longest_bytes
    with pytest.raises(UnsupportedError, match="cannot run nvfp4"):
        read_facts(tmp_path / "quantized", image=None, gpu="H100", drain_s=20)


def test_ranks_over_nodes_divide_what_each_has(facts: ServedFacts) -> None:
    several = dataclasses.replace(facts, tp=8, pp=2)
    deployment = Deployment(several, settings_of(LEADERWORKERSET))
    one = Deployment(several, settings_of(LEADERWORKERSET, gpus_per_node=16))

    assert (deployment.nodes, deployment.node_ranks, one.nodes) == (2, 8, 1)
    assert deployment.gpus() == Figure(8, "tp 8 x pp 2 over 2 nodes, a GPU a rank", "server.gpus")
    assert deployment.loaded_bytes() == one.loaded_bytes() // 2


def test_a_budget_of_disruptions_counts_every_pod_of_a_replica(facts: ServedFacts) -> None:
    """A worker's node that is drained takes the whole group with it."""
    settings = settings_of(LEADERWORKERSET, gpus_per_node=1)
    files = objects_of(Deployment(facts, settings))
    budget = files["disruptions"][0]["spec"]["selector"]
    template = files["server"][0]["spec"]["leaderWorkerTemplate"]
    pods = [template[name]["metadata"]["labels"] for name in ("leaderTemplate", "workerTemplate")]

    (among,) = budget["matchExpressions"]
    assert among["operator"] == "In"
    assert {pod[among["key"]] for pod in pods} == set(among["values"])
    assert all(budget["matchLabels"].items() <= pod.items() for pod in pods)


@pytest.mark.parametrize("target", [KUBERNETES, LEADERWORKERSET, DYNAMO])
def test_replicas_are_the_autoscalers_where_there_is_one(target: str, facts: ServedFacts) -> None:
    """Else the files, applied again, would take them back to the least."""

    def found(autoscaler: str) -> tuple[list[int], list[int]]:
        files = objects_of(Deployment(facts, settings_of(target, autoscaler=autoscaler)))
        (workload,) = files.get("server") or files["graph"]
        scaler = files.get("autoscaling", [{"spec": {}}])[0]["spec"]
        spec = workload["spec"]["components"][1] if target == DYNAMO else workload["spec"]
        least = [each for name in ("minReplicas", "minReplicaCount") if (each := scaler.get(name))]
        own = [spec["replicas"].value] if "replicas" in spec else []
        return own, [each.value for each in least]

    assert [found(autoscaler) for autoscaler in AUTOSCALERS] == [([], [2]), ([], [2]), ([2], [])]


@pytest.mark.parametrize(("autoscaler", "kserves"), [("keda", "external"), ("none", "none")])
def test_kserve_leads_nobody_past_the_gateway_and_asks_for_no_gpu_more(
    autoscaler: str, kserves: str, facts: ServedFacts
) -> None:
    """It heeds `minReplicas` only without any autoscaler, and surges unless told otherwise."""
    deployment = Deployment(facts, settings_of(KSERVE, autoscaler=autoscaler, replicas=3))
    service = inference_service(deployment)
    described, predictor = service["metadata"], service["spec"]["predictor"]
    strategy = predictor["deploymentStrategy"]

    assert described["labels"]["networking.kserve.io/visibility"] == "cluster-local"
    assert described["annotations"]["serving.kserve.io/autoscalerClass"] == kserves
    assert [strategy["type"], strategy["rollingUpdate"]["maxSurge"].value] == ["RollingUpdate", 0]
    own = predictor.get("minReplicas")
    assert (own and own.value) == (3 if autoscaler == "none" else None)


DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("image", "known"),
    [
        (f"nvcr.io/nvidia/tritonserver@{DIGEST}", {"digest": DIGEST}),
        (f"nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3@{DIGEST}", {"digest": DIGEST}),
        ("nvcr.io:443/nvidia/tritonserver:own", {"newTag": "own"}),
        ("nvcr.io:443/nvidia/tritonserver", None),
    ],
)
def test_an_overlay_names_an_image_without_tag_or_digest(
    image: str, known: dict[str, str] | None, repository_of: RepositoryOf
) -> None:
    texts = planned(repository_of("H100"), image=image).texts
    images = yaml.safe_load(texts["overlays/production/kustomization.yaml"])["images"]
    found = {each.pop("name"): each for each in images}

    del found["minitron-trt"]
    name = image.partition("@")[0].removesuffix(":26.07-trtllm-python-py3").removesuffix(":own")
    assert found == ({} if known is None else {name: known})


@pytest.mark.parametrize(
    ("target", "options", "needed", "not_needed"),
    [
        (LEADERWORKERSET, {}, {"LeaderWorkerSet", "KEDA"}, {"KServe", "Gateway API"}),
        (KSERVE, {"autoscaler": "none"}, {"KServe", "1.30"}, {"KEDA", "the metrics server"}),
        (DYNAMO, {"autoscaler": "hpa", "route": "public"}, {"Dynamo", "prometheus-a"}, {"KEDA"}),
        (KUBERNETES, {"storage": "image:models:1"}, {"1.35", "the metrics server"}, {"1.30"}),
    ],
)
def test_the_readme_says_what_the_cluster_needs(
    target: str,
    options: dict[str, Any],
    needed: set[str],
    not_needed: set[str],
    repository_of: RepositoryOf,
) -> None:
    text = planned(repository_of("H100"), target, **options).texts["README.md"]
    needs = text.partition("The cluster needs:")[2].partition("In this order")[0]

    assert {word for word in needed | not_needed if word in needs} == needed


@pytest.mark.parametrize("helm", [True, False])
def test_the_readme_has_the_command_of_a_chart_that_is_there(
    helm: bool, repository_of: RepositoryOf
) -> None:
    texts = planned(repository_of("H100"), helm=helm).texts
    command = "    helm upgrade --install llama chart --namespace llama\n"

    assert (command in texts["README.md"]) == ("chart/Chart.yaml" in texts) == helm


# What is refused, with its exit code; for Kubernetes where no target is named.
REFUSED = {
    "--gpus-per-node 1": (
        4,
        "has 2 ranks, a node 1 GPUs (--gpus-per-node); --target kubernetes has one node: use "
        "--target leaderworkerset or slurm",
    ),
    "--gpu L40": (4, "engine for SM90, L40 (SM89)"),
    "--gpu H1000": (2, "did you mean"),
    "--image 25.12": (4, "TensorRT-LLM 1.2.1"),
    "--target slurm --image ''": (2, "--image '' is no reference of an image"),
    "--target compose --image 'a b'": (2, "--image 'a b' is no ref"),
    "--gateway-image ''": (
        2,
        "--gateway-image '' is no reference of an image; expected [HOST[:PORT]/]NAME[:TAG]",
    ),
    "--storage image:example.org/a@b": (
        2,
        "--storage image 'example.org/a@b' is no reference of an image",
    ),
    "--storage s3:bucket": (
        2,
        "no known form of storage; expected claim:NAME[/FOLDER], image:REFERENCE or fetch:URL",
    ),
    "--storage claim:a/../b": (2, "leads out of"),
    "--storage claim:A_b": (2, "no name of a claim"),
    "--storage fetch:https://me:word@example.org/r": (2, "would stand in plain text"),
    "--storage 'fetch:https://example.org/r?sig=abc'": (2, "would stand in plain text"),
    "--name My_Model": (2, "is no name of Kubernetes"),
    f"--name {'a' * 41}": (2, "at most 40"),
    "--name 3b": (2, "a small letter, then"),
    "--keys-secret sk-ABC==": (2, "--keys-secret 'sk-ABC==' is no name of Kubernetes"),
    "--storage fetch:https://example.org:port/r": (
        2,
        "--storage fetch: 'https://example.org:port/r' is no http or https URL",
    ),
    "--prometheus 'http://[::1'": (2, "--prometheus: 'http://[::1' is no http or https URL"),
    "--prometheus http://me:word@prometheus:9090": (
        2,
        "--prometheus: the URL has a user, a password or a query, which would stand in plain text",
    ),
    "--user 0": (2, "is root or no user"),
    "--replicas 9": (2, "--max-replicas 8 is below"),
    "--target compose --helm": (2, "--helm is for what runs on"),
    "--target compose --route public": (
        2,
        "--route is for what runs on Kubernetes, not for compose",
    ),
    "--target compose --replicas 4": (
        2,
        "--replicas is for what runs on Kubernetes, not for compose",
    ),
    "--target slurm --autoscaler hpa": (
        2,
        "--autoscaler is for what runs on Kubernetes, not for slurm",
    ),
    "--target compose --ttft 200ms": (2, "--ttft is for what runs on Kubernetes, not for compose"),
    "--target dynamo --keys-secret keys": (2, "Dynamo's frontend knows no keys"),
    "--target dynamo --inference-pool": (2, "whose router picks"),
    "--target dynamo --gpus-per-node 1": (4, "--target dynamo has one node"),
    "--target slurm --storage image:registry.example.org/llama:1": (
        2,
        "--target slurm takes the repository's folder as it is",
    ),
    "--target compose --partition gpu": (2, "is for --target slurm"),
    "--target slurm --container none --gpus-per-node 1": (4, "--container none has one node"),
}


@pytest.mark.parametrize("options", REFUSED)
def test_what_cannot_be_is_refused_in_one_line(
    options: str, repository_of: RepositoryOf, tmp_path: Path, command: Callable[..., Result]
) -> None:
    code, said = REFUSED[options]
    output, words = tmp_path / "deployment", shlex.split(options)
    usual = {"--target": "kubernetes", "--name": "llama"}
    others = [word for each in usual.items() if each[0] not in words for word in each]
    result = command("deploy", repository_of("H100"), "-o", output, *others, *words)

    assert (result.exit_code, output.exists()) == (code, False), result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_pool_lets_its_routes_and_its_picker_in(repository_of: RepositoryOf) -> None:
    """The gateway of the routes asks Triton, by HTTP and gRPC; the picker reads metrics."""
    files = planned(repository_of("H100"), route="ingress/public", inference_pool=True).texts
    policy = next(yaml.safe_load_all(files["base/network-policies.yaml"]))
    names = {"http": 8000, "grpc": 8001, "metrics": 8002}
    may = [
        (rule["from"][0], {port["port"] for port in rule["ports"]})
        for rule in policy["spec"]["ingress"]
    ]
    ingress = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "ingress"}}}

    assert (ingress, {names["http"], names["grpc"]}) in may
    assert ({"podSelector": {}}, {names["metrics"]}) in may


def test_closed_calls_ask_for_what_no_header_holds() -> None:
    """Triton 2.51 took a header without a value for one whose value is a space."""
    name, _, value = CLOSED.partition("=")

    assert name != name.lower()
    assert value.startswith(" ")
    assert value.strip()


@pytest.mark.parametrize(
    ("folder", "expected"),
    [("Llama 3.1", "llama-3-1"), ("8B", "m-8b"), (f"{'a' * 39}-{'b' * 9}", "a" * 39)],
)
def test_a_deployment_is_named_after_its_repository(folder: str, expected: str) -> None:
    assert name_of(Path(folder)) == expected
    assert settings_of(name=expected).name == expected


def test_a_folder_of_somebody_else_is_not_replaced(
    repository_of: RepositoryOf, tmp_path: Path, command: Callable[..., Result]
) -> None:
    (tmp_path / "notes").write_text("mine")
    arguments = ("deploy", repository_of("H100"), "--target", "compose", "-o", tmp_path)
    result = command(*arguments, "--overwrite")

    assert result.exit_code == 2
    assert "is not something this tool wrote" in result.stderr


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of files that is served, and the list of their digests."""
    folder = tmp_path / "served"
    (folder / "1").mkdir(parents=True)
    (folder / "1/weights of a model").write_bytes(os.urandom(3 * 2**20 + 7))
    (folder / "config").write_text("settings")
    return folder


def listed(folder: Path) -> str:
    """Return the digests of a folder's files as the script takes them."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(
        f"{fetch_repository._digest(path)}  {path.relative_to(folder)}\n" for path in paths
    )


def test_what_is_fetched_is_what_was_listed(
    files: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (tmp_path / "list").write_text(listed(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(files))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        first = fetch_repository.main(url, tmp_path / "list", tmp_path / "fetched")
        again = listed(tmp_path / "fetched")
        (files / "config").write_text("other")
        (tmp_path / "fetched/config").unlink()
        second = fetch_repository.main(url, tmp_path / "list", tmp_path / "fetched")
        (files / "1/weights of a model").unlink()
        third = fetch_repository.main(url, tmp_path / "list", tmp_path / "elsewhere")
        server.shutdown()

    assert (first, second, third) == (0, 1, 1)
    assert again == (tmp_path / "list").read_text()
    assert not (tmp_path / "fetched/config").exists()
    said = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"error: config: \S+ has sha256 \w+; expected \w+", said[0])
    assert "404" in said[1]


def test_a_file_that_breaks_off_is_fetched_again(files: Path, tmp_path: Path) -> None:
    class Leaving(BaseHTTPRequestHandler):
        """A double: breaks off in the middle of its first answer."""

        answers = 0

        def do_GET(self) -> None:
            """Answer with a file, or with half of it."""
            data = (files / urllib.parse.unquote(self.path[1:])).read_bytes()
            Leaving.answers += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data if Leaving.answers > 1 else data[: len(data) // 2])

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    (tmp_path / "list").write_text(listed(files))
    with ThreadingHTTPServer(("127.0.0.1", 0), Leaving) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        code = fetch_repository.main(url, tmp_path / "list", tmp_path / "fetched")
        server.shutdown()

    assert (code, Leaving.answers) == (0, 3)
    assert listed(tmp_path / "fetched") == listed(files)


def test_a_list_has_every_file_of_the_repository(repository_of: RepositoryOf) -> None:
    repository = repository_of("H100")
    paths = sorted(path for path in repository.rglob("*") if path.is_file())
    names = [line.partition("  ")[2] for line in digests_text(repository).splitlines()]

    assert names == [str(path.relative_to(repository)) for path in paths]


def test_the_reference_runtime_on_a_gpu_is_refused(tmp_path: Path) -> None:
    convert(str(sample_folder("solar-llama")), tmp_path / "checkpoint", ConvertOptions())
    recipe = ServingRecipe(settings={"tensorrt_llm": {"gpu_device_ids": "0"}})
    emit_repository(tmp_path / "checkpoint", tmp_path / "repository", recipe)

    with pytest.raises(
        UnsupportedError, match="reference runtime on GPU 0, and deploy asks for no"
    ):
        read_facts(tmp_path / "repository", image="triton:1", gpu=None, drain_s=20)
