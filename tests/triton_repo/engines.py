"""Engine folders as TensorRT-LLM leaves them, for each GPU of the mission, with a tokenizer."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from tests.build.engines import add_manifest, write_engine

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.recipe.engine_recipe import choose_recipe
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.gpus import find_target
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.samples import sample_folder

SERVED_AS = {
    "A100": ("w4a16-awq", "latency", 1),
    "L40": ("fp8", "latency", 1),
    "H100": ("fp8", "balanced", 1),
    "B200": ("nvfp4", "throughput", 2),
}
"""Precision, profile and tensor parallelism by GPU."""

_TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def engine_for(
    folder: Path, gpu: str, *, tp: int | None = None, size_bytes: int = 10_000, **changes: Any
) -> Path:
    """Write a Llama-3.1-Minitron engine with the limits that our recipe gives a GPU, or others."""
    name, profile, own_tp = SERVED_AS[gpu]
    tp = tp or own_tp
    precision = PRECISIONS[name]
    model = EngineModel("llama", PRESETS["llama-3.1-minitron-4b-width"])
    facts = model.stored_as(precision.name).sharded_for(tp)
    recipe = choose_recipe(facts, find_target(gpu), BuildRequest(profile=profile))
    write_engine(
        folder,
        size_bytes=size_bytes,
        tp=tp,
        build=dataclasses.asdict(recipe.limits) | changes,
        pretrained={
            "dtype": precision.dtype,
            "quantization": {"quant_algo": precision.algorithm, "kv_cache_quant_algo": None},
        },
    )
    return complete(folder, sm=recipe.target.sm)


def sample_engine(folder: Path, **build: Any) -> Path:
    """Write an engine whose tokenizer and sizes are the Llama sample's."""
    config = json.loads((sample_folder("solar-llama") / "config.json").read_text())
    pretrained = {
        "vocab_size": config["vocab_size"],
        "max_position_embeddings": config["max_position_embeddings"],
    }
    limits = {"max_batch_size": 4, "max_input_len": 1024, "max_seq_len": 1024, **build}
    return complete(write_engine(folder, size_bytes=10_000, build=limits, pretrained=pretrained))


def complete(folder: Path, **facts: Any) -> Path:
    """Add what our own build puts beside an engine: the tokenizer and the manifest."""
    for name in _TOKENIZER:
        shutil.copyfile(sample_folder("solar-llama") / name, folder / name)
    generation = json.loads((sample_folder("solar-llama") / "generation_config.json").read_text())
    eos = generation["eos_token_id"]
    tokens = {"eos_ids": eos if isinstance(eos, list) else [eos]}
    return add_manifest(folder, tokens=tokens, **facts)
