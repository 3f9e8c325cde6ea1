"""The baseline's probabilities on a disk, in the file that llama-perplexity writes and reads.

`--save-all-logits` and `--kl-divergence-base` are its options. A header has the context, the
vocabulary and the tokens; then each scored token has a row of 16-bit steps between its smallest and
its largest log-probability, or sixteen below that.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.errors import BadInputError
from minitron_trt.evaluate.perplexity import TextChunk
from minitron_trt.quantization.number_formats import Array

_MAGIC: Final = b"_logits_"
_HEADER: Final = struct.Struct("<8sIii")
_STEPS: Final = 65535
_RANGE: Final = 16.0
_SCALE_VALUES: Final = 4  # of 16 bits, which the two numbers of a row take


@dataclass(frozen=True, slots=True)
class BaselineFile:
    """A file for so many chunks of tokens [chunks, context], some of which it may lack yet.

    llama-perplexity reads it where as many tokens of a chunk are scored as it scores.
    """

    path: Path
    vocab: int
    tokens: NDArray[np.int32]
    scored: int  # tokens of a chunk

    @classmethod
    def open(cls, path: Path, *, scored: int) -> BaselineFile:
        """Read the header; BadInputError when it is none."""
        with path.open("rb") as file:
            start = file.read(_HEADER.size)
            if len(start) < _HEADER.size or not start.startswith(_MAGIC):
                raise BadInputError(
                    f"{path} does not begin with {_MAGIC.decode()!r}; expected a file of "
                    "llama-perplexity --save-all-logits"
                )
            _, context, vocab, count = _HEADER.unpack(start)
            size = path.stat().st_size - _HEADER.size
            if vocab < 1 or count < 1 or context < 4 or 4 * context * count > size:
                raise BadInputError(f"{path} is truncated or damaged; make it again")
            tokens = np.frombuffer(file.read(4 * context * count), np.int32)
        return cls(path, vocab, tokens.reshape(count, context), scored)

    def create(self) -> None:
        """Write the header of a new file."""
        count, context = self.tokens.shape
        with self.path.open("wb") as file:
            file.write(_HEADER.pack(_MAGIC, context, self.vocab, count))
            file.write(np.ascontiguousarray(self.tokens, np.int32).tobytes())

    @property
    def complete(self) -> int:
        """Return how many chunks it has whole."""
        return (self.path.stat().st_size - self._start) // self._chunk_bytes

    def append(self, index: int, rows: NDArray[np.uint16]) -> None:
        """Write a chunk's rows [scored, values of a row] in its place, as `in_steps` makes them."""
        with self.path.open("r+b") as file:
            file.seek(self._start + index * self._chunk_bytes)
            file.write(rows.tobytes())

    def read(self, index: int) -> NDArray[np.uint16]:
        """Return a chunk's rows, for `in_numbers`; BadInputError when it lacks them."""
        with self.path.open("rb") as file:
            file.seek(self._start + index * self._chunk_bytes)
            blob = file.read(self._chunk_bytes)
        if len(blob) < self._chunk_bytes:
            raise BadInputError(f"{self.path} lacks chunk {index + 1}; make it again")
        return np.frombuffer(blob, np.uint16).reshape(self.scored, self._row_values)

    def in_steps(self, log_probabilities: Array) -> NDArray[np.uint16]:
        """Return log-probabilities [rows, vocab] as the file has them: [rows, values of a row].

        A row's first values are its scale and its least log-probability, as float32.
        """
        largest = log_probabilities.max(axis=1, keepdims=True)
        least = np.maximum(log_probabilities.min(axis=1, keepdims=True), largest - _RANGE)
        scale = ((largest - least) / _STEPS).astype(np.float32)
        safe = np.where(scale > 0, scale, 1).astype(np.float64)
        steps = np.rint(np.clip(log_probabilities - least, 0, None) / safe)
        rows = np.zeros((len(steps), self._row_values), np.uint16)
        rows[:, :_SCALE_VALUES] = np.hstack([scale, least.astype(np.float32)]).view(np.uint16)
        rows[:, _SCALE_VALUES : _SCALE_VALUES + steps.shape[1]] = np.minimum(steps, _STEPS)
        return rows

    def in_numbers(self, rows: NDArray[np.uint16]) -> Array:
        """Return the log-probabilities [rows, vocab] of rows of the file."""
        numbers = rows[:, :_SCALE_VALUES].copy().view(np.float32)
        steps = rows[:, _SCALE_VALUES : _SCALE_VALUES + self.vocab]
        return np.asarray((numbers[:, :1] * steps + numbers[:, 1:]).astype(np.float64))

    def fits(self, chunks: tuple[TextChunk, ...]) -> bool:
        """Return whether its tokens are those that the chunks are scored by."""
        targets = np.array([chunk.targets for chunk in chunks])
        return self.tokens.shape[0] >= len(chunks) and bool(
            self.tokens.shape[1] == len(chunks[0].inputs)
            and self.scored == targets.shape[1]
            and (self.tokens[: len(chunks), -self.scored :] == targets).all()
        )

    @property
    def _start(self) -> int:
        return _HEADER.size + 4 * self.tokens.size

    @property
    def _row_values(self) -> int:
        # llama.cpp's rows are whole words of 32 bits.
        return 2 * ((self.vocab + 1) // 2) + _SCALE_VALUES

    @property
    def _chunk_bytes(self) -> int:
        return 2 * self.scored * self._row_values
