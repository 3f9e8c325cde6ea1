"""A model that is evaluated: a checkpoint, what becomes one for that time, or one on a server."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minitron_trt.artifacts import CHECKPOINT, MANIFEST_NAME, kind_of
from minitron_trt.build.engine_model import model_of
from minitron_trt.build.recipe.engine_memory import pipeline_weights_bytes
from minitron_trt.checkpoint import Checkpoint, rank_file
from minitron_trt.console import ShowProgress, no_display
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.nemo.archive import is_nemo
from minitron_trt.convert.source.locate import is_gguf, locate
from minitron_trt.convert.source.weight_files import read_tensors
from minitron_trt.errors import MissingExtraError, UnsupportedError
from minitron_trt.evaluate.perplexity import TextChunk

if TYPE_CHECKING:
    from minitron_trt.evaluate.served_model import ServerSettings


class PromptLogits(Protocol):
    """Where a prompt's logits come from."""

    def __call__(self, ids: NDArray[np.int32], rows: range) -> NDArray[np.float32]:
        """Return the logits [rows, vocab] that follow these tokens of a prompt."""


@dataclass(frozen=True, slots=True)
class EvaluatedModel:
    """A model that scores chunks."""

    name: str
    identity: str  # of its weights, which changes when they do
    size_bytes: int | None  # of the weights: a source's files, or what a checkpoint's take on GPUs
    vocab: int
    tokenizer_json: Path | None  # None of a server, unless it was named
    prompt_logits: PromptLogits

    def logits(self, chunk: TextChunk) -> NDArray[np.float32]:
        """Return the logits of a chunk's scored rows [scored, vocab]."""
        return self.prompt_logits(chunk.inputs, range(chunk.first_row, len(chunk.inputs) - 1))


@dataclass(frozen=True, slots=True)
class ComputedLogits:
    """The logits of prompts, computed here."""

    reference: Any  # ReferenceModel, which needs torch

    def __call__(self, ids: NDArray[np.int32], rows: range) -> NDArray[np.float32]:
        """Return the logits [rows, vocab] that follow these tokens of a prompt."""
        from minitron_trt.executor.step import StepBatch

        batch = StepBatch(
            input_ids=ids[: rows.stop],
            positions=np.arange(rows.stop, dtype=np.int32),
            slots=np.zeros(1, np.int32),
            lengths=np.array([rows.stop], np.int32),
            logit_rows=np.array(rows, np.int32),
        )
        logits: NDArray[np.float32] = self.reference.step(batch)
        return logits


@contextmanager
def opened_model(
    source: str,
    *,
    context: int,
    dtype: str,
    device: str = "cpu",
    server: ServerSettings | None = None,
    progress: ShowProgress = no_display,
) -> Iterator[EvaluatedModel]:
    """Open a checkpoint, a model folder, a GGUF file, a NeMo archive, a hub id or a server's URL.

    What is neither a checkpoint nor served is converted to one that is removed at the end of the
    block. BadInputError and UnsupportedError say what is wrong with it, ServerError what is wrong
    with a server.
    """
    if is_server(source):
        # Only this needs the clients.
        from minitron_trt.evaluate.served_model import ServerSettings, opened_server

        settings = server or ServerSettings()
        with opened_server(source, settings) as (served, probe):
            yield EvaluatedModel(
                name=name_of(source),
                identity=probe.identity,
                size_bytes=None,
                vocab=probe.vocab,
                tokenizer_json=settings.tokenizer_json,
                prompt_logits=served,
            )
        return
    with opened_checkpoint(source, device=device, progress=progress) as opened:
        model = opened.reference(slots=1, context=context, dtype=dtype, device=device)
        yield EvaluatedModel(
            name=name_of(source),
            identity=opened.identity,
            size_bytes=opened.size_bytes,
            vocab=opened.checkpoint.spec.vocab,
            tokenizer_json=opened.checkpoint.folder / "tokenizer.json",
            prompt_logits=ComputedLogits(model),
        )


@dataclass(frozen=True, slots=True)
class OpenedCheckpoint:
    """A checkpoint that a source is, or was made from it; size and identity are the source's."""

    source: str
    checkpoint: Checkpoint
    identity: str
    size_bytes: int

    def reference(self, *, slots: int, context: int, dtype: str, device: str = "cpu") -> Any:
        """Return its ReferenceModel; UnsupportedError when it does not have so many positions."""
        import torch

        from minitron_trt.executor.reference import ReferenceModel

        positions = self.checkpoint.spec.max_positions
        if context > positions:
            raise UnsupportedError(
                f"{self.source} was trained on {positions} positions; pass a context of at most so "
                f"many tokens, not {context}"
            )
        return ReferenceModel(
            self.checkpoint,
            slots=slots,
            max_seq_len=context,
            device=device,
            dtype=getattr(torch, dtype),
        )


@contextmanager
def opened_checkpoint(
    source: str, *, device: str = "cpu", progress: ShowProgress = no_display
) -> Iterator[OpenedCheckpoint]:
    """Open a checkpoint, or convert a model folder, file, archive or hub id to one for the block.

    What cannot compute it, torch or a GPU that is missing, is refused before a conversion, which
    may take minutes.
    """
    check_device(device)
    folder = Path(source)
    if (folder / MANIFEST_NAME).is_file() and kind_of(folder) == CHECKPOINT:
        checkpoint = Checkpoint.open(folder)
        ranks = {folder / rank_file(rank) for rank in range(checkpoint.parallelism.world_size)}
        yield OpenedCheckpoint(source, checkpoint, _identity(ranks), _resident_bytes(checkpoint))
        return
    path = locate(source, revision=None, token=None)
    with tempfile.TemporaryDirectory(prefix="minitron-trt-") as name:
        output = Path(name) / "checkpoint"
        convert(str(path), output, ConvertOptions(precision=_precision(path)), progress)
        checkpoint = Checkpoint.open(output)
        files = _weight_files(path)
        size_bytes = _size_bytes(path, files, checkpoint)
        yield OpenedCheckpoint(source, checkpoint, _identity(files), size_bytes)


def is_server(source: str) -> bool:
    """Say whether a source is the URL of a server."""
    return "://" in source


def name_of(source: str) -> str:
    """Return what a source is called in tables: a server by its address."""
    return source.partition("://")[2] if is_server(source) else Path(source).name or source


def check_device(device: str) -> None:
    """Refuse to compute where nothing can: MissingExtraError without torch, else without a GPU."""
    try:
        import torch
    except ImportError:
        raise MissingExtraError("torch", "reference", "evaluating a model") from None
    if device != "cpu" and not torch.cuda.is_available():
        raise UnsupportedError(
            f"torch sees no NVIDIA GPU here, so --device {device} cannot be used"
        )


def _precision(path: Path) -> str | None:
    """Return the precision that keeps most of a source's bits: its own, bf16, or fp16."""
    if not is_gguf(path):
        return None
    kinds = {tensor.kind for tensor in GgufFile.open(path).tensors.values()}
    # What is quantized has scales in F16.
    return "bf16" if kinds <= {"F32", "BF16"} else "fp16"


def _weight_files(path: Path) -> set[Path]:
    """Return the files that a source's weights lie in, of an unpacked archive all."""
    if is_gguf(path):
        return {tensor.path for tensor in GgufFile.open(path).tensors.values()}
    if is_nemo(path):
        return {path} if path.is_file() else {file for file in path.rglob("*") if file.is_file()}
    return {entry.path for entry in read_tensors(path).values()}


def _identity(files: Collection[Path]) -> str:
    """Return where files lie, how long they are and when they were written."""
    # Digests would be surer, and take as long as reading all weights once more.
    stats = [(str(path), path.stat()) for path in sorted(file.resolve() for file in files)]
    return json.dumps([(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats])


def _size_bytes(path: Path, files: Collection[Path], checkpoint: Checkpoint) -> int:
    # An archive holds more than weights.
    if is_nemo(path):
        return _resident_bytes(checkpoint)
    return sum(file.stat().st_size for file in files)


def _resident_bytes(checkpoint: Checkpoint) -> int:
    # Weight-only precisions are packed when the engine is built.
    model = model_of(checkpoint)
    return model.parallelism.tp * pipeline_weights_bytes(model)
