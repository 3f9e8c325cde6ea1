"""Weights of torch's distributed checkpoints: `.metadata`, and files that hold many tensors each.

The metadata is a pickle of which tensors there are, in which boxes, and where each box lies; a box
is what torch.save writes of it. Layers are stacked along a first axis, of which a box has one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any, Final

from minitron_trt.convert.nemo.archive import ByteRange
from minitron_trt.convert.nemo.inert_pickle import Note, read_pickle
from minitron_trt.convert.nemo.stored_array import ByteBox, StoredArray
from minitron_trt.convert.nemo.torch_archive import DTYPE_OF, read_torch_tensor
from minitron_trt.errors import BadInputError, UnsupportedError

METADATA_NAME: Final = ".metadata"
_CHECKPOINT: Final = "torch.distributed.checkpoint"
_TENSOR: Final = f"{_CHECKPOINT}.metadata.TensorStorageMetadata"
_OBJECT: Final = f"{_CHECKPOINT}.metadata.BytesStorageMetadata"
_NAMES: Final = frozenset(
    {
        *DTYPE_OF,
        "torch.Size",
        "torch.device",
        "torch.strided",
        "torch.contiguous_format",
        "torch.preserve_format",
        "torch.serialization._get_layout",
        f"{_CHECKPOINT}.filesystem._StorageInfo",
        f"{_CHECKPOINT}.metadata.ChunkStorageMetadata",
        f"{_CHECKPOINT}.metadata.Metadata",
        f"{_CHECKPOINT}.metadata.MetadataIndex",
        f"{_CHECKPOINT}.metadata.StorageMeta",
        f"{_CHECKPOINT}.metadata.TensorProperties",
        f"{_CHECKPOINT}.metadata._MEM_FORMAT_ENCODING",
        # How it was written, which newer versions of Megatron Core keep.
        f"{_CHECKPOINT}.planner.BytesIOWriteData",
        f"{_CHECKPOINT}.planner.SavePlan",
        f"{_CHECKPOINT}.planner.TensorWriteData",
        f"{_CHECKPOINT}.planner.WriteItem",
        f"{_CHECKPOINT}.planner.WriteItemType",
        # Where torch 2.1 and 2.2 had it.
        "torch.distributed._shard.sharded_tensor.metadata.TensorProperties",
        "torch.distributed._shard.sharded_tensor.metadata.MEM_FORMAT_ENCODING",
        _TENSOR,
        _OBJECT,
    }
)


def read_torch_dist(files: Mapping[str, ByteRange]) -> dict[str, StoredArray]:
    """Return the tensors of a distributed checkpoint by name; nothing of it is executed."""
    metadata = read_pickle(files[METADATA_NAME].read(), _NAMES, METADATA_NAME)
    if not isinstance(metadata, Note):
        raise BadInputError(f"{METADATA_NAME} holds no Metadata; download it again")
    tensors, places = metadata.field("state_dict_metadata"), metadata.field("storage_data")
    if not isinstance(tensors, dict) or not isinstance(places, dict):
        raise BadInputError(f"{METADATA_NAME} holds no tensors by name; download it again")
    stored = dict(_places(places))
    arrays = {}
    for name, record in tensors.items():
        kind = record.name if isinstance(record, Note) else type(record).__name__
        if not isinstance(name, str) or kind not in (_TENSOR, _OBJECT):
            raise BadInputError(f"{METADATA_NAME} holds a {kind} under {name!r}")
        if kind == _TENSOR and "_extra_state" not in name:
            arrays[name] = _array(name, record, stored, files)
    return arrays


def _places(places: Mapping[Any, Any]) -> Iterator[tuple[tuple[str, tuple[int, ...]], Note]]:
    """Yield where each box lies, by its tensor's name and where it begins in that."""
    for index, place in places.items():
        if not isinstance(index, Note) or not isinstance(place, Note):
            raise BadInputError(f"{METADATA_NAME} has a place that is none; download it again")
        # What is no tensor has no place in one.
        if (offset := index.get("offset")) is not None:
            yield (str(index.field("fqn")), _sizes(offset)), place


def _array(
    name: str,
    record: Note,
    places: Mapping[tuple[str, tuple[int, ...]], Note],
    files: Mapping[str, ByteRange],
) -> StoredArray:
    properties, chunks = record.field("properties"), record.field("chunks")
    if not isinstance(properties, Note) or not isinstance(chunks, list):
        raise BadInputError(f"{METADATA_NAME} does not describe {name}; download it again")
    dtype = getattr(_dtype(properties), "name", "")
    if dtype not in DTYPE_OF:
        raise BadInputError(f"{METADATA_NAME}: tensor {name} has dtype {dtype!r}")
    pieces, size = [], _sizes(record.field("size"))
    for chunk in chunks:
        if not isinstance(chunk, Note):
            raise BadInputError(f"{METADATA_NAME} has no boxes of {name}; download it again")
        start, shape = _sizes(chunk.field("offsets")), _sizes(chunk.field("sizes"))
        if (name, start) not in places:
            raise BadInputError(f"{METADATA_NAME} does not say where {name} at {start} lies")
        box = read_torch_tensor(_data(name, places[name, start], files))
        if (box.dtype, box.shape) != (DTYPE_OF[dtype], shape) or len(start) != len(size):
            raise BadInputError(
                f"tensor {name} at {list(start)} is {box.dtype} {list(box.shape)}; "
                f"{METADATA_NAME} says {DTYPE_OF[dtype]} {list(shape)}"
            )
        pieces.append(ByteBox(box.pieces[0].data, start, shape))
    return StoredArray(name, DTYPE_OF[dtype], size, tuple(pieces))


def _dtype(properties: Note) -> Any:
    """Return the type of a tensor; some versions keep the properties as a tuple."""
    if isinstance(properties.state, tuple) and properties.state:
        return properties.state[0]
    return properties.field("dtype")


def _data(name: str, place: Note, files: Mapping[str, ByteRange]) -> ByteRange:
    if place.get("transform_descriptors"):
        raise UnsupportedError(f"tensor {name} is stored compressed; save it again without")
    path, offset, length = (place.field(key) for key in ("relative_path", "offset", "length"))
    if not isinstance(path, str) or PurePosixPath(path).name != path or path not in files:
        raise BadInputError(
            f"{METADATA_NAME} places {name} in {path!r}, which the checkpoint lacks: download it"
        )
    if type(offset) is not int or type(length) is not int:
        raise BadInputError(f"{METADATA_NAME} places {name} at {offset!r}, {length!r}")
    return files[path].part(offset, length)


def _sizes(value: Any) -> tuple[int, ...]:
    """Return a torch.Size of the pickle as numbers."""
    if isinstance(value, Note) and value.name == "torch.Size" and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, (tuple, list)) or not all(
        type(size) is int and size >= 0 for size in value
    ):
        raise BadInputError(f"{METADATA_NAME} has {value!r} for a size")
    return tuple(value)
