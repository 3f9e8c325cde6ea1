"""`serve --runner local`: this machine's Triton, alone or one per rank below a double of mpirun."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.build.engines import write_engine
from tests.patience import PATIENCE_S
from tests.triton_repo.serving.server_doubles import Doubles
from tests.triton_repo.ticker import (
    END,
    group_of,
    serve,
    stream,
    wait_until_gone,
    write_ticker,
)

from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

SHM_PREFIX = "--backend-config=python,shm-region-prefix-name=minitron-trt-[0-9a-f]{{12}}-{}_"


@pytest.fixture
def doubles(tmp_path: Path) -> Doubles:
    """A folder of programs with a Triton that has TensorRT-LLM's backend."""
    doubles = Doubles(tmp_path / "bin")
    doubles.install_triton("tensorrtllm")
    return doubles


@pytest.fixture
def two_ranks(tmp_path: Path) -> Path:
    """A repository whose `ticker` names an engine of two ranks, and a model without one."""
    engine = write_engine(tmp_path / "engine", tp=2, size_bytes=2000)
    repository = write_ticker(tmp_path / "repository", gpt_model_path=str(engine))
    return write_ticker(repository, "front")


@pytest.mark.server
def test_a_triton_on_the_path_serves(tmp_path: Path, doubles: Doubles) -> None:
    repository = write_ticker(tmp_path / "repository")
    with serve(repository, "--runner=local", environment={"PATH": doubles.path}) as (_, record):
        assert record["runner"] == "local"
        assert stream(record["grpc"], 2).rest() == [0, 1, END]


@pytest.mark.server
def test_two_ranks_serve_drain_and_leave_nothing(
    tmp_path: Path, doubles: Doubles, two_ranks: Path
) -> None:
    doubles.install("mpirun")
    log, path = tmp_path / "triton.log", {"PATH": doubles.path}
    with serve(two_ranks, f"--log-file={log}", environment=path) as (process, record):
        pid = int(record["pid"])
        running = stream(record["grpc"], 30)
        assert (record["runner"], record["ranks"], running.next()) == ("local", 2, 0)
        process.send_signal(signal.SIGTERM)
        rest = running.rest()
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert rest == [*range(1, 30), END]
    assert (process.returncode, stderr) == (0, "stopping\n")
    assert group_of(pid) == []
    first, second = (Path(f"{log}.rank{rank}").read_text() for rank in (0, 1))
    assert "successfully loaded 'front'" in first
    assert "Started HTTPService" in first
    assert "successfully loaded 'ticker'" in second
    assert "'front'" not in second
    assert "Started" not in second


@pytest.mark.server
def test_a_killed_serve_takes_every_rank_with_it(doubles: Doubles, two_ranks: Path) -> None:
    doubles.install("mpirun")
    with serve(two_ranks, environment={"PATH": doubles.path}) as (process, record):
        process.kill()
        process.wait()

    assert wait_until_gone(int(record["pid"])) == []


@pytest.mark.server
def test_each_rank_is_a_segment_of_mpirun(doubles: Doubles, two_ranks: Path) -> None:
    doubles.install("mpirun")
    with serve(two_ranks, environment={"PATH": doubles.path}) as (process, record):
        process.terminate()
        process.wait()
    argv = doubles.mpirun_argv
    second = argv[argv.index(":") + 1 :]

    assert argv[:4] == ["--allow-run-as-root", "--bind-to", "none", "--tag-output"]
    assert argv[4:7] == ["-n", "1", str(doubles.folder / "tritonserver")]
    first = argv[argv.index(":") - 1]
    assert re.fullmatch(SHM_PREFIX.format(0), first)
    assert second == [
        *("-n", "1", str(doubles.folder / "tritonserver")),
        f"--model-repository={two_ranks}",
        f"--backend-directory={doubles.folder.parent / 'tritonserver/backends'}",
        "--disable-auto-complete-config",
        *("--allow-http=false", "--allow-grpc=false", "--allow-metrics=false"),
        *("--model-control-mode=explicit", "--load-model=ticker"),
        first.removesuffix("0_") + "1_",
    ]
    assert record["ranks"] == 2


def refused(repository: Path, path: str, *options: str) -> tuple[int, str]:
    """Return the exit code and the message of a serve that must not start."""
    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository), *options],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": path},
        timeout=120,
    )
    return result.returncode, result.stderr


@pytest.mark.slow
def test_ranks_without_mpirun_are_refused(doubles: Doubles, two_ranks: Path) -> None:
    # The machine may have an mpirun of its own.
    code, message = refused(two_ranks, str(doubles.folder))

    assert code == 4
    assert "needs mpirun for its ranks, which is not on PATH" in message


@pytest.mark.slow
def test_an_engine_without_triton_or_docker_names_the_ways(two_ranks: Path, tmp_path: Path) -> None:
    code, message = refused(two_ranks, str(tmp_path))

    assert code == 4
    assert message == (
        "error: runtime trtllm needs NVIDIA's Triton with TensorRT-LLM; there is no tritonserver "
        "and no docker: run minitron-trt serve inside NVIDIA's container, or install docker\n"
    )


@pytest.mark.server
def test_several_engines_are_orchestrated_by_one_server(
    doubles: Doubles, two_ranks: Path, tmp_path: Path
) -> None:
    doubles.install("mpirun", "nvidia-smi")
    engine = write_engine(tmp_path / "second", size_bytes=1000)
    write_ticker(two_ranks, "second", gpt_model_path=str(engine))
    with serve(two_ranks, environment={"PATH": doubles.path}) as (process, record):
        variables = Path(f"/proc/{record['pid']}/environ").read_text().split("\0")
        process.terminate()
        process.wait()
    argv = doubles.mpirun_argv

    assert (record["ranks"], record["models"]) == (1, ["front", "second", "ticker"])
    assert {"TRTLLM_ORCHESTRATOR=1", "TRTLLM_ORCHESTRATOR_SPAWN_PROCESSES=1"} <= set(variables)
    assert ":" not in argv
    assert argv[-5:-1] == [
        *("--pinned-memory-pool-byte-size=0", "--enable-peer-access=false"),
        *("--cuda-memory-pool-byte-size=0:0", "--cuda-memory-pool-byte-size=1:0"),
    ]
    assert re.fullmatch(SHM_PREFIX.format(0), argv[-1])


@pytest.mark.server
def test_ranks_of_the_pytorch_runtime_go_through_its_launcher(
    doubles: Doubles, tmp_path: Path
) -> None:
    doubles.install("mpirun", "trtllm-llmapi-launch")
    repository = write_ticker(tmp_path / "repository")
    (repository / "ticker/1/model.yaml").write_text("model: owner/name\ntensor_parallel_size: 2\n")
    with serve(repository, environment={"PATH": doubles.path}) as (process, record):
        process.terminate()
        process.wait()

    assert record["ranks"] == 2
    assert doubles.mpirun_argv.count("trtllm-llmapi-launch") == 2


@pytest.mark.slow
def test_the_embedded_server_says_that_it_has_no_engines(two_ranks: Path, tmp_path: Path) -> None:
    code, message = refused(two_ranks, str(tmp_path), "--runner=embedded")

    assert code == 4
    assert "no tensorrtllm backend" in message


@pytest.mark.slow
def test_a_triton_without_the_backend_is_named(tmp_path: Path, two_ranks: Path) -> None:
    doubles = Doubles(tmp_path / "other")
    doubles.install_triton()
    code, message = refused(two_ranks, doubles.path, "--runner=local")

    assert code == 4
    assert f"{doubles.folder / 'tritonserver'} has no tensorrtllm backend" in message


@pytest.mark.slow
@pytest.mark.parametrize(("release", "bounded"), [("26.07", True), ("25.05", False), ("", False)])
def test_the_image_that_it_runs_in_says_whether_its_triton_bounds_requests(
    tmp_path: Path, doubles: Doubles, release: str, bounded: bool
) -> None:
    repository = tmp_path / "repository"
    emit_repository(sample_folder("solar-llama"), repository, ServingRecipe())
    options = ("--runner=local", "--dry-run", "--json")
    result = subprocess.run(
        [sys.executable, "-m", "minitron_trt", "serve", str(repository), *options],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": doubles.path, "NVIDIA_TRITON_SERVER_VERSION": release},
    )

    limits = [word for word in json.loads(result.stdout)["argv"] if "max-input-size" in word]
    assert limits == ["--http-max-input-size=29360128"] * bounded
