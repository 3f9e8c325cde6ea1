"""A tensor of a checkpoint as rectangles of bytes, in whatever files they lie.

Every form of NeMo's weights comes to this: one rectangle for a file of torch.save, one for each
tensor-parallel rank, or one for each layer and rank of a distributed checkpoint, where the layers
are stacked along the first axis.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from minitron_trt.convert.nemo.archive import ByteRange
from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import BadInputError


@dataclass(frozen=True, slots=True)
class ByteBox:
    """A box of a tensor that lies row after row in a file, from `data.offset` on."""

    data: ByteRange
    start: tuple[int, ...]  # where its first value is in the tensor
    shape: tuple[int, ...]  # as stored: a last one may reach beyond the tensor


@dataclass(frozen=True, slots=True)
class StoredArray:
    """A tensor by its name in the checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    pieces: tuple[ByteBox, ...]

    def layers(self) -> list[StoredArray]:
        """Return the tensors that are stacked along the first axis."""
        pieces: list[list[ByteBox]] = [[] for _ in range(self.shape[0])]
        for piece in self.pieces:
            size = math.prod(piece.shape[1:]) * DTYPES[self.dtype].size_bytes
            first = piece.start[0]
            for layer in range(first, min(first + piece.shape[0], self.shape[0])):
                data = piece.data.part((layer - first) * size, size)
                pieces[layer].append(ByteBox(data, piece.start[1:], piece.shape[1:]))
        return [
            StoredArray(f"{self.name}[{layer}]", self.dtype, self.shape[1:], tuple(part))
            for layer, part in enumerate(pieces)
        ]


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a matrix, `stride` values from one of its rows to the next."""

    data: ByteRange
    rows: tuple[int, int]
    columns: tuple[int, int]
    stride: int


@dataclass(frozen=True, slots=True)
class StoredMatrix:
    """A tensor of one axis or two, its tiles in bands that cover it once; a vector is a column."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    tiles: tuple[Tile, ...]

    @classmethod
    def of(cls, array: StoredArray) -> StoredMatrix:
        """Return an array's tiles; BadInputError where they do not cover it, each place once."""
        rows, columns = (*array.shape, 1)[:2]
        tiles = []
        for piece in array.pieces:
            (row, column), (high, wide) = (*piece.start, 0)[:2], (*piece.shape, 1)[:2]
            stop = (min(row + high, rows), min(column + wide, columns))
            tiles.append(Tile(piece.data, (row, stop[0]), (column, stop[1]), wide))
        tiles.sort(key=lambda tile: (tile.rows, tile.columns))
        bands = defaultdict[tuple[int, int], list[tuple[int, int]]](list)
        for tile in tiles:
            bands[tile.rows].append(tile.columns)
        if not _covers(list(bands), rows) or not all(
            _covers(band, columns) for band in bands.values()
        ):
            raise BadInputError(
                f"the pieces of {array.name} do not cover {list(array.shape)} once; "
                "the checkpoint is damaged or a rank of it is missing"
            )
        return cls(array.name, array.dtype, array.shape, tuple(tiles))

    def contiguous(self, rows: tuple[int, int]) -> ByteRange | None:
        """Return where some rows lie, if they lie in one place one after the other."""
        columns = (*self.shape, 1)[1]
        for tile in self.tiles:
            if tile.rows[0] <= rows[0] and rows[1] <= tile.rows[1]:
                if tile.columns != (0, columns) or tile.stride != columns:
                    return None
                width = columns * DTYPES[self.dtype].size_bytes
                return tile.data.part((rows[0] - tile.rows[0]) * width, (rows[1] - rows[0]) * width)
        return None

    def reads(self, rows: tuple[int, int]) -> Iterator[tuple[Tile, tuple[int, int]]]:
        """Yield the tiles that some rows lie in, and which of the rows each has."""
        for tile in self.tiles:
            start, stop = max(rows[0], tile.rows[0]), min(rows[1], tile.rows[1])
            if start < stop:
                yield tile, (start, stop)

    def read(self, rows: tuple[int, int]) -> NDArray[np.uint8]:
        """Return the bytes of some rows, [rows, bytes of a row]."""
        item = DTYPES[self.dtype].size_bytes
        block = np.empty((rows[1] - rows[0], (*self.shape, 1)[1] * item), np.uint8)
        for tile, (start, stop) in self.reads(rows):
            width = tile.stride * item
            data = tile.data.part((start - tile.rows[0]) * width, (stop - start) * width)
            left, right = (column * item for column in tile.columns)
            values = np.frombuffer(data.read(), np.uint8).reshape(stop - start, width)
            block[start - rows[0] : stop - rows[0], left:right] = values[:, : right - left]
        return block


def _covers(spans: list[tuple[int, int]], length: int) -> bool:
    """Return whether sorted spans cover [0, length) once."""
    edges = [(0, 0), *spans, (length, length)]
    return all(before[1] == after[0] for before, after in pairwise(edges))
