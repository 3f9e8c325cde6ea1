"""A checkpoint's weights as the one file of a Hugging Face folder, joined a layer at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from minitron_trt.artifacts import WEIGHTS_NAME
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import Advance
from minitron_trt.convert.hf_output import HfModel, HfTensor
from minitron_trt.errors import MissingExtraError
from minitron_trt.families import Place
from minitron_trt.quantization.precisions import Side
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry

if TYPE_CHECKING:
    import torch

MODEL_FOLDER: Final = "model"
"""The folder of a migration that has them."""


@dataclass(frozen=True, slots=True)
class NormsWritten:
    """The norms of LayerNorm1P among the weights, and their values that are not as they were."""

    tensors: int
    unrestored: int  # values that subtracting 1 could not restore


def write_hf_weights(
    checkpoint: Checkpoint, folder: Path, *, model: HfModel, advance: Advance
) -> NormsWritten:
    """Write model.safetensors; one layer is in memory at a time.

    `model` is what the folder is to have. BadInputError when the ranks' files are not what the
    checkpoint's config.json calls for.
    """
    try:
        from minitron_trt.executor.merged_weights import read_weights
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "reference", "joining a checkpoint's ranks") from error
    layout = tuple(model.tensors())
    header, entries = model.lay_out(folder)
    # By layer, for what a checkpoint joins in one tensor (q, k and v) is read once for all three.
    by_layers: dict[range, list[tuple[HfTensor, TensorEntry]]] = defaultdict(list)
    for tensor, entry in zip(layout, entries, strict=True):
        # Only the KV cache's scales, which are a layer's, have no rule.
        outside = tensor.rule is not None and tensor.rule.place is not Place.LAYER
        layers = range(0) if outside else range(tensor.layer, tensor.layer + 1)
        by_layers[layers].append((tensor, entry))
    unrestored = 0
    with (folder / WEIGHTS_NAME).open("wb") as file:
        file.write(header)
        for layers, placed in by_layers.items():
            weights = read_weights(checkpoint, layers)
            for tensor, entry in placed:
                values = _values(tensor, weights, model.spec)
                if tensor.rule is not None and tensor.rule.plus_one:
                    values, changed = _without_one(values)
                    unrestored += changed
                file.seek(entry.offset)
                file.write(_bytes(values))
                advance(entry.size_bytes)
    norms = sum(tensor.rule is not None and tensor.rule.plus_one for tensor in layout)
    return NormsWritten(norms, unrestored)


def _values(tensor: HfTensor, weights: Mapping[str, torch.Tensor], spec: ModelSpec) -> torch.Tensor:
    """Return a tensor of the folder, cut out of what the checkpoint joins in one."""
    rule, stored = tensor.rule, tensor.stored
    if rule is None or tensor.origin is None:
        # Keys and values have one scale in TensorRT-LLM.
        assert stored is not None
        whole = weights[f"transformer.layers.{tensor.layer}.{stored.suffix}"]
        return whole.reshape(tensor.shape)
    target = f"{rule.linear}.{stored.suffix}" if stored else rule.target
    whole = weights[target.format(tensor.layer)]
    dimension = stored.dimension(Side.OUT) if stored else 0
    if dimension is not None:
        # A scale that has an entry per so many rows is cut by entries.
        per = stored.axes[dimension].per if stored else 1
        earlier = rule.sources[: rule.sources.index(tensor.origin)]
        start = sum(origin.shape(spec)[0] for origin in earlier) // per
        whole = whole.narrow(dimension, start, tensor.origin.shape(spec)[0] // per)
    return whole.reshape(tensor.shape)


def _without_one(values: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return a LayerNorm1P's weights, and how many of them do not give the factors again.

    The factors are weights plus 1, rounded: what that rounded off is gone, and the model, which
    adds the 1 again, computes with the same factors.
    """
    restored = (values.float() - 1).to(values.dtype)
    again = (restored.float() + 1).to(values.dtype)
    return restored, int((again != values).sum())


def _bytes(values: torch.Tensor) -> bytes:
    import torch

    return bytes(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
