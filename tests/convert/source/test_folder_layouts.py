"""Model folders as people have them: which files count, and which are refused by what they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file

MakeModel = Callable[..., Path]
Refusal = Callable[..., str]
Ranks = Callable[..., list[dict[str, Any]]]
SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
QUERY = "model.layers.0.self_attn.q_proj"


def change_tensors(
    folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None], file: str = SINGLE
) -> None:
    tensors = load_file(folder / file)
    save_file(change(tensors) or tensors, folder / file)


def scales(outputs: int) -> dict[str, Any]:
    return {f"{QUERY}.scales": np.ones((1, outputs), np.float16)}


def add_older_shards(folder: Path) -> None:
    """Put shards of another head and their index beside the one file."""
    older = load_file(folder / SINGLE)
    older[HEAD] = -older[HEAD]
    save_file(older, folder / "model-00001-of-00001.safetensors")
    weight_map = dict.fromkeys(older, "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("shards", ["there", "gone"])
def test_the_one_file_is_read_before_an_index(
    shards: str, make_model: MakeModel, command: Callable[..., Result], tmp_path: Path
) -> None:
    folder = make_model("llama")
    add_older_shards(folder)
    if shards == "gone":
        (folder / "model-00001-of-00001.safetensors").unlink()
    result = command("convert", folder, "-o", tmp_path / "checkpoint")
    head = load_file(tmp_path / "checkpoint" / "rank0.safetensors")[HEAD]

    assert (result.exit_code, result.stderr) == (
        0,
        f"warning: {SINGLE} is read and {INDEX} beside it is not, as in transformers\n",
    )
    assert np.array_equal(head, load_file(folder / SINGLE)[HEAD])


def test_an_index_leads_to_files_in_a_folder_below(make_model: MakeModel, ranks_of: Ranks) -> None:
    folder = make_model("llama", shards=2)
    index = json.loads((folder / INDEX).read_text())
    (folder / "weights").mkdir()
    for file in set(index["weight_map"].values()):
        (folder / file).rename(folder / "weights" / file)
    weight_map = {name: f"weights/{file}" for name, file in index["weight_map"].items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    assert HEAD in ranks_of(folder)[0]


def test_a_model_in_a_folder_below_is_pointed_out(
    make_model: MakeModel, refusal: Refusal, tmp_path: Path
) -> None:
    parent = tmp_path / "parent"
    shutil.copytree(make_model("llama"), parent / "hf")

    assert refusal(parent, 3) == (
        "SOURCE has no config.json but SOURCE/hf has one; pass that folder"
    )


def test_consolidated_weights_beside_the_model_are_left_alone(
    make_model: MakeModel, ranks_of: Ranks
) -> None:
    folder = make_model("mistral")
    (folder / "consolidated.safetensors").write_bytes(b"of another form")

    assert HEAD in ranks_of(folder)[0]


def test_consolidated_weights_alone_are_named(make_model: MakeModel, refusal: Refusal) -> None:
    folder = make_model("mistral")
    (folder / SINGLE).rename(folder / "consolidated.safetensors")

    assert refusal(folder, 3) == (
        "SOURCE has consolidated.safetensors alone, Mistral's own form; download "
        f"{SINGLE} or {INDEX} and its shards"
    )


def test_weights_of_another_name_are_not_passed_over(
    make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama", transformers_weights="other.safetensors")

    assert refusal(folder, 3) == (
        "config.json: transformers_weights is 'other.safetensors', which transformers reads in "
        f"place of {SINGLE}; rename that file and remove the key"
    )


def cached(folder: Path, cache: Path, blobs: Path | None = None) -> Path:
    """Move a folder into a hub cache, its files into blobs, perhaps on another disk."""
    snapshot = cache / "models--some--model" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    own = cache / "models--some--model" / "blobs"
    if blobs is None:
        own.mkdir()
    else:
        blobs.mkdir()
        own.symlink_to(blobs)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(own / f"{number:064x}")
        (snapshot / path.name).symlink_to(Path("../../blobs") / f"{number:064x}")
    return snapshot


@pytest.mark.parametrize("blobs", ["its own", "another disk's"])
@pytest.mark.parametrize("opened", ["the snapshot", "links to it", "links to its blobs"])
def test_links_into_a_hub_cache_are_followed(
    blobs: str, opened: str, make_model: MakeModel, ranks_of: Ranks, tmp_path: Path
) -> None:
    disk = None if blobs == "its own" else tmp_path / "disk"
    source = cached(make_model("llama"), tmp_path / "hub", disk)
    if opened != "the snapshot":
        links = tmp_path / "links"
        links.mkdir()
        for path in source.iterdir():
            target = path if opened == "links to it" else path.parent / path.readlink()
            (links / path.name).symlink_to(target)
        source = links

    assert HEAD in ranks_of(source)[0]


@pytest.mark.parametrize("place", ["blobs/secret", "models--some--model/blobs/secret"])
def test_a_link_to_what_only_looks_like_a_cache_is_refused(
    place: str, make_model: MakeModel, refusal: Refusal, tmp_path: Path
) -> None:
    folder, secret = make_model("llama"), tmp_path / place
    secret.parent.mkdir(parents=True)
    (folder / "tokenizer.json").rename(secret)
    (folder / "tokenizer.json").symlink_to(secret)

    assert refusal(folder, 3) == (
        f"SOURCE/tokenizer.json leads to {secret}, outside the model folder; copy the file in"
    )


@pytest.mark.parametrize("with_model", [True, False])
def test_an_adapter_is_named_with_its_base(
    with_model: bool, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "some/model"}')
    if not with_model:
        (folder / SINGLE).rename(folder / "adapter_model.safetensors")
        (folder / "config.json").unlink()

    assert refusal(folder, 3) == (
        "SOURCE holds an adapter (adapter_config.json) of the model 'some/model'; merge it first "
        "(peft: merge_and_unload, then save_pretrained) and convert the merged model"
    )


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "base_model.model.", "module._orig_mod."]
)
def test_the_prefix_of_a_wrapped_model_is_taken_off(
    prefix: str, make_model: MakeModel, ranks_of: Ranks, tmp_path: Path
) -> None:
    folder = make_model("nemotron")
    plain = ranks_of(folder)
    shutil.rmtree(tmp_path / "checkpoint")
    change_tensors(folder, lambda tensors: {prefix + name: t for name, t in tensors.items()})
    [wrapped] = ranks_of(folder)

    assert wrapped.keys() == plain[0].keys()
    assert all(np.array_equal(wrapped[name], plain[0][name]) for name in wrapped)


@pytest.mark.parametrize(
    ("change", "message", "exit_code"),
    [
        (
            lambda t: {n if n == HEAD else f"module.{n}": v for n, v in t.items()},
            "the names of some tensors begin with 'module.' and that of lm_head.weight does not; "
            "save the model itself, without what it was wrapped in",
            3,
        ),
        (
            lambda t: {**t, f"base_model.model.{QUERY}.lora_A.weight": t[HEAD]},
            f"the source has tensor base_model.model.{QUERY}.lora_A.weight of an adapter; merge it "
            "first (peft: merge_and_unload, then save_pretrained) and convert the merged model",
            3,
        ),
        (
            lambda t: {**t, f"{QUERY}.qweight": np.zeros((5, 96), np.int32)} | scales(96),
            f"tensor {QUERY}.qweight is of a model quantized by GPTQ, though config.json has no "
            "quantization_config; convert the bf16 model instead",
            4,
        ),
        (
            lambda t: {**t, f"{QUERY}.qweight": np.zeros((40, 12), np.int32)} | scales(96),
            f"tensor {QUERY}.qweight is of a model quantized by AWQ, though config.json has no "
            "quantization_config; convert the bf16 model instead",
            4,
        ),
        (
            lambda t: {**t, f"{QUERY}.SCB": np.zeros(96, np.float32)},
            f"tensor {QUERY}.SCB is of a model quantized by bitsandbytes, though config.json has "
            "no quantization_config; convert the bf16 model instead",
            4,
        ),
    ],
    ids=["some wrapped", "an adapter", "GPTQ", "AWQ", "bitsandbytes"],
)
def test_names_that_are_not_of_a_plain_model_are_refused_by_what_they_are(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    message: str,
    exit_code: int,
    make_model: MakeModel,
    refusal: Refusal,
) -> None:
    folder = make_model("llama")
    change_tensors(folder, lambda t: {n: v.copy() for n, v in change(t).items()})

    assert refusal(folder, exit_code) == message


@pytest.mark.parametrize(
    ("name", "method"), [("quantize_config.json", "GPTQ"), ("quant_config.json", "AWQ")]
)
def test_weights_under_a_quantizer_s_own_name_are_refused_by_its_config(
    name: str, method: str, make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama")
    (folder / SINGLE).rename(folder / "model-4bit-128g.safetensors")
    (folder / name).write_text("{}")

    assert refusal(folder, 4) == (
        f"SOURCE holds {name}, of a model quantized by {method}, and no {SINGLE}; convert the "
        "bf16 model instead"
    )


DIFFERS = (
    f"config.json: tie_word_embeddings is true but {HEAD} is stored and differs from {EMBEDDING}; "
    "transformers 5 keeps it and 4.57 drops it: set tie_word_embeddings to false to keep it, or "
    "remove the tensor"
)


@pytest.mark.parametrize(
    "change",
    [lambda head: -head, lambda head: head.astype(np.float32), lambda head: head[:-1]],
    ids=["numbers", "dtype", "shape"],
)
def test_a_tied_head_that_differs_is_refused(
    change: Callable[[Any], Any], make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama", tie_word_embeddings=True)
    change_tensors(folder, lambda t: {**t, HEAD: np.ascontiguousarray(change(t[EMBEDDING]))})

    assert refusal(folder, 3) == DIFFERS


@pytest.mark.parametrize("stored", ["both", "head", "embedding"])
@pytest.mark.parametrize("form", ["trtllm", "hf"])
def test_a_tied_model_is_whole_with_either_of_the_pair(
    stored: str, form: str, make_model: MakeModel, command: Callable[..., Result], tmp_path: Path
) -> None:
    folder, output = make_model("llama", tie_word_embeddings=True), tmp_path / "output"
    pair = load_file(folder / SINGLE)[EMBEDDING]
    if stored != "embedding":
        change_tensors(folder, lambda t: {**t, HEAD: pair.copy()})
    if stored == "head":
        change_tensors(folder, lambda t: {n: v for n, v in t.items() if n != EMBEDDING})
    result = command("convert", folder, "-o", output, "--format", form)
    tensors = load_file(output / ("rank0.safetensors" if form == "trtllm" else SINGLE))
    names = ("transformer.vocab_embedding.weight", HEAD) if form == "trtllm" else (EMBEDDING,)

    assert (result.exit_code, result.stderr) == (0, "")
    assert all(np.array_equal(tensors[name], pair) for name in names)


def test_an_index_may_list_a_tied_head_that_no_file_has(
    make_model: MakeModel, ranks_of: Ranks
) -> None:
    folder = make_model("llama", shards=2, tie_word_embeddings=True)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][HEAD] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))

    assert HEAD in ranks_of(folder)[0]


def test_an_index_that_lists_the_head_does_not_stand_for_it(
    make_model: MakeModel, refusal: Refusal
) -> None:
    folder = make_model("llama", shards=2, tie_word_embeddings=True)
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"][HEAD] = "model-00002-of-00002.safetensors"
    (folder / INDEX).write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))

    assert refusal(folder, 3) == f"the source lacks tensor {HEAD}; expected by its config.json"
