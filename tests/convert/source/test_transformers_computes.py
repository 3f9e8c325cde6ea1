"""Logits of converted folders in many spellings against transformers 5 and 4.57, in float32."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tests.convert.source.transformers_reading import answer_of as ask_5

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.executor import StepBatch
from minitron_trt.executor.reference import ReferenceModel

pytestmark = pytest.mark.slow

Ask = Callable[[Any], Any]
MakeModel = Callable[..., Path]
Record = dict[str, Any]
KINDS: Final = ("llama", "mistral", "nemotron")
IDS: Final = np.random.default_rng(1).integers(3, 131, 60).tolist()
LLAMA3: Final[Record] = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
ROPE_KEYS: Final = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor")


@pytest.fixture(scope="module")
def weights(make_model: MakeModel) -> dict[str, Path]:
    """Return a folder of each kind, whose logits depend on how its heads turn."""
    folders = {kind: make_model(kind, hidden_size=48) for kind in KINDS}
    for folder in folders.values():
        path = folder / "model.safetensors"
        scaled = {}
        for name, tensor in load_file(path).items():
            if "norm" in name:
                # Steps of 1/64 stay exact when a LayerNorm1P weight gets its 1 added in bf16.
                scaled[name] = ((tensor * 192).round() / 64).astype(tensor.dtype)
            else:
                sharp = name.endswith(("q_proj.weight", "k_proj.weight"))
                scaled[name] = (tensor * (8 if sharp else 3)).astype(tensor.dtype)
        save_file(scaled, path, metadata={"format": "pt"})
    return folders


def respelled(folder: Path, to: Path, record: Record) -> Path:
    """Copy a folder, with rope facts of another spelling."""
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to)
    config = json.loads((folder / "config.json").read_text())
    plain = {key: value for key, value in config.items() if key not in ROPE_KEYS}
    (to / "config.json").write_text(json.dumps(plain | record))
    return to


def converted_logits(folder: Path, output: Path) -> Any:
    shutil.rmtree(output, ignore_errors=True)
    convert(str(folder), output, ConvertOptions())
    model = ReferenceModel(
        Checkpoint.open(output), slots=1, max_seq_len=len(IDS), dtype=torch.float32
    )
    parts = (IDS, range(len(IDS)), [0], [len(IDS)])
    batch = StepBatch(*(np.array(part, dtype=np.int32) for part in parts))
    return model.forward(batch, all_logits=True).numpy()


def check_logits(folder: Path, output: Path, ask: Ask) -> None:
    expected = np.array(ask({"folder": str(folder), "ids": IDS}))
    difference = np.abs(converted_logits(folder, output) - expected).max()

    assert difference < 1e-4 * np.abs(expected).max()


@st.composite
def spellings(draw: st.DrawFn, places: tuple[str, ...]) -> tuple[str, Record]:
    """Draw a kind and its rope facts, in the places of transformers 4.57, of 5, or of both."""
    kind, place = draw(st.sampled_from(KINDS)), draw(st.sampled_from(places))
    facts: Record = {"rope_theta": draw(st.sampled_from([10000.0, 500000.0]))}
    if kind == "nemotron":
        facts["partial_rotary_factor"] = draw(st.sampled_from([0.25, 0.5, 1.0]))
    scaled = kind != "nemotron" and draw(st.booleans())
    scaling = LLAMA3 if scaled else {"rope_type": "default"}
    beside = {**facts, **({"rope_scaling": scaling} if scaled else {})}
    own = {"rope_parameters": {**scaling, **facts}}
    return kind, {"beside": beside, "own": own, "both": beside | own}[place]


def check_spelling(
    spelling: tuple[str, Record], weights: dict[str, Path], folder: Path, ask: Ask
) -> None:
    kind, record = spelling
    check_logits(respelled(weights[kind], folder / "hf", record), folder / "checkpoint", ask)


shared = settings(max_examples=8)


@pytest.mark.transformers_5
@shared
@given(spelling=spellings(("beside", "own", "both")))
def test_logits_are_those_of_transformers_5_in_every_spelling(
    spelling: tuple[str, Record], weights: dict[str, Path], tmp_path: Path
) -> None:
    check_spelling(spelling, weights, tmp_path, ask_5)


@shared
@given(spelling=spellings(("beside", "both")))
def test_logits_are_those_of_transformers_4_57_where_it_knows_the_spelling(
    spelling: tuple[str, Record], weights: dict[str, Path], tmp_path: Path, ask_457: Ask
) -> None:
    check_spelling(spelling, weights, tmp_path, ask_457)


def test_the_models_notice_how_their_heads_turn(weights: dict[str, Path], tmp_path: Path) -> None:
    logits = [
        converted_logits(
            respelled(weights["llama"], tmp_path / "hf", {"rope_theta": theta}), tmp_path / "out"
        )
        for theta in (10000.0, 500000.0)
    ]

    assert np.abs(logits[0] - logits[1]).max() > 0.01 * np.abs(logits[0]).max()


WRITTEN: Final[tuple[tuple[str, Record], ...]] = (
    ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}),
    ("llama", {"rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 4}),
    ("llama", {"rope_theta": 10000.0, "head_dim": None}),
    ("mistral", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}),
    ("nemotron", {"rope_parameters": {"rope_theta": 1e5, "partial_rotary_factor": 0.25}}),
    ("nemotron", {"head_dim": None, "kv_channels": 8, "rope_percent": 0.5}),
)


@pytest.mark.parametrize(("kind", "record"), WRITTEN, ids=str)
@pytest.mark.parametrize("version", ["5", "4.57"])
def test_a_folder_in_the_hf_format_is_the_same_model_to_both_versions(
    kind: str,
    record: Record,
    version: str,
    weights: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    ask = ask_5 if version == "5" else request.getfixturevalue("ask_457")
    folder = respelled(weights[kind], tmp_path / "source", record)
    convert(str(folder), tmp_path / "hf", ConvertOptions(form="hf"))
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = converted_logits(folder, tmp_path / "checkpoint")
    logits = np.array(ask({"folder": str(tmp_path / "hf"), "ids": IDS}))

    assert (written["head_dim"], "kv_channels" in written) == (8, False)
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()


SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD: Final = "model-00001-of-00001.safetensors"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def older_shards_beside(folder: Path) -> None:
    older = load_file(folder / SINGLE)
    older[EMBEDDING] = -older[EMBEDDING]
    save_file(older, folder / SHARD, metadata={"format": "pt"})
    write_index(folder, dict.fromkeys(older, SHARD))


def shards_below(folder: Path) -> None:
    (folder / "weights").mkdir()
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).rename(folder / "weights" / SHARD)
    write_index(folder, dict.fromkeys(tensors, f"weights/{SHARD}"))


def tied_head_listed(folder: Path) -> None:
    tie(folder, drop=HEAD)
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).rename(folder / SHARD)
    write_index(folder, dict.fromkeys([*tensors, HEAD], SHARD))


def tied_head_stored(folder: Path) -> None:
    tie(folder, drop=None)


def tied_head_alone(folder: Path) -> None:
    tie(folder, drop=EMBEDDING)


def write_index(folder: Path, weight_map: dict[str, str]) -> None:
    record = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(record))


def tie(folder: Path, drop: str | None) -> None:
    """Make the head the embedding, and store one of them or both."""
    tensors = load_file(folder / SINGLE)
    tensors[HEAD] = tensors[EMBEDDING].copy()
    kept = {name: tensor for name, tensor in tensors.items() if name != drop}
    save_file(kept, folder / SINGLE, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"tie_word_embeddings": True}))


LAYOUTS: Final = (older_shards_beside, shards_below, tied_head_listed, tied_head_stored)


@pytest.mark.parametrize(
    ("lay_out", "version"),
    # 4.57 cannot load a head that is stored alone.
    [(lay_out, version) for lay_out in LAYOUTS for version in ("5", "4.57")]
    + [pytest.param(tied_head_alone, "5", marks=pytest.mark.transformers_5)],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_the_files_that_count_are_those_of_transformers(
    lay_out: Callable[[Path], None],
    version: str,
    weights: dict[str, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    ask = ask_5 if version == "5" else request.getfixturevalue("ask_457")
    folder = respelled(weights["llama"], tmp_path / "hf", {"rope_theta": 10000.0})
    lay_out(folder)

    check_logits(folder, tmp_path / "checkpoint", ask)
