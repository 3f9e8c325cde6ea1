"""A TensorRT-LLM checkpoint: its config.json, written and read, and its rank files."""

from __future__ import annotations

from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CHECKPOINT, CONFIG_NAME, MANIFEST_NAME, Manifest, facts_as
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import Norm, family_of
from minitron_trt.folder_links import inside
from minitron_trt.quantization.precisions import Precision, kv_cache_of, precision_of
from minitron_trt.records import Size, read_record
from minitron_trt.spec import Llama3Scaling, ModelSpec, Parallelism, Rope, SpecialTokens
from minitron_trt.tensorfile import TensorEntry, read_header
from minitron_trt.verification_record import VerificationRecord


def trtllm_config(
    spec: ModelSpec, precision: Precision, parallelism: Parallelism, kv_cache: str | None = None
) -> dict[str, Any]:
    """Return a checkpoint's config.json, with every key that TensorRT-LLM would default wrongly."""
    family = family_of(spec.architecture)
    common = {
        "architecture": spec.architecture,
        "dtype": precision.dtype,
        # Whatever the model's dtype is: the runtime knows float32 and float16 only.
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
        # TensorRT-LLM would take learned positions.
        "position_embedding_type": "rope_gpt_neox",
        "use_parallel_embedding": False,
        "embedding_sharding_dim": 0,
        "rotary_base": spec.rope.theta,
    }
    return {
        **common,
        # Never `is_pruned`, though these models are: to trtllm-build it means that the weights were
        # taken out of a checkpoint.
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
        # GPTConfig keeps the share to itself, and an engine's config.json would have the head size.
        "rotary_embedding_dim": spec.rotary_size,
        "q_scaling": 1.0,
        "qk_layernorm": False,
        "apply_query_key_layer_scaling": False,
    }
    if spec.rope.scaling:
        record["rotary_scaling"] = spec.rope.scaling.to_config()
    return record


@dataclass(frozen=True, slots=True)
class RotaryScaling:
    """The llama3 scaling as a config.json has it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: Size


@dataclass(frozen=True, slots=True)
class RankMapping:
    """How a config.json says that a model is sharded."""

    tp_size: Size
    pp_size: Size


@dataclass(frozen=True, slots=True)
class Algorithms:
    """The algorithms that a config.json names."""

    quant_algo: str | None = None
    kv_cache_quant_algo: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointConfig:
    """What is read of a checkpoint's config.json."""

    architecture: str
    dtype: str
    vocab_size: Size
    max_position_embeddings: Size
    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: Size
    head_size: Size
    intermediate_size: Size
    norm_epsilon: float
    rotary_base: float
    mapping: RankMapping
    rotary_pct: float = 1.0
    rotary_scaling: RotaryScaling | None = None
    quantization: Algorithms | None = None
    use_parallel_embedding: bool = False
    embedding_sharding_dim: int = 0

    def spec(self) -> ModelSpec:
        """Return the facts; BadInputError when they contradict each other."""
        scaling = self.rotary_scaling
        return ModelSpec(
            architecture=family_of(self.architecture).architecture,
            layers=self.num_hidden_layers,
            hidden=self.hidden_size,
            heads=self.num_attention_heads,
            kv_heads=self.num_key_value_heads,
            head_size=self.head_size,
            intermediate=self.intermediate_size,
            vocab=self.vocab_size,
            max_positions=self.max_position_embeddings,
            norm_epsilon=self.norm_epsilon,
            rope=Rope(
                theta=self.rotary_base,
                fraction=self.rotary_pct,
                scaling=Llama3Scaling(*astuple(scaling)) if scaling else None,
            ),
        )


@dataclass(frozen=True, slots=True)
class CheckpointFacts:
    """What a checkpoint's manifest says about the model."""

    spec: ModelSpec
    precision: str
    parallelism: Parallelism
    tokens: SpecialTokens
    kv_cache: str | None = None
    verification: VerificationRecord | None = None


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
    verification: VerificationRecord | None = None  # where it was compared with its source
    parallel_embedding: bool = False  # whether ranks share the embedding, as others may write it

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read and check a checkpoint folder, its scales included.

        BadInputError says what is wrong with it.
        """
        manifest = Manifest.read(folder, CHECKPOINT)
        facts = facts_as(manifest, CheckpointFacts, folder)
        checkpoint = cls._of(folder, manifest, facts.tokens, facts.verification)
        checkpoint._check_facts(facts)
        checkpoint._check_scales()
        return checkpoint

    @classmethod
    def open_foreign(cls, folder: Path) -> Checkpoint:
        """Read a checkpoint that TensorRT-LLM or ModelOpt wrote, which has no manifest.

        BadInputError or UnsupportedError say what is wrong with it.
        """
        checkpoint = cls._of(folder, Manifest(CHECKPOINT, {}, {}), SpecialTokens())
        for rank in range(checkpoint.parallelism.world_size):
            if not (folder / rank_file(rank)).is_file():
                raise BadInputError(
                    f"{folder} has no {rank_file(rank)}; its {CONFIG_NAME} is for "
                    f"{checkpoint.parallelism.world_size} ranks: copy it whole"
                )
        checkpoint._check_scales()
        return checkpoint

    @classmethod
    def _of(
        cls,
        folder: Path,
        manifest: Manifest,
        tokens: SpecialTokens,
        verification: VerificationRecord | None = None,
    ) -> Checkpoint:
        path = folder / CONFIG_NAME
        try:
            config = read_record(path, CheckpointConfig)
            algorithms = config.quantization or Algorithms()
            parallelism = Parallelism(config.mapping.tp_size, config.mapping.pp_size)
            return cls(
                folder=folder,
                spec=config.spec(),
                precision=precision_of(config.dtype, algorithms.quant_algo),
                parallelism=parallelism,
                tokens=tokens,
                manifest=manifest,
                kv_cache=kv_cache_of(algorithms.kv_cache_quant_algo),
                verification=verification,
                parallel_embedding=_shares_embedding(config, parallelism),
            )
        except (ValueError, KeyError) as error:
            raise BadInputError(f"{path} cannot be read ({error!r}); convert again") from error

    def _check_scales(self) -> None:
        """Raise BadInputError where a scale is no finite number above 0."""
        if self.precision.tensors or self.kv_cache:
            # numpy reads the scales; a plain checkpoint has none.
            from minitron_trt.quantization.scales import check_scales

            for rank in range(self.parallelism.world_size):
                check_scales(self.precision, self.tensors(rank))

    def _check_facts(self, facts: CheckpointFacts) -> None:
        """Raise BadInputError when config.json or the ranks are not those of the manifest."""
        if (facts.precision, facts.parallelism, facts.kv_cache) != (
            self.precision.name,
            self.parallelism,
            self.kv_cache,
        ):
            raise BadInputError(
                f"{self.folder / CONFIG_NAME} does not fit the manifest; convert again"
            )
        ranks = range(self.parallelism.world_size)
        missing = next((r for r in ranks if rank_file(r) not in self.manifest.files), None)
        if missing is not None:
            raise BadInputError(
                f"{self.folder / MANIFEST_NAME} lists no {rank_file(missing)}; convert again"
            )

    def tensors(self, rank: int) -> dict[str, TensorEntry]:
        """Return the tensors of one rank's file by name."""
        return read_header(self.folder / rank_file(rank))

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the files that its manifest lists, and that; BadInputError for a link out of it.

        Whatever else lies in the folder is no part of the checkpoint.
        """
        return tuple(inside(self.folder, name) for name in (*self.manifest.files, MANIFEST_NAME))

    @property
    def tokenizer_files(self) -> tuple[Path, ...]:
        """Return the files of the tokenizer that travelled along; empty when there is none.

        BadInputError when one is a link out of the folder.
        """
        names = (name for name in TOKENIZER_FILES if (self.folder / name).is_file())
        return tuple(inside(self.folder, name) for name in names)


def _shares_embedding(config: CheckpointConfig, parallelism: Parallelism) -> bool:
    if not config.use_parallel_embedding or parallelism.tp == 1:
        return False
    if config.embedding_sharding_dim:
        raise UnsupportedError(
            f"embedding_sharding_dim is {config.embedding_sharding_dim}; an embedding is read "
            "whole, or with its vocabulary shared among the ranks: convert with 0"
        )
    return True


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
