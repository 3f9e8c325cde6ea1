"""The script for Slurm on a real cluster of one node: it serves a sample until it is cancelled.

Slurm, the server, the gateway and what it answers are the real ones. Nothing here has a GPU, so the
runtime is the reference runtime, and the node's own minitron-trt serves.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import Result
from tests.build.trtllm.slurm_cluster import PROGRAMS, SlurmCluster, slurm_cluster
from tests.patience import until

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.server_options import free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

_PLACES = f"{os.environ['PATH']}:/usr/sbin:/sbin"
_LACKING = [name for name in PROGRAMS if shutil.which(name, path=_PLACES) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(
        "SLURM_TESTS" not in os.environ,
        reason="make test-slurm runs a Slurm of its own (Debian: slurm-wlm munge openmpi-bin)",
    ),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository of the Llama sample for the reference runtime."""
    folder = tmp_path_factory.mktemp("sample")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    checkpoint = Checkpoint.open(folder / "checkpoint")
    emit_repository(checkpoint.folder, folder / "repository", ServingRecipe(max_batch_size=4))
    return folder / "repository"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """Return a running cluster whose node has minitron-trt on its PATH."""
    assert not _LACKING, f"no {', '.join(_LACKING)}: apt install slurm-wlm munge openmpi-bin"
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with slurm_cluster(tmp_path_factory.mktemp("slurm"), path) as running:
        yield running


def ask(port: int) -> str | None:
    """Return what the model says; None while nobody can answer."""
    body = {"model": "ensemble", "prompt": "our solar system is", "max_tokens": 4}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer a-key", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text: str = json.load(answer)["choices"][0]["text"]
            return text
    except (urllib.error.URLError, ConnectionError):
        return None


def test_a_job_serves_until_it_is_cancelled(
    repository: Path, cluster: SlurmCluster, tmp_path: Path, command: Callable[..., Result]
) -> None:
    output = tmp_path / "job"
    options = ("--target", "slurm", "--container", "none", "--image", "none", "--name", "solar")
    result = command("deploy", repository, "-o", output, *options)
    assert result.exit_code == 0, result.stderr
    keys = tmp_path / "keys.txt"
    keys.write_text("a-key\n")
    keys.chmod(0o600)
    ports, gateway = free_endpoints(), free_endpoints().http_port
    names = ("http", "grpc", "metrics")
    words = [f"--{name}-port={getattr(ports, f'{name}_port')}" for name in names]
    export = f"--export=ALL,KEYS={keys},PORT={gateway}"
    submitted = cluster.run("sbatch", "--parsable", export, "serve.sbatch", *words, cwd=output)
    job = submitted.stdout.strip()
    log = output / f"solar-{job}.log"

    assert job.isdigit(), submitted.stderr
    until(lambda: ask(gateway))
    cluster.run("scancel", "--batch", "--signal=TERM", job)
    until(lambda: not cluster.run("squeue", "--noheader", "--job", job).stdout.strip())
    assert ask(gateway) is None
    assert "ended by itself" not in log.read_text()
