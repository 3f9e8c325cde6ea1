"""Limits: what fits is chosen, what does not is refused with by how much."""

from __future__ import annotations

import pytest

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.recipe.engine_limits import Limits
from minitron_trt.build.recipe.engine_recipe import EngineRecipe, choose_recipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.errors import MinitronError, UnsupportedError, UsageError
from minitron_trt.gpus import find_target


def recipe_of(
    gpu: str,
    preset: str = "llama-3.1-minitron-4b-width",
    kv_cache: str | None = None,
    **options: object,
) -> EngineRecipe:
    """Return the recipe of a seed model in bf16."""
    model = EngineModel(preset, PRESETS[preset], kv_cache=kv_cache)
    return choose_recipe(model, find_target(gpu), BuildRequest(**options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "preset", "options", "limits"),
    [
        ("H100", "minitron-4b", {"profile": "latency"}, Limits(8, 4096, 4096, 4096)),
        ("H100", "minitron-4b", {}, Limits(64, 4096, 4096, 8192)),
        ("H200", "minitron-4b", {"profile": "throughput"}, Limits(256, 4096, 4096, 8192)),
        ("H100", "llama-3.1-minitron-4b-width", {}, Limits(64, 8192, 8192, 8192)),
        ("L4", "llama-3.1-minitron-4b-width", {}, Limits(16, 8192, 8192, 8192)),
        ("L4", "minitron-8b", {"profile": "throughput"}, Limits(16, 4096, 4096, 8192)),
        (
            *("H100", "llama-3.1-minitron-4b-width", {"max_seq_len": 131072}),
            Limits(4, 131072, 131072, 8192),
        ),
        (
            *("H100", "llama-3.1-minitron-4b-width", {"max_input_len": 10000}),
            Limits(64, 11024, 10000, 8192),
        ),
        (
            *("H100", "minitron-4b", {"max_batch_size": 1, "max_seq_len": 1024}),
            Limits(1, 1024, 1024, 1024),
        ),
        (
            *("H100", "minitron-4b", {"max_beam_width": 4, "tokens_per_block": 64}),
            Limits(32, 4096, 4096, 8192, 4, 64),
        ),
        (
            *("H100", "minitron-4b", {"max_num_tokens": 99999999}),
            Limits(64, 4096, 4096, 262144),
        ),
        # Without chunks a prompt has to fit one step.
        (
            *("H100", "llama-3.1-minitron-4b-width"),
            {"max_input_len": 12000, "kv_cache_reuse": False},
            Limits(64, 13024, 12000, 12000),
        ),
    ],
    ids=str,
)
def test_limits_follow_profile_model_memory_and_options(
    gpu: str, preset: str, options: dict[str, object], limits: Limits
) -> None:
    recipe = recipe_of(gpu, preset, **options)  # type: ignore[arg-type]

    assert recipe.limits == limits
    assert recipe.forecast.kv_tokens >= limits.max_seq_len


@pytest.mark.parametrize("gpu", ["L4", "A100", "H100", "B200"])
@pytest.mark.parametrize("profile", ["latency", "balanced", "throughput"])
def test_all_of_a_long_context_is_never_taken_unasked(gpu: str, profile: str) -> None:
    assert recipe_of(gpu, profile=profile).limits.max_seq_len <= 8192


@pytest.mark.parametrize(
    ("gpu", "options", "error", "message"),
    [
        (
            *("H100", {"max_input_len": 9000, "max_seq_len": 8192}, UsageError),
            "max_input_len 9000 exceeds max_seq_len 8192; lower the one or raise the other",
        ),
        (
            *("H100", {"max_num_tokens": 16}, UsageError),
            "max_num_tokens 16 is below tokens_per_block 32; raise it to at least 32",
        ),
        (
            *("H100", {"max_num_tokens": 64, "max_batch_size": 128}, UsageError),
            "max_num_tokens 64 is below the 128 tokens that one step needs (max_batch_size 128, "
            "max_input_len 8192)",
        ),
        (
            *("H100", {"max_num_tokens": 4096, "kv_cache_reuse": False}, UsageError),
            "max_num_tokens 4096 is below the 8192 tokens that one step needs (max_batch_size 64, "
            "max_input_len 8192 without chunks)",
        ),
        (
            *("H100", {"max_input_len": 200000}, UsageError),
            "max_input_len 200000 exceeds the model's 131072 positions",
        ),
        ("H100", {"max_batch_size": 0}, UsageError, "max_batch_size is 0; expected at least 1"),
        ("H100", {"max_draft_len": -5}, UsageError, "max_draft_len is -5; expected 0 or more"),
        (
            *("L4", {"max_seq_len": 131072}, UnsupportedError),
            "one sequence of 131072 tokens does not fit the KV cache of L4 (SM89), which holds "
            "88544: 5.57 GB are missing; lower --max-seq-len or convert with more --tp ranks",
        ),
        (
            "L4",
            {"kv_cache_type": "continuous", "max_batch_size": 64, "max_num_tokens": 8192},
            UnsupportedError,
            "64 sequences of 8192 tokens are 57.11 GB more than the KV cache of 11.61 GB, and a "
            "continuous cache holds them all; lower --max-batch-size or --max-seq-len, or use "
            "--kv-cache-type paged",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_limits_that_contradict_are_refused_with_by_how_much(
    gpu: str, options: dict[str, object], error: type[MinitronError], message: str
) -> None:
    with pytest.raises(error) as caught:
        recipe_of(gpu, **options)  # type: ignore[arg-type]

    assert str(caught.value) == message


def test_a_model_that_does_not_fit_is_refused_with_by_how_much() -> None:
    with pytest.raises(UnsupportedError) as caught:
        recipe_of("L4", "minitron-8b", max_num_tokens=200_000, max_batch_size=256)

    assert str(caught.value) == (
        "minitron-8b in bf16 does not fit L4 (SM89): weights 16.54 GB, activations 16.91 GB and "
        "reserve 1.61 GB are 35.06 GB of 24.15 GB, 10.91 GB too much; convert with more --tp ranks "
        "or a smaller precision, or lower --max-num-tokens"
    )


def test_a_full_batch_beyond_a_paged_cache_is_noted_because_the_rest_waits() -> None:
    recipe = recipe_of("L4", max_batch_size=64, max_seq_len=8192)

    assert recipe.limits.max_batch_size == 64
    assert recipe.notes == (
        "64 sequences of 8192 tokens are 57.11 GB more than the KV cache of 11.61 GB: 10 full "
        "ones fit, others wait",
    )


def test_more_positions_than_the_model_was_trained_for_are_noted() -> None:
    assert recipe_of("H100", "minitron-4b", max_seq_len=8192).notes == (
        "max_seq_len 8192 is beyond the 4096 positions the model was trained for",
    )


def test_streamed_weights_are_not_held_against_the_memory() -> None:
    recipe = recipe_of("L4", "minitron-8b", weight_streaming=True, max_batch_size=256)

    assert recipe.limits.max_batch_size == 256
    assert "weights may stream from host memory" in recipe.notes[0]
