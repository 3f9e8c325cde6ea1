"""A Slurm cluster of one node, run by hand: munged, slurmctld and slurmd, without systemd."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.host.processes import OwnedProcess

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "mpirun")
PARTITION: Final = "h100"
_START_S: Final = 60.0
_STOP_S: Final = 20.0
_LOOK_S: Final = 0.2
# The GPU is a name without a device; the processors and the memory are the node's to claim.
_CONF: Final = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser={user}
SlurmdUser={user}
SlurmctldPort={control_port}
SlurmdPort={node_port}
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
SchedulerParameters=batch_sched_delay=0,sched_interval=1
GresTypes=gpu
KillWait=5
ReturnToService=2
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=8000 Gres=gpu:1
PartitionName={partition} Nodes=node1 Default=YES MaxTime=INFINITE State=UP
"""


@dataclass(frozen=True, slots=True)
class SlurmCluster:
    """A running cluster; `environment` has its commands find it."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *argv: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program as a user of the cluster would."""
        return subprocess.run(
            argv,
            cwd=cwd or self.folder,
            env=dict(self.environment),
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )


@contextlib.contextmanager
def slurm_cluster(folder: Path, path: str) -> Iterator[SlurmCluster]:
    """Run a cluster in a folder whose jobs find programs on `path`."""
    ports = _free_ports()
    for name in ("state", "spool"):
        (folder / name).mkdir()
    text = _CONF.format(
        folder=folder,
        host=socket.gethostname(),
        user=os.environ.get("USER", "root"),
        partition=PARTITION,
        control_port=ports[0],
        node_port=ports[1],
    )
    (folder / "slurm.conf").write_text(text)
    (folder / "gres.conf").write_text("NodeName=node1 Name=gpu File=/dev/null\n")
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
    cluster = SlurmCluster(folder, environment)
    with contextlib.ExitStack() as stack:
        for argv in _daemons(folder):
            stack.enter_context(_daemon(argv, folder, environment))
        _wait_for(cluster, "idle", "sinfo", "--noheader", "--format=%T")
        try:
            yield cluster
        finally:
            cluster.run("scancel", "--full", f"--partition={PARTITION}")
            _wait_for(cluster, "", "squeue", "--noheader")


def _daemons(folder: Path) -> tuple[list[str], ...]:
    munge = [
        *("munged", "--foreground", "--force", f"--socket={folder}/munge.socket"),
        *(f"--key-file={folder}/munge.key", f"--pid-file={folder}/munged.pid"),
        *(f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munged.log"),
    ]
    return munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", "node1"]


@contextlib.contextmanager
def _daemon(argv: list[str], folder: Path, environment: Mapping[str, str]) -> Iterator[None]:
    program = shutil.which(argv[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert program is not None
    with (folder / f"{argv[0]}.out").open("w") as out:
        # It dies with the tests, however they end.
        process = OwnedProcess(
            [program, *argv[1:]],
            on_line=lambda line: print(line, file=out, flush=True),
            environment=environment,
        )
        try:
            yield
        finally:
            process.close(_STOP_S)


def _wait_for(cluster: SlurmCluster, expected: str, *argv: str) -> None:
    deadline = time.monotonic() + _START_S
    while (said := cluster.run(*argv).stdout.strip()) != expected:
        if time.monotonic() > deadline:
            logs = "\n".join(path.read_text() for path in sorted(cluster.folder.glob("*.out")))
            raise TimeoutError(f"{argv} says {said!r}, not {expected!r}\n{logs}")
        time.sleep(_LOOK_S)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return one.getsockname()[1], other.getsockname()[1]
