"""Job files run by a real Slurm: one node on this machine, and doubles of trtllm-build and a GPU.

Slurm, munge, srun, mpirun and bash are the real ones. Of nvidia-smi there is a double, since the
node has no GPU; Slurm itself is told of one by its configuration.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.build.doubles import Doubles
from tests.build.trtllm.slurm_cluster import PARTITION, PROGRAMS, SlurmCluster, slurm_cluster
from tests.patience import until

from minitron_trt.artifacts import Manifest
from minitron_trt.build.engine import Engine

_PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_LACKING = [name for name in PROGRAMS if shutil.which(name, path=_PLACES) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        "SLURM_TESTS" not in os.environ,
        reason="make test-slurm runs a Slurm of its own (Debian: slurm-wlm munge openmpi-bin)",
    ),
]
RUNNER = ("--arch", "H100", "--runner", "slurm", "--container", "none", "--partition", PARTITION)

Build = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Doubles:
    """Return the doubles that the node has on its PATH."""
    doubles = Doubles(tmp_path_factory.mktemp("bin"))
    doubles.install("trtllm-build", "nvidia-smi")
    return doubles


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, programs: Doubles) -> Iterator[SlurmCluster]:
    """Return a running cluster."""
    assert not _LACKING, f"no {', '.join(_LACKING)}: apt install slurm-wlm munge openmpi-bin"
    path = f"{programs.folder}:{os.environ['PATH']}"
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), path) as running:
        yield running


@pytest.fixture
def node(cluster: SlurmCluster, programs: Doubles) -> Iterator[Doubles]:
    """Return what the node's programs are told to do, which is to work well."""
    programs.tell(does="build", gpus=["9.0"])
    yield programs
    programs.tell(does="build", gpus=["9.0"])


@pytest.fixture
def build(checkpoint: Path, output: Path, command: Callable[..., Result]) -> Build:
    """Return a call that writes a job file, and gives what was printed."""

    def write(*options: object) -> dict[str, Any]:
        result = command("build", checkpoint, "-o", output, *RUNNER, *options, "--json")
        assert result.exit_code == 0, result.stderr
        record: dict[str, Any] = json.loads(result.stdout)
        return record

    return write


def submit(cluster: SlurmCluster, record: dict[str, Any], folder: Path) -> str:
    """Submit a job as told, and return its number."""
    program, file = shlex.split(record["submit"])
    done = cluster.run(program, "--parsable", file, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def run(cluster: SlurmCluster, record: dict[str, Any], folder: Path) -> tuple[int, str]:
    """Submit a job, wait for its end, and return its exit code and its log."""
    number = submit(cluster, record, folder)
    # `sbatch --wait` looks every ten seconds only.
    until(lambda: state_of(cluster, number) not in ("PENDING", "RUNNING", "COMPLETING"))
    code = facts_of(cluster, number)["ExitCode"].partition(":")[0]
    return int(code), (folder / f"{record['name']}-{number}.log").read_text()


def facts_of(cluster: SlurmCluster, number: str) -> dict[str, str]:
    """Return what Slurm says of a job."""
    said = cluster.run("scontrol", "--oneliner", "show", "job", number).stdout
    return dict(word.split("=", 1) for word in said.split() if "=" in word)


def state_of(cluster: SlurmCluster, number: str) -> str:
    """Return the state of a job in Slurm's word."""
    return facts_of(cluster, number)["JobState"]


def test_a_job_ends_well_and_its_engine_becomes_an_artifact(
    cluster: SlurmCluster,
    node: Doubles,
    build: Build,
    output: Path,
    command: Callable[..., Result],
) -> None:
    record = build("--account", "nlp", "--time", "1:30:00", "--max-batch-size", 8)
    code, log = run(cluster, record, output.parent)
    finished = command(*shlex.split(record["finish"])[1:])

    assert (code, log.splitlines()[-1]) == (0, f"{output} is written")
    assert node.argv[1:3] == [
        f"--checkpoint_dir={output.parent.parent}/checkpoint",
        f"--output_dir={output.parent}/.engine.partial",
    ]
    assert finished.exit_code == 0, finished.stderr
    assert Engine.open(output).limits.max_batch_size == 8
    # No image built it.
    assert "image" not in Manifest.read(output, "engine").facts


def test_slurm_takes_what_the_file_asks_for(
    cluster: SlurmCluster, node: Doubles, build: Build, output: Path
) -> None:
    record = build("--account", "nlp", "--time", "1:30:00", "--sbatch", "--comment=night")
    node.tell(does="hang")
    number = submit(cluster, record, output.parent)
    facts = facts_of(cluster, number)
    cluster.run("scancel", number)

    assert facts["JobName"] == record["name"]
    assert (facts["Partition"], facts["Account"]) == (PARTITION, "nlp")
    assert (facts["TimeLimit"], facts["Comment"]) == ("01:30:00", "night")
    assert facts["NumCPUs"] == "8"
    assert facts["TresPerNode"] == "gres:gpu:1"


def test_a_job_that_fails_leaves_nothing_and_can_be_submitted_again(
    cluster: SlurmCluster, node: Doubles, build: Build, output: Path
) -> None:
    record = build()
    node.tell(does="fail")
    failed, log = run(cluster, record, output.parent)
    left = sorted(path.name for path in output.parent.iterdir() if path.suffix != ".log")
    node.tell(does="build")
    again, _ = run(cluster, record, output.parent)

    assert failed == 1
    assert "Error Code 4: the network is invalid" in log
    assert left == ["engine.sbatch"]
    assert (again, Engine.open(output).folder) == (0, output)


def test_a_job_submitted_once_more_keeps_the_engine_unless_told(
    cluster: SlurmCluster, node: Doubles, build: Build, output: Path
) -> None:
    record = build()
    first, _ = run(cluster, record, output.parent)
    engine = (output / "rank0.engine").stat().st_ino
    again, log = run(cluster, record, output.parent)
    kept = (output / "rank0.engine").stat().st_ino
    (output / "minitron.json").write_text("{}")
    told, _ = run(cluster, build("--overwrite"), output.parent)

    assert (first, again, kept) == (0, 1, engine)
    assert log == (
        f"error: {output} already exists; write the job again with --overwrite or another -o\n"
    )
    assert told == 0
    assert (output / "rank0.engine").stat().st_ino != engine
    assert not (output.parent / ".engine.old").exists()


def test_a_job_that_is_cancelled_leaves_nothing(
    cluster: SlurmCluster, node: Doubles, build: Build, output: Path
) -> None:
    record, partial = build(), output.parent / ".engine.partial"
    node.tell(does="hang")
    number = submit(cluster, record, output.parent)
    until(lambda: (partial / "partial").exists())
    cluster.run("scancel", number)
    until(lambda: state_of(cluster, number) == "CANCELLED")
    until(lambda: not partial.exists())

    assert not output.exists()


@pytest.mark.parametrize(
    ("container", "gpus", "message"),
    [
        (
            "pyxis",
            ["9.0"],
            "this cluster's Slurm has no pyxis; write the job again with --container apptainer or "
            "none",
        ),
        (
            "none",
            ["8.9"],
            "this node has GPUs of compute capability 8.9, the engine is for H100-SXM (SM90), 9.0; "
            "choose its partition",
        ),
    ],
    ids=["pyxis", "gpu"],
)
def test_what_a_node_lacks_ends_the_job_in_one_line(
    container: str,
    gpus: list[str],
    message: str,
    cluster: SlurmCluster,
    node: Doubles,
    build: Build,
    output: Path,
) -> None:
    node.tell(gpus=gpus)
    code, log = run(cluster, build("--container", container), output.parent)

    assert (code, log) == (1, f"error: {message}\n")
    assert not output.exists()
