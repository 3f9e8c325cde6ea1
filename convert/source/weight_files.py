"""Which files of a model folder hold its weights, and where each tensor lies in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import WEIGHTS_NAME
from minitron_trt.convert.source.folder_files import inside, read_json
from minitron_trt.convert.source.torch_bin import read_torch_header
from minitron_trt.errors import BadInputError
from minitron_trt.tensorfile import TensorEntry, read_header

INDEX_NAME: Final = "model.safetensors.index.json"
TORCH_INDEX_NAME: Final = "pytorch_model.bin.index.json"
TORCH_SINGLE_NAME: Final = "pytorch_model.bin"
_NAMED_AT_MOST = 4

_ReadHeader = Callable[[Path], dict[str, TensorEntry]]
# What save_pretrained writes: an index of shards or one file. Safetensors go first.
_FORMS: Final[tuple[tuple[str, str, _ReadHeader], ...]] = (
    (INDEX_NAME, WEIGHTS_NAME, read_header),
    (TORCH_INDEX_NAME, TORCH_SINGLE_NAME, read_torch_header),
)


def has_weights(folder: Path) -> bool:
    """Return whether a folder has an index of weights or one file of them."""
    return any((folder / name).is_file() for index, single, _ in _FORMS for name in (index, single))


def read_tensors(folder: Path) -> dict[str, TensorEntry]:
    """Return where every tensor of a model folder lies; BadInputError says what is wrong."""
    for index, single, read in _FORMS:
        if (folder / index).is_file():
            return _read_sharded(folder, index, read)
        if (folder / single).is_file():
            return read(inside(folder, single))
    shards = sorted(path.name for path in folder.glob("pytorch_model*.bin"))
    if shards:
        raise BadInputError(f"{folder} holds {shards[0]} but no {TORCH_INDEX_NAME}: download it")
    raise BadInputError(f"{folder} has neither {WEIGHTS_NAME} nor {INDEX_NAME}")


def tensor_names(names: Sequence[str]) -> str:
    """Return tensors' names for a message, the first few of many."""
    return f"{'tensor' if len(names) == 1 else f'{len(names)} tensors:'} {few_of(names)}"


def few_of(names: Sequence[str]) -> str:
    """Return the first few names, and how many there are beside them."""
    more = len(names) - _NAMED_AT_MOST
    return ", ".join(names[:_NAMED_AT_MOST]) + (f" and {more} more" if more > 0 else "")


def _read_sharded(folder: Path, index: str, read: _ReadHeader) -> dict[str, TensorEntry]:
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
        tensors |= read(inside(folder, name))
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
