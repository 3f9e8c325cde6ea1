"""Write a model folder with the shapes of a published Minitron and random bf16 weights.

Every tensor is filled from one pool of random values, so that writing runs at the speed of the
disk and a name always gives the same bytes. There is no tokenizer: the folder is for measuring.

    python benchmarks/make_model.py llama-width-4b FOLDER
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO, Final

import click
import ml_dtypes
import numpy as np

from minitron_trt.convert.source.hf_config import HfConfig, read_spec
from minitron_trt.convert.source.weight_files import INDEX_NAME
from minitron_trt.dtypes import DTYPES
from minitron_trt.families import Place, family_of
from minitron_trt.outputs import staged
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import lay_out

# Sizes and names are of the published config.json files.
HEAD_SIZE: Final = 128
SHARD_BYTES: Final = 4_500_000_000
POOL_VALUES: Final = 1 << 24
LLAMA: Final[Mapping[str, Any]] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
    "vocab_size": 128256,
    "bos_token_id": 128000,
    "eos_token_id": 128001,
}
NEMOTRON: Final[Mapping[str, Any]] = {
    "architectures": ["NemotronForCausalLM"],
    "model_type": "nemotron",
    "hidden_act": "relu2",
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "num_attention_heads": 24,
    "partial_rotary_factor": 0.5,
    "rope_theta": 10000.0,
    "vocab_size": 256000,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
LARGER: Final = {"hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 48}
SHARED: Final[Mapping[str, Any]] = {
    "dtype": "bfloat16",
    "head_dim": HEAD_SIZE,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "tie_word_embeddings": False,
}
PRESETS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "llama-width-4b": {**SHARED, **LLAMA},
        "minitron-4b": {**SHARED, **NEMOTRON},
        "minitron-8b": {**SHARED, **NEMOTRON, **LARGER},
    }
)

Tensor = tuple[str, str, tuple[int, ...]]
"""Name, dtype and shape."""


def tensors_of(spec: ModelSpec) -> Iterator[Tensor]:
    """Yield the tensors of a model, layer by layer."""
    rules = family_of(spec.architecture).rules
    for place, layers in ((Place.FIRST, 1), (Place.LAYER, spec.layers), (Place.LAST, 1)):
        for layer in range(layers):
            for rule in rules:
                for source in rule.sources if rule.place is place else ():
                    yield source.name.format(layer), "BF16", source.shape(spec)


def shards_of(spec: ModelSpec) -> list[list[Tensor]]:
    """Return the tensors in files of SHARD_BYTES at most."""
    shards: list[list[Tensor]] = [[]]
    room = SHARD_BYTES
    for name, dtype, shape in tensors_of(spec):
        size = int(np.prod(shape)) * DTYPES[dtype].size_bytes
        if size > room:
            shards.append([])
            room = SHARD_BYTES
        shards[-1].append((name, dtype, shape))
        room -= size
    return shards


def write_values(file: BinaryIO, size: int, pool: memoryview) -> None:
    """Write so many bytes from the pool, begun anew as often as it takes."""
    while size:
        size -= file.write(pool[:size])


@click.command()
@click.argument("preset", type=click.Choice(list(PRESETS)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--layers",
    type=click.IntRange(1),
    default=SHARED["num_hidden_layers"],
    show_default=True,
    help="How many it has",
)
def main(preset: str, folder: Path, layers: int) -> None:
    """Write the model of a preset to a folder: 9.0, 8.4 or 16.5 GB with all of its layers."""
    config = {**PRESETS[preset], "num_hidden_layers": layers}
    shards = shards_of(read_spec(HfConfig(config), HEAD_SIZE))
    # The deviation with which transformers initializes weights (initializer_range).
    values = np.random.default_rng(0).standard_normal(POOL_VALUES, dtype=np.float32) * 0.02
    pool = values.astype(ml_dtypes.bfloat16).view(np.uint8).data
    with staged(folder) as scratch:
        weight_map = {}
        for number, shard in enumerate(shards, 1):
            path = scratch / f"model-{number:05d}-of-{len(shards):05d}.safetensors"
            header, entries = lay_out(path, shard)
            with path.open("wb") as file:
                file.write(header)
                for index, entry in enumerate(entries):
                    # Another beginning for each tensor, so that no two are the same.
                    start = 2 * (7919 * index % POOL_VALUES)
                    write_values(file, entry.size_bytes, pool[start:])
                    weight_map[entry.name] = path.name
        size = sum(path.stat().st_size for path in scratch.iterdir())
        index = {"metadata": {"total_size": size}, "weight_map": weight_map}
        (scratch / INDEX_NAME).write_text(json.dumps(index, indent=1))
        (scratch / "config.json").write_text(json.dumps(config, indent=1))
    click.echo(f"{folder}: {preset} in {len(shards)} files")


if __name__ == "__main__":
    main()
