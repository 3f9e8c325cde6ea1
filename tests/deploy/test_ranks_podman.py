"""A replica over two Pods: the emitted group's containers, started by podman on one network.

Open MPI, sshd, users, read-only roots, the scripts and the keys are the real ones; tritonserver is
a double, which says what it was given, and what the kubelet and LeaderWorkerSet's controller do
for a Pod is done here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.deploy.machine_images import lay_out, machine_podman
from tests.deploy.repositories import planned, repository_for
from tests.patience import until

from minitron_trt.deploy.settings import LEADERWORKERSET

pytestmark = [
    pytest.mark.skipif(
        "PODMAN_TESTS" not in os.environ,
        reason="NOT TESTED, make test-podman runs containers (Debian: podman runc catatonit "
        "openmpi-bin openssh-server)",
    ),
    pytest.mark.timeout(600),
]

LEADER, WORKER = "llama-0", "llama-0-1"
ADDRESSES: Final = {LEADER: "10.89.77.10", WORKER: "10.89.77.11"}
# As a Pod's name is found below its group's headless Service.
DOMAIN: Final = "llama.default"
# A double. It says which rank it is, where and of whom, and ends when it is told to.
TRITONSERVER: Final = """#!/bin/bash
echo "rank $OMPI_COMM_WORLD_RANK of $OMPI_COMM_WORLD_SIZE on $(hostname) as $(id -u) at $HOME: $*"
trap 'echo "rank $OMPI_COMM_WORLD_RANK ends"; exit 0' TERM
while :; do sleep 0.2; done
"""
Run = Callable[..., str]


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Return a call of podman with the image of the engine's server, and a network of Pods."""
    lacking = [name for name in ("mpirun", "sshd") if not shutil.which(name, path=SEARCHED)]
    assert not lacking, f"no {', '.join(lacking)}: apt install openmpi-bin openssh-server"
    folder = tmp_path_factory.mktemp("podman")
    root = folder / "root"
    lay_out(root, {"tritonserver": TRITONSERVER})
    # As image/Server.Containerfile has useradd do it.
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\nranks:x:10000:10000::/tmp:/bin/sh\n")
    for name in ("alternatives", "openmpi"):
        shutil.copytree(f"/etc/{name}", root / "etc" / name, symlinks=True)
    with machine_podman(folder, root, (IMAGE,)) as program:

        def run(*words: str) -> str:
            done = subprocess.run(
                [str(program), *words], capture_output=True, text=True, timeout=120, check=False
            )
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        run("network", "create", "--subnet", "10.89.77.0/24", "--internal", "pods")
        yield run


SEARCHED: Final = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
IMAGE: Final = "nvcr.io/nvidia/tritonserver:26.07-trtllm-python-py3"


@pytest.fixture
def group(podman: Run, tmp_path: Path) -> Iterator[None]:
    """Have both Pods of a group run, of two ranks each, the leader when its worker is there."""
    repository = repository_for(tmp_path / "engine", "H100", tp=4)
    files = planned(repository, LEADERWORKERSET, gpus_per_node=2).texts
    scripts = yaml.safe_load(files["base/scripts.yaml"])["data"]
    (tmp_path / "scripts").mkdir()
    for name, text in scripts.items():
        (tmp_path / "scripts" / name).write_text(text)
    keys = tmp_path / "ssh"
    keys.mkdir()
    # As the README beside the files says; the kubelet gives a Secret's files to the Pod's group.
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(keys / "id_ed25519")], check=True
    )
    for path in keys.iterdir():
        os.chown(path, 0, 10000)
        path.chmod(0o440)
    volumes = {"models": repository, "scripts": tmp_path / "scripts", "ssh": keys}
    template = yaml.safe_load(files["base/server.yaml"])["spec"]["leaderWorkerTemplate"]
    leader, worker = (template[f"{of}Template"]["spec"] for of in ("leader", "worker"))
    try:
        podman("run", "--detach", *of_pod(worker, worker["containers"][0], WORKER, volumes))
        for container in leader["initContainers"]:
            podman("run", *of_pod(leader, container, LEADER, volumes))
            podman("rm", LEADER)
        podman("run", "--detach", *of_pod(leader, leader["containers"][0], LEADER, volumes))
        yield
    finally:
        podman("rm", "--force", "--time", "0", "--ignore", LEADER, WORKER)


def of_pod(
    spec: dict[str, Any], container: dict[str, Any], name: str, volumes: dict[str, Path]
) -> Iterator[str]:
    """Yield podman's options and words for a container of a Pod, as a kubelet would run it."""
    security, own = spec["securityContext"], container["securityContext"]
    assert own["allowPrivilegeEscalation"] is False
    assert own["readOnlyRootFilesystem"] is True
    assert own["capabilities"] == {"drop": ["ALL"]}
    yield from ("--name", name, "--hostname", name, "--read-only", "--cap-drop", "ALL")
    yield from ("--user", f"{security['runAsUser']}:{security['runAsGroup']}", "--init")
    yield from ("--security-opt", "no-new-privileges", "--workdir", container["workingDir"])
    yield from ("--network", "pods", "--ip", ADDRESSES[name])
    for other, address in ADDRESSES.items():
        yield from ("--add-host", f"{other}.{DOMAIN}:{address}")
    for mount in container["volumeMounts"]:
        if mount["name"] in volumes:
            yield f"--volume={volumes[mount['name']]}:{mount['mountPath']}:ro"
        else:
            yield f"--tmpfs={mount['mountPath']}:rw,exec,mode=1777"
    of_group = {"LWS_LEADER_ADDRESS": f"{LEADER}.{DOMAIN}", "LWS_GROUP_SIZE": "2"}
    variables = {each["name"]: each.get("value", "uid") for each in container["env"]}
    for variable, value in {**variables, **of_group}.items():
        yield f"--env={variable}={value}"
    yield container["image"]
    yield from (word.replace("$(CLOSED)", "uid") for word in container["args"])


def said(podman: Run) -> str:
    """Return what the leader has printed, of the workers' ranks, too."""
    return podman("logs", LEADER)


def state(podman: Run, name: str) -> str:
    """Return whether a container runs, and with which code it ended."""
    return podman("inspect", "--format", "{{.State.Running}} {{.State.ExitCode}}", name).strip()


def test_every_rank_runs_in_its_pod_and_the_first_one_ends_first(group: None, podman: Run) -> None:
    until(lambda: all(f"rank {rank} of 4" in said(podman) for rank in range(4)))
    lines = dict(
        line.partition(":")[2].split(" of 4 on ", 1)
        for line in said(podman).splitlines()
        if " of 4 on " in line
    )

    for rank, pod in enumerate((LEADER, LEADER, WORKER, WORKER)):
        line = lines[f"rank {rank}"]
        assert line.startswith(f"{pod} as 10000 at /tmp: --model-repository=/models")
        assert f"shm-region-prefix-name=prefix{rank}_" in line
        assert ("Closed= -uid" in line) == (rank == 0)
    podman("stop", "--time", "60", LEADER)
    assert "rank 0 ends" in said(podman)
    assert state(podman, WORKER) == "true 0"


def test_a_worker_that_goes_takes_its_leader_with_it(group: None, podman: Run) -> None:
    """So that the whole group is made again."""
    until(lambda: "rank 3 of 4" in said(podman))
    podman("kill", "--signal", "KILL", WORKER)

    until(lambda: state(podman, LEADER).startswith("false"))
    assert state(podman, LEADER) != "false 0"
