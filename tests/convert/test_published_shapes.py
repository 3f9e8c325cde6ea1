"""The plans of the published models: true shapes in sparse files, no weights."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import pytest
from tests.convert import plans

from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.convert.conversion_memory import worker_bytes
from minitron_trt.convert.conversion_plan import ConversionPlan
from minitron_trt.errors import UnsupportedError
from minitron_trt.tensorfile import lay_out

Shapes = dict[str, tuple[int, ...]]
PlanOf = Callable[..., ConversionPlan]

SHARED: dict[str, Any] = {
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": False,
}
LLAMA = {
    **SHARED,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "num_attention_heads": 32,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
NEMOTRON = {
    **SHARED,
    "architectures": ["NemotronForCausalLM"],
    "model_type": "nemotron",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "num_attention_heads": 24,
    "vocab_size": 256000,
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
MODELS: dict[str, dict[str, Any]] = {
    "llama-width-4b": LLAMA,
    "minitron-4b": NEMOTRON,
    "minitron-8b": {
        **NEMOTRON,
        "hidden_size": 4096,
        "intermediate_size": 16384,
        "num_attention_heads": 48,
    },
}


@pytest.fixture(scope="module")
def plan_of(
    tmp_path_factory: pytest.TempPathFactory, shapes_of: Callable[[dict[str, Any]], Shapes]
) -> PlanOf:
    """Return the planner of a published model; its folder has holes for weights."""
    folders = {}
    for name, config in MODELS.items():
        folder = folders[name] = tmp_path_factory.mktemp(name)
        path = folder / "model.safetensors"
        header, entries = lay_out(path, ((n, "BF16", s) for n, s in shapes_of(config).items()))
        path.write_bytes(header)
        os.truncate(path, entries[-1].offset + entries[-1].size_bytes)
        (folder / "config.json").write_text(json.dumps(config))
    return lambda name, **options: plans.plan_of(folders[name], ConvertOptions(**options))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama-width-4b", 4_512_746_496),
        ("minitron-4b", 4_190_509_056),
        ("minitron-8b", 8_271_699_968),
    ],
)
def test_one_rank_takes_two_bytes_for_each_published_parameter(
    name: str, parameters: int, plan_of: PlanOf
) -> None:
    assert plan_of(name).output_bytes == 2 * parameters


@pytest.mark.parametrize(
    ("name", "tp", "shapes"),
    [
        (
            "llama-width-4b",
            2,
            {
                "attention.qkv": (3072, 3072),
                "attention.dense": (3072, 2048),
                "mlp.fc": (4608, 3072),
                "mlp.gate": (4608, 3072),
                "mlp.proj": (3072, 4608),
            },
        ),
        (
            "llama-width-4b",
            32,
            {
                "attention.qkv": (384, 3072),
                "attention.dense": (3072, 128),
                "mlp.fc": (288, 3072),
                "mlp.gate": (288, 3072),
                "mlp.proj": (3072, 288),
            },
        ),
        (
            "minitron-4b",
            8,
            {
                "attention.qkv": (640, 3072),
                "attention.dense": (3072, 384),
                "mlp.fc": (1152, 3072),
                "mlp.proj": (3072, 1152),
            },
        ),
        (
            "minitron-8b",
            16,
            {
                "attention.qkv": (640, 4096),
                "attention.dense": (4096, 384),
                "mlp.fc": (1024, 4096),
                "mlp.proj": (4096, 1024),
            },
        ),
    ],
    ids=lambda value: str(value) if not isinstance(value, dict) else "",
)
def test_every_rank_has_the_shapes_of_the_contract(
    name: str, tp: int, shapes: Shapes, plan_of: PlanOf
) -> None:
    vocab, hidden = MODELS[name]["vocab_size"], MODELS[name]["hidden_size"]
    parts = ("weight",) if name.startswith("llama") else ("weight", "bias")
    norms = {f"{n}.{p}": (hidden,) for n in ("input_layernorm", "post_layernorm") for p in parts}
    layer = {f"{matrix}.weight": shape for matrix, shape in shapes.items()} | norms
    expected = {
        "transformer.vocab_embedding.weight": (vocab, hidden),
        **{f"transformer.layers.{i}.{n}": s for i in range(32) for n, s in layer.items()},
        **{f"transformer.ln_f.{part}": (hidden,) for part in parts},
        "lm_head.weight": (vocab // tp, hidden),
    }

    assert [{t.name: t.shape for t in rank} for rank in plan_of(name, tp=tp).ranks] == (
        [expected] * tp
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("llama-width-4b", [1, 2, 4, 8, 16, 32]),
        ("minitron-4b", [1, 2, 4, 8, 24]),
        ("minitron-8b", [1, 2, 4, 8, 16]),
    ],
)
def test_the_model_can_be_sharded_by_the_rule_of_the_contract_and_not_otherwise(
    name: str, sizes: list[int], plan_of: PlanOf
) -> None:
    possible = []
    for tp in range(1, 65):
        try:
            plan_of(name, tp=tp)
        except UnsupportedError:
            continue
        possible.append(tp)

    assert possible == sizes


@pytest.mark.parametrize(
    ("tp", "pp", "message"),
    [
        (3, 1, "--tp 3 neither divides nor is a multiple of the 8 key/value heads"),
        (32, 1, "--tp 32 does not divide the 48 attention heads"),
        (1, 33, "--pp 33 is more than the model's 32 layers; lower it"),
    ],
)
def test_a_sharding_that_is_not_possible_is_explained(
    tp: int, pp: int, message: str, plan_of: PlanOf
) -> None:
    with pytest.raises(UnsupportedError) as caught:
        plan_of("minitron-8b", tp=tp, pp=pp)

    assert str(caught.value) == message


def test_uneven_pipelines_give_the_first_ranks_one_layer_more(plan_of: PlanOf) -> None:
    ranks = plan_of("minitron-4b", pp=5).ranks
    layers = [sum(t.name.endswith("mlp.fc.weight") for t in rank) for rank in ranks]

    assert layers == [7, 7, 6, 6, 6]


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp8-rowwise"])
def test_the_memory_of_a_conversion_does_not_grow_with_the_model(
    precision: str, plan_of: PlanOf
) -> None:
    found = {worker_bytes(plan_of(name, precision=precision, tp=2)) for name in MODELS}

    assert len(found) == 1
    assert found.pop() <= 20_000_000
