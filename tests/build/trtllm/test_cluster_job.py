"""Job files for clusters: parsed by bash and a YAML reader, and held against the API's schema."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.build.engines import write_engine

from minitron_trt.build.trtllm.cluster_job import yaml_text
from minitron_trt.convert.conversion import ConvertOptions, convert

yaml = pytest.importorskip("yaml", reason="the job files are read back with PyYAML")

Command = Callable[..., Result]
DEFINITIONS = json.loads(Path(__file__).with_name("kubernetes_job.json").read_text())["definitions"]
JOB = {"$ref": "io.k8s.api.batch.v1.Job"}
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "object": (dict,),
    "array": (list,),
    "null": (type(None),),
}


@pytest.fixture
def checkpoint(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a checkpoint to read."""
    convert(str(tiny_llama), tmp_path / "check point", ConvertOptions())
    return tmp_path / "check point"


def problems(value: Any, schema: dict[str, Any], at: str = "job") -> list[str]:
    """Return where a value is not what a JSON schema says, as far as Kubernetes' uses it."""
    if "$ref" in schema:
        return problems(value, DEFINITIONS[schema["$ref"]], at)
    if "oneOf" in schema:
        found = [problems(value, choice, at) for choice in schema["oneOf"]]
        return [] if [] in found else found[0]
    types = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    # True is an int in Python, and not in JSON.
    if not any(type(value) in TYPES[name] for name in types):
        return [f"{at} is {value!r}, not {' or '.join(types)}"]
    if value not in schema.get("enum", [value]):
        return [f"{at} is {value!r}, not one of {schema['enum']}"]
    if isinstance(value, list):
        return [p for inner in value for p in problems(inner, schema["items"], f"{at}[]")]
    return _object_problems(value, schema, at) if isinstance(value, dict) else []


def _object_problems(value: dict[str, Any], schema: dict[str, Any], at: str) -> list[str]:
    known, others = schema.get("properties", {}), schema.get("additionalProperties", True)
    found = [f"{at}.{key} is missing" for key in set(schema.get("required", ())) - value.keys()]
    for key, inner in value.items():
        if key in known:
            found += problems(inner, known[key], f"{at}.{key}")
        elif others is False:
            found.append(f"{at}.{key} is not known")
        elif isinstance(others, dict):
            found += problems(inner, others, f"{at}.{key}")
    return found


def test_a_kubernetes_job_is_what_the_api_takes(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "engine"
    arguments = ("build", checkpoint, "-o", output, "--arch", "B200", "--runner", "kubernetes")
    result = command(*arguments, "--claim", "store", "--timeout", 600, "--json")
    record = json.loads(result.stdout)
    job = yaml.safe_load(Path(record["job"]).read_text())
    pod = job["spec"]["template"]["spec"]
    container = pod["containers"][0]

    assert result.exit_code == 0, result.stderr
    assert problems(job, JOB) == []
    assert job["metadata"]["name"] == "build-check-point-sm100"
    assert pod["nodeSelector"] == {
        "nvidia.com/gpu.compute.major": "10",
        "nvidia.com/gpu.compute.minor": "0",
    }
    assert container["image"] == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert container["command"][:3] == [
        "trtllm-build",
        "--checkpoint_dir=/models/check point",
        "--output_dir=/models/engine",
    ]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "1", "memory": "3Gi"}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "store"}
    assert job["spec"]["activeDeadlineSeconds"] == 600
    assert record["submit"] == f"kubectl apply -f {output}.yaml"


def test_the_schema_would_catch_what_is_wrong(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    arguments = ("build", checkpoint, "-o", tmp_path / "engine", "--arch", "B200")
    record = json.loads(command(*arguments, "--runner", "kubernetes", "--json").stdout)
    job = yaml.safe_load(Path(record["job"]).read_text())
    job["apiVersion"] = "v1"
    job["spec"] |= {"backofLimit": 0, "backoffLimit": "0", "suspend": 1}
    container = job["spec"]["template"]["spec"]["containers"][0]
    container["resources"]["limits"]["memory"] = ["3Gi"]
    del container["name"]

    assert sorted(problems(job, JOB)) == [
        "job.apiVersion is 'v1', not one of ['batch/v1']",
        "job.spec.backofLimit is not known",
        "job.spec.backoffLimit is '0', not integer or null",
        "job.spec.suspend is 1, not boolean or null",
        "job.spec.template.spec.containers[].name is missing",
        "job.spec.template.spec.containers[].resources.limits.memory is ['3Gi'], not string or "
        "null",
    ]


@pytest.mark.parametrize(
    "record",
    [
        {"a": "no: yes", "b": [], "c": {}, "d": True, "e": None, "f": 1, "g": "1"},
        {"a": [{"b": [{"c": [1, 2]}], "d": {"e": "x"}}, "- plain"], "ü": "π # no comment\n"},
    ],
)
def test_yaml_reads_back(record: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(record)) == record


def test_a_slurm_script_is_bash_and_asks_for_what_the_build_takes(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    output = tmp_path / "engine"
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "slurm", "--json")
    record = json.loads(command(*arguments).stdout)
    script = Path(record["job"])
    text = script.read_text()

    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert record["submit"] == f"sbatch {output}.sbatch"
    assert [line for line in text.splitlines() if line.startswith("#SBATCH")] == [
        "#SBATCH --job-name=build-check-point-sm90",
        "#SBATCH --nodes=1",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=3G",
        "#SBATCH --time=04:00:00",
        "#SBATCH --output=build-check-point-sm90-%j.log",
    ]
    assert "--container-image='nvcr.io#nvidia/tritonserver:26.07-trtllm-python-py3'" in text
    assert f"'{checkpoint}:/checkpoint:ro,{tmp_path}/.engine.partial:/output'" in text


def test_a_slurm_job_runs_where_the_gpu_is_right_and_publishes_whole(
    checkpoint: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Srun and nvidia-smi are doubles: one writes a file, the other names a capability."""
    output, tools = tmp_path / "engine", tmp_path / "bin"
    tools.mkdir()
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "slurm", "--json")
    script = json.loads(command(*arguments).stdout)["job"]
    for name, text in {
        "srun": f"touch {tmp_path}/.engine.partial/rank0.engine",
        "nvidia-smi": 'echo "$CAPABILITY"',
    }.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("CAPABILITY", "8.9")
    wrong = subprocess.run(["bash", script], capture_output=True, text=True)
    monkeypatch.setenv("CAPABILITY", "9.0")
    right = subprocess.run(["bash", script], capture_output=True, text=True)

    assert (wrong.returncode, wrong.stderr) == (
        1,
        "this node has a GPU of compute capability 8.9, not 9.0\n",
    )
    assert (right.returncode, right.stderr) == (0, "")
    assert [path.name for path in output.iterdir()] == ["rank0.engine"]


def test_what_a_job_wrote_becomes_an_artifact(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    output = write_engine(tmp_path / "engine", size_bytes=1000, pretrained=config)
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--finish")
    result = command(*arguments)

    assert (result.exit_code, result.stdout) == (0, f"{output}: an engine for H100-SXM (SM90)\n")
    assert command("check", output, "--gpu", "H100", "--image", "26.07").exit_code == 0
    assert (output / "tokenizer.json").is_file()


def test_a_job_that_is_not_done_cannot_be_finished(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    arguments = ("build", checkpoint, "-o", tmp_path / "engine", "--arch", "H100", "--finish")
    result = command(*arguments)

    assert result.exit_code == 3
    assert "holds no engine yet; let the job finish first" in result.stderr


def test_a_path_that_cannot_be_mounted_is_refused(
    tiny_llama: Path, tmp_path: Path, command: Command
) -> None:
    convert(str(tiny_llama), tmp_path / "a:b", ConvertOptions())
    arguments = ("build", tmp_path / "a:b", "-o", tmp_path / "e", "--arch", "H100")
    result = command(*arguments, "--runner", "slurm")

    assert result.exit_code == 2
    assert "a colon or comma in a path cannot be mounted" in result.stderr
