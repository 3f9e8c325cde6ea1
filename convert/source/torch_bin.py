"""`pytorch_model.bin` files as byte ranges: torch reads the pickle, the bytes stay in the file.

torch.save writes a zip archive of uncompressed records: a pickle that describes the tensors and
one record of raw bytes for each storage. torch.load with weights_only refuses a pickle that
would call anything but the rebuilding of tensors, and with mmap it maps the file instead of reading
it, so a tensor's address says where in the file its bytes lie. That place must be inside a record
of the archive's own directory, or the file is refused.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError, MissingExtraError, UnsupportedError
from minitron_trt.tensorfile import LFS_POINTER, TensorEntry

if TYPE_CHECKING:
    import torch

_ZIP_MAGIC: Final = b"PK\x03\x04"
_STORED_AS: Final[Mapping[str, str]] = MappingProxyType(
    {f"torch.{dtype.name}": dtype.stored_as for dtype in DTYPES.values()}
)
# What a damaged archive or pickle makes zipfile and torch.load raise.
_DAMAGE = (
    *(zipfile.BadZipFile, struct.error, RuntimeError, OSError, EOFError, ArithmeticError),
    *(ValueError, TypeError, LookupError, AttributeError, AssertionError, RecursionError),
)
# A zip's header of a record ends with the lengths of its name and its extra field.
_LOCAL_HEADER: Final = struct.Struct("<26xHH")


def read_torch_header(path: Path) -> dict[str, TensorEntry]:
    """Return the tensors of a `.bin` file by name, as byte ranges of the file.

    BadInputError when it holds anything but tensors by name (nothing of it is executed) or is
    damaged; UnsupportedError when the bytes do not lie in it as safetensors would have them.
    """
    _check_start(path)
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "quantize", f"reading {path.name}") from None
    records = dict(_records(path))
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise BadInputError(
            f"{path} holds more than tensors ({_reason(error)}), which could run code and is "
            "refused; look for safetensors of the same model"
        ) from error
    except _DAMAGE as error:
        raise _damaged(path, error) from error
    if not isinstance(loaded, dict):
        raise BadInputError(f"{path} holds a {type(loaded).__name__}; expected tensors by name")
    entries = {}
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise BadInputError(
                f"{path} holds a {type(value).__name__} under {name!r}; expected tensors by name, "
                "as save_pretrained writes them"
            )
        entries[name] = _entry(path, name, value, records)
    return entries


def _check_start(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(len(LFS_POINTER))
    if start == LFS_POINTER:
        raise BadInputError(f"{path} is a git-LFS pointer, not weights; run: git lfs pull")
    if start[:1] == b"\x80":
        raise UnsupportedError(
            f"{path} is in the format of torch before 1.6, which cannot be mapped; load it with "
            "torch.load(..., weights_only=True) and torch.save it again"
        )
    if not start.startswith(_ZIP_MAGIC):
        raise BadInputError(f"{path} is not a file of torch.save; download it again")


def _reason(error: Exception) -> str:
    """Return what torch refused; its own message is the context of a page of advice."""
    lines = str(error.__context__ or error).splitlines() or [type(error).__name__]
    return lines[0].split(". ")[0].rstrip(".")


def _damaged(path: Path, error: Exception) -> BadInputError:
    first = (str(error).splitlines() or [""])[0].rstrip(".")
    return BadInputError(
        f"{path} is truncated or damaged ({first or type(error).__name__}); download it again"
    )


def _records(path: Path) -> Iterator[tuple[int, int]]:
    """Yield (offset, size) of the archive's records in the file."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            for record in archive.infolist():
                if record.compress_type != zipfile.ZIP_STORED:
                    raise UnsupportedError(
                        f"{path} is compressed; torch.save it again, which does not compress"
                    )
                name = record.filename.rpartition("/")[2]
                if name == "byteorder" and archive.read(record) != b"little":
                    raise UnsupportedError(
                        f"{path} is big-endian; torch.save it again on a little-endian machine"
                    )
                # The header before the data, not the directory's entry: torch fills its extra field
                # up so that each tensor begins at a multiple of 64.
                file.seek(record.header_offset)
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                yield record.header_offset + _LOCAL_HEADER.size + sum(lengths), record.file_size
    except _DAMAGE as error:
        raise _damaged(path, error) from error


def _entry(path: Path, name: str, tensor: torch.Tensor, records: Mapping[int, int]) -> TensorEntry:
    dtype, shape = str(tensor.dtype), tuple(tensor.shape)
    if dtype not in _STORED_AS:
        raise BadInputError(f"{path}: tensor {name!r} has dtype {dtype}, which is not known")
    if str(tensor.layout) != "torch.strided" or not tensor.is_contiguous():
        raise UnsupportedError(
            f"{path}: tensor {name!r} does not lie in the file row after row; save the model again "
            "with safe_serialization=True"
        )
    offset = _file_offset(tensor.data_ptr()) if tensor.numel() else 0
    entry = TensorEntry(path, name, _STORED_AS[dtype], shape, offset)
    starts = sorted(records)
    record = starts[max(bisect_right(starts, offset) - 1, 0)]
    if tensor.numel() and not record <= offset <= record + records[record] - entry.size_bytes:
        raise BadInputError(
            f"{path}: tensor {name!r} does not lie in a record of the file; download it again"
        )
    return entry


def _file_offset(address: int) -> int:
    """Return which offset of a mapped file an address of this process shows; -1 for none."""
    with Path("/proc/self/maps").open() as maps:
        for line in maps:
            extent, _, offset, _, inode = line.split(maxsplit=5)[:5]
            start, stop = (int(number, 16) for number in extent.split("-"))
            if start <= address < stop:
                return address - start + int(offset, 16) if int(inode) else -1
    return -1
