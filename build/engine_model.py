"""A model as the builder sees it: its sizes, how it is stored and how it is cut for GPUs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.artifacts import CHECKPOINT, CONFIG_NAME, HUGGING_FACE, Manifest, kind_of
from minitron_trt.checkpoint import Checkpoint, spec_of
from minitron_trt.errors import BadInputError, UnsupportedError, UsageError
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS
from minitron_trt.spec import Llama3Scaling, ModelSpec, Parallelism, Rope

KV_AUTO: Final = "auto"
"""A KV cache in the model's own dtype; the others are `fp8` and `int8`."""

PRECISION_OF_ALGO: Final[Mapping[str, str]] = MappingProxyType(
    {p.algorithm: p.name for p in PRECISIONS.values() if p.algorithm}
)
"""Our name of a precision by TensorRT-LLM's `quant_algo`."""

_PRECISION_OF_DTYPE: Final[Mapping[str, str]] = MappingProxyType(
    {p.dtype: p.name for p in PRECISIONS.values() if not p.algorithm}
)


def _nemotron(hidden: int, heads: int, intermediate: int) -> ModelSpec:
    return ModelSpec(
        architecture="NemotronForCausalLM",
        layers=32,
        hidden=hidden,
        heads=heads,
        kv_heads=8,
        head_size=128,
        intermediate=intermediate,
        vocab=256000,
        max_positions=4096,
        norm_epsilon=1e-5,
        rope=Rope(10000.0, 0.5),
    )


PRESETS: Final[Mapping[str, ModelSpec]] = MappingProxyType(
    {
        "llama-3.1-minitron-4b-width": ModelSpec(
            architecture="LlamaForCausalLM",
            layers=32,
            hidden=3072,
            heads=32,
            kv_heads=8,
            head_size=128,
            intermediate=9216,
            vocab=128256,
            max_positions=131072,
            norm_epsilon=1e-5,
            rope=Rope(500000.0, 1.0, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
        ),
        "minitron-4b": _nemotron(3072, 24, 9216),
        "minitron-8b": _nemotron(4096, 48, 16384),
    }
)
"""The published sizes of the three seed models."""
HUB_PRESETS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "nvidia/llama-3.1-minitron-4b-width-base": "llama-3.1-minitron-4b-width",
        "nvidia/minitron-4b-base": "minitron-4b",
        "nvidia/minitron-8b-base": "minitron-8b",
    }
)
"""The presets by their ids on the Hugging Face hub, in small letters."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What decides an engine's memory and settings; precision is a name in gpus.PRECISION_NAMES."""

    name: str
    spec: ModelSpec
    precision: str = "bf16"
    kv_cache: str = KV_AUTO
    parallelism: Parallelism = field(default_factory=Parallelism)
    dtype: str = "bfloat16"
    cut: bool = False  # a checkpoint is cut for its GPUs; a plan may still choose

    @property
    def kv_cache_bytes(self) -> int:
        """Return the bytes of one cached value."""
        return 2 if self.kv_cache == KV_AUTO else 1

    def stored_as(self, precision: str) -> ModelFacts:
        """Return the same model in another precision."""
        dtype = PRECISIONS[precision].dtype
        return dataclasses.replace(self, precision=precision, dtype=dtype)

    def cut_for(self, tp: int) -> ModelFacts:
        """Return the same model for a number of tensor-parallel GPUs; UnsupportedError if not."""
        parallelism = Parallelism(tp, self.parallelism.pp)
        parallelism.check(self.spec)
        return dataclasses.replace(self, parallelism=parallelism)


def quantization_of(config: Mapping[str, Any]) -> tuple[str, str]:
    """Return the precision and KV cache of a TensorRT-LLM config.json, in our names."""
    block = config.get("quantization") or {}
    algo, kv_algo = block.get("quant_algo"), block.get("kv_cache_quant_algo")
    precision = (PRECISION_OF_ALGO if algo else _PRECISION_OF_DTYPE).get(algo or config["dtype"])
    if precision is None:
        raise UnsupportedError(
            f"quant_algo {algo!r} with dtype {config['dtype']!r} is not supported; known are "
            f"{', '.join(PRECISION_OF_ALGO)}, and none with bfloat16 or float16"
        )
    names: dict[str | None, str] = {
        None: KV_AUTO,
        **{kv.algorithm: kv.name for kv in KV_CACHES.values()},
    }
    kv_cache = names.get(kv_algo)
    if kv_cache is None:
        raise UnsupportedError(
            f"kv_cache_quant_algo {kv_algo!r} is not supported; known are FP8, INT8 and none"
        )
    return precision, kv_cache


def facts_of(folder: Path) -> ModelFacts:
    """Open a checkpoint folder for building; BadInputError says what is wrong with it."""
    checkpoint = Checkpoint.open(folder)
    config = json.loads((folder / CONFIG_NAME).read_text())
    recorded = ModelSpec.from_json(Manifest.read(folder, CHECKPOINT).facts["spec"])
    if spec_of(config) != dataclasses.replace(recorded, tied=False):
        raise BadInputError(f"{folder / CONFIG_NAME} does not fit the manifest; convert again")
    precision, kv_cache = quantization_of(config)
    return ModelFacts(
        name=folder.name or str(folder),
        spec=checkpoint.spec,
        precision=precision,
        kv_cache=kv_cache,
        parallelism=checkpoint.parallelism,
        dtype=config["dtype"],
        cut=True,
    )


def find_model(name: str, *, revision: str | None = None, token: str | None = None) -> ModelFacts:
    """Return what a preset, a checkpoint folder, a model folder or a hub id stands for.

    Of a model on the hub only its config.json is read; the seeds' own ids need no network.
    """
    folder = Path(name)
    preset = name.lower()
    if revision is None and not folder.is_dir():
        preset = HUB_PRESETS.get(preset, preset)
    if preset in PRESETS:
        return ModelFacts(preset, PRESETS[preset])
    if not folder.is_dir():
        return _from_hub(name, revision, token)
    kind = kind_of(folder)
    if kind == CHECKPOINT:
        return facts_of(folder)
    if kind != HUGGING_FACE:
        raise BadInputError(f"{folder} is a {kind}; expected a model folder or a checkpoint")
    # Reading a model folder is the converter's business.
    from minitron_trt.convert.source.model_folder import ModelSource

    return ModelFacts(folder.name or str(folder), ModelSource.open(folder).spec)


def _from_hub(name: str, revision: str | None, token: str | None) -> ModelFacts:
    from minitron_trt.convert.source.hub_config import is_hub_id, read_hub_spec

    if not is_hub_id(name):
        raise UsageError(
            f"{name!r} is neither a folder, a hub id like nvidia/Minitron-4B-Base, nor one of "
            f"{', '.join(PRESETS)}"
        )
    spec = read_hub_spec(name, revision=revision, token=token)
    return ModelFacts(name.rpartition("/")[2], spec)
