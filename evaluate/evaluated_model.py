"""A model that is evaluated: a checkpoint, or a folder or file that becomes one for that time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minitron_trt.artifacts import CHECKPOINT, MANIFEST_NAME, kind_of
from minitron_trt.build.engine_model import model_of
from minitron_trt.build.recipe.engine_memory import pipeline_weights_bytes
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import ShowProgress, no_display
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.source.locate import is_gguf, locate
from minitron_trt.convert.source.weight_files import read_tensors
from minitron_trt.errors import MissingExtraError, UnsupportedError
from minitron_trt.evaluate.perplexity import Chunk


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model that scores chunks."""

    name: str
    size_bytes: int  # of the weights: a source's files, or what a checkpoint's take on GPUs
    vocab: int
    tokenizer_json: Path
    _reference: Any  # ReferenceModel, which needs torch

    def logits(self, chunk: Chunk) -> NDArray[np.float32]:
        """Return the logits of a chunk's scored rows [scored, vocab]."""
        from minitron_trt.executor.step import StepBatch

        count = len(chunk.inputs)
        batch = StepBatch(
            input_ids=chunk.inputs,
            positions=np.arange(count, dtype=np.int32),
            slots=np.zeros(1, np.int32),
            lengths=np.array([count], np.int32),
            logit_rows=np.arange(chunk.first_row, count - 1, dtype=np.int32),
        )
        rows: NDArray[np.float32] = self._reference.step(batch)
        return rows


@contextmanager
def opened_model(
    source: str, *, context: int, dtype: str, progress: ShowProgress = no_display
) -> Iterator[EvaluatedModel]:
    """Open a checkpoint, a model folder, a GGUF file, a NeMo archive or a hub id.

    What is no checkpoint is converted to one that is removed at the end of the block.
    BadInputError and UnsupportedError say what is wrong with it.
    """
    if "://" in source:
        raise UnsupportedError(
            f"{source} is a server, whose text models do not say which tokens a text is to it; "
            "evaluate the checkpoint that it serves"
        )
    folder = Path(source)
    if (folder / MANIFEST_NAME).is_file() and kind_of(folder) == CHECKPOINT:
        yield _opened(folder, source, _size(folder), context, dtype)
        return
    path = locate(source, revision=None, token=None)
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as name:
        checkpoint = Path(name) / "checkpoint"
        convert(str(path), checkpoint, ConvertOptions(precision=_precision(path)), progress)
        yield _opened(checkpoint, source, _source_size(path, checkpoint), context, dtype)


def _opened(folder: Path, source: str, size_bytes: int, context: int, dtype: str) -> EvaluatedModel:
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "reference", "evaluating a model") from None
    from minitron_trt.executor.reference import ReferenceModel

    checkpoint = Checkpoint.open(folder)
    if context > checkpoint.spec.max_positions:
        raise UnsupportedError(
            f"{source} was trained on {checkpoint.spec.max_positions} positions; pass a --context "
            f"of at most so many, not {context}"
        )
    reference = ReferenceModel(
        checkpoint, slots=1, max_seq_len=context, dtype=getattr(torch, dtype)
    )
    return EvaluatedModel(
        name=Path(source).name or source,
        size_bytes=size_bytes,
        vocab=checkpoint.spec.vocab,
        tokenizer_json=folder / "tokenizer.json",
        _reference=reference,
    )


def _precision(path: Path) -> str | None:
    """Return the precision that keeps most of a source's bits: its own, bf16, or fp16."""
    if not is_gguf(path):
        return None
    kinds = {tensor.kind for tensor in GgufFile.open(path).tensors.values()}
    # What is quantized has scales in F16.
    return "bf16" if kinds <= {"F32", "BF16"} else "fp16"


def _size(checkpoint: Path) -> int:
    # Weight-only precisions are packed when the engine is built.
    model = model_of(Checkpoint.open(checkpoint))
    return model.parallelism.tp * pipeline_weights_bytes(model)


def _source_size(path: Path, checkpoint: Path) -> int:
    if is_gguf(path):
        files = {tensor.path for tensor in GgufFile.open(path).tensors.values()}
    elif path.is_dir():
        files = {entry.path for entry in read_tensors(path).values()}
    else:
        return _size(checkpoint)
    return sum(file.stat().st_size for file in files)
