"""`build --runner docker` with real containers: podman takes docker's command lines as they are.

The image is made from a folder of busybox and a double of trtllm-build. Real are the command line,
the mounts, the user, the network that is not there, and the end of a container.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest
from click.testing import Result
from tests.build.engines import BUILD
from tests.podman_images import emptied

from minitron_trt.artifacts import Manifest
from minitron_trt.build.engine import Engine

pytestmark = pytest.mark.skipif(
    "PODMAN_TESTS" not in os.environ,
    reason="make test-podman runs containers (Debian: podman runc catatonit busybox-static)",
)
IMAGE: Final = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"
BUILDER: Final = """#!/bin/sh
for word; do
    case $word in
        --checkpoint_dir=*) checkpoint=${word#*=} ;;
        --output_dir=*) output=${word#*=} ;;
    esac
done
echo "[TensorRT-LLM] TensorRT-LLM version: 1.2.1"
echo "user $(id -u), networks $(ls /sys/class/net | tr '\\n' ' ')in $(pwd)"
df /dev/shm
touch "$checkpoint/written" 2> /dev/null && echo "the checkpoint can be written"
if [ -f /fails ]; then echo "ValueError: no such kernel"; exit 1; fi
if [ -f /hangs ]; then sleep 600; fi
echo "{\\"version\\": \\"1.2.1\\", \\"pretrained_config\\": $(cat "$checkpoint/config.json"), \\
\\"build_config\\": $(cat /build.json)}" > "$output/config.json"
echo engine > "$output/rank0.engine"
echo "[TRT-LLM] [I] Serializing engine to $output/rank0.engine"
"""
# docker's name for podman, with what a machine without systemd needs. Where the system gives no
# locked memory, podman cannot either.
DOCKER: Final = """#!/bin/bash
podman=(podman --root={store} --runroot={run} --storage-driver=vfs --runtime=runc
    --cgroup-manager=cgroupfs)
case $1 in
    run) shift; exec "${{podman[@]}}" run --ulimit=nofile=1024:1024 \\
        --ulimit=nproc=1024:1024 "${{@{rest}}}" ;;
    *) exec "${{podman[@]}}" "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def docker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with `docker`, which is podman with images of its own."""
    folder = tmp_path_factory.mktemp("podman")
    locked = resource.getrlimit(resource.RLIMIT_MEMLOCK)[1] == resource.RLIM_INFINITY
    path = folder / "bin" / "docker"
    path.parent.mkdir()
    rest = "" if locked else "/#--ulimit=memlock=*/--ulimit=core=0"
    path.write_text(DOCKER.format(store=folder / "store", run=folder / "run", rest=rest))
    path.chmod(0o755)
    with emptied(path, below=folder):
        yield path.parent


@pytest.fixture
def image(docker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return what makes NVIDIA's image of a folder: busybox and a double of trtllm-build."""
    monkeypatch.setenv("PATH", f"{docker}:/usr/bin:/bin")
    busybox = shutil.which("busybox")
    assert busybox is not None

    def make(*files: str, builder: bool = True) -> None:
        root = tmp_path / "root"
        for name in ("bin", "tmp", "etc", "proc", "sys", "dev"):
            (root / name).mkdir(parents=True)
        shutil.copy(busybox, root / "bin/busybox")
        for name in ("sh", "cat", "ls", "id", "touch", "tr", "df", "sleep"):
            (root / "bin" / name).symlink_to("busybox")
        if builder:
            (root / "bin/trtllm-build").write_text(BUILDER)
            (root / "bin/trtllm-build").chmod(0o755)
        (root / "build.json").write_text(json.dumps(BUILD))
        for name in files:
            (root / name).touch()
        archive = shutil.make_archive(str(tmp_path / "root"), "tar", root)
        subprocess.run(["docker", "import", archive, IMAGE], check=True, capture_output=True)

    return make


@pytest.fixture
def build(checkpoint: Path, output: Path, command: Callable[..., Result]) -> Callable[..., Result]:
    """Return a call of `build` in docker."""
    arguments = ("build", checkpoint, "-o", output, "--arch", "H100", "--runner", "docker")
    return lambda *options: command(*arguments, *options)


def containers() -> str:
    """Return the containers that are there, running or not."""
    argv = ["docker", "ps", "--all", "--quiet"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def test_the_command_line_builds_an_engine_in_a_container(
    image: Callable[..., None], build: Callable[..., Result], checkpoint: Path, output: Path
) -> None:
    image()
    result = build()

    assert result.exit_code == 0, result.stderr
    log = (output / "build.log").read_text()
    assert Manifest.read(output, "engine").facts["image"] == IMAGE
    assert Engine.open(output).limits.max_batch_size == BUILD["max_batch_size"]
    assert f"user {os.getuid()}, networks lo in /output" in log
    assert "2097152" in log
    assert "the checkpoint can be written" not in log
    assert not (checkpoint / "written").exists()
    assert (output / "rank0.engine").stat().st_uid == os.getuid()
    assert containers() == ""


@pytest.mark.parametrize(
    ("files", "builder", "options", "message"),
    [
        (("fails",), True, (), "failed with status 1; it said: ValueError: no such kernel"),
        (("hangs",), True, ("--timeout", 5), "the compiler did not finish in time"),
        # docker's first process says 127, podman's what the system said.
        ((), False, (), "No such file or directory"),
    ],
    ids=["fails", "hangs", "nothing"],
)
def test_a_container_that_fails_is_gone_and_leaves_nothing(
    files: tuple[str, ...],
    builder: bool,
    options: tuple[object, ...],
    message: str,
    image: Callable[..., None],
    build: Callable[..., Result],
    output: Path,
) -> None:
    image(*files, builder=builder)
    result = build(*options)

    assert result.exit_code == 5
    assert message in result.stderr
    assert containers() == ""
    assert not output.exists()
    assert not (output.parent / ".engine.partial").exists()


def test_an_image_that_is_absent_is_named(
    docker: Path, build: Callable[..., Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", f"{docker}:/usr/bin:/bin")
    result = build("--image", "registry.example/trtllm:1")

    assert result.exit_code == 4
    assert "image registry.example/trtllm:1 is absent; run: docker pull" in result.stderr
