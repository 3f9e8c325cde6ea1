"""The emitted compose file, started by podman-compose with real containers.

The image is a root of folders and three programs, in which the machine's own /usr and Python are
mounted; Triton is that of the nvidia-pytriton wheel. Real are the file, its users, its read-only
roots without capabilities, mounts, memory limits, networks, names and the end of it all.
"""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.deploy.machine_images import lay_out, machine_podman
from tests.deploy.repositories import planned
from tests.patience import PATIENCE_S

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.deploy.deployment import OWN_IMAGE
from minitron_trt.deploy.settings import COMPOSE
from minitron_trt.deploy.writing import write_files
from minitron_trt.gateway.command import PORT
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.installation import find_embedded
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

PODMAN_COMPOSE: Final = os.environ.get("PODMAN_COMPOSE", "")
pytestmark = [
    pytest.mark.skipif(
        not PODMAN_COMPOSE,
        reason="NOT TESTED, make test-podman runs containers (Debian: podman runc catatonit)",
    ),
    pytest.mark.timeout(1200),
]

SERVER_IMAGE: Final = "localhost/triton:1"
USER: Final = 10000
KEY: Final = "sk-of-the-test"
TRITON: Final = """#!/bin/sh
{variables}exec {server} --backend-directory=/programs/backends "$@"
"""
Compose = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a program `podman` whose only images are ours."""
    folder = tmp_path_factory.mktemp("podman")
    root, embedded = folder / "root", find_embedded()
    variables = "".join(f"export {k}='{v}'\n" for k, v in embedded.environment.items())
    programs = {
        "tritonserver": TRITON.format(server=embedded.binary, variables=variables),
        "minitron-trt": f'#!/bin/sh\nexec {sys.executable} -m minitron_trt "$@"\n',
    }
    lay_out(root, programs)
    for link, part in embedded.backend_links(Path("programs/backends")).items():
        (root / link).parent.mkdir(parents=True, exist_ok=True)
        (root / link).symlink_to(part)
    with machine_podman(folder, root, (SERVER_IMAGE, f"localhost/{OWN_IMAGE}")) as program:
        yield program


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the files, a repository of the Llama sample, and keys."""
    folder = tmp_path_factory.mktemp("compose")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    emit_repository(folder / "checkpoint", folder / "repository", ServingRecipe())
    files = planned(folder / "repository", COMPOSE, image=SERVER_IMAGE)
    write_files(files, folder / "files")
    keys = folder / "keys.txt"
    keys.write_text(f"{KEY}\n")
    keys.chmod(0o400)
    # As the README beside the files says.
    os.chown(keys, USER, USER)
    return folder


@pytest.fixture(scope="module")
def compose(podman: Path, deployment: Path) -> Iterator[Compose]:
    """Return a call of podman-compose over the emitted file; it is taken down at the end."""
    environment = os.environ | {
        "MODELS": str(deployment / "repository"),
        "KEYS": str(deployment / "keys.txt"),
    }

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [PODMAN_COMPOSE, "--podman-path", str(podman), "--in-pod", "false", *words]
        return subprocess.run(
            command,
            cwd=deployment / "files",
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    yield run
    run("down", "--timeout", "30")


def ask(path: str, body: dict[str, Any] | None = None, key: str = KEY) -> tuple[int, Any]:
    """Return the status and the JSON that the gateway answers on this machine's own address."""
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    content = None if body is None else json.dumps(body)
    try:
        connection.request("GET" if body is None else "POST", path, content, headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read() or b"null")
    except (OSError, http.client.HTTPException):
        return 0, None
    finally:
        connection.close()


def inspected(podman: Path, name: str) -> dict[str, Any]:
    """Return what podman knows of a container."""
    run = subprocess.run([podman, "inspect", name], check=True, capture_output=True, text=True)
    found: dict[str, Any] = json.loads(run.stdout)[0]
    return found


def test_the_file_starts_a_gateway_and_a_server_that_answer(compose: Compose, podman: Path) -> None:
    up = compose("up", "--detach")
    assert up.returncode == 0, up.stderr
    deadline = time.monotonic() + 3 * PATIENCE_S
    while ask("/health")[0] != 200:
        assert time.monotonic() < deadline, compose("logs").stdout[-4000:]
        time.sleep(2)

    body = {"model": "ensemble", "prompt": "The solar system is", "max_tokens": 8}
    status, answer = ask("/v1/completions", body)

    assert status == 200
    assert answer["usage"]["completion_tokens"] == 8
    assert ask("/v1/completions", body, key="sk-of-another")[0] == 401
    for service in ("server", "gateway"):
        container = inspected(podman, f"llama_{service}_1")
        assert container["Config"]["User"] == f"{USER}:{USER}"
        assert container["HostConfig"]["ReadonlyRootfs"] is True
        assert not container["EffectiveCaps"]
        assert container["HostConfig"]["Memory"] > 0


def test_only_the_gateway_is_reached_and_the_server_has_no_way_out(
    compose: Compose, podman: Path
) -> None:
    server = inspected(podman, "llama_server_1")
    reach = (
        "import socket; s = socket.socket(); s.settimeout(5); print(s.connect_ex(('1.1.1.1', 53)))"
    )
    # Its own probe, by the words of the file.
    probe = server["Config"]["Healthcheck"]["Test"][1:]

    out = compose("exec", "-T", "server", "python3", "-c", reach)
    healthy = compose("exec", "-T", "server", *probe)

    assert not any(server["HostConfig"]["PortBindings"].values())
    assert out.stdout.strip() != "0"
    assert healthy.returncode == 0, healthy.stderr


def test_it_ends_within_its_grace_period(compose: Compose, podman: Path) -> None:
    start = time.monotonic()
    stop = compose("stop")
    seconds = time.monotonic() - start

    assert stop.returncode == 0, stop.stderr
    for service in ("server", "gateway"):
        assert inspected(podman, f"llama_{service}_1")["State"]["ExitCode"] == 0
    # Triton ends by itself: nobody has to wait for the kill after its grace period, and the other.
    assert seconds < 2 * 30
