"""`serve MODEL`: what is made of a model, why in this way, and that nothing is made twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.build.doubles import Doubles, make_doubles
from tests.patience import PATIENCE_S
from tests.triton_repo.ticker import ports, write_ticker

from minitron_trt.cli import main
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import MinitronError
from minitron_trt.host.machine import local_gpus
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.model_repository import ModelRepository
from minitron_trt.triton_repo.serving.model_options import ModelOptions
from minitron_trt.triton_repo.serving.preparation import Preparation, prepare
from minitron_trt.triton_repo.serving.server_options import free_endpoints

Command = Callable[..., Result]
NO_GPU = "no NVIDIA GPU here: the reference runtime serves it, rightly but slowly"


@pytest.fixture
def doubles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Doubles:
    """Return the doubles of docker and a GPU; the cache is in the test's folder."""
    return make_doubles(tmp_path, monkeypatch)


@pytest.fixture
def gpu(doubles: Doubles) -> Doubles:
    """Return the doubles on the PATH: docker, and a machine with an H100."""
    doubles.install("docker", "nvidia-smi", "trtllm-build")
    return doubles


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """Return a model folder of one's own, with the positions of the published ones."""
    folder = shutil.copytree(sample_folder("solar-llama"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    return folder


def plan(source: object, *, tp: int | None = None, **options: str) -> Preparation:
    return prepare(str(source), ModelOptions(tp=tp, **options))


def record_of(source: object, *options: str) -> dict[str, object]:
    result = CliRunner().invoke(main, ["serve", str(source), "--dry-run", "--json", *options])

    assert result.exit_code == 0, result.output
    record: dict[str, object] = json.loads(result.stdout)
    return record


def state(folder: Path) -> dict[str, int]:
    """Return every file below a folder with the time at which it was written."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in files}


def test_without_a_gpu_the_reference_runtime_serves_a_model(doubles: Doubles, model: Path) -> None:
    assert record_of(model, "--precision", "w8a16") == {
        "source": str(model),
        "runtime": "reference",
        "reason": NO_GPU,
        "commands": [
            f"minitron-trt convert {model} --precision w8a16 -o checkpoint",
            "minitron-trt triton-repo checkpoint -o repository",
            "minitron-trt serve repository",
        ],
    }


def test_with_a_gpu_and_docker_an_engine_is_built(gpu: Doubles, tmp_path: Path) -> None:
    # Nothing is downloaded for a dry run, so the hub need not be there.
    assert record_of("nvidia/Minitron-8B-Base", "--revision", "main") == {
        "source": "nvidia/Minitron-8B-Base",
        "runtime": "trtllm",
        "reason": "here is NVIDIA H100 80GB HBM3: an engine is built for it (or --runtime "
        "reference)",
        "commands": [
            "minitron-trt convert nvidia/Minitron-8B-Base --revision main -o checkpoint",
            "minitron-trt build checkpoint --arch sm90 --runner docker -o engine",
            "minitron-trt triton-repo engine -o repository",
            "minitron-trt serve repository",
        ],
    }


def test_the_runtime_can_be_chosen(gpu: Doubles, model: Path) -> None:
    reference, llmapi = plan(model, runtime="reference"), plan(model, runtime="llmapi")

    assert reference.reason == "the runtime reference serves it, as --runtime says"
    assert [stage.kind for stage in reference.stages] == ["checkpoint", "repository"]
    assert [stage.command for stage in llmapi.stages] == [
        f"minitron-trt convert {model} --format hf -o huggingface",
        "minitron-trt triton-repo huggingface -o repository",
    ]


def test_ranks_are_the_checkpoints_or_the_runtimes_own(
    gpu: Doubles, model: Path, monkeypatch: pytest.MonkeyPatch, command: Command
) -> None:
    one = command("serve", model, "--tp", "2", "--dry-run")
    several = [*local_gpus(), *local_gpus()]
    monkeypatch.setattr(f"{prepare.__module__}.local_gpus", lambda: several)

    assert one.exit_code == 4
    assert "--tp 2 takes so many GPUs, and 1 are here" in one.stderr
    assert (
        plan(model, tp=2).stages[0].command == f"minitron-trt convert {model} --tp 2 -o checkpoint"
    )
    assert [stage.command for stage in plan(model, tp=2, runtime="llmapi").stages] == [
        f"minitron-trt convert {model} --format hf -o huggingface",
        "minitron-trt triton-repo huggingface --tp 2 -o repository",
    ]


def test_a_gpu_without_a_server_for_engines_is_no_use(doubles: Doubles, model: Path) -> None:
    doubles.install("nvidia-smi")
    if shutil.which("docker") or shutil.which("tritonserver"):
        pytest.skip("this machine can serve engines")

    assert plan(model).runtime == "reference"
    assert "there is no tritonserver and no docker" in plan(model).reason


def test_an_image_that_is_missing_is_said_before_the_work(gpu: Doubles, model: Path) -> None:
    gpu.tell(docker="no image")
    with pytest.raises(MinitronError, match="is absent; run: docker pull"):
        plan(model)


@pytest.mark.slow
def test_what_was_made_is_found_again(doubles: Doubles, model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = plan(model).carry_out(cache)
    written = state(cache)
    second = plan(shutil.copytree(model, tmp_path / "moved")).carry_out(cache)

    assert (first, written) == (second, state(cache))
    assert ModelRepository.open(first).runtime == "reference"
    assert sorted(path.name for path in first.parent.iterdir()) == [
        "checkpoint",
        "repository-checkpoint",
    ]


@pytest.mark.slow
def test_another_model_and_another_precision_have_places_of_their_own(
    doubles: Doubles, model: Path, tmp_path: Path
) -> None:
    places = [
        plan(model).carry_out(tmp_path),
        plan(model, precision="w8a16").carry_out(tmp_path),
        plan(model, tp=2).carry_out(tmp_path),
    ]
    path = model / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    places.append(plan(model).carry_out(tmp_path))

    assert len(set(places)) == 4


def test_a_run_goes_on_where_another_one_was_interrupted(
    doubles: Doubles, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    cache = tmp_path / "cache"
    with monkeypatch.context() as patch:
        patch.setattr("minitron_trt.triton_repo.serving.preparation.emit_repository", interrupt)
        with pytest.raises(KeyboardInterrupt):
            plan(model).carry_out(cache)
    whole = state(cache)
    plan(model).carry_out(cache)

    assert whole
    assert {name: time for name, time in state(cache).items() if name in whole} == whole


@pytest.mark.slow
def test_what_is_damaged_is_made_again(doubles: Doubles, model: Path, tmp_path: Path) -> None:
    place = plan(model).carry_out(tmp_path / "cache").parent
    os.truncate(place / "checkpoint" / "rank0.safetensors", 10)
    (place / "repository-checkpoint" / "ensemble" / "config.pbtxt").unlink()
    repository = plan(model).carry_out(tmp_path / "cache")

    assert (place / "checkpoint" / "rank0.safetensors").stat().st_size > 1_000_000
    assert (repository / "ensemble" / "config.pbtxt").is_file()


@pytest.mark.slow
def test_files_of_the_hubs_cache_are_known_by_their_names(
    doubles: Doubles, model: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--nvidia--Minitron-4B-Base"
    snapshot = cache / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in model.iterdir():
        shutil.copy(path, cache / "blobs" / f"digest-of-{path.name}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"digest-of-{path.name}")
    first = plan(snapshot).carry_out(tmp_path)
    # Reading it would tell, and takes seconds for every few gigabytes.
    (cache / "blobs" / "digest-of-model.safetensors").write_bytes(b"something else")

    assert plan(snapshot).carry_out(tmp_path) == first


@pytest.mark.slow
def test_an_engine_is_built_and_served_by_its_own_runtime(
    gpu: Doubles, model: Path, tmp_path: Path
) -> None:
    repository = ModelRepository.open(plan(model).carry_out(tmp_path / "cache"))
    place = repository.folder.parent
    again = plan(place / "engine-sm90-1.2.1").carry_out(tmp_path / "cache")

    assert (repository.runtime, ModelRepository.open(again).runtime) == ("trtllm", "trtllm")
    assert repository.folder.name == "repository-engine-sm90-1.2.1"
    assert [call[0] for call in gpu.docker_calls].count("run") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--precision", "fp8"), "--precision is for a model, and"),
        (("--runtime", "reference"), "--runtime is for a model, and"),
        (("--revision", "main"), "--revision is for a model, and"),
    ],
)
def test_what_is_said_of_a_model_is_refused_for_a_repository(
    options: tuple[str, ...], message: str, tmp_path: Path, command: Command
) -> None:
    repository = write_ticker(tmp_path / "repository")
    result = command("serve", repository, *options, "--dry-run")

    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {message} {repository} is a repository")


def test_docker_without_a_gpu_is_refused_before_the_work(
    doubles: Doubles, model: Path, command: Command
) -> None:
    result = command("serve", model, "--runner", "docker", "--dry-run")

    assert (result.exit_code, result.stdout) == (4, "")
    assert result.stderr == (
        f"error: {NO_GPU}, and no image has the reference runtime: leave out --runner docker\n"
    )


def test_a_checkpoint_has_its_precision(
    doubles: Doubles, model: Path, tmp_path: Path, command: Command
) -> None:
    convert(str(model), tmp_path / "checkpoint", ConvertOptions())
    result = command("serve", tmp_path / "checkpoint", "--precision", "fp8", "--dry-run")

    assert plan(tmp_path / "checkpoint").stages[0].kind == "repository"
    assert result.exit_code == 2
    assert "is of kind 'checkpoint'" in result.stderr


def test_a_name_that_is_nothing_is_an_error_of_one_line(command: Command) -> None:
    result = command("serve", "nowhere")

    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert result.stderr.startswith("error: ")


@pytest.mark.server
@pytest.mark.slow
def test_a_model_is_served_in_one_command(model: Path, tmp_path: Path) -> None:
    endpoints = free_endpoints()
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "home")}
    program = (sys.executable, "-m", "minitron_trt")
    with subprocess.Popen(
        (*program, "serve", str(model), *ports(endpoints)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline().startswith("ready: ")
            prompt = "Complete the paragraph: our solar system is"
            answer = subprocess.run(
                (*program, "generate", prompt, "--url", endpoints.grpc_url, "--max-tokens", "8"),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=True,
            ).stdout
            server.terminate()
            _, said = server.communicate(timeout=PATIENCE_S)
        finally:
            server.kill()

    assert answer.startswith(" a family of worlds")
    assert server.returncode == 0
    assert NO_GPU in said or "an engine is built for it" in said
    assert f"1 of 3: convert {model} ...\n" in said
