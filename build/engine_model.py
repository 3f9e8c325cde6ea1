"""A model as the builder sees it: its sizes, how it is stored and how it is sharded for GPUs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from minitron_trt.artifacts import CHECKPOINT, CONFIG_NAME, HUGGING_FACE, facts_as, kind_of
from minitron_trt.checkpoint import Checkpoint, CheckpointFacts
from minitron_trt.errors import BadInputError, UsageError, an
from minitron_trt.option_types import suggestion
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import Llama3Scaling, ModelSpec, Parallelism, Rope


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
        "mistral-nemo-minitron-8b": ModelSpec(
            architecture="MistralForCausalLM",
            layers=40,
            hidden=4096,
            heads=32,
            kv_heads=8,
            head_size=128,
            intermediate=11520,
            vocab=131072,
            max_positions=8192,
            norm_epsilon=1e-5,
            rope=Rope(1000000.0),
        ),
    }
)
"""The published sizes of NVIDIA's models."""
HUB_IDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama-3.1-minitron-4b-width": "nvidia/Llama-3.1-Minitron-4B-Width-Base",
        "minitron-4b": "nvidia/Minitron-4B-Base",
        "minitron-8b": "nvidia/Minitron-8B-Base",
        "mistral-nemo-minitron-8b": "nvidia/Mistral-NeMo-Minitron-8B-Base",
    }
)
"""The presets' ids on the Hugging Face hub."""
_BY_ID: Final = {hub_id.lower(): name for name, hub_id in HUB_IDS.items()}


@dataclass(frozen=True, slots=True)
class EngineModel:
    """What decides an engine's memory and settings; precision is a name in PRECISIONS."""

    name: str
    spec: ModelSpec
    precision: str = "bf16"
    kv_cache: str | None = None  # a name in KV_CACHES; None is the model's own dtype
    parallelism: Parallelism = field(default_factory=Parallelism)
    dtype: str = "bfloat16"
    sharded: bool = False  # a checkpoint is sharded for its GPUs; a plan may still choose

    @property
    def kv_cache_bytes(self) -> int:
        """Return the bytes of one cached value."""
        return 1 if self.kv_cache else 2

    def stored_as(self, precision: str) -> EngineModel:
        """Return the same model in another precision."""
        dtype = PRECISIONS[precision].dtype
        return dataclasses.replace(self, precision=precision, dtype=dtype)

    def sharded_for(self, tp: int) -> EngineModel:
        """Return the same model sharded for `tp` GPUs; UnsupportedError when it cannot be."""
        parallelism = Parallelism(tp, self.parallelism.pp)
        parallelism.check(self.spec)
        return dataclasses.replace(self, parallelism=parallelism)


def model_of(checkpoint: Checkpoint) -> EngineModel:
    """Return the model of a checkpoint; BadInputError when its config.json was edited."""
    recorded = facts_as(checkpoint.manifest, CheckpointFacts, checkpoint.folder).spec
    # A checkpoint has a head of its own, so its config.json does not say whether they were tied.
    if checkpoint.spec != dataclasses.replace(recorded, tied=False):
        raise BadInputError(
            f"{checkpoint.folder / CONFIG_NAME} does not fit the manifest; convert again"
        )
    return EngineModel(
        name=checkpoint.folder.name or str(checkpoint.folder),
        spec=checkpoint.spec,
        precision=checkpoint.precision.name,
        kv_cache=checkpoint.kv_cache,
        parallelism=checkpoint.parallelism,
        dtype=checkpoint.precision.dtype,
        sharded=True,
    )


def find_model(name: str, *, revision: str | None = None, token: str | None = None) -> EngineModel:
    """Return what a preset, a checkpoint folder, a model folder or a hub id stands for.

    Of a model on the hub only its config.json is read; the seeds' own ids need no network.
    """
    folder = Path(name)
    preset = name.lower()
    # A revision may have other sizes than the published ones.
    if revision is None and not folder.is_dir():
        preset = _BY_ID.get(preset, preset)
    if preset in PRESETS:
        return EngineModel(preset, PRESETS[preset])
    if not folder.is_dir():
        return _from_hub(name, revision, token)
    kind = kind_of(folder)
    if kind == CHECKPOINT:
        return model_of(Checkpoint.open(folder))
    if kind != HUGGING_FACE:
        raise BadInputError(f"{folder} is {an(kind)}; expected a model folder or a checkpoint")
    # Reading a model folder is the converter's business.
    from minitron_trt.convert.source.model_folder import ModelSource

    return EngineModel(folder.name or str(folder), ModelSource.open(folder).spec)


def _from_hub(name: str, revision: str | None, token: str | None) -> EngineModel:
    from minitron_trt.convert.source.hub_config import is_hub_id, read_hub_spec

    if not is_hub_id(name):
        raise UsageError(
            f"{name!r} is neither a folder, a hub id like nvidia/Minitron-4B-Base, nor one of "
            f"{', '.join(PRESETS)}{suggestion(name, PRESETS)}"
        )
    spec = read_hub_spec(name, revision=revision, token=token)
    return EngineModel(name.rpartition("/")[2], spec)
