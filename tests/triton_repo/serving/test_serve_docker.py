"""`serve --runner docker`, with a double of docker that runs the command on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.build.engines import add_manifest, write_engine
from tests.patience import PATIENCE_S
from tests.triton_repo.serving.server_doubles import Doubles
from tests.triton_repo.ticker import END, group_of, serve, stream, write_ticker

from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
USER = f"{os.getuid()}:{os.getgid()}" if os.getuid() else "1000:1000"


@pytest.fixture
def doubles(tmp_path: Path) -> Doubles:
    """A folder of programs with docker."""
    doubles = Doubles(tmp_path / "bin")
    doubles.install("docker", "nvidia-smi")
    return doubles


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A repository that this tool wrote, with an engine of two ranks."""
    engine = add_manifest(write_engine(tmp_path / "engine", tp=2, size_bytes=2000))
    recipe = ServingRecipe(tokenizer=sample_folder("solar-llama"))
    emit_repository(engine, tmp_path / "repository", recipe)
    return tmp_path / "repository"


def planned(repository: Path, doubles: Doubles, *options: str) -> dict[str, Any]:
    """Return what `serve --dry-run` says."""
    result = run(repository, doubles, "--dry-run", "--json", *options)
    assert result.returncode == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def run(repository: Path, doubles: Doubles, *options: str) -> subprocess.CompletedProcess[str]:
    """Run `serve` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository), *options],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": doubles.path},
    )


def test_the_container_gets_what_it_needs_and_no_more(repository: Path, doubles: Doubles) -> None:
    record = planned(repository, doubles)
    argv = record["argv"]
    image = argv.index(IMAGE)
    name = argv[5].removeprefix("--name=")

    assert (record["runner"], record["ranks"]) == ("docker", 2)
    assert argv[:image] == [
        *("docker", "run", "--rm", "--init", "--pull=never", f"--name={name}"),
        *("--stop-timeout=30", "--gpus=2"),
        *("--publish=127.0.0.1:8000:8000", "--publish=127.0.0.1:8001:8001"),
        "--publish=127.0.0.1:8002:8002",
        *(f"--user={USER}", "--cap-drop=ALL", "--security-opt=no-new-privileges"),
        *("--read-only", "--tmpfs=/tmp:rw,exec,nosuid,nodev"),
        *("--shm-size=2g", "--ulimit=memlock=-1", "--ulimit=stack=67108864"),
        *("--env=HOME=/tmp", "--env=USER=triton", "--env=PYTHONDONTWRITEBYTECODE=1"),
        f"--mount=type=bind,source={repository},target=/models,readonly",
        argv[image - 1],
    ]
    inside = "/minitron-trt/mpirun_wrapper.py"
    assert argv[image - 1].endswith(f"/mpirun_wrapper.py,target={inside},readonly")
    assert argv[image + 1 : image + 4] == ["python3", inside, "mpirun"]
    server = argv[argv.index("tritonserver") :]
    assert server[1] == "--model-repository=/models"
    assert "--http-address=0.0.0.0" in server


@pytest.mark.parametrize(
    ("tag", "bounded"), [("26.07", True), ("25.06", True), ("25.05", False), ("latest", False)]
)
def test_the_size_of_a_request_is_bounded_where_triton_has_the_option(
    tmp_path: Path, doubles: Doubles, tag: str, bounded: bool
) -> None:
    """64 rows of 34,816 characters in JSON, and what else a request may hold."""
    emit_repository(sample_folder("solar-llama"), tmp_path / "repository", ServingRecipe())
    argv = planned(tmp_path / "repository", doubles, f"--image=registry/own:{tag}")["argv"]

    limits = [word for word in argv if word.startswith("--http-max-input-size")]
    assert limits == ["--http-max-input-size=29360128"] * bounded


def test_the_tensors_of_tensorrt_llms_own_model_are_not_bounded(
    repository: Path, doubles: Doubles
) -> None:
    """It takes weights of LoRA and prompt tables, of any size."""
    assert not any("max-input-size" in word for word in planned(repository, doubles)["argv"])


def test_gpus_addresses_and_certificates_are_passed_on(
    repository: Path, doubles: Doubles, tmp_path: Path
) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text("-----BEGIN SOMETHING-----\n")
    argv = planned(
        repository,
        doubles,
        "--gpus=1,3",
        "--host=0.0.0.0",
        "--metrics-host=10.0.0.1",
        f"--grpc-tls-cert={tmp_path / 'cert'}",
        f"--grpc-tls-key={tmp_path / 'key'}",
    )["argv"]

    assert {
        '--gpus="device=1,3"',
        *("--publish=0.0.0.0:8001:8001", "--publish=10.0.0.1:8002:8002"),
        f"--mount=type=bind,source={tmp_path / 'key'},target=/minitron-trt/tls/key.pem,readonly",
        "--grpc-server-key=/minitron-trt/tls/key.pem",
    } <= set(argv)


def test_paths_outside_of_a_repository_of_others_are_mounted_where_they_are(
    tmp_path: Path, doubles: Doubles
) -> None:
    engine = write_engine(tmp_path / "engine", size_bytes=1000)
    others = write_ticker(tmp_path / "others", gpt_model_path=str(engine), tokenizer_dir="/none")
    argv = planned(others, doubles)["argv"]

    assert [word for word in argv if word.startswith("--mount")] == [
        f"--mount=type=bind,source={folder},target={folder},readonly" for folder in (others, engine)
    ]
    assert IMAGE in argv


@pytest.mark.server
def test_a_container_serves_drains_and_is_removed(tmp_path: Path, doubles: Doubles) -> None:
    doubles.install_triton("tensorrtllm")
    doubles.install("mpirun")
    engine = write_engine(tmp_path / "engine", tp=2, size_bytes=2000)
    others = write_ticker(tmp_path / "others", gpt_model_path=str(engine))
    environment = {"PATH": doubles.path}
    with serve(others, "--runner=docker", environment=environment) as (process, record):
        running = stream(record["grpc"], 20)
        assert running.next() == 0
        process.send_signal(signal.SIGTERM)
        rest = running.rest()
        _, stderr = process.communicate(timeout=PATIENCE_S)
    name = doubles.docker_calls[-2][4].removeprefix("--name=")

    assert rest == [*range(1, 20), END]
    assert (process.returncode, stderr) == (0, "stopping\n")
    assert group_of(int(record["pid"])) == []
    assert doubles.docker_calls[-1] == ["rm", "--force", name]


@pytest.mark.parametrize(
    ("state", "code", "message"),
    [
        ("no daemon", 5, "docker's daemon does not answer; start it, or join its group"),
        ("no image", 4, f"image {IMAGE} is absent; run: docker pull {IMAGE}"),
        (
            "no gpus",
            5,
            "docker cannot give GPUs to a container; install nvidia-container-toolkit and "
            "restart docker",
        ),
    ],
)
def test_what_docker_lacks_is_said(
    state: str, code: int, message: str, repository: Path, doubles: Doubles
) -> None:
    doubles.tell_docker(state)
    result = run(repository, doubles)
    *before, last = result.stderr.splitlines()

    assert (result.returncode, result.stdout, last) == (code, "", f"error: {message}")
    assert [line for line in before if not line.startswith("starting tritonserver (docker)")] == []


def test_a_repository_without_a_version_needs_an_image(tmp_path: Path, doubles: Doubles) -> None:
    others = write_ticker(tmp_path / "others")
    result = run(others, doubles, "--runner=docker")

    assert result.returncode == 4
    assert "does not say which TensorRT-LLM it is for; name an image: --image" in result.stderr
    assert IMAGE in planned(others, doubles, "--runner=docker", "--image=26.07")["argv"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--image=25.12"], 4, "the engine is of TensorRT-LLM 1.2.1, image 25.12 has 1.1.0"),
        (["--image=99.99"], 4, "image '99.99' is not known"),
        (["--gpus=0"], 2, "--gpus names 1;"),
    ],
)
def test_what_does_not_fit_the_engine_is_refused(
    options: list[str], code: int, message: str, repository: Path, doubles: Doubles
) -> None:
    result = run(repository, doubles, *options)

    assert result.returncode == code
    assert result.stderr.startswith(f"error: {message}")


def test_an_image_of_ones_own_is_used_by_its_name(repository: Path, doubles: Doubles) -> None:
    assert "here/triton:1" in planned(repository, doubles, "--image=here/triton:1")["argv"]


def test_an_image_is_for_docker_only(tmp_path: Path, doubles: Doubles) -> None:
    others = write_ticker(tmp_path / "others")

    result = run(others, doubles, "--runner=embedded", "--image=26.07")

    assert (result.returncode, result.stderr) == (
        2,
        "error: --image is for --runner docker; this is embedded\n",
    )


@pytest.mark.parametrize("image", ["26.05", "nvcr.io/nvidia/tritonserver:26.05-trtllm-python-py3"])
def test_an_image_whose_triton_has_known_holes_is_warned_of(
    repository: Path, doubles: Doubles, image: str
) -> None:
    result = run(repository, doubles, "--dry-run", f"--image={image}")

    assert result.returncode == 0
    assert result.stderr.startswith("warning: Triton 26.05 has known holes: ")
    assert "bulletin 5865" in result.stderr
    assert run(repository, doubles, "--dry-run").stderr == ""
