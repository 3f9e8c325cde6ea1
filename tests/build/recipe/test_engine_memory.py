"""Memory arithmetic against values worked out by hand, and against what convert writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.convert.plans import plan_of

from minitron_trt.build.engine_model import PRESETS, EngineModel, find_model
from minitron_trt.build.recipe.engine_memory import (
    Forecast,
    activation_bytes,
    checkpoint_bytes,
    kv_bytes_per_token,
    reserve_bytes,
    weights_bytes,
)
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import UnsupportedError
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.samples import NAMES, sample_folder
from minitron_trt.spec import Parallelism

# By hand, parameters of a layer: qkv, dense, the MLP's two or three matrices; norms beside.
LLAMA_LINEAR = 6144 * 3072 + 3072 * 4096 + 3 * 9216 * 3072
NEMOTRON_4B_LINEAR = 5120 * 3072 + 3072 * 3072 + 2 * 9216 * 3072
NEMOTRON_8B_LINEAR = 8192 * 4096 + 4096 * 6144 + 2 * 16384 * 4096
NEMO_LINEAR = 6144 * 4096 + 4096 * 4096 + 3 * 11520 * 4096
BF16 = {
    "llama-3.1-minitron-4b-width": 2 * (32 * (LLAMA_LINEAR + 2 * 3072) + 2 * 128256 * 3072 + 3072),
    "minitron-4b": 2 * (32 * (NEMOTRON_4B_LINEAR + 4 * 3072) + 2 * 256000 * 3072 + 2 * 3072),
    "minitron-8b": 2 * (32 * (NEMOTRON_8B_LINEAR + 4 * 4096) + 2 * 256000 * 4096 + 2 * 4096),
    "mistral-nemo-minitron-8b": 2 * (40 * (NEMO_LINEAR + 2 * 4096) + 2 * 131072 * 4096 + 4096),
}
TOTALS = {
    "llama-3.1-minitron-4b-width": 9_025_492_992,
    "minitron-4b": 8_381_018_112,
    "minitron-8b": 16_543_399_936,
    "mistral-nemo-minitron-8b": 16_828_211_200,
}


def model_of(preset: str, precision: str = "bf16", tp: int = 1, pp: int = 1) -> EngineModel:
    """Return a seed model, stored and sharded."""
    return EngineModel(preset, PRESETS[preset], parallelism=Parallelism(tp, pp)).stored_as(
        precision
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_bf16_weights_are_two_bytes_per_parameter(preset: str) -> None:
    assert weights_bytes(model_of(preset)) == BF16[preset] == TOTALS[preset]
    assert checkpoint_bytes(model_of(preset)) == TOTALS[preset]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_token_takes_4_kib_of_cache_in_every_layer_of_a_seed(preset: str) -> None:
    # Keys and values of 32 or 40 layers, 8 heads of 128 values, 2 bytes each.
    layers = 40 if preset == "mistral-nemo-minitron-8b" else 32
    assert kv_bytes_per_token(model_of(preset)) == 2 * layers * 8 * 128 * 2


@pytest.mark.parametrize(
    ("tp", "pp", "kv_cache", "size"),
    [
        (2, 1, None, 65536),
        (8, 1, None, 16384),
        # Key/value heads are repeated once they are fewer than the ranks.
        (16, 1, None, 16384),
        (1, 2, None, 65536),
        (1, 3, None, 45056),
        (1, 1, "fp8", 65536),
        (2, 1, "int8", 32768),
    ],
)
def test_a_tokens_cache_is_sharded_with_the_model(
    tp: int, pp: int, kv_cache: str | None, size: int
) -> None:
    model = EngineModel(
        "m", PRESETS["minitron-8b"], kv_cache=kv_cache, parallelism=Parallelism(tp, pp)
    )

    assert kv_bytes_per_token(model) == size


@pytest.mark.parametrize(
    ("precision", "per_layer"),
    [
        # 4 linear layers of Minitron-8B: qkv 8192x4096, dense 4096x6144, fc 16384x4096, proj.
        ("fp8", NEMOTRON_8B_LINEAR + 4 * 8),
        ("fp8-rowwise", NEMOTRON_8B_LINEAR + 4 * (8192 + 4096 + 16384 + 4096)),
        ("w8a16", NEMOTRON_8B_LINEAR + 2 * (8192 + 4096 + 16384 + 4096)),
        ("w4a16", NEMOTRON_8B_LINEAR // 2 + 2 * (8192 + 4096 + 16384 + 4096)),
        (
            "w4a16-awq",
            NEMOTRON_8B_LINEAR // 2
            + 2 * NEMOTRON_8B_LINEAR // 128
            + 2 * (4096 + 6144 + 4096 + 16384),
        ),
        ("nvfp4", NEMOTRON_8B_LINEAR // 2 + NEMOTRON_8B_LINEAR // 16 + 4 * 12),
    ],
)
def test_quantized_layers_take_their_values_and_scales(precision: str, per_layer: int) -> None:
    wide = 2 * (32 * 4 * 4096 + 2 * 256000 * 4096 + 2 * 4096)

    assert weights_bytes(model_of("minitron-8b", precision)) == wide + 32 * per_layer


@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_cut_model_is_smaller_on_each_gpu_but_not_in_all(precision: str) -> None:
    whole, half = (weights_bytes(model_of("minitron-8b", precision, tp)) for tp in (1, 2))

    assert half < whole < 2 * half


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (4, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["llama", "nemotron", "mistral"])
def test_checkpoint_bytes_are_those_that_convert_plans(
    kind: str, tp: int, pp: int, make_model: Callable[..., Path]
) -> None:
    folder = make_model(kind)
    plan = plan_of(folder, ConvertOptions(tp=tp, pp=pp))
    model = EngineModel("m", find_model(str(folder)).spec, parallelism=Parallelism(tp, pp))

    assert checkpoint_bytes(model) == plan.output_bytes


@pytest.mark.parametrize("kv_cache", [None, "fp8"])
@pytest.mark.parametrize("tp", [1, 2])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", NAMES)
def test_checkpoint_bytes_of_every_precision_are_those_that_convert_plans(
    name: str, precision: str, tp: int, kv_cache: str | None
) -> None:
    """Two sums: by tensor, as the converter writes them, and by rule, as a forecast needs it."""
    folder = sample_folder(name)
    options = ConvertOptions(precision=precision, tp=tp, kv_cache=kv_cache)
    try:
        plan = plan_of(folder, options)
    except UnsupportedError as error:
        assert any(why in str(error) for why in ("issue 1113", "groups 128", "not available"))  # noqa: PT017
        return
    model = EngineModel(
        "m",
        find_model(str(folder)).spec,
        kv_cache=kv_cache,
        parallelism=Parallelism(tp),
    )

    assert checkpoint_bytes(model.stored_as(precision)) == plan.output_bytes


@pytest.mark.parametrize("name", NAMES)
def test_weights_bytes_are_those_of_real_files(name: str, tmp_path: Path) -> None:
    convert(str(sample_folder(name)), tmp_path / "checkpoint", ConvertOptions())
    file = tmp_path / "checkpoint" / "rank0.safetensors"
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    model = find_model(str(tmp_path / "checkpoint"))

    assert weights_bytes(model) == checkpoint_bytes(model) == file.stat().st_size - header


def test_activations_are_the_widest_moment_of_a_step_and_the_logits() -> None:
    # 8192 rows of 2 x 3072 and 3 x 9216 values, 2 bytes each; 64 rows of logits twice, 4 bytes.
    rows = 8192 * (2 * 3072 + 3 * 9216) * 2
    logits = 2 * 64 * 128256 * 4
    model = model_of("llama-3.1-minitron-4b-width")

    assert activation_bytes(model, 8192, 64) == rows + logits == 619_315_200
    assert activation_bytes(model, 8192, 64, context_logits=True) == (
        rows + logits + 8192 * 128256 * 4
    )


def test_several_gpus_reserve_more_than_one() -> None:
    assert reserve_bytes(model_of("minitron-8b")) == 1536 << 20
    assert reserve_bytes(model_of("minitron-8b", tp=2)) == 2048 << 20


def test_the_cache_takes_nine_tenths_of_what_is_left_in_whole_blocks() -> None:
    forecast = Forecast(
        gpu_bytes=10_000,
        weights_bytes=4_000,
        activation_bytes=500,
        reserve_bytes=500,
        kv_bytes_per_token=10,
        tokens_per_block=32,
    )

    assert (forecast.free_bytes, forecast.kv_pool_bytes) == (5_000, 4_500)
    assert forecast.kv_tokens == 448  # 14 blocks of 320 bytes
    assert [forecast.sequences(tokens) for tokens in (1, 32, 33, 224, 225, 500)] == [
        *(14, 14, 7, 2, 1, 0)
    ]


def test_a_model_that_does_not_fit_has_no_cache_and_says_what_is_missing() -> None:
    forecast = Forecast(10_000, 9_000, 800, 700, 10, 32)

    assert (forecast.free_bytes, forecast.kv_pool_bytes, forecast.kv_tokens) == (-500, 0, 0)
