"""An engine folder: one of `build`, with a manifest, or one that others built with TensorRT-LLM."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CONFIG_NAME, ENGINE, MANIFEST_NAME, Manifest, sha256
from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_memory import (
    Forecast,
    activation_bytes,
    kv_bytes_per_token,
    reserve_bytes,
)
from minitron_trt.build.recipe.limits import Limits
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import BadInputError
from minitron_trt.gpus import Gpu
from minitron_trt.host.machine import TRTLLM_PACKAGE
from minitron_trt.quantization.precisions import kv_cache_of, of_algorithm, precision_of
from minitron_trt.spec import ModelSpec, Parallelism, Rope

PLAN_NAME: Final = "engine.plan"
TRTLLM: Final = TRTLLM_PACKAGE
"""A compiler's name in an engine is that of its package."""
OTHER_PRECISION: Final = "other"
"""What an engine is in that uses an algorithm which `convert` does not write."""
_DAMAGE: Final = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


def rank_engine(rank: int) -> str:
    """Return the file name of a rank's engine as TensorRT-LLM writes it."""
    return f"rank{rank}.engine"


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
    facts: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Engine:
        """Read an engine folder; BadInputError says what is wrong with it."""
        if not folder.is_dir():
            raise BadInputError(f"{folder} is not a folder; expected an engine")
        manifest = Manifest.read(folder, ENGINE) if (folder / MANIFEST_NAME).is_file() else None
        path = folder / CONFIG_NAME
        if not path.is_file():
            raise BadInputError(f"{folder} has no {CONFIG_NAME}; expected an engine folder")
        try:
            config = json.loads(path.read_text())
            return cls._read(folder, config, manifest.facts if manifest else {})
        except _DAMAGE as error:
            raise BadInputError(
                f"{path} is not the config of an engine ({error!r}); build it again"
            ) from error

    @classmethod
    def _read(cls, folder: Path, config: Mapping[str, Any], facts: Mapping[str, Any]) -> Engine:
        build, pretrained = config["build_config"], config["pretrained_config"]
        plugins = build.get("plugin_config") or {}
        compiler = facts.get("compiler") or config.get("compiler") or {}
        name = compiler.get("name", TRTLLM)
        model = _model(folder, pretrained)
        sm = facts.get("sm", config.get("sm"))
        version = compiler.get("version") or config.get("version")
        # A plan of TensorRT's own compilers needs the version of TensorRT that compiled it.
        tensorrt = facts.get("tensorrt", None if name == TRTLLM else version)
        return cls(
            folder=folder,
            model=model,
            limits=_limits(build, plugins, model.spec),
            compiler=str(name),
            compiler_version=None if version is None else str(version),
            sm=None if sm is None else int(sm),
            tensorrt=None if tensorrt is None else str(tensorrt),
            rank_bytes=_rank_bytes(folder, model.parallelism.world_size),
            logits_dtype=str(pretrained.get("logits_dtype", "float32")),
            paged_context=bool(plugins.get("use_paged_context_fmha", False)),
            facts=facts,
        )

    def forecast(self, gpu: Gpu) -> Forecast:
        """Return what the engine takes of one GPU's memory; weights are the engine file's size."""
        limits = self.limits
        return Forecast(
            gpu_bytes=gpu.memory_bytes,
            weights_bytes=max(self.rank_bytes),
            activation_bytes=activation_bytes(
                self.model, limits.max_num_tokens, limits.max_batch_size * limits.max_beam_width
            ),
            reserve_bytes=reserve_bytes(self.model),
            kv_bytes_per_token=kv_bytes_per_token(self.model),
            tokens_per_block=limits.tokens_per_block,
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


def _model(folder: Path, config: Mapping[str, Any]) -> EngineModel:
    mapping = config.get("mapping") or {}
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    precision, kv_cache = _quantization(config)
    spec = ModelSpec(
        architecture=str(config["architecture"]),
        layers=int(config["num_hidden_layers"]),
        hidden=hidden,
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_size=int(config.get("head_size") or hidden // heads),
        intermediate=int(config.get("intermediate_size") or 4 * hidden),
        vocab=int(config["vocab_size"]),
        max_positions=int(config.get("max_position_embeddings") or 2048),
        norm_epsilon=float(config.get("norm_epsilon") or 1e-5),
        rope=Rope(float(config.get("rotary_base") or 10000.0)),
    )
    return EngineModel(
        name=folder.name or str(folder),
        spec=spec,
        precision=precision,
        kv_cache=kv_cache,
        parallelism=Parallelism(int(mapping.get("tp_size", 1)), int(mapping.get("pp_size", 1))),
        dtype=str(config["dtype"]),
        sharded=True,
    )


def _quantization(config: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the precision and KV cache of an engine, by our names.

    What uses an algorithm that `convert` does not write can still be checked.
    """
    block = config.get("quantization") or {}
    algorithm, kv_algorithm = block.get("quant_algo"), block.get("kv_cache_quant_algo")
    try:
        # A foreign engine may keep FP8 beside float16, so an algorithm decides alone.
        precision = of_algorithm(algorithm) if algorithm else precision_of(config["dtype"], None)
        return precision.name, kv_cache_of(kv_algorithm)
    except KeyError:
        return OTHER_PRECISION, None


def _limits(build: Mapping[str, Any], plugins: Mapping[str, Any], spec: ModelSpec) -> Limits:
    batch = int(build["max_batch_size"])
    seq = int(build.get("max_seq_len") or spec.max_positions)
    prompt = int(build.get("max_input_len") or seq)
    return Limits(
        max_batch_size=batch,
        max_seq_len=seq,
        max_input_len=prompt,
        max_num_tokens=int(build.get("max_num_tokens") or batch * prompt),
        max_beam_width=int(build.get("max_beam_width") or 1),
        tokens_per_block=int(plugins.get("tokens_per_block") or 32),
    )


def checkpoint_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what an engine's manifest repeats of its checkpoint's."""
    return {
        "spec": checkpoint.spec.to_json(),
        "tokens": asdict(checkpoint.tokens),
        "precision": checkpoint.precision.name,
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
