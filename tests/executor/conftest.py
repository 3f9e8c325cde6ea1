"""Tiny Hugging Face models with the odd shapes of Minitron, and their converted checkpoints."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.calibrations import calibrate_once as calibrate_once
from transformers import LlamaConfig, MistralConfig, NemotronConfig, PretrainedConfig
from transformers.models.auto.modeling_auto import AutoModelForCausalLM as _AutoModelForCausalLM

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert

torch.set_num_threads(1)

AutoModelForCausalLM: Any = _AutoModelForCausalLM  # its methods have no types

# Twelve heads of 8 do not fit a hidden size of 40, two key/value heads are fewer than four ranks,
# three layers do not divide by two, and 131 tokens do not divide by four.
SMALL: dict[str, Any] = {
    "hidden_size": 40,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 12,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 131,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STRETCHED: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}


def _config(name: str) -> PretrainedConfig:
    if name == "nemotron":
        return NemotronConfig(
            **SMALL, rope_parameters={"rope_theta": 10000.0, "partial_rotary_factor": 0.5}
        )
    if name == "mistral":
        rope = {"rope_type": "default", "rope_theta": 1e6}
        return MistralConfig(**SMALL, sliding_window=None, rope_parameters=rope)
    # transformers refuses a Llama whose heads do not divide its hidden size, not another head size.
    llama = {**SMALL, "hidden_size": 48, "max_position_embeddings": 131072}
    if name == "llama":
        rope = {**STRETCHED, "original_max_position_embeddings": 32}
        return LlamaConfig(**llama, rope_parameters=rope)
    rope = {**STRETCHED, "original_max_position_embeddings": 8192}
    one_layer = {"num_hidden_layers": 1, "num_attention_heads": 4, "head_dim": 32}
    return LlamaConfig(**{**llama, **one_layer}, rope_parameters=rope)


def _randomize(model: torch.nn.Module) -> None:
    """Make every tensor matter, and logits differ by far more than rounding."""
    generator = torch.Generator().manual_seed(7)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            # Steps of 1/128 stay exact when a LayerNorm1P weight gets its 1 added in bf16.
            steps = torch.randint(-48, 49, parameter.shape, generator=generator) / 128
            whole = 0.0 if "nemotron" in type(model).__module__ or name.endswith("bias") else 1.0
            parameter.data.copy_(whole + steps)
        else:
            spread = 1.0 if "embed" in name else 2.0 * parameter.shape[-1] ** -0.5
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * spread)


@pytest.fixture(scope="session")
def hf_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Return the folder of a tiny model by name and dtype, made once."""

    @functools.cache
    def make(name: str, dtype: str) -> Path:
        folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
        model = AutoModelForCausalLM.from_config(_config(name), dtype=getattr(torch, dtype))
        _randomize(model)
        model.save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def checkpoint_of(
    hf_folder: Callable[[str, str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, ConvertOptions], Checkpoint]:
    """Return the checkpoint of a tiny model, converted once per set of options."""

    @functools.cache
    def make(name: str, options: ConvertOptions) -> Checkpoint:
        dtype = {"bf16": "bfloat16", "fp16": "float16"}[options.precision or "bf16"]
        output = tmp_path_factory.mktemp("checkpoints") / "checkpoint"
        convert(str(hf_folder(name, dtype)), output, options)
        return Checkpoint.open(output)

    return make


@pytest.fixture(scope="session")
def hf_model(hf_folder: Callable[[str, str], Path]) -> Callable[[str, str, torch.dtype], Any]:
    """Return a tiny model saved in one dtype and computed in another."""

    @functools.cache
    def load(name: str, dtype: str, compute: torch.dtype) -> Any:
        model = AutoModelForCausalLM.from_pretrained(
            hf_folder(name, dtype), dtype=compute, attn_implementation="sdpa"
        )
        return model.eval()

    return load
