"""Quantized conversions from outside: what lies on the disk, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file
from tests.convert.plans import plan_of

from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.quantization.precisions import PRECISIONS, precision_of
from minitron_trt.tensorfile import read_header

MakeModel = Callable[..., Path]
Command = Callable[..., Result]
Refusal = Callable[..., str]
DOWN = "model.layers.1.mlp.down_proj.weight"
KEYS = ("qkv", "dense", "fc", "gate", "proj")


def convert(command: Command, source: Path, output: Path, *options: object) -> str:
    """Convert, and return what stderr said."""
    result = command("convert", source, "-o", output, *options)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def quantization(folder: Path) -> dict[str, Any]:
    block: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization"]
    return block


def codes(path: Path) -> dict[str, Any]:
    """Return the tensors of a file, 1-byte floats as their codes."""
    found = {}
    for name, entry in read_header(path).items():
        kind = {"F8_E4M3": np.uint8, "BF16": ml_dtypes.bfloat16, "F32": np.float32}[entry.dtype]
        with path.open("rb") as file:
            file.seek(entry.offset)
            flat = np.frombuffer(file.read(entry.size_bytes), kind)
        found[name] = flat.reshape(entry.shape)
    return found


def set_values(folder: Path, name: str, values: list[float], rows: int | None = None) -> None:
    """Overwrite the first values of a tensor, or its first rows by one value."""
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name].copy()
    if rows is None:
        tensors[name].reshape(-1)[: len(values)] = values
    else:
        tensors[name][:rows] = values[0]
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32], ids=str)
@pytest.mark.parametrize("kind", ["llama", "mistral", "nemotron"])
def test_rowwise_fp8_is_each_row_over_its_own_scale(
    kind: str, dtype: Any, command: Command, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = make_model(kind, dtype)
    set_values(folder, DOWN, [0.0], rows=3)
    convert(command, folder, tmp_path / "bf16")
    convert(command, folder, tmp_path / "fp8", "--precision", "fp8-rowwise")
    plain = load_file(tmp_path / "bf16" / "rank0.safetensors")
    found = codes(tmp_path / "fp8" / "rank0.safetensors")
    for name, weight in plain.items():
        layer = name.removesuffix(".weight")
        if layer.rpartition(".")[2] not in KEYS:
            assert found.pop(name).tobytes() == weight.tobytes()
            continue
        exact = weight.astype(np.float32)
        scale = np.abs(exact).max(axis=1) / np.float32(448)
        scale = np.maximum(scale, np.float32(1 / (448 * 512)))
        theirs = (exact / scale[:, None]).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)

        assert found.pop(f"{layer}.per_channel_scale").tobytes() == scale.tobytes()
        assert found.pop(name).tobytes() == theirs.tobytes()
    assert found == {}


@pytest.mark.parametrize("precision", ["w8a16", "w4a16"])
@pytest.mark.parametrize("tp", [1, 2])
def test_weight_only_precisions_are_plain_weights_and_an_algorithm(
    precision: str, tp: int, command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    convert(command, tiny_llama, tmp_path / "bf16", "--tp", tp)
    convert(command, tiny_llama, tmp_path / "quantized", "--tp", tp, "--precision", precision)

    assert quantization(tmp_path / "quantized") == {
        "quant_algo": precision.upper(),
        "kv_cache_quant_algo": None,
    }
    assert [(tmp_path / "quantized" / f"rank{r}.safetensors").read_bytes() for r in range(tp)] == [
        (tmp_path / "bf16" / f"rank{r}.safetensors").read_bytes() for r in range(tp)
    ]


def test_the_quantization_blocks_are_those_of_the_contract() -> None:
    head = {"kv_cache_quant_algo": None, "exclude_modules": ["lm_head"]}
    awq = {"group_size": 128, "has_zero_point": False, "pre_quant_scale": True}

    assert {name: p.quantization() for name, p in PRECISIONS.items()} == {
        "bf16": {"quant_algo": None, "kv_cache_quant_algo": None},
        "fp16": {"quant_algo": None, "kv_cache_quant_algo": None},
        "fp8": {"quant_algo": "FP8", **head},
        "fp8-rowwise": {"quant_algo": "FP8_PER_CHANNEL_PER_TOKEN", **head},
        "w8a16": {"quant_algo": "W8A16", "kv_cache_quant_algo": None},
        "w4a16": {"quant_algo": "W4A16", "kv_cache_quant_algo": None},
        "w4a16-awq": {"quant_algo": "W4A16_AWQ", **head, **awq},
        "w4a8-awq": {"quant_algo": "W4A8_AWQ", **head, **awq},
        "nvfp4": {"quant_algo": "NVFP4", **head, "group_size": 16},
    }


def test_every_precision_is_known_again_by_its_config() -> None:
    assert all(precision_of(p.dtype, p.algorithm) is p for p in PRECISIONS.values())


@pytest.mark.parametrize("precision", ["nvfp4", "w4a8-awq"])
def test_pairs_outside_the_table_are_refused(
    precision: str, refusal: Refusal, tiny_nemotron: Path
) -> None:
    assert refusal(tiny_nemotron, 4, "--precision", precision) == (
        f"--precision {precision} is not available for NemotronForCausalLM: TensorRT-LLM's table "
        "does not list it for the GPT graph that Nemotron runs on"
    )


def test_int8_weights_with_an_fp8_cache_are_refused(refusal: Refusal, tiny_llama: Path) -> None:
    assert refusal(tiny_llama, 4, "--precision", "w8a16", "--kv-cache", "fp8") == (
        "INT8 weights with an FP8 KV cache do not build (TensorRT-LLM issue 1113); "
        "use --kv-cache int8 or auto"
    )


def test_groups_that_do_not_divide_are_refused(refusal: Refusal, tiny_llama: Path) -> None:
    assert refusal(tiny_llama, 4, "--precision", "nvfp4") == (
        "--precision nvfp4 groups 16 columns, which do not divide the 40 of "
        "transformer.layers.0.attention.qkv.weight with --tp 1"
    )


def test_weights_beyond_bf16_are_not_quantized(refusal: Refusal, make_model: MakeModel) -> None:
    folder = make_model("mistral", np.float32)
    set_values(folder, DOWN, [1.0, 3.4e38])

    assert refusal(folder, 3, "--precision", "fp8-rowwise") == (
        f"tensor {DOWN} has a value that is not a finite bfloat16 number; it cannot be quantized"
    )


def test_what_only_the_code_of_tensorrt_llm_supports_is_said(
    command: Command, tiny_nemotron: Path, tmp_path: Path
) -> None:
    said = convert(command, tiny_nemotron, tmp_path / "out", "--precision", "fp8-rowwise")

    assert said == (
        "warning: fp8-rowwise on NemotronForCausalLM: TensorRT-LLM's code has it, its support "
        "table does not list it\n"
    )


def test_rows_larger_than_a_block_arrive_whole(
    command: Command, make_model: MakeModel, tmp_path: Path
) -> None:
    # Two thousand rows of 1,500 values: several blocks, cut at an odd row by each rank.
    sizes = {"hidden_size": 1500, "num_hidden_layers": 1, "intermediate_size": 2002}
    folder = make_model("llama", num_attention_heads=2, **sizes)
    for tp in (1, 2):
        options = ("--precision", "fp8-rowwise", "--tp", tp)
        convert(command, folder, tmp_path / str(tp), *options)
    whole = codes(tmp_path / "1" / "rank0.safetensors")
    ranks = [codes(tmp_path / "2" / f"rank{rank}.safetensors") for rank in range(2)]
    fc, proj = "transformer.layers.0.mlp.fc", "transformer.layers.0.mlp.proj"

    for name, axis in ((f"{fc}.weight", 0), (f"{fc}.per_channel_scale", 0), (f"{proj}.weight", 1)):
        assert np.array_equal(np.concatenate([rank[name] for rank in ranks], axis), whole[name])
    for rank in ranks:
        assert np.array_equal(rank[f"{proj}.per_channel_scale"], whole[f"{proj}.per_channel_scale"])


def test_progress_of_a_quantized_conversion_ends_at_its_bytes(
    tiny_llama: Path, tmp_path: Path
) -> None:
    from minitron_trt.convert.writing.ranks import write_ranks

    plan = plan_of(tiny_llama, ConvertOptions("fp8-rowwise", tp=2))
    told: list[int] = []
    write_ranks(plan, tmp_path, told.append)
    padding = (-131 % 2) * 40 * 2

    assert sum(told) == plan.output_bytes - padding


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp8-rowwise", "w8a16"])
def test_a_precision_without_calibration_needs_no_torch(
    precision: str, tiny_llama: Path, tmp_path: Path
) -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'modelopt']))\n"
        "from minitron_trt.cli import main\n"
        f"main(['convert', {str(tiny_llama)!r}, '-o', {str(tmp_path / 'out')!r}, "
        f"'--precision', {precision!r}])"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

    assert (tmp_path / "out" / "rank0.safetensors").is_file()


@pytest.mark.slow
def test_a_calibrated_precision_without_torch_says_what_to_install(
    tiny_llama: Path, tmp_path: Path
) -> None:
    text = tmp_path / "ids.jsonl"
    text.write_text('{"input_ids": [1, 2, 3]}\n')
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'modelopt']))\n"
        "from minitron_trt.cli import main\n"
        f"main(['convert', {str(tiny_llama)!r}, '-o', {str(tmp_path / 'out')!r}, "
        f"'--precision', 'fp8', '--calib-data', {str(text)!r}])"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert run.returncode == 4
    assert run.stderr.splitlines()[-1].endswith("run: pip install 'minitron-trt[quantize]'")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--tp", 2), 2, "has one file for any number of GPUs; leave out --tp and --pp"),
        (
            ("--kv-cache", "fp8"),
            4,
            "beside quantized weights only: its runtimes refuse them beside",
        ),
        (
            ("--kv-cache", "int8", "--precision", "fp8"),
            4,
            "has no int8 KV cache; use --kv-cache fp8",
        ),
        (("--precision", "w8a16"), 4, "does not have w8a16; it has bf16, fp16, fp8, fp8-rowwise"),
    ],
    ids=str,
)
def test_what_the_hugging_face_form_lacks_is_refused(
    options: tuple[object, ...], code: int, message: str, refusal: Refusal, tiny_llama: Path
) -> None:
    line = refusal(tiny_llama, code, "--format", "hf", *options)

    assert line.startswith("--format hf ")
    assert message in line


@pytest.mark.parametrize(
    ("kind", "fraction"), [("llama", {}), ("nemotron", {"partial_rotary_factor": 0.5})]
)
def test_a_hugging_face_folder_in_bf16_is_the_source_with_rope_facts_in_both_spellings(
    kind: str,
    fraction: dict[str, float],
    command: Command,
    request: pytest.FixtureRequest,
    tmp_path: Path,
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}")
    convert(command, folder, tmp_path / "out", "--format", "hf")
    source = {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}
    found = load_file(tmp_path / "out" / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    scaling = config.get("rope_scaling")

    assert {k: v.tobytes() for k, v in found.items()} == {k: v.tobytes() for k, v in source.items()}
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == {
        **config,
        "torch_dtype": "bfloat16",
        "rope_scaling": scaling,
        "rope_parameters": {
            **(scaling or {"rope_type": "default"}),
            "rope_theta": config["rope_theta"],
            **fraction,
        },
    }


def test_a_rowwise_hugging_face_folder_is_the_checkpoint_taken_apart(
    command: Command, tiny_llama: Path, tmp_path: Path
) -> None:
    convert(command, tiny_llama, tmp_path / "trt", "--precision", "fp8-rowwise")
    convert(command, tiny_llama, tmp_path / "hf", "--precision", "fp8-rowwise", "--format", "hf")
    fused = codes(tmp_path / "trt" / "rank0.safetensors")
    apart = codes(tmp_path / "hf" / "model.safetensors")
    for theirs, ours in (("weight", "weight"), ("per_channel_scale", "weight_scale")):
        parts = [apart[f"model.layers.1.self_attn.{p}_proj.{ours}"] for p in "qkv"]
        whole = fused[f"transformer.layers.1.attention.qkv.{theirs}"]

        assert np.concatenate(parts).tobytes() == whole.tobytes()
