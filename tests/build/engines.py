"""Engine folders for tests: config.json as TensorRT-LLM writes it, files of the right size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import Manifest

PRETRAINED: dict[str, Any] = {
    "architecture": "LlamaForCausalLM",
    "dtype": "bfloat16",
    "logits_dtype": "float32",
    "vocab_size": 128256,
    "hidden_size": 3072,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_size": 128,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "norm_epsilon": 1e-5,
    "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1, "cp_size": 1, "gpus_per_node": 8},
    "quantization": {"quant_algo": None, "kv_cache_quant_algo": None, "group_size": 128},
}
BUILD: dict[str, Any] = {
    "max_batch_size": 64,
    "max_input_len": 8192,
    "max_seq_len": 8192,
    "max_num_tokens": 8192,
    "max_beam_width": 1,
    "plugin_config": {
        "gpt_attention_plugin": "auto",
        "use_paged_context_fmha": True,
        "tokens_per_block": 32,
    },
}


def write_engine(
    folder: Path,
    *,
    version: str | None = "1.2.1",
    size_bytes: int = 9_100_000_000,
    tp: int = 1,
    build: dict[str, Any] | None = None,
    pretrained: dict[str, Any] | None = None,
) -> Path:
    """Write an engine as trtllm-build leaves it; the ranks' files are holes of a size."""
    folder.mkdir(parents=True)
    mapping = {**PRETRAINED["mapping"], "world_size": tp, "tp_size": tp}
    config = {
        "version": version,
        "pretrained_config": {**PRETRAINED, "mapping": mapping, **(pretrained or {})},
        "build_config": {**BUILD, **(build or {})},
    }
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(tp):
        path = folder / f"rank{rank}.engine"
        path.touch()
        os.truncate(path, size_bytes // tp)
    return folder


def add_manifest(folder: Path, **facts: object) -> Path:
    """Add what our own build records."""
    compiler = {"name": "tensorrt-llm", "version": "1.2.1"}
    Manifest("engine", {}, {"compiler": compiler, "sm": 90, **facts}).write(folder)
    return folder
