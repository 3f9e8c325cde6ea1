"""Scripts for Slurm, run by bash: every rank gets the words that it is meant to, in its container.

Slurm, its containers and NVIDIA's tools are doubles, which do what matters here: srun starts a task
for each rank, apptainer takes the environment away where it is told to, mpirun starts its ranks.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Final

import pytest
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import planned
from tests.patience import PATIENCE_S, until

from minitron_trt.deploy.settings import SLURM
from minitron_trt.deploy.writing import PlannedFiles

pytestmark = pytest.mark.slow

DOUBLES: Final = {
    "nvidia-smi": "echo 9.0",
    # A task for each rank of the job, with its own number.
    "srun": """
[[ $1 != --help ]] || { echo --container-image; exit; }
tasks=1
while [[ $1 == --* ]]; do [[ $1 != --mpi=pmix ]] || tasks=2; echo "$1" >> "$HERE/srun"; shift; done
for ((rank = 0; rank < tasks; rank++)); do SLURM_PROCID=$rank "$@" & done
trap 'kill $(jobs -p); wait; exit 143' TERM
wait
""",
    "apptainer": """
shift
clean=(env)
while [[ $1 == --* ]]; do
    [[ $1 != --cleanenv ]] || clean=(env -i "PATH=$PATH" "HERE=$HERE")
    [[ $1 != --env=* ]] || IFS=, read -ra more <<< "${1#--env=}"
    shift
done
shift
exec "${clean[@]}" "${more[@]}" "${@//\\/minitron-trt/$HERE}"
""",
    # Beneath it a rank is told its number as Open MPI does.
    "mpirun": """
rank=0 words=()
start() { OMPI_COMM_WORLD_RANK=$rank "${words[@]}" & rank=$((rank + 1)) words=(); }
while [[ $1 != -n ]]; do shift; done
for word; do
    case $word in
        :) start ;;
        -n) skip=1 ;;
        *) [[ -z ${skip:-} ]] && words+=("$word"); skip= ;;
    esac
done
start
trap 'kill $(jobs -p); wait; exit 143' TERM
wait
""",
    "minitron-trt": """
echo "$*" > "$HERE/gateway"
trap 'exit 0' TERM
while :; do sleep 0.1; done
""",
    "tritonserver": """
rank=${OMPI_COMM_WORLD_RANK:-$SLURM_PROCID}
printf '%s\\n' tritonserver "$@" > "$HERE/rank$rank.new"
mv "$HERE/rank$rank.new" "$HERE/rank$rank"
trap 'exit 0' TERM
while :; do sleep 0.1; done
""",
}


def ranks(files: PlannedFiles) -> list[list[str]]:
    """Return the words of each rank, as mpirun would have them."""
    words = "\n".join(files.deployment.facts.argv).split("\n:\n")
    return [part.split("\n-n\n1\n")[-1].removeprefix("-n\n1\n").split("\n") for part in words]


@pytest.mark.parametrize(
    ("container", "nodes", "keys"),
    [("apptainer", 1, ""), ("apptainer", 2, "keys"), ("pyxis", 1, "keys"), ("pyxis", 2, "")],
)
def test_every_rank_gets_its_own_words(
    container: str, nodes: int, keys: str, repository_of: RepositoryOf, tmp_path: Path
) -> None:
    job = {"container": container}
    files = planned(repository_of("H100"), SLURM, gpus_per_node=2 // nodes, job=job)
    for name, text in DOUBLES.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{text}")
        path.chmod(0o755)
    for name, text in files.texts.items():
        # pyxis mounts it; without a container it is found where it lies.
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace(" /minitron-trt/", f" {tmp_path}/"))
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "HERE": str(tmp_path),
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_CPUS_PER_TASK": "11",
        "KEYS": keys,
    }
    expected = ["rank0", "rank1", *(["gateway"] if keys else [])]
    script = ["bash", str(tmp_path / "serve.sbatch")]
    with subprocess.Popen(script, env=environment, cwd=tmp_path, start_new_session=True) as job_:
        try:
            until(
                lambda: (
                    job_.poll() is not None or all((tmp_path / name).exists() for name in expected)
                )
            )
            job_.send_signal(signal.SIGTERM)
            assert job_.wait(PATIENCE_S) == 0
        finally:
            if job_.poll() is None:
                os.killpg(job_.pid, signal.SIGKILL)

    said = [(tmp_path / f"rank{rank}").read_text().splitlines() for rank in (0, 1)]
    assert said == ranks(files)
    assert "--cpus-per-task=11" in (tmp_path / "srun").read_text().splitlines()
