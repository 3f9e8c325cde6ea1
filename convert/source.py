"""A Hugging Face model folder: config, tensors by name and tokenizer, checked before use."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.hf_config import HfConfig, read_spec
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import EMBEDDING, HEAD
from minitron_trt.spec import ModelSpec, SpecialTokens
from minitron_trt.tensorfile import TensorEntry, read_header

log = logging.getLogger(__name__)

INDEX_NAME: Final = "model.safetensors.index.json"
SINGLE_NAME: Final = "model.safetensors"
GENERATION_CONFIG: Final = "generation_config.json"
FLOATS: Final = frozenset({"BF16", "F16", "F32"})
_NAMED_AT_MOST = 4


@dataclass(frozen=True, slots=True)
class ModelSource:
    """An opened model folder."""

    folder: Path
    spec: ModelSpec
    tokens: SpecialTokens
    tensors: Mapping[str, TensorEntry]
    extras: tuple[Path, ...]  # tokenizer and generation_config, which travel along

    @classmethod
    def open(cls, folder: Path) -> ModelSource:
        """Read a folder's config and tensor headers; nothing is loaded.

        BadInputError or UnsupportedError say what is wrong with it.
        """
        if not folder.is_dir():
            raise BadInputError(f"{folder} is not a folder; expected a Hugging Face model folder")
        if not any(folder.iterdir()):
            raise BadInputError(f"{folder} is empty; expected a Hugging Face model folder")
        config = HfConfig(_read_json(folder, "config.json"))
        family = config.family
        tensors = _read_tensors(folder)
        spec = read_spec(config, _head_size(config, tensors))
        expected = {
            source.name.format(layer): source.shape(spec)
            for rule in family.rules
            for source in rule.sources
            for layer in (range(spec.layers) if "{}" in source.name else (0,))
        }
        if spec.tied:
            # The head repeats the embedding; some folders store the copy as well.
            del expected[HEAD]
            tensors = {name: entry for name, entry in tensors.items() if name != HEAD}
        _check_tensors(expected, tensors)
        extras = (*TOKENIZER_FILES, GENERATION_CONFIG)
        return cls(
            folder=folder,
            spec=spec,
            tokens=_special_tokens(folder, config),
            tensors={**tensors, HEAD: tensors[EMBEDDING]} if spec.tied else tensors,
            extras=tuple(_inside(folder, name) for name in extras if (folder / name).is_file()),
        )

    @property
    def has_tokenizer(self) -> bool:
        """Return whether any file of a tokenizer was found."""
        return any(path.name != GENERATION_CONFIG for path in self.extras)

    def identity(self) -> dict[str, Any]:
        """Return where the model came from, as a manifest records it."""
        record: dict[str, Any] = {"path": str(self.folder)}
        real = self.folder.resolve()
        if real.parent.name == "snapshots":
            owner_and_name = real.parent.parent.name.removeprefix("models--").split("--", 1)
            record |= {"repo": "/".join(owner_and_name), "revision": real.name}
        return record


def _inside(folder: Path, name: str) -> Path:
    """Return the path of a folder's file; a link may lead within it or to its hub cache only."""
    path, root = folder / name, folder.resolve()
    real = path.resolve()
    cached = root.parent.name == "snapshots" and real.is_relative_to(root.parent.parent / "blobs")
    if not (real.is_relative_to(root) or cached):
        raise BadInputError(f"{path} leads to {real}, outside the model folder; copy the file in")
    return path


def _read_json(folder: Path, name: str) -> Mapping[str, Any]:
    if not (folder / name).is_file():
        raise BadInputError(f"{folder} has no {name}; expected a Hugging Face model folder")
    try:
        record = json.loads(_inside(folder, name).read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInputError(f"{folder / name} is not JSON ({error})") from error
    if not isinstance(record, dict):
        raise BadInputError(f"{folder / name} is not a JSON object")
    return record


def _read_tensors(folder: Path) -> dict[str, TensorEntry]:
    if (folder / INDEX_NAME).is_file():
        return _read_sharded(folder)
    if (folder / SINGLE_NAME).is_file():
        return read_header(_inside(folder, SINGLE_NAME))
    found = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if found:
        raise UnsupportedError(
            f"{folder} holds {found[0]}; only safetensors are read: save the model with "
            "safe_serialization=True"
        )
    raise BadInputError(f"{folder} has neither {SINGLE_NAME} nor {INDEX_NAME}")


def _read_sharded(folder: Path) -> dict[str, TensorEntry]:
    weight_map = _read_json(folder, INDEX_NAME).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{folder / INDEX_NAME} has no weight_map")
    tensors: dict[str, TensorEntry] = {}
    for name in sorted(set(weight_map.values()), key=str):
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInputError(
                f"{INDEX_NAME} names {name!r}; expected the name of a file in the folder itself"
            )
        if not (folder / name).is_file():
            raise BadInputError(f"{INDEX_NAME} names {name}, which is absent: download it")
        tensors |= read_header(_inside(folder, name))
    strays = sorted(
        name
        for name in tensors.keys() | weight_map.keys()
        if name not in tensors or weight_map.get(name) != tensors[name].path.name
    )
    if strays:
        raise BadInputError(
            f"{INDEX_NAME} and the files disagree about {_names(strays)}; download them again"
        )
    return tensors


def _head_size(config: HfConfig, tensors: Mapping[str, TensorEntry]) -> int:
    """Return the head size that the weights have; configs omit it or state hidden // heads."""
    name = "model.layers.0.self_attn.q_proj.weight"
    heads = config.integer("num_attention_heads")
    if name not in tensors:
        raise BadInputError(f"tensor {name} is missing; expected a {config.family.architecture}")
    rows = (tensors[name].shape or (0,))[0]
    size, rest = divmod(rows, max(heads, 1))
    if rest or not size:
        raise BadInputError(
            f"{name} has {rows} rows, which {heads} attention heads do not divide evenly"
        )
    stated = config.head_size
    # What transformers would fall back to.
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


def _check_tensors(
    expected: Mapping[str, tuple[int, ...]], tensors: Mapping[str, TensorEntry]
) -> None:
    missing = sorted(expected.keys() - tensors.keys())
    # Buffers that old transformers versions saved; they follow from the config.
    extra = sorted(n for n in tensors.keys() - expected.keys() if not n.endswith("inv_freq"))
    if missing:
        raise BadInputError(f"the source lacks {_names(missing)}; expected by its config.json")
    if extra:
        raise BadInputError(f"the source has {_names(extra)}, which its architecture does not know")
    for name, shape in expected.items():
        entry = tensors[name]
        if entry.shape != shape:
            raise BadInputError(
                f"tensor {name} is {list(entry.shape)}; config.json implies {list(shape)}"
            )
        if entry.dtype not in FLOATS:
            raise BadInputError(
                f"tensor {name} is {entry.dtype}; expected one of {', '.join(sorted(FLOATS))}"
            )


def _names(names: list[str]) -> str:
    more = len(names) - _NAMED_AT_MOST
    shown = ", ".join(names[:_NAMED_AT_MOST])
    kind = "tensor" if len(names) == 1 else f"{len(names)} tensors:"
    return f"{kind} {shown}" + (f" and {more} more" if more > 0 else "")


def _special_tokens(folder: Path, config: HfConfig) -> SpecialTokens:
    record = dict(config.record)
    if (folder / GENERATION_CONFIG).is_file():
        generation = _read_json(folder, GENERATION_CONFIG)
        record |= {key: value for key, value in generation.items() if value is not None}
    return SpecialTokens.from_json(record)
