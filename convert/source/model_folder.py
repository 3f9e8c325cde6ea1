"""A Hugging Face model folder: config, tensors by name and tokenizer, checked before use."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG, WEIGHTS_NAME
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.hf_config import HfConfig, read_spec
from minitron_trt.convert.source.quantization_config import (
    QUANTIZATION_FILE,
    QUANTIZATION_KEYS,
    read_quantization,
)
from minitron_trt.convert.source.special_tokens import read_special_tokens
from minitron_trt.convert.source.stored_scales import (
    Scale,
    StoredScales,
    take_scales,
)
from minitron_trt.convert.source.ties import tie_head
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer
from minitron_trt.convert.source.weight_files import (
    read_tensors,
    refuse_adapter,
    tensor_names,
)
from minitron_trt.convert.source.weight_names import refuse_quantized, unwrapped
from minitron_trt.dtypes import FP8, UNQUANTIZED
from minitron_trt.errors import BadInputError
from minitron_trt.families import EMBEDDING, HEAD, Family
from minitron_trt.folder_links import inside
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS
from minitron_trt.spec import ModelSpec, SpecialTokens
from minitron_trt.tensorfile import TensorEntry

if TYPE_CHECKING:
    from minitron_trt.convert.gguf.tensor_origins import GgufModel
    from minitron_trt.convert.nemo.megatron_tensors import NemoModel

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelSource:
    """An opened model folder."""

    folder: Path
    config: Mapping[str, Any]  # its config.json
    spec: ModelSpec
    tokens: SpecialTokens
    tensors: Mapping[str, TensorEntry]
    tokenizer: SourceTokenizer
    extras: tuple[Path, ...]  # its files and generation_config, which travel along
    warnings: tuple[str, ...] = ()  # of what is odd, though it can be converted
    packed: GgufModel | NemoModel | None = None  # what the folder was unpacked from
    scales: StoredScales | None = None  # of an FP8 folder

    @classmethod
    def open(
        cls, folder: Path, elsewhere: Mapping[str, TensorEntry] = MappingProxyType({})
    ) -> ModelSource:
        """Read a folder's config and tensor headers; nothing is loaded.

        `elsewhere` are tensors of the model that lie in another file.
        BadInputError or UnsupportedError say what is wrong with it.
        """
        _check_place(folder)
        config = HfConfig(read_json(folder, CONFIG_NAME))
        family = config.family
        _check_weights_file(config)
        quantization = read_quantization(folder, config.record)
        tensors = {**unwrapped(read_tensors(folder)), **elsewhere}
        if quantization is None:
            refuse_quantized(tensors)
        spec = read_spec(config, _head_size(config, tensors))
        expected = _expected(family, spec, tensors)
        if spec.tied:
            tensors = tie_head(tensors)
        if quantization is None:
            _check_explained(tensors)
        scales = take_scales(quantization, spec, tensors) if quantization else None
        _check_tensors(expected, tensors, scales.weights if scales else {})
        tokenizer = SourceTokenizer.find(folder)
        tokenizer.check()
        special = read_special_tokens(folder, config.record, tokenizer, spec.vocab)
        generation = [GENERATION_CONFIG] if (folder / GENERATION_CONFIG).is_file() else []
        return cls(
            folder=folder,
            config=config.record,
            spec=spec,
            tokens=special.tokens,
            warnings=special.warnings,
            # TensorRT-LLM's checkpoints have a head in any case; a tied one is the embedding again.
            tensors={**tensors, HEAD: tensors[EMBEDDING]} if spec.tied else tensors,
            tokenizer=tokenizer,
            extras=(*tokenizer.files, *(inside(folder, name) for name in generation)),
            scales=scales,
        )

    @property
    def has_tokenizer(self) -> bool:
        """Return whether the folder has any file of a tokenizer."""
        return bool(self.tokenizer.files)

    def write_extras(self, folder: Path) -> None:
        """Write the tokenizer, as every transformers reads it, and copy generation_config.json."""
        self.tokenizer.write(folder)
        for path in self.extras:
            if path.name == GENERATION_CONFIG:
                shutil.copyfile(path, folder / path.name)

    def scale_of(self, name: str) -> Scale:
        """Return what a tensor's numbers are multiplied by."""
        return self.scales.weights.get(name, 1.0) if self.scales else 1.0

    def identity(self) -> dict[str, Any]:
        """Return where the model came from, as a manifest records it."""
        path = self.packed.path if self.packed else self.folder
        record: dict[str, Any] = {"path": str(path)}
        # In the hub's cache a file is a link to a blob, whose name is a hash: only the
        # folder of the link tells repository and revision.
        folder = (path if path.is_dir() else path.parent).resolve()
        if folder.parent.name == "snapshots":
            owner_and_name = folder.parent.parent.name.removeprefix("models--").split("--", 1)
            record |= {"repo": "/".join(owner_and_name), "revision": folder.name}
        return record


def folder_spec(folder: Path) -> ModelSpec:
    """Return the facts of a model folder whose weights may be of any format, as for serving it.

    BadInputError or UnsupportedError say why it is no folder of a known architecture.
    """
    _check_place(folder)
    config = HfConfig(read_json(folder, CONFIG_NAME))
    return read_spec(config, _head_size(config, unwrapped(read_tensors(folder))))


@dataclass(frozen=True, slots=True)
class FolderFormats:
    """How a model folder says that it is stored, in words of its own where we have no name."""

    weights: str  # a name in PRECISIONS
    kv_cache: str | None  # a name in KV_CACHES; None is the model's own dtype


def folder_formats(folder: Path) -> FolderFormats:
    """Return the formats of a model folder, also those that cannot be converted."""
    config = read_json(folder, CONFIG_NAME)
    records = [config.get(key) for key in QUANTIZATION_KEYS]
    if (folder / QUANTIZATION_FILE).is_file():
        records.insert(0, read_json(folder, QUANTIZATION_FILE).get("quantization"))
    blocks = [record for record in records if isinstance(record, Mapping)]
    weights = next(filter(None, map(_weights_algorithm, blocks)), None)
    if weights is None:
        storages = {entry.dtype for entry in read_tensors(folder).values()}
        weights = "fp16" if storages == {"F16"} else "bf16"
    kv_cache = next(filter(None, map(_kv_cache_algorithm, blocks)), None)
    return FolderFormats(
        _PRECISIONS.get(weights, weights), kv_cache and _KV_CACHES.get(kv_cache, kv_cache)
    )


def _weights_algorithm(block: Mapping[str, Any]) -> str:
    return str(block.get("quant_algo") or block.get("quant_method") or "")


def _kv_cache_algorithm(block: Mapping[str, Any]) -> str:
    return str(block.get("kv_cache_quant_algo") or ("FP8" if block.get("kv_cache_scheme") else ""))


_PRECISIONS: Final = {precision.algorithm: name for name, precision in PRECISIONS.items()}
_KV_CACHES: Final = {kv_cache.algorithm: name for name, kv_cache in KV_CACHES.items()}


def _check_place(folder: Path) -> None:
    if not folder.is_dir():
        raise BadInputError(f"{folder} is not a folder; expected a Hugging Face model folder")
    if not any(folder.iterdir()):
        raise BadInputError(f"{folder} is empty; expected a Hugging Face model folder")
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise BadInputError(f"{path} is a pipe or a device; expected files only")
    refuse_adapter(folder)
    below = sorted(folder.glob(f"*/{CONFIG_NAME}"))
    if below and not (folder / CONFIG_NAME).exists():
        raise BadInputError(
            f"{folder} has no {CONFIG_NAME} but {below[0].parent} has one; pass that folder"
        )


def _check_weights_file(config: HfConfig) -> None:
    if (weights := config.record.get("transformers_weights")) is not None:
        raise BadInputError(
            f"config.json: transformers_weights is {weights!r}, which transformers reads in "
            f"place of {WEIGHTS_NAME}; rename that file and remove the key"
        )


def _expected(
    family: Family, spec: ModelSpec, tensors: Mapping[str, TensorEntry]
) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors that a model has, by name."""
    # A damaged config could claim millions of layers, each of which is given names below.
    if spec.layers > len(tensors):
        raise BadInputError(
            f"config.json: num_hidden_layers is {spec.layers}; the weights have only "
            f"{len(tensors)} tensors"
        )
    expected = {
        source.name.format(layer): source.shape(spec)
        for rule in family.rules
        for source in rule.sources
        for layer in (range(spec.layers) if "{}" in source.name else (0,))
    }
    if spec.tied:
        del expected[HEAD]
    return expected


def _head_size(config: HfConfig, tensors: Mapping[str, TensorEntry]) -> int:
    """Return the head size that the weights have; configs omit it or state hidden // heads."""
    name = "model.layers.0.self_attn.q_proj.weight"
    heads = config.heads
    if name not in tensors:
        raise BadInputError(f"tensor {name} is missing; expected a {config.family.architecture}")
    rows = (tensors[name].shape or (0,))[0]
    size, rest = divmod(rows, heads)
    if rest or not size:
        raise BadInputError(
            f"{name} has {rows} rows, which {heads} attention heads do not divide evenly"
        )
    stated = config.head_size
    # transformers falls back to this, which is wrong for models pruned in width: the
    # hidden size shrinks and the heads do not.
    implied = config.integer("hidden_size") // heads
    if stated is None and size != implied:
        log.warning(
            "config.json states no head size and hidden_size // num_attention_heads is %d; "
            "using %d, which the weights have",
            implied,
            size,
        )
    elif stated is not None and stated != size:
        log.warning(
            "config.json states a head size of %d; using %d, which the weights have", stated, size
        )
    return size


def _check_explained(tensors: Mapping[str, TensorEntry]) -> None:
    quantized = next((name for name, entry in tensors.items() if entry.dtype == FP8), None)
    if quantized:
        raise BadInputError(
            f"tensor {quantized} is {FP8} but the folder does not say how it was quantized; "
            f"expected {QUANTIZATION_FILE}, or quantization_config in config.json"
        )


def _check_tensors(
    expected: Mapping[str, tuple[int, ...]],
    tensors: Mapping[str, TensorEntry],
    quantized: Collection[str],
) -> None:
    missing = sorted(expected.keys() - tensors.keys())
    # Buffers that old transformers versions saved; they follow from the config.
    extra = sorted(n for n in tensors.keys() - expected.keys() if not n.endswith("inv_freq"))
    if missing:
        raise BadInputError(
            f"the source lacks {tensor_names(missing)}; expected by its config.json"
        )
    if extra:
        raise BadInputError(
            f"the source has {tensor_names(extra)}, which its architecture does not know"
        )
    for name, shape in expected.items():
        entry = tensors[name]
        if entry.shape != shape:
            raise BadInputError(
                f"tensor {name} is {list(entry.shape)}; config.json implies {list(shape)}"
            )
        if entry.dtype not in UNQUANTIZED and name not in quantized:
            raise BadInputError(
                f"tensor {name} is {entry.dtype}; expected one of {', '.join(sorted(UNQUANTIZED))}"
            )
