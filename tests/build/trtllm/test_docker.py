"""`build --runner docker`, with a double of docker that runs the command on this machine."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.build.doubles import Doubles

from minitron_trt.artifacts import Manifest
from minitron_trt.build.engine import Engine

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def docker(doubles: Doubles) -> None:
    """Put docker on the PATH."""
    doubles.install("docker")


def test_the_pinned_image_gets_what_it_needs_and_no_more(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "docker")
    result = command(*arguments)
    run = doubles.docker_calls[-1]
    image = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"

    assert result.exit_code == 0, result.stderr
    assert run[:2] == ["run", "--rm"]
    assert {"--gpus=1", "--network=none", "--pull=never", image} <= set(run)
    assert [argument for argument in run if argument.startswith("--mount")] == [
        f"--mount=type=bind,source={checkpoint},target=/checkpoint,readonly",
        f"--mount=type=bind,source={output.parent / '.engine.partial'},target=/output",
    ]
    assert run[run.index(image) + 1] == "trtllm-build"
    facts = Manifest.read(output, "engine").facts
    assert (facts["image"], facts["tensorrt"]) == (image, "10.14.1.48")
    assert facts["peak_memory_bytes"] == int(512.25 * 1024 * 1024)
    assert Engine.open(output).tensorrt == "10.14.1.48"


def test_it_needs_neither_a_gpu_nor_tensorrt_llm_here_to_be_planned(
    doubles: Doubles, checkpoint: Path, command: Command
) -> None:
    doubles.tell(gpus=[])
    arguments = ("build", checkpoint, "--arch", "B200", "--runner", "docker", "--dry-run")
    record = json.loads(command(*arguments, "--json").stdout)

    assert (record["compiler"], record["argv"][:2]) == ("trtllm", ["docker", "run"])


@pytest.mark.parametrize(
    ("state", "code", "message"),
    [
        ("no daemon", 5, "docker's daemon does not answer; start it, or join its group"),
        (
            "no image",
            4,
            "image nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3 is absent; run: docker "
            "pull nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3",
        ),
        (
            "no gpus",
            5,
            "docker cannot give GPUs to a container; install nvidia-container-toolkit and "
            "restart docker",
        ),
    ],
)
def test_what_docker_lacks_is_said(
    state: str,
    code: int,
    message: str,
    doubles: Doubles,
    checkpoint: Path,
    output: Path,
    command: Command,
) -> None:
    doubles.tell(docker=state)
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "docker")
    result = command(*arguments, "-q")

    assert (result.exit_code, result.stdout) == (code, "")
    assert result.stderr.startswith(f"error: {message}")
    assert not output.exists()


def test_without_docker_it_says_so(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    (doubles.folder / "docker").unlink()
    if shutil.which("docker"):
        pytest.skip("this machine has docker")
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "docker")
    result = command(*arguments)

    assert result.exit_code == 4
    assert "--runner docker needs docker, which is not installed" in result.stderr


def test_a_version_without_an_image_is_refused(
    checkpoint: Path, output: Path, command: Command
) -> None:
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "docker")
    result = command(*arguments, "--trtllm-version", "1.2.0")

    assert result.exit_code == 4
    assert "no Triton image carries TensorRT-LLM 1.2.0; there are 0.21, " in result.stderr


def test_a_failed_container_is_removed(
    doubles: Doubles, checkpoint: Path, output: Path, command: Command
) -> None:
    doubles.tell(does="fail")
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "docker")
    result = command(*arguments, "-q")

    assert result.exit_code == 5
    assert doubles.docker_calls[-1][:2] == ["rm", "--force"]
