"""A NeMo archive as a Hugging Face folder: config, tokenizer, and a file of what is rearranged.

A tensor whose rows lie together in the archive stays there, as a byte range; q, k and v, and what
ranks share, are written to the folder a block of rows at a time, as they are.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG, WEIGHTS_NAME
from minitron_trt.console import Advance, no_progress
from minitron_trt.convert.nemo.megatron_tensors import NemoModel, NemoTensor
from minitron_trt.convert.nemo.tokenizer_files import NemoTokenizer
from minitron_trt.convert.source.folder_files import write_json
from minitron_trt.convert.source.sentencepiece_model import SentencePieceModel
from minitron_trt.convert.source.slow_tokenizer import SENTENCEPIECE, VOCABULARY
from minitron_trt.convert.source.tokenizer_folder import (
    PLAIN_CLASS,
    TOKENIZER_CONFIG,
    TOKENIZER_JSON,
)
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import OutputError
from minitron_trt.families import EMBEDDING
from minitron_trt.host.machine import usable_cores
from minitron_trt.tensorfile import TensorEntry, lay_out

_BLOCK_BYTES: Final = 2 << 20
# Copying is bound by memory bandwidth, which two saturate.
_WORKERS: Final = min(2, usable_cores())


def _write_tokenizer(tokenizer: NemoTokenizer, folder: Path) -> None:
    """Write the tokenizer's files, and what a Hugging Face folder says of them besides."""
    for name, file in tokenizer.files.items():
        (folder / name).write_bytes(file.read())
    if {TOKENIZER_JSON, TOKENIZER_CONFIG} & tokenizer.files.keys():
        return
    if SENTENCEPIECE in tokenizer.files:
        # NeMo leaves texts to SentencePiece itself.
        pieces = SentencePieceModel.read(folder / SENTENCEPIECE)
        write_json(folder, TOKENIZER_JSON, pieces.tokenizer_json())
        tokens = {
            name.removesuffix("_id"): pieces.pieces[index]
            for name, index in tokenizer.special.items()
        }
        write_json(folder, TOKENIZER_CONFIG, {"tokenizer_class": PLAIN_CLASS, **tokens})
    elif VOCABULARY in tokenizer.files:
        write_json(folder, TOKENIZER_CONFIG, {"tokenizer_class": "GPT2Tokenizer"})


@dataclass(frozen=True, slots=True)
class NemoFolder:
    """A folder whose small files are all there, with room for the weights that `fill` writes."""

    folder: Path
    model: NemoModel
    rearranged: tuple[tuple[NemoTensor, TensorEntry], ...]
    in_place: Mapping[str, TensorEntry]

    @classmethod
    def lay_out(cls, model: NemoModel, folder: Path) -> NemoFolder:
        """Write config, tokenizer and the header of what is rearranged, whose bytes are a hole."""
        in_place = {t.name: entry for t in model.tensors if (entry := _in_place(t))}
        moved = [tensor for tensor in model.tensors if tensor.name not in in_place]
        header, entries = lay_out(
            folder / WEIGHTS_NAME, ((t.name, t.source.dtype, t.shape) for t in moved)
        )
        with (folder / WEIGHTS_NAME).open("wb") as weights:
            weights.write(header)
            weights.truncate(len(header) + sum(entry.size_bytes for entry in entries))
        _write_tokenizer(model.tokenizer, folder)
        dtypes = {tensor.name: tensor.source.dtype for tensor in model.tensors}
        ids = dict(model.tokenizer.special)
        write_json(folder, GENERATION_CONFIG, ids)
        config = {**model.config, **ids, "torch_dtype": DTYPES[dtypes[EMBEDDING]].name}
        write_json(folder, CONFIG_NAME, config)
        return cls(folder, model, tuple(zip(moved, entries, strict=True)), in_place)

    @property
    def size_bytes(self) -> int:
        """Return how many bytes are rearranged."""
        return sum(entry.size_bytes for _, entry in self.rearranged)

    def fill(self, advance: Advance = no_progress) -> None:
        """Write what is rearranged; `advance` hears of the bytes written."""
        free = shutil.disk_usage(self.folder).free
        if free < self.size_bytes:
            raise OutputError(
                f"{self.model.archive.path.name} has {self.size_bytes / 1e9:.2f} GB to rearrange "
                f"but the disk of the output has {free / 1e9:.2f} GB free; choose another disk"
            )
        with (
            (self.folder / WEIGHTS_NAME).open("r+b") as target,
            ThreadPoolExecutor(_WORKERS) as pool,
        ):
            tasks = [
                pool.submit(_move, tensor, entry, target.fileno(), advance)
                for tensor, entry in self.rearranged
            ]
            try:
                for task in tasks:
                    task.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def _in_place(tensor: NemoTensor) -> TensorEntry | None:
    """Return where a tensor lies as safetensors would have it, if it does."""
    if len(tensor.spans) != 1:
        return None
    data = tensor.source.contiguous(tensor.spans[0])
    if data is None:
        return None
    return TensorEntry(data.path, tensor.name, tensor.source.dtype, tensor.shape, data.offset)


def _move(tensor: NemoTensor, entry: TensorEntry, writer: int, advance: Advance) -> None:
    row_bytes = entry.size_bytes // entry.shape[0]
    at = entry.offset
    for rows in _blocks(tensor, max(1, _BLOCK_BYTES // row_bytes)):
        data = tensor.source.read(rows).reshape(-1).data
        advance(len(data))
        while data:
            done = os.pwrite(writer, data, at)
            data, at = data[done:], at + done


def _blocks(tensor: NemoTensor, height: int) -> Iterator[tuple[int, int]]:
    for start, stop in tensor.spans:
        for first in range(start, stop, height):
            yield first, min(first + height, stop)
