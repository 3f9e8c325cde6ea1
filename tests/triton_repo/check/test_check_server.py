"""`check` and a real tritonserver give the same verdict on broken models and ensembles."""

from __future__ import annotations

import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE_S, until
from tests.triton_repo.upstream import write_upstream

from minitron_trt.triton_repo.check.repository_check import check_repository
from minitron_trt.triton_repo.serving.installation import find_embedded
from minitron_trt.triton_repo.serving.server_options import free_endpoints

pytestmark = pytest.mark.server

MODEL = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"


def tensor(name: str, type_: str = "INT32", dims: str = "-1", more: str = "") -> str:
    return f'{{ name: "{name}" data_type: TYPE_{type_} dims: [ {dims} ] {more} }}'


def python(inputs: str, outputs: str, more: str = "", batch: int = 4) -> str:
    return (
        f'backend: "python" max_batch_size: {batch} input [ {inputs} ] output [ {outputs} ] '
        f"{more or CPU}"
    )


def step(model: str, inputs: str, outputs: str) -> str:
    """Return a step; maps are written like `A=a,B=b`, the model's tensor first."""
    maps = (
        (side, pair.split("="))
        for side, m in (("input_map", inputs), ("output_map", outputs))
        for pair in filter(None, m.split(","))
    )
    said = " ".join(f'{side} {{ key: "{key}" value: "{value}" }}' for side, (key, value) in maps)
    return f'step [ {{ model_name: "{model}" model_version: -1 {said} }} ]'


def ensemble(inputs: str, outputs: str, *steps: str, batch: int = 4) -> str:
    return (
        f'platform: "ensemble" max_batch_size: {batch} input [ {inputs} ] output [ {outputs} ] '
        f"ensemble_scheduling {{ {' '.join(steps)} }}"
    )


CPU = "instance_group [ { kind: KIND_CPU } ]"
DECOUPLED = f"model_transaction_policy {{ decoupled: true }} {CPU}"
A, T = tensor("a"), tensor("t")
FIRST = step("first", "A=a", "X=_x")
STREAM = step("stream", "X=_x", "T=t")
# What the ensembles are made of.
PARTS = {
    "first": python(
        f"{tensor('A')}, {tensor('B', 'FP32', '1', 'optional: true')}",
        f"{tensor('X')}, {tensor('Y', 'FP32', '1')}",
    ),
    "stream": python(tensor("X"), tensor("T"), DECOUPLED),
    "last": python(f"{tensor('T')}, {tensor('C', 'INT32', '-1', 'optional: true')}", tensor("Z")),
    "small": python(tensor("X"), tensor("T"), batch=2),
    "unbatched": python(tensor("X", dims="-1,-1"), tensor("T", dims="-1,-1"), batch=0),
    "scalar": python(tensor("X", "INT32", "1", "reshape: { shape: [ ] }"), tensor("T")),
}
GOOD = {
    "good": ensemble(A, T, FIRST, STREAM),
    "good_shuffled": ensemble(A, T, STREAM, FIRST),
    "good_after_stream": ensemble(
        A, tensor("z"), FIRST, step("stream", "X=_x", "T=_t"), step("last", "T=_t", "Z=z")
    ),
    "good_output_twice": ensemble(A, f"{T}, {T}", FIRST, STREAM),
    "good_unbatched_step": ensemble(A, T, FIRST, step("unbatched", "X=_x", "T=t")),
    "good_wildcard": ensemble(A, T, FIRST, step("scalar", "X=_x", "T=t")),
    "good_input_twice": python(f"{tensor('A')}, {tensor('A')}", tensor("X")),
}
GOOD["good_without_backend"] = PARTS["first"].replace('backend: "python"', "")
BROKEN = {
    "no_such_step": ensemble(A, T, FIRST, step("absent", "X=_x", "T=t")),
    "no_such_input": ensemble(A, T, FIRST, step("stream", "X=_x,W=a", "T=t")),
    "no_such_output": ensemble(A, T, FIRST, step("stream", "X=_x", "T=t,W=_w")),
    "required_unmapped": ensemble(
        A, tensor("z"), step("first", "A=a", "X=_x"), step("last", "C=_x", "Z=z")
    ),
    "input_unused": ensemble(f"{A}, {tensor('b', 'FP32', '1')}", T, FIRST, STREAM),
    "middle_unused": ensemble(A, T, step("first", "A=a", "X=_x,Y=_y"), STREAM),
    "middle_unwritten": ensemble(A, T, FIRST, step("stream", "X=_typo", "T=t")),
    "output_unwritten": ensemble(A, f"{T}, {tensor('u')}", FIRST, STREAM),
    "wrong_type": ensemble(tensor("a", "INT64"), T, FIRST, STREAM),
    "wrong_type_between": ensemble(A, T, step("first", "A=a", "Y=_x"), STREAM),
    "wrong_rank": ensemble(tensor("a", dims="-1,-1"), T, FIRST, STREAM),
    "wrong_dim": ensemble(
        tensor("b", "FP32", "2") + "," + A, T, step("first", "A=a,B=b", "X=_x"), STREAM
    ),
    "batch_too_large": ensemble(A, T, FIRST, step("small", "X=_x", "T=t")),
    "cycle": ensemble(A, T, step("first", "A=t", "X=_x"), step("last", "T=_x,C=a", "Z=t")),
    "written_twice": ensemble(A, T, FIRST, STREAM, step("stream", "X=_x", "T=t")),
    "around_the_stream": ensemble(
        f"{A}, {tensor('c')}",
        tensor("z"),
        FIRST,
        step("stream", "X=_x", "T=_t"),
        step("last", "T=_t,C=c", "Z=z"),
    ),
    "outputs_of_two_origins": ensemble(
        A, f"{T}, {tensor('y', 'FP32', '1')}", step("first", "A=a", "X=_x,Y=y"), STREAM
    ),
    "no_steps": ensemble(A, T),
    "ensemble_with_instances": f"{ensemble(A, T, FIRST, STREAM)} {CPU}",
    "other_name": f'name: "else" {PARTS["first"]}',
    "unknown_backend": PARTS["first"].replace('"python"', '"tensorrt_llm"'),
    "unknown_field": f"{PARTS['first']} max_batchsize: 3",
    "not_a_config": 'backend: "python" input [ {',
    "a_placeholder": PARTS["first"].replace(
        "batch_size: 4", "batch_size: ${triton_max_batch_size}"
    ),
    "no_dims": python(tensor("A", dims=""), tensor("X")),
    "zero_dim": python(tensor("A", dims="0"), tensor("X")),
    "no_type": python('{ name: "A" dims: [ 1 ] }', tensor("X")),
    "unknown_kind": python(tensor("A"), tensor("X"), "instance_group [ { kind: 9 } ]"),
    "reshape_of_other_size": python(
        tensor("A", dims="2,-1", more="reshape: { shape: [ -1 ] }"), tensor("X")
    ),
    "scalar_without_batch": python(
        tensor("A", dims="1", more="reshape: { shape: [ ] }"), tensor("X"), batch=0
    ),
    "cpu_with_gpus": python(
        tensor("A"), tensor("X"), "instance_group [ { kind: KIND_CPU gpus: [ 0 ] } ]"
    ),
    "preferred_too_large": python(
        tensor("A"), tensor("X"), f"dynamic_batching {{ preferred_batch_size: [ 8 ] }} {CPU}"
    ),
    "negative_batch": PARTS["first"].replace("batch_size: 4", "batch_size: -1"),
    "version_absent": f"{PARTS['first']} version_policy {{ specific {{ versions: [ 2 ] }} }}",
    "output_of_step_twice": ensemble(A, T, FIRST, step("twice", "X=_x", "T=t")),
    "no_version": ensemble(A, T, FIRST, STREAM),
}
COUNTS = ("preprocessing_instance_count", "postprocessing_instance_count", "bls_instance_count")
UPSTREAM = ("ensemble", "tensorrt_llm_bls")
HELPERS = {"twice": python(tensor("X"), f"{tensor('T')}, {tensor('T')}")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every model in one repository."""
    root = tmp_path_factory.mktemp("models")
    for name, text in {**PARTS, **HELPERS, **GOOD, **BROKEN}.items():
        (root / name / "1").mkdir(parents=True)
        (root / name / "config.pbtxt").write_text(text)
        (root / name / "1" / "model.py").write_text(MODEL)
    # TensorRT-LLM's models too, with Python in the place of its backend.
    values = {"triton_backend": "python"} | dict.fromkeys(COUNTS, "1")
    (write_upstream(root, values) / "tensorrt_llm/1/model.py").write_text(MODEL)
    (root / "no_version/1").rename(root / "no_version/01")
    return root


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server that loads a model when it is told to."""
    installation, scratch = find_embedded(), tmp_path_factory.mktemp("server")
    for link, target in installation.backend_links(scratch).items():
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(target)
    port = free_endpoints().http_port
    command = [
        str(installation.binary),
        f"--model-repository={folder}",
        f"--backend-directory={scratch}",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        "--allow-grpc=false",
        "--allow-metrics=false",
        "--http-address=127.0.0.1",
        f"--http-port={port}",
    ]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(
            command, env=dict(installation.environment), stdout=log, stderr=subprocess.STDOUT
        )
    try:
        url = f"http://127.0.0.1:{port}/v2"
        until(lambda: process.poll() is not None or _post(f"{url}/repository/index") is not None)
        assert process.poll() is None
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _post(url: str) -> str | None:
    """Return what the server answers: "" for success, its words, or None when it is not there."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(urllib.request.Request(url, b"{}"), timeout=PATIENCE_S):
            return ""
    except urllib.error.HTTPError as error:
        return str(json.load(error)["error"])
    except urllib.error.URLError:
        return None


def load(server: str, name: str) -> str | None:
    """Return why the server does not load a model, "" when it does."""
    return _post(f"{server}/repository/models/{name}/load")


@pytest.fixture(scope="module")
def findings(folder: Path) -> dict[str, list[str]]:
    """What check calls an error, by model."""
    found: dict[str, list[str]] = {}
    for error in check_repository(folder).errors:
        found.setdefault(error.file.partition("/")[0], []).append(error.message)
    return found


@pytest.mark.parametrize("name", [*GOOD, *UPSTREAM])
def test_what_the_server_serves_has_no_error(
    server: str, findings: dict[str, list[str]], name: str
) -> None:
    assert (load(server, name), findings.get(name, [])) == ("", [])


@pytest.mark.parametrize("name", BROKEN)
def test_what_the_server_refuses_is_one_error(
    server: str, findings: dict[str, list[str]], name: str
) -> None:
    assert load(server, name)
    assert len(findings.get(name, [])) == 1, findings.get(name)
