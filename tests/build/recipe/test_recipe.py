"""Recipes: every profile, precision and GPU against the flags, and golden files for four GPUs."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest

from minitron_trt.build.command import build
from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.recipe.engine_recipe import EngineRecipe, choose_recipe
from minitron_trt.build.recipe.flags import flags_of
from minitron_trt.build.recipe.request import PROFILES, BuildRequest
from minitron_trt.errors import MinitronError, UnsupportedError, UsageError
from minitron_trt.gpus import GPUS, find_target, support
from minitron_trt.quantization.precisions import PRECISIONS

GOLDEN = Path(__file__).parents[2] / "golden" / "build"
GOLDEN_PRECISIONS = {"A100": "w4a16-awq", "H100": "fp8", "L40": "fp8", "B200": "nvfp4"}
# TensorRT-LLM does not list NVFP4 for the graph that Nemotron runs on.
NEMOTRON_PRECISIONS = {**GOLDEN_PRECISIONS, "B200": "fp8"}


def recipe_for(
    gpu: str = "H100",
    precision: str = "bf16",
    kv_cache: str | None = None,
    tp: int = 1,
    preset: str = "llama-3.1-minitron-4b-width",
    **options: object,
) -> EngineRecipe:
    """Return the recipe of a seed model."""
    model = (
        EngineModel(preset, PRESETS[preset], kv_cache=kv_cache).stored_as(precision).sharded_for(tp)
    )
    return choose_recipe(model, find_target(gpu), BuildRequest(**options))  # type: ignore[arg-type]


def value_of(recipe: EngineRecipe, flag: str) -> object:
    """Return what a recipe sets a flag to; None when it leaves it alone."""
    return next((s.value for s in recipe.settings if s.flag == flag), None)


def parser_of(version: str) -> argparse.ArgumentParser:
    """Return a parser made from the data file: a second reader of the same facts."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for flag in flags_of(version).values():
        if flag.type == "switch":
            parser.add_argument(f"--{flag.name}", action="store_true")
        else:
            kind: Callable[[str], object] = int if flag.type == "int" else str
            parser.add_argument(f"--{flag.name}", type=kind, choices=flag.choices or None)
    return parser


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0.0", "1.1.0", "1.2.1"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_profile_precision_and_gpu_gives_arguments_that_the_version_takes(
    preset: str, version: str
) -> None:
    # The largest seed model and its largest step take 19 GB in bf16; elsewhere they are refused.
    roomy = [gpu for gpu in GPUS if gpu.memory_bytes > 20e9]
    parser, built = parser_of(version), 0
    for gpu, precision, profile in itertools.product(roomy, PRECISIONS, PROFILES):
        target = find_target(gpu.name)
        refused = PRESETS[preset].architecture in PRECISIONS[precision].refused
        if refused or not support(precision, target).supported:
            reason = "is not available for" if refused else f"cannot run {precision}: "
            with pytest.raises(UnsupportedError, match=reason):
                recipe_for(gpu.name, precision, preset=preset, profile=profile, version=version)
            continue
        recipe = recipe_for(gpu.name, precision, preset=preset, profile=profile, version=version)
        parsed = parser.parse_args(recipe.argv("checkpoint", "engine")[1:])
        built += 1

        assert parsed.checkpoint_dir == "checkpoint"
        assert parsed.max_seq_len <= min(PRESETS[preset].max_positions, 8192)
        assert parsed.tokens_per_block <= parsed.max_num_tokens <= 16384
        assert recipe.forecast.kv_tokens >= parsed.max_seq_len
        assert all(setting.reason for setting in recipe.settings)
    assert built >= 3 * 2 * len(roomy)


def test_every_field_of_a_request_has_an_option() -> None:
    options = {parameter.name for parameter in build.params}

    assert {field.name for field in fields(BuildRequest)} - {"version"} <= options


@pytest.mark.parametrize("gpu", GOLDEN_PRECISIONS)
def test_recipes_are_those_that_were_read(gpu: str) -> None:
    """To accept a change: read the new text, then copy it to tests/golden/build."""
    pages = [
        f"# {preset}, {precision}, {gpu}, {profile}\n{recipe.explain()}\n"
        for preset, precision, profile in (
            ("llama-3.1-minitron-4b-width", "bf16", "balanced"),
            ("llama-3.1-minitron-4b-width", GOLDEN_PRECISIONS[gpu], "latency"),
            ("minitron-8b", NEMOTRON_PRECISIONS[gpu], "throughput"),
        )
        for recipe in [recipe_for(gpu, precision, preset=preset, profile=profile)]
    ]

    assert "\n".join(pages) == (GOLDEN / f"{gpu.lower()}.txt").read_text()


def test_the_command_line_is_a_list_with_the_folders() -> None:
    argv = recipe_for().argv(Path("a b"), Path("c"))

    assert argv[:3] == ["trtllm-build", "--checkpoint_dir=a b", "--output_dir=c"]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        ({}, {"gemm_plugin": "auto", "multiple_profiles": "disable"}),
        ({"precision": "fp8"}, {"gemm_plugin": "disable", "use_fused_mlp": "enable"}),
        ({"precision": "fp8", "profile": "latency"}, {"gemm_plugin": "fp8"}),
        (
            {"precision": "fp8", "profile": "throughput"},
            {"gemm_plugin": "disable", "multiple_profiles": "enable"},
        ),
        (
            {"precision": "fp8", "profile": "throughput", "opt_num_tokens": 256},
            {"opt_num_tokens": 256, "multiple_profiles": "disable"},
        ),
        ({"precision": "fp8", "preset": "minitron-8b"}, {"use_fused_mlp": "disable"}),
        ({"precision": "fp8-rowwise"}, {"fp8_rowwise_gemm_plugin": "auto"}),
        (
            {"precision": "nvfp4", "gpu": "B200"},
            {"gemm_plugin": "nvfp4", "norm_quant_fusion": "enable"},
        ),
        (
            {"precision": "nvfp4", "gpu": "B200", "tp": 2, "profile": "latency"},
            {"reduce_fusion": "enable", "user_buffer": "enable", "norm_quant_fusion": None},
        ),
        (
            {"precision": "nvfp4", "gpu": "B200", "gemm_plugin": "disable"},
            {"gemm_plugin": "disable"},
        ),
        (
            {"tp": 2, "profile": "latency", "precision": "fp8"},
            {"reduce_fusion": "enable", "user_buffer": "enable"},
        ),
        ({"tp": 2, "profile": "latency"}, {"reduce_fusion": "enable", "user_buffer": None}),
        ({"tp": 2, "profile": "latency", "preset": "minitron-8b"}, {"reduce_fusion": None}),
        ({"weight_streaming": True}, {"weight_streaming": True, "gemm_plugin": "disable"}),
        ({"gather_logits": "all"}, {"gather_all_token_logits": True}),
        ({"gather_logits": "context"}, {"gather_context_logits": True}),
        ({"logits_dtype": "float16"}, {"logits_dtype": "float16"}),
        ({"gemm_swiglu": True, "precision": "fp8"}, {"gemm_swiglu_plugin": "fp8"}),
        ({"low_latency_gemm": True, "precision": "fp8"}, {"low_latency_gemm_plugin": "fp8"}),
        ({"kv_cache_type": "continuous", "max_batch_size": 4}, {"tokens_per_block": None}),
        (
            {"speculation": "lookahead_decoding", "max_draft_len": 8},
            {"speculative_decoding_mode": "lookahead_decoding", "max_draft_len": 8},
        ),
        (
            {"speculation": "lookahead_decoding", "max_draft_len": 200},
            {"max_draft_len": 200, "max_num_tokens": 12864},
        ),
    ],
    ids=str,
)
def test_choices_follow_precision_architecture_and_options(
    options: dict[str, str], flags: dict[str, object]
) -> None:
    recipe = recipe_for(**options)  # type: ignore[arg-type]

    assert {flag: value_of(recipe, flag) for flag in flags} == flags


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gemm_plugin": "fp8"}, UnsupportedError, "gemm_plugin fp8 needs fp8 weights; the checkp"),
        ({"gemm_plugin": "fast"}, UsageError, "gemm_plugin 'fast' is not one of auto, disable, "),
        ({"gemm_swiglu": True}, UnsupportedError, "--gemm-swiglu needs fp8 weights"),
        (
            {"gemm_swiglu": True, "precision": "fp8", "gpu": "L40"},
            UnsupportedError,
            "L40 (SM89) cannot run gemm-swiglu-plugin: it is written for SM90 (Hopper)",
        ),
        (
            {"gemm_swiglu": True, "precision": "fp8", "preset": "minitron-8b"},
            UnsupportedError,
            "--gemm-swiglu fuses a gate, which NemotronForCausalLM does not have",
        ),
        (
            {"low_latency_gemm": True, "precision": "fp8", "gpu": "B200"},
            UnsupportedError,
            "B200 (SM100) cannot run low-latency-gemm-plugin: TensorRT-LLM's builder refuses",
        ),
        ({"reduce_fusion": True}, UnsupportedError, "--reduce-fusion is for LlamaForCausalLM on"),
        ({"workers": 2}, UsageError, "--workers 2 is more than the checkpoint's 1 ranks"),
        (
            {"weight_streaming": True, "gemm_plugin": "auto"},
            UsageError,
            "weight streaming does not go with gemm_plugin auto",
        ),
        (
            {"weight_streaming": True, "low_latency_gemm": True, "precision": "fp8"},
            UsageError,
            "weight streaming does not go with --low-latency-gemm; leave one of them out",
        ),
        (
            {"multiple_profiles": True, "opt_num_tokens": 64},
            UsageError,
            "opt_num_tokens does not go with multiple profiles",
        ),
        (
            {"multiple_profiles": True, "max_num_tokens": 49152},
            UsageError,
            "multiple profiles with max_num_tokens 49152 were seen to fail; lower it to 16384",
        ),
        (
            {"speculation": "lookahead_decoding", "max_draft_len": 7, "gather_logits": "all"},
            UsageError,
            "context logits cannot be gathered with draft tokens",
        ),
        ({"max_draft_len": 3}, UsageError, "--speculation and --max-draft-len go together"),
        (
            {"speculation": "lookahead_decoding", "max_draft_len": 200, "max_num_tokens": 8192},
            UsageError,
            "max_num_tokens 8192 is below the 12864 tokens that one step needs (max_batch_size 64",
        ),
        (
            {"precision": "nvfp4", "gpu": "B200", "preset": "minitron-8b"},
            UnsupportedError,
            "nvfp4 is not available for NemotronForCausalLM: TensorRT-LLM's table does not list it",
        ),
        (
            {"precision": "w8a16", "kv_cache": "fp8"},
            UnsupportedError,
            "an FP8 KV cache does not build with w8a16 weights (TensorRT-LLM issue 1113); ",
        ),
        (
            {"precision": "w4a16-awq", "tp": 16},
            UnsupportedError,
            "--tp 16 leaves 576 inputs of transformer.layers.0.mlp.proj.weight per rank; "
            "w4a16-awq needs a multiple of 128",
        ),
        ({"version": "1.3.0"}, UnsupportedError, "TensorRT-LLM 1.3.0 is newer than 1.2.1"),
        ({"tokens_per_block": 33}, UsageError, "tokens_per_block is 33; expected one of 8, 16, 32"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_rule_that_an_option_breaks_is_said_before_anything_runs(
    options: dict[str, str], error: type[MinitronError], message: str
) -> None:
    with pytest.raises(error) as caught:
        recipe_for(**options)  # type: ignore[arg-type]

    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("options", "flag", "reason"),
    [
        ({"weight_streaming": True}, "weight_streaming", "as asked; the share on the GPU is gpu_"),
        ({"weight_streaming": True}, "gemm_plugin", "weight streaming works on TensorRT's own GE"),
        ({"multiple_profiles": True}, "multiple_profiles", "as asked"),
        ({}, "multiple_profiles", "one is enough"),
        ({"opt_num_tokens": 64}, "multiple_profiles", "opt_num_tokens is what the kernels are tu"),
        (
            {"precision": "fp8", "profile": "throughput"},
            "multiple_profiles",
            "TensorRT's GEMMs get tuned for several step sizes",
        ),
    ],
    ids=str,
)
def test_a_choice_has_its_reason(options: dict[str, str], flag: str, reason: str) -> None:
    recipe = recipe_for(**options)  # type: ignore[arg-type]
    setting = next(setting for setting in recipe.settings if setting.flag == flag)

    assert setting.reason.startswith(reason)
    assert setting.reason in recipe.explain()


def test_what_nobody_has_built_is_noted() -> None:
    assert recipe_for("RTX PRO 6000").notes == (
        "nobody is known to have built bf16 for RTX-PRO-6000 (SM120)",
    )


def test_a_bare_architecture_says_whose_memory_counts() -> None:
    assert recipe_for("hopper").notes == ("memory is that of H100-SXM (85.52 GB)",)


def test_a_recipe_as_json_holds_what_a_manifest_needs() -> None:
    record = recipe_for("A100", tp=2).to_json()

    assert record["limits"]["max_seq_len"] == 8192
    assert {k: record[k] for k in ("precision", "tp", "sm", "gpu", "trtllm_version")} == {
        "precision": "bf16",
        "tp": 2,
        "sm": 80,
        "gpu": "A100-80GB",
        "trtllm_version": "1.2.1",
    }
