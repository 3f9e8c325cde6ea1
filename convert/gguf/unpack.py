"""Unpack a GGUF file into an ordinary Hugging Face folder, a block of rows at a time.

Everything after it, conversion and calibration alike, then reads one kind of folder. 16- and 32-bit
tensors keep their format; quantized ones are dequantized by the `gguf` package itself and rounded
once, to the format that the checkpoint will have.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG, WEIGHTS_NAME
from minitron_trt.console import Advance, no_progress
from minitron_trt.convert.finite_values import check_finite
from minitron_trt.convert.gguf.file import gguf_package
from minitron_trt.convert.gguf.tensor_origins import GgufModel, UnpackedTensor
from minitron_trt.convert.gguf.tokenizer import write_tokenizer
from minitron_trt.convert.source.folder_files import write_json
from minitron_trt.dtypes import DTYPES, UNQUANTIZED
from minitron_trt.errors import BadInputError, OutputError
from minitron_trt.host.machine import usable_cores
from minitron_trt.quantization.number_formats import NUMPY_DTYPES
from minitron_trt.tensorfile import TensorEntry, lay_out

# 8 MiB in float32, of which a worker holds a few: `conversion_memory` counts them.
_BLOCK_VALUES: Final = 1 << 21
_WORKERS: Final = min(2, usable_cores())


@dataclass(frozen=True, slots=True)
class GgufFolder:
    """A folder whose files are all there, with room for the weights that `fill` writes."""

    folder: Path
    model: GgufModel
    entries: tuple[TensorEntry, ...]

    @classmethod
    def lay_out(cls, model: GgufModel, folder: Path, storage: str) -> GgufFolder:
        """Write config, tokenizer and the weights' header; the weights are a hole in a sparse file.

        `storage` is the format of tensors that were quantized: BF16, F16 or F32.
        BadInputError and UnsupportedError say why the tokenizer cannot be rebuilt.
        """
        dtypes = {tensor.name: _dtype(tensor, storage) for tensor in model.tensors}
        named = ((t.name, dtypes[t.name], t.source.shape) for t in model.tensors)
        header, entries = lay_out(folder / WEIGHTS_NAME, named)
        with (folder / WEIGHTS_NAME).open("wb") as weights:
            weights.write(header)
            weights.truncate(max(entry.offset + entry.size_bytes for entry in entries))
        positions = model.config["max_position_embeddings"]
        tokens = write_tokenizer(model.vocabulary, folder, positions) if model.vocabulary else {}
        write_json(folder, GENERATION_CONFIG, tokens)
        dtype = DTYPES[dtypes["model.embed_tokens.weight"]].name
        write_json(folder, CONFIG_NAME, {**model.config, **tokens, "torch_dtype": dtype})
        return cls(folder, model, entries)

    @property
    def size_bytes(self) -> int:
        """Return how many bytes the weights take."""
        return sum(entry.size_bytes for entry in self.entries)

    @property
    def in_place(self) -> Mapping[str, TensorEntry]:
        """Return the tensors that are read from the file itself: none."""
        return {}

    def fill(self, advance: Advance = no_progress) -> None:
        """Write the weights; `advance` hears of the bytes written."""
        free = shutil.disk_usage(self.folder).free
        if free < self.size_bytes:
            raise OutputError(
                f"{self.model.file.path.name} unpacks to {self.size_bytes / 1e9:.2f} GB but the "
                f"disk of the output has {free / 1e9:.2f} GB free; choose another disk"
            )
        paths = dict.fromkeys(tensor.source.path for tensor in self.model.tensors)
        with (
            ExitStack() as opened,
            (self.folder / WEIGHTS_NAME).open("r+b") as target,
            ThreadPoolExecutor(_WORKERS) as pool,
        ):
            readers = {path: opened.enter_context(path.open("rb")).fileno() for path in paths}
            jobs = zip(self.model.tensors, self.entries, strict=True)
            tasks = [
                pool.submit(
                    self._move, tensor, entry, readers[tensor.source.path], target.fileno(), advance
                )
                for tensor, entry in jobs
            ]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _move(
        self, tensor: UnpackedTensor, entry: TensorEntry, reader: int, writer: int, advance: Advance
    ) -> None:
        at = entry.offset
        for start, raw in self._blocks(tensor, reader):
            values = self._values(tensor, raw, start, NUMPY_DTYPES[entry.dtype])
            data = np.ascontiguousarray(values).view(np.uint8).reshape(-1).data
            advance(len(data))
            while data:
                done = os.pwrite(writer, data, at)
                data, at = data[done:], at + done

    def _blocks(
        self, tensor: UnpackedTensor, reader: int
    ) -> Iterator[tuple[int, NDArray[np.uint8]]]:
        """Yield (first row, rows) of a tensor as the file has them; whole heads, if interleaved."""
        source = tensor.source
        unit = tensor.interleaved_rows or 1
        height = max(1, _BLOCK_VALUES // (source.shape[-1] * unit)) * unit
        for start in range(0, source.rows, height):
            rows = min(height, source.rows - start)
            blob = bytearray(rows * source.row_bytes)
            if os.preadv(reader, [blob], source.offset + start * source.row_bytes) < len(blob):
                raise BadInputError(f"{source.path} became shorter; convert again")
            yield start, np.frombuffer(blob, np.uint8).reshape(rows, source.row_bytes)

    def _values(
        self, tensor: UnpackedTensor, raw: NDArray[np.uint8], first_row: int, dtype: np.dtype[Any]
    ) -> NDArray[Any]:
        """Return the values of some rows, in the order and format of the folder's tensor."""
        # Scales of a damaged file may be NaN or infinite; what comes of them is refused below.
        with np.errstate(all="ignore"):
            if tensor.source.kind in UNQUANTIZED:
                values = raw.view(NUMPY_DTYPES[tensor.source.kind])
            else:
                gguf = gguf_package(self.model.file.path)
                values = gguf.dequantize(raw, gguf.GGMLQuantizationType[tensor.source.kind])
            check_finite(values, tensor.source.name, first_row)
            if tensor.minus_one:
                values = values.astype(np.float32) - np.float32(1)
            rounded = values.astype(dtype, copy=False)
        if dtype == np.float16 and (np.isinf(rounded) & np.isfinite(values)).any():
            raise BadInputError(
                f"tensor {tensor.source.name} has values beyond fp16; convert with --precision bf16"
            )
        # Last, so that a value that is refused has the place that the file gives it.
        head = tensor.interleaved_rows
        return restore_rows(rounded, head) if head else rounded


def restore_rows(rows: NDArray[Any], head_size: int) -> NDArray[Any]:
    """Return the rows of whole heads in transformers' order: first halves, then second halves.

    llama.cpp turns neighbouring values of a head together, transformers a value of the first half
    with one of the second, so its converter wrote row i of the one beside row i of the other.
    """
    heads = rows.reshape(-1, head_size // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def _dtype(tensor: UnpackedTensor, storage: str) -> str:
    if tensor.minus_one:
        # llama.cpp keeps 1 + weight in float32. The weight stays so until the checkpoint adds 1
        # again: rounded here as well, it would be rounded twice.
        return "F32"
    return tensor.source.kind if tensor.source.kind in UNQUANTIZED else storage
