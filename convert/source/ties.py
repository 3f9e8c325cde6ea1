"""Which tensor is the head of a model whose config ties it to the embedding.

Checkpoints store the pair once or twice. transformers 5 ties what is stored twice only if both are
equal, and takes the head for both where it alone is stored; 4.57 ties them without a look.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final

from minitron_trt.errors import BadInputError
from minitron_trt.families import EMBEDDING, HEAD
from minitron_trt.tensorfile import TensorEntry

_CHUNK_BYTES: Final = 8 << 20


def tie_head(tensors: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Return a tied model's tensors with the embedding as the only one of the pair.

    BadInputError where the head is stored as well and differs.
    """
    others = {name: entry for name, entry in tensors.items() if name != HEAD}
    if HEAD not in tensors:
        return others
    if EMBEDDING not in tensors:
        return {**others, EMBEDDING: tensors[HEAD]}
    if not _same(tensors[EMBEDDING], tensors[HEAD]):
        raise BadInputError(
            f"config.json: tie_word_embeddings is true but {HEAD} is stored and differs from "
            f"{EMBEDDING}; transformers 5 keeps it and 4.57 drops it: set tie_word_embeddings to "
            "false to keep it, or remove the tensor"
        )
    return others


def _same(one: TensorEntry, other: TensorEntry) -> bool:
    """Return whether two tensors are equal byte for byte."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    if (one.path, one.offset) == (other.path, other.offset):
        return True
    with one.path.open("rb") as first, other.path.open("rb") as second:
        for at in range(0, one.size_bytes, _CHUNK_BYTES):
            size = min(_CHUNK_BYTES, one.size_bytes - at)
            pieces = (
                os.pread(first.fileno(), size, one.offset + at),
                os.pread(second.fileno(), size, other.offset + at),
            )
            if pieces[0] != pieces[1]:
                return False
    return True
