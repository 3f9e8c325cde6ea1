"""Which rectangle of a source tensor belongs to a tensor-parallel rank.

`executor.merged_weights` joins the shards again and shares no code with this module on purpose:
each is the other's witness.
"""

from __future__ import annotations

from minitron_trt.families import Source, Split
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry


def shard(
    split: Split, origin: Source, entry: TensorEntry, spec: ModelSpec, *, tp_rank: int, tp: int
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the rows and columns of one source tensor that belong to a tensor-parallel rank."""
    # `Parallelism.check` has refused heads and MLPs that do not divide by tp.
    height, width = entry.shape if len(entry.shape) == 2 else (entry.shape[0], 1)
    rows, columns = (0, height), (0, width)
    if split is Split.COLUMN:
        rows = _nth(height // tp, tp_rank)
    elif split is Split.ROW:
        columns = _nth(width // tp, tp_rank)
    elif split is Split.VOCAB:
        # TensorRT-LLM fills it up with zeros, which stay where no part is written. So the last
        # ranks may have fewer rows than the others, or none.
        start, stop = _nth(-(-height // tp), tp_rank)
        rows = (min(start, height), min(stop, height))
    elif split is Split.QKV and origin.axes[0] == "kv_size" and tp > spec.kv_heads:
        # Each key/value head serves tp / kv_heads neighbouring ranks.
        rows = _nth(spec.head_size, tp_rank * spec.kv_heads // tp)
    elif split is Split.QKV:
        rows = _nth(height // tp, tp_rank)
    return rows, columns


def _nth(size: int, index: int) -> tuple[int, int]:
    return index * size, (index + 1) * size
