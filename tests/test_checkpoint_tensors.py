"""Which tensors a rank's file holds, against lists written by hand."""

from __future__ import annotations

import pytest

from minitron_trt.checkpoint_tensors import rank_tensors, shard_shape
from minitron_trt.families import family_of
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import ModelSpec, Parallelism, Rope

LLAMA = ModelSpec(
    architecture="LlamaForCausalLM",
    layers=3,
    hidden=32,
    heads=6,
    kv_heads=2,
    head_size=8,
    intermediate=64,
    vocab=131,
    max_positions=64,
    norm_epsilon=1e-5,
    rope=Rope(10000.0),
)


def listed(
    precision: str, parallelism: Parallelism, pp_rank: int, kv_cache: str | None = None
) -> list[str]:
    """Return the tensors of a pipeline rank as lines."""
    tensors = rank_tensors(
        LLAMA, PRECISIONS[precision], parallelism, pp_rank=pp_rank, kv_cache=kv_cache
    )
    return [f"{t.name} {t.dtype} {list(t.shape)} of {t.whole_name}" for t in tensors]


def test_the_last_pipeline_rank_counts_its_layers_from_0_and_has_the_head() -> None:
    layer = "transformer.layers."

    assert listed("fp16", Parallelism(2, 2), pp_rank=1) == [
        f"{layer}0.input_layernorm.weight F16 [32] of {layer}2.input_layernorm.weight",
        f"{layer}0.attention.qkv.weight F16 [40, 32] of {layer}2.attention.qkv.weight",
        f"{layer}0.attention.dense.weight F16 [32, 24] of {layer}2.attention.dense.weight",
        f"{layer}0.post_layernorm.weight F16 [32] of {layer}2.post_layernorm.weight",
        f"{layer}0.mlp.fc.weight F16 [32, 32] of {layer}2.mlp.fc.weight",
        f"{layer}0.mlp.gate.weight F16 [32, 32] of {layer}2.mlp.gate.weight",
        f"{layer}0.mlp.proj.weight F16 [32, 32] of {layer}2.mlp.proj.weight",
        "transformer.ln_f.weight F16 [32] of transformer.ln_f.weight",
        # 131 tokens are padded to 132.
        "lm_head.weight F16 [66, 32] of lm_head.weight",
    ]


def test_a_quantized_layer_has_its_scales_and_a_quantized_cache_one_more() -> None:
    names = listed("nvfp4", Parallelism(2, 2), pp_rank=0, kv_cache="fp8")
    attention = "transformer.layers.1.attention"

    assert names[0] == (
        "transformer.vocab_embedding.weight BF16 [131, 32] of transformer.vocab_embedding.weight"
    )
    assert [name for name in names if name.startswith(attention)] == [
        f"{attention}.qkv.weight U8 [40, 16] of {attention}.qkv.weight",
        f"{attention}.qkv.weights_scaling_factor F8_E4M3 [40, 2] of "
        f"{attention}.qkv.weights_scaling_factor",
        f"{attention}.qkv.weights_scaling_factor_2 F32 [] of "
        f"{attention}.qkv.weights_scaling_factor_2",
        f"{attention}.qkv.activation_scaling_factor F32 [] of "
        f"{attention}.qkv.activation_scaling_factor",
        f"{attention}.dense.weight U8 [32, 12] of {attention}.dense.weight",
        f"{attention}.dense.weights_scaling_factor F8_E4M3 [32, 1] of "
        f"{attention}.dense.weights_scaling_factor",
        f"{attention}.dense.weights_scaling_factor_2 F32 [] of "
        f"{attention}.dense.weights_scaling_factor_2",
        f"{attention}.dense.activation_scaling_factor F32 [] of "
        f"{attention}.dense.activation_scaling_factor",
        f"{attention}.kv_cache_scaling_factor F32 [1] of {attention}.kv_cache_scaling_factor",
    ]


@pytest.mark.parametrize(("tp", "rows"), [(1, 80), (2, 40), (6, 24)])
def test_key_and_value_heads_are_repeated_where_there_are_fewer_than_ranks(
    tp: int, rows: int
) -> None:
    (qkv,) = (r for r in family_of(LLAMA.architecture).rules if "qkv" in r.target)

    assert shard_shape(qkv, LLAMA, tp) == (rows, 32)
