"""How much memory a conversion takes: a forecast, and as many workers as there is memory for.

Private memory is counted, `RssAnon` of /proc/PID/status: not mapped files, not the page cache. The
constants are measured with the versions of constraints.txt, on a CPU; tests compare forecasts with
processes.
"""

from __future__ import annotations

from math import prod
from typing import Final

from minitron_trt.convert.conversion_plan import BLOCK_BYTES, ConversionPlan, TensorPlan
from minitron_trt.convert.gguf.tensor_origins import GgufModel
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.dtypes import UNQUANTIZED
from minitron_trt.host.machine import available_bytes, usable_cores
from minitron_trt.quantization.precisions import Need

_INTERPRETER_BYTES: Final = 28_500_000  # with numpy and the modules of a conversion
_PLANNED_TENSOR_BYTES: Final = 3_000
_LIBRARIES_BYTES: Final = 363_000_000  # torch, transformers and ModelOpt
_NEMO_BYTES: Final = 3_000_000  # modules that read YAML, tars and pickles
_REARRANGING_BYTES: Final = 12_000_000  # blocks of rows, as they lie and as they are put
_GGUF_BYTES: Final = 2_000_000  # the gguf package, imported
_UNPACKING_BYTES: Final = 50_000_000  # the blocks that unpacking workers hold
_PASSING_BYTES: Final = 8_000_000  # the same where no tensor is quantized

# Blocks that a worker holds at once: of the source and of what is made of them, and what looking
# for numbers that are none, or lost to rounding, takes.
_COPIED_BLOCKS: Final = 2.0
_CHANGED_BLOCKS: Final = 7.5  # converted or quantized

# Bytes of a token's values in a layer: several forms are alive at its largest moment.
_TOKEN_BYTES_OF_HIDDEN: Final = 8
_TOKEN_BYTES_OF_INTERMEDIATE: Final = 6
_TOKENIZER_COPIES: Final = 7  # what a loaded tokenizer takes, in sizes of tokenizer.json
_SCALED_WEIGHT_BYTES: Final = 2  # of each value that AWQ scales
_SEARCH_BYTES: Final = 9  # of each value of the largest matrix, while AWQ searches

_MOST_COPYING: Final = 2  # copying is bound by memory bandwidth, which two saturate
_MOST_COMPUTING: Final = 8  # beyond that, workers wait for the disk


def peak_memory_bytes(source: ModelSource, plan: ConversionPlan) -> int:
    """Return a forecast of the most private memory that a conversion holds at one time."""
    planned = sum(len(rank) for rank in plan.ranks) * _PLANNED_TENSOR_BYTES
    base = _INTERPRETER_BYTES + planned
    writing = workers(plan) * worker_bytes(plan)
    unpacking = 0
    if isinstance(source.packed, GgufModel):
        base += _GGUF_BYTES
        kinds = {tensor.source.kind for tensor in source.packed.tensors}
        unpacking = _UNPACKING_BYTES if kinds - UNQUANTIZED else _PASSING_BYTES
    elif source.packed:
        base += _NEMO_BYTES
        unpacking = _REARRANGING_BYTES
    if not plan.calibrated:
        return base + max(unpacking, writing)
    return base + _LIBRARIES_BYTES + max(unpacking, writing, _calibrating_bytes(source, plan))


def workers(plan: ConversionPlan) -> int:
    """Return how many tensors are made at once: what the cores and the free memory allow."""
    most = _MOST_COMPUTING if plan.precision.tensors else _MOST_COPYING
    fitting = available_bytes() // max(1, worker_bytes(plan))
    return max(1, min(most, usable_cores(), fitting))


def worker_bytes(plan: ConversionPlan) -> int:
    """Return how much a worker holds for the most demanding tensor of a plan."""
    blocks = max((_blocks(plan, tensor) for rank in plan.ranks for tensor in rank), default=0.0)
    return int(blocks * BLOCK_BYTES)


def _blocks(plan: ConversionPlan, tensor: TensorPlan) -> float:
    """Return how many blocks a worker holds for a tensor; vectors are no blocks."""
    if len(tensor.shape) < 2 or not tensor.parts:
        return 0.0
    if tensor.linear and plan.precision.scheme:
        return _CHANGED_BLOCKS
    changed = any(part.source.dtype != tensor.dtype or part.scale != 1.0 for part in tensor.parts)
    return _CHANGED_BLOCKS if changed else _COPIED_BLOCKS


def _calibrating_bytes(source: ModelSource, plan: ConversionPlan) -> int:
    """Return what the model, its text and its search take beside the libraries."""
    spec = plan.spec
    token = _TOKEN_BYTES_OF_HIDDEN * spec.hidden + _TOKEN_BYTES_OF_INTERMEDIATE * spec.intermediate
    running = plan.calibration_tokens * token
    # The model runs in bfloat16: those weights stay in their mapped files, the others are copied.
    values = {entry: prod(entry.shape) for entry in source.tensors.values()}
    copied = 2 * sum(count for entry, count in values.items() if entry.dtype != "BF16")
    tokenizer = sum(path.stat().st_size for path in source.extras if path.name == "tokenizer.json")
    searching = 0
    if Need.PREQUANT in plan.precision.needs:
        linear = {part.source for rank in plan.ranks for t in rank if t.linear for part in t.parts}
        sizes = [values[entry] for entry in linear]
        searching = _SCALED_WEIGHT_BYTES * sum(sizes) + _SEARCH_BYTES * max(sizes)
    return copied + _TOKENIZER_COPIES * tokenizer + max(running, searching)
