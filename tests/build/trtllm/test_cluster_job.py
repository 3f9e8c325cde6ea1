"""Job files for clusters: parsed by bash and a YAML reader, and held against the API's schema."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from click.testing import Result
from tests.build.engines import write_engine

from minitron_trt.artifacts import Manifest
from minitron_trt.convert.conversion import ConvertOptions, convert

KUBERNETES_VERSION = "1.37"

Command = Callable[..., Result]
Submit = Callable[..., tuple[int, str]]


@pytest.fixture
def checkpoint(tiny_llama: Path, tmp_path: Path) -> Path:
    """Return a checkpoint to read."""
    convert(str(tiny_llama), tmp_path / "check point", ConvertOptions())
    return tmp_path / "check point"


@pytest.fixture
def build(checkpoint: Path, tmp_path: Path, command: Command) -> Callable[..., Result]:
    """Return a call of `build` for that checkpoint, to the folder `engine`."""

    def call(*options: object) -> Result:
        return command("build", checkpoint, "-o", tmp_path / "engine", *options)

    return call


def record_of(result: Result) -> dict[str, Any]:
    """Return what a command printed with --json."""
    assert result.exit_code == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def objects_of(record: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the Pod and the Job of a job file, which the API takes as they are."""
    pod, job = yaml.safe_load_all(Path(record["job"]).read_text())
    for item in (pod, job):
        kubernetes_validate.validate(item, KUBERNETES_VERSION, strict=True)
    return pod, job


KUBERNETES = ("--arch", "B200", "--runner", "kubernetes", "--json")
SLURM = ("--arch", "H100", "--runner", "slurm", "--json")


def test_a_kubernetes_job_is_what_the_api_takes(build: Callable[..., Result]) -> None:
    options = ("--claim", "store", "--namespace", "ml", "--image-pull-secret", "ngc")
    record = record_of(build(*KUBERNETES, *options, "--timeout", 600))
    pod, job = objects_of(record)
    spec = job["spec"]["template"]["spec"]
    container = spec["containers"][0]

    assert job["metadata"]["name"] == record["name"]
    assert record["name"].startswith("build-check-point-bf16-sm100-")
    assert (job["metadata"]["namespace"], pod["metadata"]["namespace"]) == ("ml", "ml")
    assert spec["nodeSelector"] == {
        "nvidia.com/gpu.compute.major": "10",
        "nvidia.com/gpu.compute.minor": "0",
    }
    assert container["image"] == "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
    assert spec["imagePullSecrets"] == [{"name": "ngc"}]
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "store"}
    assert job["spec"]["activeDeadlineSeconds"] == 600


def test_a_kubernetes_job_is_nobody_special_and_pays_for_its_shared_memory(
    build: Callable[..., Result],
) -> None:
    record = record_of(build(*KUBERNETES, "--user", 4711))
    slurm = record_of(build(*SLURM))
    _, job = objects_of(record)
    spec = job["spec"]["template"]["spec"]
    user = {"runAsUser": 4711, "runAsGroup": 4711, "fsGroup": 4711, "runAsNonRoot": True}

    assert {**spec["securityContext"], **user} == spec["securityContext"]
    assert spec["containers"][0]["resources"]["limits"] == {
        "cpu": "8",
        "memory": "5Gi",
        "nvidia.com/gpu": "1",
    }
    assert "--mem=3G\n" in slurm["text"]
    assert spec["volumes"][2]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}


def test_kubernetes_fills_nothing_into_the_script(build: Callable[..., Result]) -> None:
    """It makes one $ of two, and a variable's value of $(NAME)."""
    _, job = objects_of(record_of(build(*KUBERNETES)))
    script = job["spec"]["template"]["spec"]["containers"][0]["command"][-1]

    assert "$$(jobs -p)" in script
    assert "$" not in script.replace("$$", "")
    assert (
        subprocess.run(["bash", "-n"], input=script.replace("$$", "$"), text=True).returncode == 0
    )


def test_the_steps_put_the_folders_on_the_claim_and_take_the_engine_back(
    build: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    record = record_of(build(*KUBERNETES, "--namespace", "ml"))
    steps, pod = record["steps"], f"{record['name']}-files"
    kubectl = "kubectl --namespace ml"

    assert list(steps) == [
        "put the checkpoint on the claim",
        "build the engine",
        "bring the engine back",
    ]
    assert steps["put the checkpoint on the claim"][2] == (
        f"{kubectl} cp '{checkpoint}' '{pod}:/models/check point'"
    )
    assert (
        steps["bring the engine back"][2] == f"{kubectl} cp {pod}:/models/engine {tmp_path}/engine"
    )
    assert record["submit"] == (
        f"{kubectl} apply -f {tmp_path}/engine.yaml -l app.kubernetes.io/component=build"
    )


@pytest.mark.slow
def test_the_schema_would_catch_what_is_wrong(build: Callable[..., Result]) -> None:
    _, job = objects_of(record_of(build(*KUBERNETES)))
    job["spec"]["backofLimit"] = 0

    with pytest.raises(kubernetes_validate.ValidationError, match="backofLimit"):
        kubernetes_validate.validate(job, KUBERNETES_VERSION, strict=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--claim", "My_Claim"), "--claim 'My_Claim' is no name of Kubernetes"),
        (("--namespace", "a b"), "--namespace 'a b' is no name of Kubernetes"),
        (("--user", 0), "--user 0 is root or no user; expected 1 to 2147483647"),
        (("--user", 2**31), "--user 2147483648 is root or no user; expected 1 to 2147483647"),
        (("--partition", "h100"), "--partition is for --runner slurm, not kubernetes"),
    ],
    ids=["claim", "namespace", "root", "no user", "partition"],
)
def test_what_kubernetes_would_refuse_is_refused(
    options: tuple[object, ...], message: str, build: Callable[..., Result], tmp_path: Path
) -> None:
    result = build(*KUBERNETES, *options)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "engine.yaml").exists()


@pytest.mark.parametrize("runner", [SLURM, KUBERNETES], ids=["slurm", "kubernetes"])
def test_a_dry_run_prints_the_very_file(
    runner: tuple[str, ...], build: Callable[..., Result], tmp_path: Path
) -> None:
    result = build(*runner[:-1], "--dry-run")

    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["check point"]
    assert Path(record_of(build(*runner))["job"]).read_text() == result.stdout


def test_jobs_are_named_by_what_they_build(build: Callable[..., Result]) -> None:
    name = record_of(build(*SLURM))["name"]

    assert record_of(build(*SLURM))["name"] == name
    assert record_of(build(*SLURM, "--max-batch-size", 8))["name"] != name


@pytest.mark.parametrize(
    ("runner", "file", "place"),
    [("slurm", "here.sbatch", "{}/here"), ("kubernetes", "here.yaml", "/models/here")],
)
def test_an_output_without_a_name_of_its_own_is_refused_or_resolved(
    runner: str,
    file: str,
    place: str,
    checkpoint: Path,
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job = ("build", checkpoint, "-o", ".", "--arch", "B200", "--runner", runner)
    refused, written = command(*job), command(*job, "--overwrite")

    assert (refused.exit_code, refused.stderr.count("\n")) == (2, 1)
    assert written.exit_code == 0, written.stderr
    lines = [line.strip() for line in (tmp_path / file).read_text().splitlines()]
    assert f"output={place.format(tmp_path)}" in lines


def test_options_of_a_file_are_typed_in_the_command_that_finishes(
    build: Callable[..., Result], tmp_path: Path
) -> None:
    said = (
        "max-batch-size: 8",
        "time: 2:00:00",
        "weight-streaming: false",
        "kv-cache-reuse: false",
    )
    options = tmp_path / "options.yaml"
    options.write_text("\n".join([*said, "partition: null", "verbose: 2"]))
    record = record_of(build(*SLURM, "--config", options))

    assert "#SBATCH --time=2:00:00\n" in Path(record["job"]).read_text()
    typed = "--no-kv-cache-reuse --runner slurm --time 2:00:00 --verbose --verbose --finish"
    assert sorted(record["finish"].partition(" --arch H100 ")[2].split()) == sorted(
        f"--max-batch-size 8 {typed}".split()
    )


def test_a_user_without_a_home_has_a_job_written(
    build: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container a user may be a number alone; timings are then kept nowhere."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 1)

    assert build(*SLURM).exit_code == 0


def test_an_engine_that_is_there_is_refused_before_a_job_file_is_written(
    build: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    write_engine(tmp_path / "engine", size_bytes=1000, pretrained=config)
    result = build(*SLURM)

    assert result.exit_code == 2
    assert "already exists; choose another folder or pass --overwrite" in result.stderr
    assert not (tmp_path / "engine.sbatch").exists()


def test_a_file_of_somebody_else_is_not_replaced(
    build: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "engine.sbatch").write_text("#!/bin/bash\necho mine\n")
    result = build(*SLURM)

    assert result.exit_code == 2
    assert "exists and is no job file of this tool" in result.stderr


def test_a_slurm_script_is_bash_and_asks_for_what_the_build_takes(
    build: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    options = (
        "--partition",
        "h100",
        "--account",
        "nlp",
        "--time",
        "1-12:00",
        "--sbatch",
        "--qos=low",
    )
    record = record_of(build(*SLURM, *options))
    script, name = Path(record["job"]), record["name"]
    text = script.read_text()

    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    assert record["submit"] == f"sbatch {tmp_path}/engine.sbatch"
    assert [line for line in text.splitlines() if line.startswith("#SBATCH")] == [
        f"#SBATCH --job-name={name}",
        "#SBATCH --dependency=singleton",
        f"#SBATCH --output={name}-%j.log",
        "#SBATCH --partition=h100",
        "#SBATCH --account=nlp",
        "#SBATCH --time=1-12:00",
        "#SBATCH --nodes=1",
        "#SBATCH --ntasks=1",
        "#SBATCH --cpus-per-task=8",
        "#SBATCH --mem=3G",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --qos=low",
    ]
    assert "'--container-image=nvcr.io#nvidia/tritonserver:26.07-trtllm-python-py3'" in text
    mounts = f"{checkpoint}:/checkpoint:ro,{tmp_path}/.engine.partial:/output"
    assert f"'--container-mounts={mounts}'" in text


@pytest.mark.parametrize("runner", ["slurm", "kubernetes"])
def test_a_folder_whose_name_is_no_utf_8_is_named_by_its_bytes_or_refused(
    runner: str, checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    folder = checkpoint.rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    result = command("build", folder, "-o", tmp_path / "e", "--arch", "B200", "--runner", runner)

    if runner == "slurm":
        assert result.exit_code == 0, result.stderr
        assert b"/caf\xe9:/checkpoint:ro," in (tmp_path / "e.sbatch").read_bytes()
    else:
        assert result.exit_code == 2
        assert "has a name that a Job of Kubernetes cannot hold; rename it" in result.stderr


def test_a_folder_may_have_the_space_of_japanese_in_its_name(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    folder = checkpoint.rename(tmp_path / "モデル　小")
    result = command("build", folder, "-o", tmp_path / "e", *KUBERNETES)

    assert result.exit_code == 0, result.stderr
    _, job = yaml.safe_load_all((tmp_path / "e.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    assert "checkpoint='/models/モデル　小'" in container["command"][-1].splitlines()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--image", "/images/trtllm.sqsh"), "--container-image=/images/trtllm.sqsh \\"),
        (("--image", "reg.example/a/b:1"), "'--container-image=reg.example#a/b:1' \\"),
        (("--container", "apptainer", "--image", "/i/t.sif"), "/i/t.sif \\"),
        (
            ("--container", "apptainer"),
            "docker://nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 \\",
        ),
        (("--container", "none"), 'bash -c "$alone" - trtllm-build \\'),
    ],
    ids=["sqsh", "registry", "sif", "docker", "bare"],
)
def test_a_node_comes_by_the_compiler_as_the_cluster_has_it(
    options: tuple[str, ...], line: str, build: Callable[..., Result]
) -> None:
    text = record_of(build(*SLURM, *options))["text"]

    assert f"    {line}" in text.splitlines()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--time", "4h"), "--time 4h is no time of Slurm; expected minutes, HH:MM:SS"),
        (("--sbatch", "qos=low"), "--sbatch 'qos=low' is no option of sbatch"),
        (("--claim", "store"), "--claim is for --runner kubernetes, not slurm"),
        (("--partition", "a\nrm -r b"), "--partition 'a\\nrm -r b' is no name of Slurm's"),
    ],
    ids=["time", "sbatch", "claim", "lines"],
)
def test_what_slurm_would_refuse_is_refused(
    options: tuple[str, ...], message: str, build: Callable[..., Result], tmp_path: Path
) -> None:
    result = build(*SLURM, *options)

    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr
    assert not (tmp_path / "engine.sbatch").exists()


@pytest.fixture
def submit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Submit:
    """Return what runs a script as a node would; srun and nvidia-smi are doubles."""
    tools = tmp_path / "bin"
    tools.mkdir()
    srun = 'if [ "$1" = --help ]; then echo "$STEP_OPTIONS"; else eval "$STEP"; fi'
    for name, text in {"srun": srun, "nvidia-smi": 'echo "$CAPABILITY"'}.items():
        (tools / name).write_text(f"#!/bin/bash\n{text}\n")
        (tools / name).chmod(0o755)
    usual = {
        "PATH": f"{tools}:/usr/bin:/bin",
        "CAPABILITY": "9.0",
        "STEP_OPTIONS": "--container-image",
        "STEP": "echo new > rank0.engine",
    }

    def run(record: Mapping[str, Any], **changes: str) -> tuple[int, str]:
        done = subprocess.run(
            ["bash", record["job"]],
            capture_output=True,
            text=True,
            check=False,
            env={**usual, **changes},
        )
        return done.returncode, done.stderr

    return run


def test_a_job_publishes_an_engine_whole(
    build: Callable[..., Result], submit: Submit, tmp_path: Path
) -> None:
    assert submit(record_of(build(*SLURM))) == (0, "")
    assert [path.name for path in (tmp_path / "engine").iterdir()] == ["rank0.engine"]
    assert not (tmp_path / ".engine.partial").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"STEP": "exit 3"}, None),
        ({"STEP": "true"}, "trtllm-build ended well and wrote no engine"),
        (
            {"CAPABILITY": "8.9"},
            "this node has GPUs of compute capability 8.9, the engine is for H100-SXM (SM90), 9.0; "
            "choose its partition",
        ),
        (
            {"STEP_OPTIONS": "--chdir"},
            "this cluster's Slurm has no pyxis; write the job again with --container apptainer or "
            "none",
        ),
    ],
    ids=["compiler", "nothing", "gpu", "pyxis"],
)
def test_a_job_that_fails_says_why_and_leaves_nothing(
    changes: dict[str, str],
    message: str | None,
    build: Callable[..., Result],
    submit: Submit,
    tmp_path: Path,
) -> None:
    record = record_of(build(*SLURM))
    code, stderr = submit(record, **changes)

    assert (code != 0, stderr) == (True, f"error: {message}\n" if message else "")
    assert not (tmp_path / ".engine.partial").exists()
    # Submitted again, as nodes and clusters get mended.
    assert submit(record) == (0, "")


def test_a_job_refuses_what_it_would_replace_unless_told(
    build: Callable[..., Result], submit: Submit, tmp_path: Path
) -> None:
    written, engine = record_of(build(*SLURM)), tmp_path / "engine"
    first = submit(written)
    again = submit(written, STEP="echo newer > rank0.engine")
    (engine / "minitron.json").write_text("{}")
    told = submit(record_of(build(*SLURM, "--overwrite")), STEP="echo newer > rank0.engine")
    text = (engine / "rank0.engine").read_text()
    (engine / "rank0.engine").unlink()
    other = submit(record_of(build(*SLURM, "--overwrite")))

    assert first == (0, "")
    assert again == (
        1,
        f"error: {engine} already exists; write the job again with --overwrite or another -o\n",
    )
    assert (told, text) == ((0, ""), "newer\n")
    assert other == (1, f"error: {engine} is not an engine, so it is not replaced\n")


def test_two_jobs_do_not_write_one_engine(
    build: Callable[..., Result], submit: Submit, tmp_path: Path
) -> None:
    record, partial = record_of(build(*SLURM)), tmp_path / ".engine.partial"
    partial.mkdir()
    descriptor = os.open(partial, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    meanwhile = submit(record)
    os.close(descriptor)

    assert meanwhile == (
        1,
        f"error: another job is writing {tmp_path}/engine; wait for it\n",
    )
    assert submit(record) == (0, "")


def test_the_way_to_finish_has_the_options_of_the_build(
    build: Callable[..., Result], checkpoint: Path, tmp_path: Path
) -> None:
    record = record_of(build(*SLURM, "--max-batch-size", 8, "--overwrite"))

    assert record["finish"] == (
        f"minitron-trt build '{checkpoint}' --output {tmp_path}/engine --arch H100 --runner slurm "
        "--max-batch-size 8 --finish"
    )


def test_what_a_job_wrote_becomes_an_artifact(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    output = write_engine(tmp_path / "engine", size_bytes=1000, pretrained=config)
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--finish")
    result = command(*arguments)

    assert (result.exit_code, result.stdout) == (
        0,
        f"{output}: an engine for H100-SXM (SM90)\n"
        f"next: minitron-trt triton-repo {output} -o repository\n",
    )
    assert command("check", output, "--gpu", "H100", "--image", "26.07").exit_code == 0
    assert (output / "tokenizer.json").is_file()


def test_an_engine_of_other_options_keeps_its_own_limits(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    config = json.loads((checkpoint / "config.json").read_text())
    build = {"max_batch_size": 8, "max_seq_len": 256, "max_input_len": 256, "max_num_tokens": 8192}
    output = write_engine(tmp_path / "engine", size_bytes=1000, pretrained=config, build=build)
    result = command("build", checkpoint, "-o", output, "--arch", "H100", "--finish")

    assert (result.exit_code, result.stderr) == (
        0,
        "warning: the engine has max_batch_size 8, not 64 as asked; that is recorded\n",
    )
    assert Manifest.read(output, "engine").facts["limits"]["max_batch_size"] == 8


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
