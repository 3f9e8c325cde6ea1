"""What becomes of the weights and of their formats: a checkpoint's, and those of an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from minitron_trt.artifacts import WEIGHTS_NAME
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.hf_output import has_kv_scales
from minitron_trt.convert.source.model_folder import folder_formats
from minitron_trt.migrate.fates import Fate, Ledger, SettingFate
from minitron_trt.migrate.hf_weights import MODEL_FOLDER, NormsWritten
from minitron_trt.migrate.origin import Origin
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS, Precision

_KV_DTYPE: Final = "llm.kv_cache_config.dtype"


def note_checkpoint(ledger: Ledger, checkpoint: Checkpoint, stored: Precision) -> None:
    """Note what a checkpoint's weights become, which the folder has in the precision `stored`."""
    ranks, precision = checkpoint.parallelism.world_size, checkpoint.precision
    joined = f", joined from {ranks} ranks" if ranks > 1 else ""
    becomes = f"{MODEL_FOLDER}/{WEIGHTS_NAME}, {stored.name}{joined}"
    if precision is stored:
        _note(ledger, "precision", precision.name, Fate.CARRIED, becomes=becomes)
        return
    _note(
        ledger,
        "precision",
        precision.name,
        Fate.CHANGED,
        becomes=becomes,
        reason=f"trtllm-build quantized to {precision.algorithm}, and nothing does here: they take "
        "more memory",
    )


def carried_kv_cache(ledger: Ledger, kv_cache: str | None, precision: Precision) -> str | None:
    """Return the KV cache's format where its scales go into the folder, and note its fate."""
    if kv_cache is None:
        return None
    if KV_CACHES[kv_cache].in_hf and has_kv_scales(precision):
        becomes = "k_scale and v_scale, the one scale of the checkpoint"
        _note(ledger, "kv_cache", kv_cache, Fate.CARRIED, becomes=becomes)
        return kv_cache
    _note_kv_without_scales(ledger, kv_cache)
    return None


def _note_kv_without_scales(ledger: Ledger, kv_cache: str) -> None:
    if not KV_CACHES[kv_cache].in_hf:
        reason = f"the PyTorch runtime has no {kv_cache} KV cache"
        _note(ledger, "kv_cache", kv_cache, Fate.LOST, reason=reason)
        return
    ledger.aim(_KV_DTYPE, kv_cache)
    _note(
        ledger,
        "kv_cache",
        kv_cache,
        Fate.CHANGED,
        becomes=f"{_KV_DTYPE}={kv_cache}",
        reason="without calibrated scales, which stand beside quantized weights only",
    )


def note_folder(origin: Origin, folder: Path) -> None:
    """Note what an engine's weights and formats become over a model folder."""
    ledger, engine = origin.ledger, origin.engine
    _note(
        ledger,
        "engine",
        str(origin.place),
        Fate.CHANGED,
        becomes=str(folder),
        reason="an engine's weights cannot be read: the model itself is served",
    )
    if engine is None:
        return
    stored = folder_formats(folder)
    becomes = f"the model's weights, {stored.weights}"
    if engine.precision == stored.weights:
        _note(ledger, "precision", engine.precision, Fate.CARRIED, becomes=becomes)
    else:
        reason = "an engine's cannot be read"
        known = PRECISIONS.get(engine.precision)
        # Of the others no folder exists that the PyTorch runtime loads.
        if known and known.in_hf:
            reason += (
                f"; or first: minitron-trt convert {folder} --format hf "
                f"--precision {engine.precision} -o model"
            )
        _note(ledger, "precision", engine.precision, Fate.CHANGED, becomes=becomes, reason=reason)
    if engine.kv_cache is None:
        return
    if engine.kv_cache == stored.kv_cache:
        becomes = f"the scales in {folder.name}"
        _note(ledger, "kv_cache", engine.kv_cache, Fate.CARRIED, becomes=becomes)
    else:
        _note_kv_without_scales(ledger, engine.kv_cache)


def note_norms(ledger: Ledger, written: NormsWritten) -> None:
    """Note what became of LayerNorm1P's weights, where there are any."""
    if not written.tensors:
        return
    changed = written.unrestored
    _note(
        ledger,
        "norms",
        f"{written.tensors} of LayerNorm1P",
        Fate.CHANGED if changed else Fate.CARRIED,
        becomes="weight - 1, to which the class adds 1",
        reason=f"{changed:,} values come out another when the 1 is added"
        if changed
        else "what their sum was rounded by stays off, and the factors are the same",
    )


def _note(
    ledger: Ledger, name: str, value: str, fate: Fate, *, becomes: str = "", reason: str = ""
) -> None:
    ledger.note(SettingFate("weights", name, value, fate, becomes, reason))
