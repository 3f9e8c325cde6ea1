"""Which files of a model folder hold its weights, and where each tensor lies in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import WEIGHTS_NAME
from minitron_trt.convert.source.folder_files import inside, read_json
from minitron_trt.convert.source.torch_bin import read_torch_header
from minitron_trt.errors import BadInputError
from minitron_trt.tensorfile import TensorEntry, read_header

INDEX_NAME: Final = "model.safetensors.index.json"
_NAMED_AT_MOST = 4


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
        if (folder / form.index).is_file():
            return _read_sharded(folder, form)
        if (folder / form.single).is_file():
            return form.read(inside(folder, form.single))
    shards = sorted(path.name for path in folder.glob(_TORCH.pattern))
    if shards:
        raise BadInputError(f"{folder} holds {shards[0]} but no {_TORCH.index}: download it")
    raise BadInputError(f"{folder} has neither {WEIGHTS_NAME} nor {INDEX_NAME}")


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
        if not isinstance(name, str) or Path(name).name != name:
            raise BadInputError(
                f"{index} names {name!r}; expected the name of a file in the folder itself"
            )
    tensors: dict[str, TensorEntry] = {}
    for name in sorted(set(weight_map.values())):
        if not (folder / name).is_file():
            raise BadInputError(f"{index} names {name}, which is absent: download it")
        tensors |= form.read(inside(folder, name))
    strays = sorted(
        name
        for name in tensors.keys() | weight_map.keys()
        if name not in tensors or weight_map.get(name) != tensors[name].path.name
    )
    if strays:
        raise BadInputError(
            f"{index} and the files disagree about {tensor_names(strays)}; download them again"
        )
    return tensors
