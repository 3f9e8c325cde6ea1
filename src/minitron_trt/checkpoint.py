"""A TensorRT-LLM checkpoint: its config.json, written and read, and its rank files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CHECKPOINT, CONFIG_NAME, Manifest
from minitron_trt.errors import BadInputError
from minitron_trt.families import Norm, family_of
from minitron_trt.quantization.precisions import Precision, kv_cache_of, precision_of
from minitron_trt.spec import Llama3Scaling, ModelSpec, Parallelism, Rope, SpecialTokens
from minitron_trt.tensorfile import TensorEntry, read_header


def trtllm_config(
    spec: ModelSpec, precision: Precision, parallelism: Parallelism, kv_cache: str | None = None
) -> dict[str, Any]:
    """Return a checkpoint's config.json, with every key that TensorRT-LLM would default wrongly."""
    family = family_of(spec.architecture)
    common = {
        "architecture": spec.architecture,
        "dtype": precision.dtype,
        "logits_dtype": "float32",
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_positions,
        "hidden_size": spec.hidden,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_size": spec.head_size,
        "hidden_act": family.trtllm_activation,
        "intermediate_size": spec.intermediate,
        "norm_epsilon": spec.norm_epsilon,
        "position_embedding_type": "rope_gpt_neox",
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "rotary_base": spec.rope.theta,
    }
    return {
        **common,
        **(_llama_keys(spec) if family.norm is Norm.RMS else _nemotron_keys(spec)),
        "mapping": {
            "world_size": parallelism.world_size,
            "tp_size": parallelism.tp,
            "pp_size": parallelism.pp,
        },
        "quantization": precision.quantization(kv_cache),
    }


def _llama_keys(spec: ModelSpec) -> dict[str, Any]:
    scaling = spec.rope.scaling
    return {
        "rotary_scaling": scaling and scaling.to_config(),
        "attn_bias": False,
        "mlp_bias": False,
        "residual_mlp": False,
        "disable_weight_only_quant_plugin": False,
        "remove_duplicated_kv_heads": False,
    }


def _nemotron_keys(spec: ModelSpec) -> dict[str, Any]:
    # Nemotron is TensorRT-LLM's GPT graph, whose bias defaults to true.
    record = {
        "gpt_variant": "nemotron",
        "bias": False,
        "rotary_pct": spec.rope.fraction,
        "q_scaling": 1.0,
        "qk_layernorm": False,
        "apply_query_key_layer_scaling": False,
    }
    if spec.rope.scaling:
        record["rotary_scaling"] = spec.rope.scaling.to_config()
    return record


def spec_of(config: Mapping[str, Any]) -> ModelSpec:
    """Read a checkpoint's config.json back into the facts; KeyError names a missing key."""
    scaling = config.get("rotary_scaling")
    return ModelSpec(
        architecture=family_of(config["architecture"]).architecture,
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=config["num_attention_heads"],
        kv_heads=config["num_key_value_heads"],
        head_size=config["head_size"],
        intermediate=config["intermediate_size"],
        vocab=config["vocab_size"],
        max_positions=config["max_position_embeddings"],
        norm_epsilon=config["norm_epsilon"],
        rope=Rope(
            theta=config["rotary_base"],
            fraction=config.get("rotary_pct", 1.0),
            scaling=Llama3Scaling.from_config(scaling) if scaling else None,
        ),
    )


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """An opened checkpoint folder."""

    folder: Path
    spec: ModelSpec
    precision: Precision
    parallelism: Parallelism
    tokens: SpecialTokens
    manifest: Manifest
    kv_cache: str | None = None  # a name in KV_CACHES

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read and check a checkpoint folder, its scales included.

        BadInputError says what is wrong with it.
        """
        manifest = Manifest.read(folder, CHECKPOINT)
        path = folder / CONFIG_NAME
        try:
            config = json.loads(path.read_text())
            mapping = config["mapping"]
            quantization = config.get("quantization") or {}
            checkpoint = cls(
                folder=folder,
                spec=spec_of(config),
                precision=precision_of(config["dtype"], quantization.get("quant_algo")),
                parallelism=Parallelism(mapping["tp_size"], mapping["pp_size"]),
                tokens=SpecialTokens.from_json(manifest.facts["tokens"]),
                manifest=manifest,
                kv_cache=kv_cache_of(quantization.get("kv_cache_quant_algo")),
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise BadInputError(f"{path} cannot be read ({error!r}); convert again") from error
        if checkpoint.precision.tensors or checkpoint.kv_cache:
            # numpy reads the scales; a plain checkpoint has none.
            from minitron_trt.quantization.scales import check_scales

            for rank in range(checkpoint.parallelism.world_size):
                check_scales(checkpoint.precision, checkpoint.tensors(rank))
        return checkpoint

    def tensors(self, rank: int) -> dict[str, TensorEntry]:
        """Return the tensors of one rank's file by name."""
        return read_header(self.folder / rank_file(rank))

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """Return the files of the tokenizer that travelled along; empty when there is none."""
        return tuple(p for name in TOKENIZER_FILES if (p := self.folder / name).is_file())


def rank_file(rank: int) -> str:
    """Return the file name of a rank's weights; rank = pp_rank * tp + tp_rank."""
    return f"rank{rank}.safetensors"


def manifest_facts(
    spec: ModelSpec,
    precision: Precision,
    parallelism: Parallelism,
    tokens: SpecialTokens,
    kv_cache: str | None = None,
) -> dict[str, Any]:
    """Return what a checkpoint's manifest says about the model."""
    return {
        "spec": spec.to_json(),
        "precision": precision.name,
        **({"kv_cache": kv_cache} if kv_cache else {}),
        "parallelism": asdict(parallelism),
        "tokens": asdict(tokens),
    }


TOKENIZER_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
"""The files by which a Hugging Face folder describes its tokenizer."""
