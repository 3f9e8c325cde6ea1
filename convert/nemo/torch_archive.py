"""Files of torch.save as places of tensors: the pickle is read as notes, the bytes stay in place.

Such a file is a zip of uncompressed records: a pickle that describes tensors, and the bytes of each
storage. It may lie anywhere in another file: in a tar, or beside others in a `.distcp`.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.convert.nemo.archive import ByteRange
from minitron_trt.convert.nemo.inert_pickle import Note, read_pickle
from minitron_trt.convert.nemo.stored_array import ByteBox, StoredArray
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError, UnsupportedError

DTYPE_OF: Final[Mapping[str, str]] = MappingProxyType(
    {f"torch.{dtype.name}": dtype.stored_as for dtype in DTYPES.values()}
)
"""The name that safetensors has for a type of torch's."""
# torch.save still names a storage by the class that each type once had.
_STORAGES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "torch.DoubleStorage": "F64",
        "torch.FloatStorage": "F32",
        "torch.HalfStorage": "F16",
        "torch.BFloat16Storage": "BF16",
        "torch.LongStorage": "I64",
        "torch.IntStorage": "I32",
        "torch.ShortStorage": "I16",
        "torch.CharStorage": "I8",
        "torch.ByteStorage": "U8",
        "torch.BoolStorage": "BOOL",
    }
)
_TENSOR: Final = "torch._utils._rebuild_tensor_v2"
_PARAMETER: Final = "torch._utils._rebuild_parameter"
# Of the bytes that Transformer Engine keeps beside its weights.
_BYTES: Final = ("_io.BytesIO", "_codecs.encode", "__builtin__.bytes", "builtins.bytes")
_NAMES: Final = frozenset({_TENSOR, _PARAMETER, "torch.Size", *_BYTES, *_STORAGES})
_LOCAL_HEADER: Final = struct.Struct("<26xHH")
_ZIP_DAMAGE: Final = (
    zipfile.BadZipFile,
    struct.error,
    EOFError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
)


def read_torch_tensor(data: ByteRange) -> StoredArray:
    """Return the one tensor of a range of bytes that torch.save wrote."""
    loaded, records = _load(data)
    return _array(data, data.name, loaded, records)


def read_state_dict(data: ByteRange) -> dict[str, StoredArray]:
    """Return the tensors of a state dict that torch.save wrote, by name.

    What Transformer Engine keeps beside its weights, which is no tensor, is left out.
    BadInputError when it holds anything else, or is damaged.
    """
    loaded, records = _load(data)
    if not isinstance(loaded, dict):
        raise BadInputError(
            f"{data.name} holds a {_kind(loaded)}; expected tensors by name, as NeMo saves them"
        )
    arrays = {}
    for name, value in loaded.items():
        if not isinstance(name, str):
            raise BadInputError(f"{data.name} holds a {_kind(value)} under {name!r}")
        if not name.endswith("_extra_state"):
            arrays[name] = _array(data, name, value, records)
    return arrays


@dataclass(frozen=True, slots=True)
class _Storage:
    key: str
    dtype: str
    count: int


class _Window(io.RawIOBase):
    """A range of bytes as a file of its own, for zipfile."""

    def __init__(self, data: ByteRange) -> None:
        self._data, self._at = data, 0
        self._file = data.path.open("rb")

    def readable(self) -> bool:
        """Say yes."""
        return True

    def seekable(self) -> bool:
        """Say yes."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, counted from the start of the range; ValueError before it."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._data.size}[whence]
        if base + offset < 0:
            raise ValueError("a place before the start")
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        """Return the place."""
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Read what the range still has, at most what the buffer holds; return how much that is."""
        view = memoryview(buffer)[: max(0, self._data.size - self._at)]
        self._file.seek(self._data.offset + self._at)
        count = self._file.readinto(view)
        self._at += count
        return count

    def close(self) -> None:
        """Close the file around the range."""
        self._file.close()
        super().close()


def _load(data: ByteRange) -> tuple[Any, Mapping[str, ByteRange]]:
    """Return the pickle as notes and the storages' records by their keys."""
    start = data.part(0, min(4, data.size)).read()
    if start[:1] == b"\x80":
        raise UnsupportedError(
            f"{data.name} is in the format of torch before 1.6; load it with "
            "torch.load(..., weights_only=True) and torch.save it again"
        )
    if start != b"PK\x03\x04":
        raise BadInputError(f"{data.name} is not a file of torch.save; download it again")
    records, blob = {}, None
    try:
        with _Window(data) as window, zipfile.ZipFile(window) as archive:
            for info in archive.infolist():
                if info.compress_type != zipfile.ZIP_STORED:
                    raise UnsupportedError(f"{data.name} is compressed; torch.save it again")
                # As in `source.torch_bin`: the header before the data has an extra field of its own
                # length.
                window.seek(info.header_offset)
                lengths = _LOCAL_HEADER.unpack(window.read(_LOCAL_HEADER.size))
                at = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
                record = data.part(at, info.file_size)
                _, _, name = info.filename.partition("/")
                if name == "byteorder" and record.read(at_most=16) != b"little":
                    raise UnsupportedError(
                        f"{data.name} is big-endian; torch.save it again on a little-endian machine"
                    )
                if name == "data.pkl":
                    blob = record.read()
                elif name.startswith("data/"):
                    records[name.removeprefix("data/")] = record
    except _ZIP_DAMAGE as error:
        raise BadInputError(
            f"{data.name} is truncated or damaged ({error}); download it again"
        ) from error
    if blob is None:
        raise BadInputError(f"{data.name} is not a file of torch.save; download it again")
    return read_pickle(blob, _NAMES, data.name, _storage), records


def _storage(pid: Any) -> _Storage:
    match pid:
        # What torch.save puts there: the word, the class, the record's key, a device, the values.
        case ("storage", type() as kind, str() as key, str(), int() as count):
            name = getattr(kind, "name", "")
            if name in _STORAGES:
                return _Storage(key, _STORAGES[name], count)
    raise BadInputError("its pickle has a storage of an unknown kind; torch.save it again")


def _kind(value: Any) -> str:
    return value.name if isinstance(value, Note) else type(value).__name__


def _array(data: ByteRange, name: str, value: Any, records: Mapping[str, ByteRange]) -> StoredArray:
    if isinstance(value, Note) and value.name == _PARAMETER and value.arguments:
        value = value.arguments[0]
    match value:
        case Note(arguments=(_Storage() as storage, int() as at, tuple() as shape, strides, *_)):
            pass
        case _:
            raise BadInputError(
                f"{data.name} holds a {_kind(value)} under {name!r}; expected tensors by name"
            )
    if value.name != _TENSOR or not isinstance(strides, tuple):
        raise BadInputError(f"{data.name} holds a {_kind(value)} under {name!r}, and no tensor")
    if not all(type(size) is int and size >= 0 for size in shape) or at < 0:
        raise BadInputError(f"{data.name}: tensor {name!r} has shape {shape!r}")
    dense = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    # Along an axis of one entry any stride will do.
    pairs = zip(shape, strides, dense, strict=False)
    if len(strides) != len(shape) or any(n > 1 and got != want for n, got, want in pairs):
        raise UnsupportedError(
            f"{data.name}: tensor {name!r} does not lie row after row; save it as contiguous"
        )
    if storage.key not in records:
        raise BadInputError(
            f"{data.name} has no bytes of tensor {name!r}; it is damaged: download it again"
        )
    item = DTYPES[storage.dtype].size_bytes
    place = records[storage.key].part(at * item, math.prod(shape) * item)
    return StoredArray(name, storage.dtype, shape, (ByteBox(place, (0,) * len(shape), shape),))
