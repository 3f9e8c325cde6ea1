"""The rank files, against the checkpoint contract read a second time with plain numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from minitron_trt.convert.conversion import ConvertOptions, convert

MakeModel = Callable[..., Path]
Tensors = dict[str, Any]


def contract_ranks(config: dict[str, Any], source: Tensors, tp: int, pp: int) -> list[Tensors]:
    """Return what each rank must hold: the contract's table, one rank at a time."""
    layers = np.array_split(np.arange(config["num_hidden_layers"]), pp)
    return [
        {
            **(contract_embedding(source) if stage == 0 else {}),
            **contract_layers(config, source, layers[stage].tolist(), tp, rank),
            **(contract_head(config, source, tp, rank) if stage == pp - 1 else {}),
        }
        for stage in range(pp)
        for rank in range(tp)
    ]


def contract_embedding(source: Tensors) -> Tensors:
    return {"transformer.vocab_embedding.weight": source["model.embed_tokens.weight"]}


def contract_head(config: dict[str, Any], source: Tensors, tp: int, rank: int) -> Tensors:
    tied = config["tie_word_embeddings"]
    head = source["model.embed_tokens.weight" if tied else "lm_head.weight"]
    padded = np.zeros((-(-len(head) // tp) * tp, head.shape[1]), head.dtype)
    padded[: len(head)] = head
    return {
        "lm_head.weight": np.split(padded, tp)[rank],
        **contract_norm(config, source, "model.norm", "transformer.ln_f"),
    }


def contract_norm(config: dict[str, Any], source: Tensors, origin: str, target: str) -> Tensors:
    weight = source[f"{origin}.weight"]
    if config["model_type"] != "nemotron":
        return {f"{target}.weight": weight}
    one = weight.dtype.type(1)
    return {f"{target}.weight": weight + one, f"{target}.bias": source[f"{origin}.bias"]}


def contract_layers(
    config: dict[str, Any], source: Tensors, layers: list[int], tp: int, rank: int
) -> Tensors:
    ranks: Tensors = {}
    for local, layer in enumerate(layers):
        target, origin = f"transformer.layers.{local}", f"model.layers.{layer}"
        for norm, name in (
            ("input_layernorm",) * 2,
            ("post_layernorm", "post_attention_layernorm"),
        ):
            ranks |= contract_norm(config, source, f"{origin}.{name}", f"{target}.{norm}")
        ranks |= {
            f"{target}.{name}.weight": tensor
            for name, tensor in contract_matrices(config, source, origin, tp, rank).items()
        }
    return ranks


def contract_matrices(
    config: dict[str, Any], source: Tensors, origin: str, tp: int, rank: int
) -> Tensors:
    def shard(name: str, axis: int) -> Any:
        return np.split(source[f"{origin}.{name}.weight"], tp, axis=axis)[rank]

    def key_value(name: str) -> Any:
        weight = source[f"{origin}.self_attn.{name}.weight"]
        heads = weight.reshape(config["num_key_value_heads"], config["head_dim"], -1)
        repeated = np.repeat(heads, max(1, tp // len(heads)), axis=0)
        return np.split(repeated, tp)[rank].reshape(-1, weight.shape[1])

    parts = (shard("self_attn.q_proj", 0), key_value("k_proj"), key_value("v_proj"))
    gated = config["model_type"] != "nemotron"
    return {
        "attention.qkv": np.concatenate(parts),
        "attention.dense": shard("self_attn.o_proj", 1),
        "mlp.fc": shard("mlp.gate_proj" if gated else "mlp.up_proj", 0),
        **({"mlp.gate": shard("mlp.up_proj", 0)} if gated else {}),
        "mlp.proj": shard("mlp.down_proj", 1),
    }


def load_model(folder: Path) -> Tensors:
    return {k: v for path in folder.glob("*.safetensors") for k, v in load_file(path).items()}


def bits(ranks: list[Tensors]) -> list[dict[str, tuple[str, tuple[int, ...], bytes]]]:
    """Return the tensors as values that compare bit for bit."""
    return [
        {name: (t.dtype.name, t.shape, t.tobytes()) for name, t in sorted(rank.items())}
        for rank in ranks
    ]


@pytest.mark.parametrize(
    ("tp", "pp"),
    [(1, 1), (2, 1), (4, 1), (6, 1), (12, 1), (1, 2), (1, 3), (2, 2), (4, 3)],
    ids=lambda size: str(size),
)
@pytest.mark.parametrize("kind", ["llama", "mistral", "nemotron"])
def test_every_rank_holds_what_the_contract_says(
    kind: str,
    tp: int,
    pp: int,
    request: pytest.FixtureRequest,
    ranks_of: Callable[..., list[Tensors]],
) -> None:
    folder: Path = request.getfixturevalue(f"tiny_{kind}")
    config = json.loads((folder / "config.json").read_text())

    assert bits(ranks_of(folder, tp=tp, pp=pp)) == bits(
        contract_ranks(config, load_model(folder), tp, pp)
    )


@pytest.mark.parametrize("copy_stored", [False, True], ids=["absent", "stored"])
def test_a_tied_head_repeats_the_embedding(
    copy_stored: bool, make_model: MakeModel, ranks_of: Callable[..., list[Tensors]]
) -> None:
    folder = make_model("llama", tie_word_embeddings=True)
    config, source = json.loads((folder / "config.json").read_text()), load_model(folder)
    if copy_stored:
        head = source["model.embed_tokens.weight"].copy()
        save_file({**source, "lm_head.weight": head}, folder / "model.safetensors")

    assert bits(ranks_of(folder, tp=4)) == bits(contract_ranks(config, source, 4, 1))


def test_buffers_of_old_transformers_versions_are_left_out(
    make_model: MakeModel, ranks_of: Callable[..., list[Tensors]]
) -> None:
    folder = make_model("llama")
    config, source = json.loads((folder / "config.json").read_text()), load_model(folder)
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32)}
    save_file({**source, **buffer}, folder / "model.safetensors")

    assert bits(ranks_of(folder)) == bits(contract_ranks(config, source, 1, 1))


def merged(config: dict[str, Any], ranks: list[Tensors], tp: int, pp: int) -> Tensors:
    """Return the source's tensors, put together from all ranks."""
    stages = [ranks[start : start + tp] for start in range(0, tp * pp, tp)]
    source: Tensors = {
        "model.embed_tokens.weight": ranks[tp - 1]["transformer.vocab_embedding.weight"],
        "model.norm.weight": ranks[-1]["transformer.ln_f.weight"],
        "lm_head.weight": joined(stages[-1], "lm_head")[: config["vocab_size"]],
    }
    layer = 0
    for stage in stages:
        for local in range(sum("qkv" in name for name in stage[0])):
            tensors = merged_layer(config, stage, f"transformer.layers.{local}")
            source |= {f"model.layers.{layer}.{name}.weight": t for name, t in tensors.items()}
            layer += 1
    return source


def joined(stage: list[Tensors], name: str, axis: int = 0) -> Any:
    return np.concatenate([rank[f"{name}.weight"] for rank in stage], axis=axis)


def merged_layer(config: dict[str, Any], stage: list[Tensors], at: str) -> Tensors:
    tp, heads, dim = len(stage), config["num_key_value_heads"], config["head_dim"]
    query, keys = config["num_attention_heads"] * dim // tp, max(1, heads // tp) * dim
    cuts = [np.split(rank[f"{at}.attention.qkv.weight"], [query, query + keys]) for rank in stage]
    once = cuts[:: max(1, tp // heads)]  # a key/value head that several ranks repeat
    return {
        "input_layernorm": stage[0][f"{at}.input_layernorm.weight"],
        "post_attention_layernorm": stage[0][f"{at}.post_layernorm.weight"],
        "self_attn.q_proj": np.concatenate([cut[0] for cut in cuts]),
        "self_attn.k_proj": np.concatenate([cut[1] for cut in once]),
        "self_attn.v_proj": np.concatenate([cut[2] for cut in once]),
        "self_attn.o_proj": joined(stage, f"{at}.attention.dense", axis=1),
        "mlp.gate_proj": joined(stage, f"{at}.mlp.fc"),
        "mlp.up_proj": joined(stage, f"{at}.mlp.gate"),
        "mlp.down_proj": joined(stage, f"{at}.mlp.proj", axis=1),
    }


@st.composite
def legal_shardings(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """Draw sizes that some tp and pp divide legally."""
    tp, keys = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 4), (3, 3), (4, 2), (6, 3)]))
    layers = draw(st.integers(1, 4))
    step = tp * keys
    config = {
        "hidden_size": draw(st.integers(1, 9)),
        "intermediate_size": tp * draw(st.integers(1, 4)),
        "num_hidden_layers": layers,
        "num_attention_heads": step * draw(st.integers(1, 2)),
        "num_key_value_heads": keys,
        "head_dim": 2 * draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(1, 11)),
    }
    return config, tp, draw(st.integers(1, layers))


@pytest.mark.slow
@given(legal_shardings())
@settings(max_examples=60)
def test_merging_the_ranks_gives_the_source_back(
    make_model: MakeModel, sharding: tuple[dict[str, Any], int, int]
) -> None:
    changes, tp, pp = sharding
    folder = make_model("llama", **changes)
    with TemporaryDirectory() as scratch:
        output = Path(scratch, "checkpoint")
        convert(str(folder), output, ConvertOptions(tp=tp, pp=pp))
        ranks = [load_file(output / f"rank{rank}.safetensors") for rank in range(tp * pp)]

    assert bits([merged(changes, ranks, tp, pp)]) == bits([load_model(folder)])


def test_the_data_of_a_rank_file_begins_at_a_multiple_of_eight(
    tiny_nemotron: Path, ranks_of: Callable[..., list[Tensors]], tmp_path: Path
) -> None:
    ranks_of(tiny_nemotron)
    blob = (tmp_path / "checkpoint" / "rank0.safetensors").read_bytes()

    assert int.from_bytes(blob[:8], "little") % 8 == 0
