"""Every spelling of config.json with which the models were published, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.convert.plans import plan_of

from minitron_trt.checkpoint import trtllm_config
from minitron_trt.convert.source.hf_config import HfConfig, config_record, read_spec
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import Llama3Scaling, ModelSpec, Parallelism, Rope

MakeModel = Callable[..., Path]

STRETCH = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "rope_scaling": {**STRETCH, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
MINITRON_4B: dict[str, Any] = {
    "architectures": ["NemotronForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 2,
    "eos_token_id": 3,
    "head_dim": 128,
    "hidden_act": "relu2",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "max_position_embeddings": 4096,
    "mlp_bias": False,
    "model_type": "nemotron",
    "norm_eps": 1e-5,
    "num_attention_heads": 24,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 256000,
}
LLAMA_SPEC = ModelSpec(
    architecture="LlamaForCausalLM",
    layers=32,
    hidden=3072,
    heads=32,
    kv_heads=8,
    head_size=128,
    intermediate=9216,
    vocab=128256,
    max_positions=131072,
    norm_epsilon=1e-5,
    rope=Rope(500000.0, 1.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
)
MINITRON_4B_SPEC = ModelSpec(
    architecture="NemotronForCausalLM",
    layers=32,
    hidden=3072,
    heads=24,
    kv_heads=8,
    head_size=128,
    intermediate=9216,
    vocab=256000,
    max_positions=4096,
    norm_epsilon=1e-5,
    rope=Rope(10000.0, 0.5),
)


def spelled(config: dict[str, Any], *absent: str, **changes: Any) -> dict[str, Any]:
    """Return a config without some keys and with others."""
    return {k: v for k, v in config.items() if k not in absent} | changes


def spec_of(config: dict[str, Any]) -> ModelSpec:
    return read_spec(HfConfig(config), head_size=128)


@pytest.mark.parametrize(
    "config",
    [
        LLAMA,
        spelled(LLAMA, "architectures"),
        spelled(LLAMA, "architectures", architectures=[]),
        spelled(LLAMA, "torch_dtype", dtype="bfloat16"),
        spelled(LLAMA, "hidden_act"),
        spelled(LLAMA, hidden_act="swish"),
        spelled(LLAMA, rope_scaling={**STRETCH, "type": "llama3"}),
        spelled(LLAMA, rope_scaling={**STRETCH, "type": None, "rope_type": "llama3"}),
        spelled(
            LLAMA,
            "rope_theta",
            "rope_scaling",
            rope_parameters={**STRETCH, "rope_type": "llama3", "rope_theta": 500000.0},
        ),
        spelled(LLAMA, rope_parameters=None, sliding_window=None, quantization_config=None),
        spelled(LLAMA, num_hidden_layers=32.0),
        spelled(LLAMA, use_sliding_window=False, sliding_window=4096),
        spelled(LLAMA, sliding_window=131072),
    ],
    ids=[
        "published",
        "no architectures",
        "empty architectures",
        "dtype",
        "no activation",
        "swish",
        "type",
        "null type",
        "rope_parameters",
        "nulls",
        "32.0 layers",
        "window not used",
        "window as long as the context",
    ],
)
def test_a_llama_config_means_the_same_in_every_spelling(config: dict[str, Any]) -> None:
    assert spec_of(config) == LLAMA_SPEC


@pytest.mark.parametrize(
    "config",
    [
        MINITRON_4B,
        spelled(MINITRON_4B, "architectures"),
        spelled(MINITRON_4B, "partial_rotary_factor", rope_percent=0.5),
        spelled(MINITRON_4B, "partial_rotary_factor", rope_percentage=0.5),
        spelled(MINITRON_4B, "partial_rotary_factor"),
        spelled(
            MINITRON_4B,
            "partial_rotary_factor",
            "rope_theta",
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
            },
        ),
        spelled(MINITRON_4B, "rope_theta"),
        spelled(MINITRON_4B, rope_scaling={"type": "default"}),
        spelled(MINITRON_4B, "norm_eps", layer_norm_eps=1e-5),
        spelled(MINITRON_4B, hidden_act="squared-relu"),
        spelled(MINITRON_4B, "torch_dtype", dtype="bfloat16", rope_scaling=None),
    ],
    ids=[
        "published",
        "no architectures",
        "rope_percent",
        "rope_percentage",
        "no rotary share",
        "rope_parameters",
        "no rope_theta",
        "default scaling",
        "layer_norm_eps",
        "squared-relu",
        "dtype",
    ],
)
def test_a_nemotron_config_means_the_same_in_every_spelling(config: dict[str, Any]) -> None:
    assert spec_of(config) == MINITRON_4B_SPEC


def test_key_value_heads_are_as_many_as_heads_when_the_config_is_silent() -> None:
    assert spec_of(spelled(LLAMA, "num_key_value_heads")).kv_heads == 32


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        ({"head_dim": 8}, ""),
        ({"head_dim": None, "kv_channels": 8}, ""),
        (
            {"head_dim": None},
            "warning: config.json states no head size and hidden_size // num_attention_heads is 3; "
            "using 8, which the weights have\n",
        ),
        (
            {"head_dim": 3},
            "warning: config.json states a head size of 3; using 8, which the weights have\n",
        ),
        (
            {"head_dim": None, "kv_channels": 6},
            "warning: config.json states a head size of 6; using 8, which the weights have\n",
        ),
    ],
    ids=["head_dim", "kv_channels", "neither", "wrong head_dim", "wrong kv_channels"],
)
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_the_head_size_is_that_of_the_weights(
    kind: str,
    changes: dict[str, Any],
    warning: str,
    make_model: MakeModel,
    command: Callable[..., Result],
) -> None:
    folder = make_model(kind)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    result = command("convert", folder, "--dry-run")
    plan = plan_of(folder)

    assert (result.exit_code, result.stderr, plan.spec.head_size) == (0, warning, 8)


LLAMA_BASE = {
    "architecture": "LlamaForCausalLM",
    "dtype": "bfloat16",
    "logits_dtype": "float32",
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_size": 128,
    "hidden_act": "silu",
    "intermediate_size": 9216,
    "norm_epsilon": 1e-5,
    "position_embedding_type": "rope_gpt_neox",
    "use_parallel_embedding": False,
    "embedding_sharding_dim": 0,
    "rotary_base": 500000.0,
    "rotary_scaling": {**STRETCH, "rope_type": "llama3"},
    "attn_bias": False,
    "mlp_bias": False,
    "residual_mlp": False,
    "disable_weight_only_quant_plugin": False,
    "remove_duplicated_kv_heads": False,
    "mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
}
NEMOTRON_BASE = {
    "architecture": "NemotronForCausalLM",
    "dtype": "bfloat16",
    "logits_dtype": "float32",
    "vocab_size": 256000,
    "max_position_embeddings": 4096,
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 24,
    "num_key_value_heads": 8,
    "head_size": 128,
    "hidden_act": "squared-relu",
    "intermediate_size": 9216,
    "norm_epsilon": 1e-5,
    "position_embedding_type": "rope_gpt_neox",
    "use_parallel_embedding": False,
    "embedding_sharding_dim": 0,
    "rotary_base": 10000.0,
    "rotary_pct": 0.5,
    "rotary_embedding_dim": 64,
    "gpt_variant": "nemotron",
    "bias": False,
    "apply_query_key_layer_scaling": False,
    "q_scaling": 1.0,
    "qk_layernorm": False,
    "mapping": {"world_size": 4, "tp_size": 2, "pp_size": 2},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
}
MINITRON_8B = spelled(
    MINITRON_4B, hidden_size=4096, intermediate_size=16384, num_attention_heads=48
)
MISTRAL_NEMO = spelled(
    LLAMA,
    "architectures",
    "rope_scaling",
    model_type="mistral",
    sliding_window=None,
    hidden_size=4096,
    intermediate_size=11520,
    num_hidden_layers=40,
    vocab_size=131072,
    rope_theta=1e6,
)


@pytest.mark.parametrize(
    ("config", "written"),
    [
        (LLAMA, LLAMA_BASE),
        (MINITRON_4B, NEMOTRON_BASE),
        (
            MINITRON_8B,
            {
                **NEMOTRON_BASE,
                "hidden_size": 4096,
                "intermediate_size": 16384,
                "num_attention_heads": 48,
            },
        ),
        (
            MISTRAL_NEMO,
            {
                **LLAMA_BASE,
                "architecture": "MistralForCausalLM",
                "hidden_size": 4096,
                "intermediate_size": 11520,
                "num_hidden_layers": 40,
                "rotary_base": 1e6,
                "rotary_scaling": None,
                "vocab_size": 131072,
            },
        ),
    ],
    ids=["llama-width-4b", "minitron-4b", "minitron-8b", "mistral-nemo-minitron-8b"],
)
def test_the_published_models_get_the_config_of_the_contract(
    config: dict[str, Any], written: dict[str, Any]
) -> None:
    assert trtllm_config(spec_of(config), PRECISIONS["bf16"], Parallelism(2, 2)) == written


def test_fp16_changes_the_dtype_of_the_config_alone() -> None:
    found = trtllm_config(spec_of(LLAMA), PRECISIONS["fp16"], Parallelism(2, 2))

    assert found == {**LLAMA_BASE, "dtype": "float16"}


@pytest.mark.parametrize("config", [LLAMA, MINITRON_4B], ids=["llama", "nemotron"])
def test_a_config_that_is_written_reads_back_to_the_facts(config: dict[str, Any]) -> None:
    spec = spec_of(config)

    assert spec_of(config_record(spec)) == spec
