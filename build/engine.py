"""An engine folder: one of `build`, with a manifest, or one that others built with TensorRT-LLM."""

from __future__ import annotations

import shlex
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CONFIG_NAME, ENGINE, MANIFEST_NAME, Manifest, facts_as, sha256
from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_limits import Limits
from minitron_trt.build.recipe.engine_memory import Forecast, forecast_memory
from minitron_trt.checkpoint import Algorithms, Checkpoint
from minitron_trt.errors import BadInputError
from minitron_trt.folder_links import inside
from minitron_trt.gpus import Gpu
from minitron_trt.host.machine import TRTLLM_PACKAGE
from minitron_trt.quantization.precisions import kv_cache_of, of_algorithm, precision_of
from minitron_trt.records import OptionalSize, Size, read_record
from minitron_trt.spec import ModelSpec, Parallelism, Rope, SpecialTokens
from minitron_trt.verification_record import VerificationRecord, verification_facts

PLAN_NAME: Final = "engine.plan"
TRTLLM: Final = TRTLLM_PACKAGE
"""A compiler's name in an engine is that of its package."""
OTHER_PRECISION: Final = "other"
"""What an engine is in that uses an algorithm which `convert` does not write."""


def rank_engine(rank: int) -> str:
    """Return the file name of a rank's engine as TensorRT-LLM writes it."""
    return f"rank{rank}.engine"


@dataclass(frozen=True, slots=True)
class Compiler:
    """What compiled an engine."""

    name: str = TRTLLM
    version: str | None = None


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What is read of an engine's manifest."""

    compiler: Compiler | None = None
    sm: Size | None = None
    tensorrt: str | None = None
    tokens: SpecialTokens | None = None
    verification: VerificationRecord | None = None


@dataclass(frozen=True, slots=True)
class EngineMapping:
    """How an engine is sharded, which engines for one GPU need not say."""

    tp_size: Size = 1
    pp_size: Size = 1


@dataclass(frozen=True, slots=True)
class PretrainedConfig:
    """What is read of the model in an engine's config.json; TensorRT-LLM leaves out much."""

    architecture: str
    dtype: str
    vocab_size: Size
    hidden_size: Size
    num_hidden_layers: Size
    num_attention_heads: Size
    num_key_value_heads: OptionalSize = None
    head_size: OptionalSize = None
    intermediate_size: OptionalSize = None
    max_position_embeddings: OptionalSize = None
    norm_epsilon: float | None = None
    rotary_base: float | None = None
    logits_dtype: str = "float32"
    mapping: EngineMapping | None = None
    quantization: Algorithms | None = None


@dataclass(frozen=True, slots=True)
class PluginConfig:
    """What is read of an engine's plugins."""

    tokens_per_block: OptionalSize = None
    use_paged_context_fmha: bool | None = None


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """What is read of how an engine was built."""

    max_batch_size: Size
    max_input_len: OptionalSize = None
    max_seq_len: OptionalSize = None
    max_num_tokens: OptionalSize = None
    max_beam_width: OptionalSize = None
    plugin_config: PluginConfig | None = None
    speculative_decoding_mode: int | str | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What is read of an engine's config.json."""

    build_config: BuildConfig
    pretrained_config: PretrainedConfig
    version: str | None = None
    compiler: Compiler | None = None
    sm: Size | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """An opened engine folder; None stands for what its files do not say."""

    folder: Path
    model: EngineModel
    limits: Limits
    compiler: str
    compiler_version: str | None
    sm: int | None
    tensorrt: str | None
    rank_bytes: tuple[int, ...]
    logits_dtype: str
    paged_context: bool
    speculates: bool
    takes_drafts: bool  # of another model, as the clients of tensorrt_llm send them
    tokens: SpecialTokens | None  # as our own manifest says
    names: tuple[str, ...]  # of its files: those of our own manifest, or all that lie there
    verification: VerificationRecord | None = None  # of the checkpoint, as our manifest says

    @classmethod
    def open(cls, folder: Path) -> Engine:
        """Read an engine folder; BadInputError says what is wrong with it."""
        if not folder.is_dir():
            raise BadInputError(f"{folder} is not a folder; expected an engine")
        facts = EngineFacts()
        if (folder / MANIFEST_NAME).exists():
            manifest = Manifest.read(folder, ENGINE)
            facts = facts_as(manifest, EngineFacts, folder)
            names = (*manifest.files, MANIFEST_NAME)
        else:
            names = tuple(path.name for path in folder.iterdir() if path.is_file())
        path = folder / CONFIG_NAME
        if not path.exists():
            raise BadInputError(f"{folder} has no {CONFIG_NAME}; expected an engine folder")
        try:
            return cls._of(folder, names, read_record(path, EngineConfig), facts)
        except ValueError as error:
            raise BadInputError(
                f"{path} is not the config of an engine ({error}); build it again"
            ) from error

    @classmethod
    def _of(
        cls, folder: Path, names: tuple[str, ...], config: EngineConfig, facts: EngineFacts
    ) -> Engine:
        build, pretrained = config.build_config, config.pretrained_config
        plugins = build.plugin_config or PluginConfig()
        compiler = facts.compiler or config.compiler or Compiler()
        model = engine_model(folder, pretrained)
        version = compiler.version or config.version
        return cls(
            folder=folder,
            model=model,
            limits=_limits(build, plugins, model.spec),
            compiler=compiler.name,
            compiler_version=version,
            sm=facts.sm if facts.sm is not None else config.sm,
            # A plan of TensorRT's own compilers needs the version of TensorRT that compiled it.
            tensorrt=facts.tensorrt or (None if compiler.name == TRTLLM else version),
            rank_bytes=_rank_bytes(folder, model.parallelism.world_size),
            logits_dtype=pretrained.logits_dtype,
            paged_context=bool(plugins.use_paged_context_fmha),
            # The number of TensorRT-LLM's SpeculativeDecodingMode, as its builder writes it, or the
            # name: 1 is none, 2 drafts from outside.
            speculates=build.speculative_decoding_mode not in (1, "NONE", None),
            takes_drafts=build.speculative_decoding_mode in (2, "DRAFT_TOKENS_EXTERNAL"),
            tokens=facts.tokens,
            names=names,
            verification=facts.verification,
        )

    @property
    def next_step(self) -> str:
        """Return what one does with it: the command, or what loads it where Triton does not."""
        if self.compiler == TRTLLM:
            words = ("minitron-trt", "triton-repo", str(self.folder), "-o", "repository")
            return f"next: {shlex.join(words)}"
        return (
            f"{self.compiler} loads it, in a program of your own; Triton's tensorrtllm backend "
            "does not: serve the checkpoint, or an engine of --compiler trtllm"
        )

    @property
    def files(self) -> tuple[Path, ...]:
        """Return the engine's files; BadInputError when one is a link out of its folder."""
        return tuple(inside(self.folder, name) for name in self.names)

    def forecast(self, gpu: Gpu) -> Forecast:
        """Return what the engine takes of one GPU's memory; weights are the engine file's size."""
        limits = self.limits
        return forecast_memory(
            self.model,
            gpu,
            max_num_tokens=limits.max_num_tokens,
            sequences=limits.max_batch_size * limits.max_beam_width,
            tokens_per_block=limits.tokens_per_block,
            weights=max(self.rank_bytes),
        )


def _rank_bytes(folder: Path, ranks: int) -> tuple[int, ...]:
    names = (
        [PLAN_NAME] if (folder / PLAN_NAME).is_file() else [rank_engine(r) for r in range(ranks)]
    )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise BadInputError(
            f"{folder} lacks {', '.join(missing)}; its config.json is for {ranks} ranks: copy "
            "or build it whole"
        )
    sizes = []
    for name in names:
        size = (folder / name).stat().st_size
        if size == 0:
            raise BadInputError(f"{folder / name} is empty; build the engine again")
        # `fast_build` keeps the weights beside the engine.
        weights = folder / f"{Path(name).stem}_managed_weights.safetensors"
        sizes.append(size + (weights.stat().st_size if weights.is_file() else 0))
    return tuple(sizes)


def engine_model(folder: Path, config: PretrainedConfig) -> EngineModel:
    """Return the model of an engine by what its config.json says."""
    heads, hidden = config.num_attention_heads, config.hidden_size
    precision, kv_cache = _quantization(config)
    mapping = config.mapping or EngineMapping()
    spec = ModelSpec(
        architecture=config.architecture,
        layers=config.num_hidden_layers,
        hidden=hidden,
        heads=heads,
        kv_heads=config.num_key_value_heads or heads,
        # Here and below: what TensorRT-LLM itself takes where an engine's config is silent.
        head_size=config.head_size or hidden // heads,
        intermediate=config.intermediate_size or 4 * hidden,
        vocab=config.vocab_size,
        max_positions=config.max_position_embeddings or 2048,
        norm_epsilon=config.norm_epsilon or 1e-5,
        rope=Rope(config.rotary_base or 10000.0),
    )
    return EngineModel(
        name=folder.name or str(folder),
        spec=spec,
        precision=precision,
        kv_cache=kv_cache,
        parallelism=Parallelism(mapping.tp_size, mapping.pp_size),
        dtype=config.dtype,
        sharded=True,
    )


def _quantization(config: PretrainedConfig) -> tuple[str, str | None]:
    """Return the precision and KV cache of an engine, by our names.

    What uses an algorithm that `convert` does not write can still be checked.
    """
    algorithms = config.quantization or Algorithms()
    algorithm, kv_algorithm = algorithms.quant_algo, algorithms.kv_cache_quant_algo
    try:
        # A foreign engine may keep FP8 beside float16, so an algorithm decides alone.
        precision = of_algorithm(algorithm) if algorithm else precision_of(config.dtype, None)
        return precision.name, kv_cache_of(kv_algorithm)
    except KeyError:
        return OTHER_PRECISION, None


def _limits(build: BuildConfig, plugins: PluginConfig, spec: ModelSpec) -> Limits:
    seq = build.max_seq_len or spec.max_positions
    prompt = build.max_input_len or seq
    return Limits(
        max_batch_size=build.max_batch_size,
        max_seq_len=seq,
        max_input_len=prompt,
        # Engines without packed input have no such limit: a step takes a batch of whole prompts.
        max_num_tokens=build.max_num_tokens or build.max_batch_size * prompt,
        max_beam_width=build.max_beam_width or 1,
        tokens_per_block=plugins.tokens_per_block or 32,
    )


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what an engine's manifest repeats of its checkpoint's."""
    return {
        "spec": checkpoint.spec.to_json(),
        "tokens": asdict(checkpoint.tokens),
        "precision": checkpoint.precision.name,
        **verification_facts(checkpoint.verification),
    }


def write_engine_manifest(folder: Path, checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Copy the tokenizer to a finished engine and write its manifest, which must come last."""
    for path in checkpoint.tokenizer_files:
        shutil.copyfile(path, folder / path.name)
    source = {
        "checkpoint": str(checkpoint.folder.resolve()),
        "manifest_sha256": sha256(checkpoint.folder / MANIFEST_NAME),
        "source": checkpoint.manifest.source,
    }
    Manifest(ENGINE, source, facts).write(folder)
