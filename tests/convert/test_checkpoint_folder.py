"""What a finished checkpoint folder holds besides the weights, and that it opens again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_trt import __version__
from minitron_trt.artifacts import Manifest
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import ModelSpec, Parallelism, Rope, SpecialTokens

MakeModel = Callable[..., Path]

SPEC = ModelSpec(
    architecture="NemotronForCausalLM",
    layers=3,
    hidden=40,
    heads=12,
    kv_heads=2,
    head_size=8,
    intermediate=48,
    vocab=131,
    max_positions=256,
    norm_epsilon=1e-5,
    rope=Rope(10000.0, 0.5),
)
CONFIG = {
    "architecture": "NemotronForCausalLM",
    "dtype": "float16",
    "logits_dtype": "float32",
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_size": 8,
    "hidden_act": "squared-relu",
    "intermediate_size": 48,
    "norm_epsilon": 1e-5,
    "position_embedding_type": "rope_gpt_neox",
    "use_parallel_embedding": False,
    "embedding_sharding_dim": 0,
    "rotary_base": 10000.0,
    "rotary_pct": 0.5,
    "rotary_embedding_dim": 4,
    "gpt_variant": "nemotron",
    "bias": False,
    "apply_query_key_layer_scaling": False,
    "q_scaling": 1.0,
    "qk_layernorm": False,
    "mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None},
}
TRAVELLERS = ["generation_config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def output(tiny_nemotron: Path, tmp_path: Path) -> Path:
    """Return a checkpoint of two ranks in fp16, with digests."""
    folder = tmp_path / "checkpoint"
    convert(str(tiny_nemotron), folder, ConvertOptions(precision="fp16", tp=2, digest=True))
    return folder


def test_the_folder_holds_config_ranks_tokenizer_and_manifest(
    output: Path, tiny_nemotron: Path
) -> None:
    config = json.loads((output / "config.json").read_text())

    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["config.json", "minitron.json", "rank0.safetensors", "rank1.safetensors", *TRAVELLERS]
    )
    assert config == CONFIG
    assert {name: (output / name).read_bytes() for name in TRAVELLERS} == {
        name: (tiny_nemotron / name).read_bytes() for name in TRAVELLERS
    }


def test_the_manifest_says_what_was_made_from_what(output: Path, tiny_nemotron: Path) -> None:
    files = {path.name: path for path in output.iterdir() if path.name != "minitron.json"}
    record = json.loads((output / "minitron.json").read_text())

    assert record.pop("rounding")[0]["to"] == "float16"
    assert record == {
        "schema_version": 1,
        "kind": "checkpoint",
        "tool_version": __version__,
        "source": {"path": str(tiny_nemotron)},
        "spec": SPEC.to_json(),
        "precision": "fp16",
        "parallelism": {"tp": 2, "pp": 1},
        "tokens": {"bos_id": 1, "eos_ids": [2, 3], "pad_id": None},
        "files": {name: path.stat().st_size for name, path in files.items()},
        "digests": {
            name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
        },
    }


def test_the_folder_opens_as_what_was_converted(output: Path) -> None:
    assert Checkpoint.open(output) == Checkpoint(
        folder=output,
        spec=SPEC,
        precision=PRECISIONS["fp16"],
        parallelism=Parallelism(2, 1),
        tokens=SpecialTokens(bos_id=1, eos_ids=(2, 3)),
        manifest=Manifest.read(output, "checkpoint"),
    )


def test_an_opened_folder_knows_its_tokenizer_and_its_tensors(output: Path) -> None:
    checkpoint = Checkpoint.open(output)
    head = checkpoint.tensors(1)["lm_head.weight"]

    assert [path.name for path in checkpoint.tokenizer_files] == TRAVELLERS[1:]
    assert (head.dtype, head.shape) == ("F16", (66, 40))


def test_a_llama_folder_opens_with_its_rope_scaling(tiny_llama: Path, tmp_path: Path) -> None:
    plan = convert(str(tiny_llama), tmp_path / "checkpoint", ConvertOptions())

    assert Checkpoint.open(tmp_path / "checkpoint").spec == plan.spec


@pytest.mark.parametrize(
    "damage",
    [
        {"architecture": ["NemotronForCausalLM"]},
        {"dtype": "int4"},
        {"dtype": ["float16"]},
        {"mapping": None},
        {"mapping": {"tp_size": 2}},
        {"num_hidden_layers": "3"},
        {"hidden_size": 0},
        {"rotary_base": "10000"},
        {"rotary_scaling": {"factor": 8.0}},
    ],
    ids=str,
)
def test_a_damaged_config_of_a_checkpoint_is_bad_input(
    damage: dict[str, Any], output: Path
) -> None:
    rewrite_config(output, damage)

    with pytest.raises(BadInputError):
        Checkpoint.open(output)


def test_a_checkpoint_of_another_architecture_is_not_supported(output: Path) -> None:
    rewrite_config(output, {"architecture": "FalconForCausalLM"})

    with pytest.raises(UnsupportedError):
        Checkpoint.open(output)


def rewrite_config(folder: Path, changes: dict[str, Any]) -> None:
    """Change a checkpoint's config, and the manifest to its new size."""
    text = json.dumps(CONFIG | changes)
    (folder / "config.json").write_text(text)
    manifest = json.loads((folder / "minitron.json").read_text())
    manifest["files"]["config.json"] = len(text)
    (folder / "minitron.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("generation", "changes", "tokens"),
    [
        (None, {}, SpecialTokens(1, (2,), None)),
        ({}, {"eos_token_id": [5, 6]}, SpecialTokens(1, (5, 6), None)),
        ({"eos_token_id": 7, "pad_token_id": 0}, {}, SpecialTokens(1, (7,), 0)),
        ({"eos_token_id": None}, {"pad_token_id": 9}, SpecialTokens(1, (2,), 9)),
        ({}, {"bos_token_id": None, "eos_token_id": None}, SpecialTokens(None, (), None)),
    ],
    ids=["config alone", "several ends", "generation_config wins", "nulls do not", "none"],
)
def test_special_tokens_come_from_generation_config_first(
    generation: dict[str, Any] | None,
    changes: dict[str, Any],
    tokens: SpecialTokens,
    make_model: MakeModel,
    tmp_path: Path,
) -> None:
    folder = make_model("mistral", **changes)
    if generation is None:
        (folder / "generation_config.json").unlink()
    else:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    convert(str(folder), tmp_path / "checkpoint", ConvertOptions())

    assert Checkpoint.open(tmp_path / "checkpoint").tokens == tokens


def test_a_snapshot_of_the_hub_cache_is_identified_by_repository_and_revision(
    make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model("llama", shards=2)
    cache = tmp_path / "models--nvidia--Minitron-Tiny"
    snapshot = cache / "snapshots" / "0123abcd"
    (cache / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(source.iterdir()):
        path.rename(cache / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    convert(str(snapshot), tmp_path / "checkpoint", ConvertOptions())
    manifest = json.loads((tmp_path / "checkpoint" / "minitron.json").read_text())

    assert manifest["source"] == {
        "path": str(snapshot),
        "repo": "nvidia/Minitron-Tiny",
        "revision": "0123abcd",
    }
    assert not [path for path in (tmp_path / "checkpoint").iterdir() if path.is_symlink()]
