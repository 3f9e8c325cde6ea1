"""`build` with TensorRT itself: real engines from a CPU, and what is refused before it is asked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.build.doubles import Doubles, install_package, make_doubles

from minitron_trt.artifacts import MANIFEST_NAME
from minitron_trt.build.engine import Engine
from minitron_trt.build.engine_model import find_model
from minitron_trt.build.recipe.engine_recipe import choose_recipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.build.tensorrt.compile_job import tensorrt_limits
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.gpus import find_target
from minitron_trt.samples import sample_folder
from minitron_trt.spec import Parallelism

pytestmark = pytest.mark.slow

pytest.importorskip("tensorrt_rtx", reason="this needs: pip install 'minitron-trt[rtx]'")

Command = Callable[..., Result]


@pytest.fixture(autouse=True)
def _no_trtllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave neither trtllm-build nor a GPU to be found."""
    make_doubles(tmp_path, monkeypatch)


def with_quantization(folder: Path, **block: object) -> None:
    """Make a checkpoint say that it is quantized; its weights stay as they are."""
    config = json.loads((folder / "config.json").read_text())
    config["quantization"] |= block
    (folder / "config.json").write_text(json.dumps(config))
    record: dict[str, Any] = json.loads((folder / MANIFEST_NAME).read_text())
    quantization = config["quantization"]
    record["precision"] = "fp8" if quantization["quant_algo"] else "bf16"
    if quantization["kv_cache_quant_algo"]:
        record["kv_cache"] = "fp8"
    record["files"]["config.json"] = (folder / "config.json").stat().st_size
    (folder / MANIFEST_NAME).write_text(json.dumps(record))


@pytest.mark.parametrize(("arch", "sm"), [("ada", 89), ("A100", 80), ("blackwell-rtx", 120)])
def test_without_a_gpu_auto_compiles_with_tensorrt(
    arch: str, sm: int, tmp_path: Path, command: Command
) -> None:
    convert(str(sample_folder("solar-llama")), tmp_path / "checkpoint", ConvertOptions())
    output = tmp_path / "engine"
    arguments = ("build", tmp_path / "checkpoint", "-o", output, "--arch", arch, "--json")
    result = command(*arguments, "--max-batch-size", 2, "--max-seq-len", 64)
    record = json.loads(result.stdout)
    engine = Engine.open(output)

    assert result.exit_code == 0, result.stderr
    assert (record["compiler"], record["sm"]) == ("tensorrt", sm)
    assert engine.compiler == "tensorrt-rtx"
    assert (engine.limits.max_batch_size, engine.limits.max_seq_len) == (2, 64)
    assert command("check", output, "--gpu", arch).exit_code == 0
    assert command("check", output, "--gpu", "H100").exit_code == 4


@pytest.mark.parametrize(
    ("gpus", "compiler"),
    [(["NVIDIA H100 80GB HBM3, 9.0"], "tensorrt"), (["NVIDIA L4, 8.9"], "none"), ([], "none")],
)
def test_beside_its_gpu_hopper_is_compiled_by_tensorrt_itself(
    gpus: list[str],
    compiler: str,
    checkpoint: Path,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nvidia-smi and the installed package are doubles; nothing is compiled."""
    doubles = Doubles(tmp_path / "bin")
    doubles.install("nvidia-smi")
    doubles.tell(gpus=gpus)
    install_package(tmp_path, monkeypatch, "11.4.0", "tensorrt")
    record = json.loads(
        command("build", checkpoint, "--arch", "H100", "--dry-run", "--json").stdout
    )

    assert record["compiler"] == compiler
    assert ("SM90 needs a GPU of hopper" in record["problem"]) == (compiler == "none")


def test_fp8_for_an_a100_is_refused_by_the_table(
    checkpoint: Path, output: Path, command: Command
) -> None:
    with_quantization(checkpoint, quant_algo="FP8")
    result = command("build", checkpoint, "-o", output, "--arch", "A100")

    assert (result.exit_code, result.stderr) == (
        4,
        "error: A100-80GB (SM80) cannot run fp8: it needs FP8 tensor cores, SM89 (Ada) or newer; "
        "use w8a16 or w4a16-awq or bf16\n",
    )


def test_a_cache_in_one_piece_that_does_not_fit_is_refused_by_how_much(
    checkpoint: Path, output: Path, command: Command
) -> None:
    arguments = ("build", checkpoint, "-o", output, "--arch", "L4", "--compiler", "tensorrt")
    result = command(*arguments, "--max-batch-size", 2_000_000, "--max-num-tokens", 2_000_000)

    assert result.exit_code == 4
    assert "more than the KV cache of L4 (SM89), and --compiler tensorrt keeps it whole" in (
        result.stderr
    )


def test_a_checkpoint_for_two_gpus_is_refused(
    tiny_llama: Path, tmp_path: Path, output: Path, command: Command
) -> None:
    convert(str(tiny_llama), tmp_path / "two", ConvertOptions(tp=2))
    arguments = ("build", tmp_path / "two", "-o", output, "--arch", "ada")
    result = command(*arguments, "--compiler", "tensorrt")

    assert result.exit_code == 4
    assert result.stderr == (
        "error: --compiler tensorrt builds for one GPU; the checkpoint is sharded for 2: convert "
        "with --tp 1; elsewhere, on a machine with a GPU of SM89: minitron-trt build "
        f"{tmp_path}/two -o {output} --arch ada --runner docker (or slurm, or kubernetes)\n"
    )


def test_pipeline_ranks_are_joined_and_held_against_one_gpu() -> None:
    whole = replace(find_model("minitron-8b"), sharded=True)
    request, target = BuildRequest(), find_target("A10")
    sizes = [
        tensorrt_limits(choose_recipe(model, target, request), request)
        for model in (whole, replace(whole, parallelism=Parallelism(pp=2)))
    ]

    assert sizes[0] == sizes[1]
    assert (sizes[0].max_batch_size, sizes[0].max_seq_len) == (8, 4096)


def test_a_quantized_cache_is_refused(checkpoint: Path, output: Path, command: Command) -> None:
    with_quantization(checkpoint, kv_cache_quant_algo="FP8")
    arguments = ("build", checkpoint, "-o", output, "--arch", "ada")
    result = command(*arguments, "--compiler", "tensorrt")

    assert result.exit_code == 4
    assert (
        "has no fp8 KV cache: TensorRT's cache layer holds unquantized values only; convert with"
        in (result.stderr)
    )


def test_the_same_request_is_answered_from_the_cache(
    checkpoint: Path, tmp_path: Path, command: Command
) -> None:
    def build(name: str) -> dict[str, Any]:
        arguments = ("build", checkpoint, "-o", tmp_path / name, "--arch", "ada", "--json")
        result = command(*arguments, "--cache", tmp_path / "cache", "--max-batch-size", 2)
        record: dict[str, Any] = json.loads(result.stdout)
        return record

    first, second = build("one"), build("two")

    assert (first["cached"], second["cached"]) == (False, True)
    assert second["key"] == first["key"]
