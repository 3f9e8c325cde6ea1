"""Carry out the quantized part of a plan: weights to the tensors of their precision, by rows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import ml_dtypes
import numpy as np

from minitron_trt.console import Advance
from minitron_trt.convert.conversion_plan import BLOCK_BYTES, ConversionPlan, Part, TensorPlan
from minitron_trt.convert.writing.blocks import Destination, Files, read_blocks, width
from minitron_trt.errors import BadInputError
from minitron_trt.quantization.number_formats import Array
from minitron_trt.quantization.precisions import KV_CACHES, Need, Side, Stored
from minitron_trt.quantization.schemes import Ranges, Scheme, amax_of
from minitron_trt.tensorfile import TensorEntry

_BFLOAT16: Final = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What running text through the model has measured.

    Ranges by linear layer, and the amax of a KV cache by the projection that fills it.
    """

    linears: Mapping[str, Ranges] = field(default_factory=dict)
    kv_caches: Mapping[str, float] = field(default_factory=dict)


def with_weight_amax(plan: ConversionPlan, calibration: Calibration) -> Calibration:
    """Add the amax of each layer's weights, where the precision must know it before it rounds."""
    sources: dict[str, dict[TensorEntry, None]] = {}
    known: dict[str, Ranges] = {}
    group: dict[str, str] = {}
    for tensor in (tensor for rank in plan.ranks for tensor in rank):
        if tensor.linear:
            entries = sources.setdefault(tensor.linear, {})
            entries.update((part.source, None) for part in tensor.parts)
            known[tensor.linear] = calibration.linears.get(tensor.calibrated_as, Ranges())
            group[tensor.linear] = tensor.amax_group
    if Need.WEIGHT in plan.precision.needs:
        amax: dict[str, float] = {}
        with Files() as files:
            for linear, entries in sources.items():
                own = _amax(entries, known[linear].prequant, files)
                amax[group[linear]] = max(amax.get(group[linear], 0.0), own)
        known = {
            linear: replace(ranges, weight=amax[group[linear]]) for linear, ranges in known.items()
        }
    return replace(calibration, linears=known)


def _amax(entries: Iterable[TensorEntry], prequant: Array | None, files: Files) -> float:
    amax = 0.0
    for entry in entries:
        reader = files.descriptor(entry.path, os.O_RDONLY)
        for _, rows in read_blocks(entry, reader, (0, entry.shape[0]), BLOCK_BYTES):
            with np.errstate(all="ignore"):
                # In bf16, as calibration runs the model and as `quantize` looks the values up: an
                # amax of float32 numbers could be another scale than that of the codes.
                block_amax = amax_of(rows.astype(_BFLOAT16, copy=False), prequant)
            if not math.isfinite(block_amax):
                raise _not_finite(entry)
            amax = max(amax, block_amax)
        if not amax:
            raise BadInputError(
                f"tensor {entry.name} is 0 throughout, so no scale fits it; convert with "
                "--precision bf16"
            )
    return amax


def _not_finite(entry: TensorEntry) -> BadInputError:
    return BadInputError(
        f"tensor {entry.name} has a value that is not a finite bfloat16 number; it cannot be "
        "quantized"
    )


def write_constants(
    plan: ConversionPlan,
    tensors: Iterable[tuple[TensorPlan, TensorEntry]],
    calibration: Calibration,
    files: Files,
    advance: Advance,
) -> None:
    """Write what quantized layers have once: scales of a whole tensor, AWQ's factors, KV scales."""
    for tensor, target in tensors:
        if tensor.value is not None:
            value: Array = np.array([tensor.value], np.float32)
        elif tensor.caches and plan.kv_cache:
            kind = KV_CACHES[plan.kv_cache]
            amax = max(calibration.kv_caches[name] for name in tensor.caches)
            # ModelOpt gives its advice about small scales to engines only.
            smallest = kind.smallest_scale if plan.form == "trtllm" else 0.0
            scale = np.float32(amax) / np.float32(kind.largest)
            value = np.array([max(scale, smallest)], np.float32)
        elif tensor.stored and tensor.linear and not tensor.stored.per_row:
            scheme = _scheme(plan)
            value = scheme.constants(calibration.linears[tensor.linear])[tensor.stored.suffix]
            if tensor.stored.dimension(Side.IN) is not None:
                value = value[slice(*tensor.parts[0].columns)]
        else:
            continue
        files.write(target, 0, value)
        advance(value.nbytes)


def _scheme(plan: ConversionPlan) -> Scheme:
    scheme = plan.precision.scheme
    if scheme is None:
        raise ValueError(f"{plan.precision.name} quantizes nothing")
    return scheme


def quantize(
    source: TensorEntry,
    destinations: list[Destination],
    scheme: Scheme,
    ranges: Ranges,
    files: Files,
    advance: Advance,
) -> None:
    """Read a weight once and write each rank's shard of every tensor made of it."""
    reader = files.descriptor(source.path, os.O_RDONLY)
    wanted = [d for d in destinations if d.tensor.stored and d.tensor.stored.per_row]
    first = min(d.part.rows[0] for d in wanted)
    last = max(d.part.rows[1] for d in wanted)
    # Rows that share an entry of some tensor must not come apart.
    together = math.lcm(*(d.tensor.stored.axes[0].per for d in wanted if d.tensor.stored))
    blocks = read_blocks(source, reader, (first, last), BLOCK_BYTES, together)
    for start, rows in blocks:
        if files.stop.is_set():
            return
        # Values that are not finite are an error below; numpy's warnings would come before it.
        with np.errstate(all="ignore"):
            made = scheme.rows(rows.astype(_BFLOAT16, copy=False), ranges)
        if not all(np.isfinite(v).all() for v in made.values() if v.dtype == np.float32):
            raise _not_finite(source)
        for destination in wanted:
            part, stored = destination.part, destination.tensor.stored
            low, high = max(start, part.rows[0]), min(start + len(rows), part.rows[1])
            if stored and low < high:
                shard = _shard(made[stored.suffix], stored, (low - start, high - start), part)
                at = (part.at + low - part.rows[0]) // stored.axes[0].per
                row = shard.nbytes // len(shard)
                files.write(destination.target, at * row, shard)
                advance(shard.nbytes)


def _shard(values: Array, stored: Stored, rows: tuple[int, int], part: Part) -> Array:
    """Return the part of a stored tensor that stands for a rectangle of the weight."""
    per = stored.axes[0].per
    shard = values[rows[0] // per : rows[1] // per]
    if len(stored.axes) == 2 and part.columns != (0, width(part.source)):
        per = stored.axes[1].per
        shard = shard[:, part.columns[0] // per : part.columns[1] // per]
    return shard
