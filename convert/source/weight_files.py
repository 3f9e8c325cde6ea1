"""Which files of a model folder hold its weights, and where each tensor lies in them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Final

from minitron_trt.artifacts import WEIGHTS_NAME
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.torch_bin import read_torch_header
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import HEAD
from minitron_trt.folder_links import inside
from minitron_trt.tensorfile import TensorEntry, read_header

INDEX_NAME: Final = "model.safetensors.index.json"
ADAPTER_CONFIG: Final = "adapter_config.json"
# What AutoGPTQ and AutoAWQ wrote beside weights of their own file names.
_QUANTIZERS: Final = MappingProxyType({"quantize_config.json": "GPTQ", "quant_config.json": "AWQ"})
_CONSOLIDATED: Final = "consolidated.safetensors"
_NAMED_AT_MOST = 4

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """One way in which save_pretrained writes weights: one file, or several and their index."""

    single: str
    index: str
    pattern: str  # of all its files of weights
    read: Callable[[Path], dict[str, TensorEntry]]  # where the tensors of one file lie in it


_TORCH: Final = WeightFormat(
    single="pytorch_model.bin",
    index="pytorch_model.bin.index.json",
    pattern="pytorch_model*.bin",
    read=read_torch_header,
)
WEIGHT_FORMATS: Final = (
    WeightFormat(
        single=WEIGHTS_NAME, index=INDEX_NAME, pattern="model*.safetensors", read=read_header
    ),
    _TORCH,
)
"""The formats that are read; of a model in several, the first."""


def has_weights(folder: Path) -> bool:
    """Return whether a folder has an index of weights or one file of them."""
    names = (name for form in WEIGHT_FORMATS for name in (form.index, form.single))
    return any((folder / name).is_file() for name in names)


def read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Return where every tensor of a model folder lies; BadInputError says what is wrong."""
    for form in WEIGHT_FORMATS:
        # transformers looks for the one file first, whatever an older save left beside it.
        if (folder / form.single).is_file():
            if (folder / form.index).is_file():
                log.warning(
                    "%s is read and %s beside it is not, as in transformers",
                    form.single,
                    form.index,
                )
            return form.read(inside(folder, form.single))
        if (folder / form.index).is_file():
            return _read_sharded(folder, form)
    shards = sorted(path.name for path in folder.glob(_TORCH.pattern))
    if shards:
        raise BadInputError(f"{folder} holds {shards[0]} but no {_TORCH.index}: download it")
    for name, method in _QUANTIZERS.items():
        if (folder / name).is_file():
            raise UnsupportedError(
                f"{folder} holds {name}, of a model quantized by {method}, and no {WEIGHTS_NAME}; "
                "convert the bf16 model instead"
            )
    if (folder / _CONSOLIDATED).is_file():
        raise BadInputError(
            f"{folder} has {_CONSOLIDATED} alone, Mistral's own form; download {WEIGHTS_NAME} or "
            f"{INDEX_NAME} and its shards"
        )
    raise BadInputError(f"{folder} has neither {WEIGHTS_NAME} nor {INDEX_NAME}")


def refuse_adapter(folder: Path) -> None:
    """Raise BadInputError when a folder holds an adapter, with or without a model's weights.

    transformers computes such a folder with peft's help, and otherwise where peft is missing.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return
    base = read_json(folder, ADAPTER_CONFIG).get("base_model_name_or_path")
    raise BadInputError(
        f"{folder} holds an adapter ({ADAPTER_CONFIG}) of the model {base!r}; merge it first "
        "(peft: merge_and_unload, then save_pretrained) and convert the merged model"
    )


def tensor_names(names: Sequence[str]) -> str:
    """Return tensors' names for a message, the first few of many."""
    return f"{'tensor' if len(names) == 1 else f'{len(names)} tensors:'} {few_of(names)}"


def few_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are beside them."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _read_sharded(folder: Path, form: WeightFormat) -> dict[str, TensorEntry]:
    index = form.index
    weight_map = read_json(folder, index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise BadInputError(f"{folder / index} has no weight_map")
    for name in weight_map.values():
        # transformers follows a name into a folder below; nothing may lead out of this one.
        if not isinstance(name, str) or not _is_below(name):
            raise BadInputError(
                f"{index} names {name!r}; expected the name of a file in the folder itself"
            )
    tensors: dict[str, TensorEntry] = {}
    files: dict[str, str] = {}
    for file in sorted(set(weight_map.values())):
        if not (folder / file).is_file():
            raise BadInputError(f"{index} names {file}, which is absent: download it")
        entries = form.read(inside(folder, file))
        tensors |= entries
        files |= dict.fromkeys(entries, file)
    # A head that was tied after the save is gone from the files and stays in the index. Where the
    # model needs it, `model_folder` says that it is missing.
    listed = {name: file for name, file in weight_map.items() if name in files or name != HEAD}
    strays = sorted(
        name for name in files.keys() | listed.keys() if files.get(name) != listed.get(name)
    )
    if strays:
        raise BadInputError(
            f"{index} and the files disagree about {tensor_names(strays)}; download them again"
        )
    return tensors


def _is_below(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts[:-1]
