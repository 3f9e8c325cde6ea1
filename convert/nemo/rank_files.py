"""Weights as torch.save wrote them, one `model_weights.ckpt` or one for each rank of the training.

A tensor-parallel rank has some rows or columns of most tensors, and of a gated MLP's first matrix
some rows of both halves; a pipeline stage counts its layers from 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final

from minitron_trt.convert.nemo.archive import CONFIG_NAME, ByteRange
from minitron_trt.convert.nemo.nemo_config import NemoConfig
from minitron_trt.convert.nemo.stored_array import ByteBox, StoredArray
from minitron_trt.convert.nemo.torch_archive import read_state_dict
from minitron_trt.errors import BadInputError, UnsupportedError

WEIGHTS_NAME: Final = "model_weights.ckpt"
_RANK: Final = re.compile(
    rf"(?:mp_rank_(?P<mp>\d{{1,4}})|tp_rank_(?P<tp>\d{{1,4}})_pp_rank_(?P<pp>\d{{1,4}}))/{WEIGHTS_NAME}"
)
_LAYER: Final = re.compile(r"(decoder\.layers\.)([0-9]{1,6})(\..+)")
_ROWS: Final = ("linear_qkv.weight", "word_embeddings.weight", "output_layer.weight")
_BOTH_HALVES: Final = "linear_fc1.weight"
_COLUMNS: Final = ("linear_proj.weight", "linear_fc2.weight")


def rank_files(files: Mapping[str, ByteRange]) -> dict[tuple[int, int], ByteRange]:
    """Return the weight files by (pipeline stage, tensor-parallel rank)."""
    ranks = {(0, 0): files[WEIGHTS_NAME]} if WEIGHTS_NAME in files else {}
    for name, file in files.items():
        if match := _RANK.fullmatch(name):
            ranks[int(match["pp"] or 0), int(match["mp"] or match["tp"])] = file
    return ranks


def read_ranks(
    ranks: Mapping[tuple[int, int], ByteRange], config: NemoConfig
) -> dict[str, StoredArray]:
    """Return the tensors of all ranks together, by their names without a prefix."""
    pp, tp = (max(numbers) + 1 for numbers in zip(*ranks, strict=True))
    # A file at the root is a whole model; ranks' files have to be all that the config counts.
    if any(file.name != WEIGHTS_NAME for file in ranks.values()):
        stated = (
            config.integer("pipeline_model_parallel_size", 1),
            config.integer("tensor_model_parallel_size", 1),
        )
        if stated != (pp, tp) or len(ranks) != pp * tp:
            raise BadInputError(
                f"the archive has the weights of {len(ranks)} ranks; {CONFIG_NAME} says "
                f"{stated[1]} tensor-parallel by {stated[0]} pipeline-parallel"
            )
    # A stage then has several runs of layers, which are no neighbours in the model.
    if pp > 1 and config.integer("virtual_pipeline_model_parallel_size", 1) > 1:
        raise UnsupportedError(
            f"{CONFIG_NAME}: virtual_pipeline_model_parallel_size is above 1 and the weights are "
            "one file a rank; save the model as a distributed checkpoint"
        )
    if config.layers % pp:
        raise BadInputError(f"{CONFIG_NAME}: {config.layers} layers in {pp} equal stages")
    parts: dict[str, list[StoredArray]] = {}
    for (stage, rank), file in sorted(ranks.items()):
        first = stage * (config.layers // pp)
        for name, array in _renamed(read_state_dict(file), first):
            parts.setdefault(name, [])
            # Ranks come in their order and a name is of one stage: a gap is a rank that lacks it.
            if len(parts[name]) != rank:
                raise BadInputError(f"{file.name} has {name}, which a rank before it lacks")
            parts[name].append(array)
    return {name: _joined(name, arrays, tp, config) for name, arrays in parts.items()}


def _renamed(state: Mapping[str, StoredArray], first: int) -> Iterator[tuple[str, StoredArray]]:
    for name, array in state.items():
        plain = without_prefix(name)
        if match := _LAYER.fullmatch(plain):
            start, layer, end = match.groups()
            plain = f"{start}{first + int(layer)}{end}"
        yield plain, replace(array, name=plain)


def without_prefix(name: str) -> str:
    """Return a tensor's name without what wrapped the model when it was saved."""
    for prefix in ("model.", "module."):
        name = name.removeprefix(prefix)
    return name


def _joined(name: str, arrays: list[StoredArray], tp: int, config: NemoConfig) -> StoredArray:
    """Return the tensor that ranks have parts of; what none has a part of is the first's."""
    first = arrays[0]
    if len(arrays) != tp:
        raise BadInputError(f"{len(arrays)} of {tp} ranks have {name}; one is missing")
    if any((one.shape, one.dtype) != (first.shape, first.dtype) for one in arrays):
        raise BadInputError(f"ranks disagree about the shape or type of {name}")
    halves = 2 if name.endswith(_BOTH_HALVES) and config.graph.gated else 1
    axis = 1 if name.endswith(_COLUMNS) else 0
    if tp == 1 or len(first.shape) != 2 or not name.endswith((*_ROWS, _BOTH_HALVES, *_COLUMNS)):
        return first
    step = first.shape[axis] // halves
    if step * halves != first.shape[axis]:
        raise BadInputError(f"{name} has {first.shape[0]} rows; expected two halves")
    shape = tuple(size * tp if at == axis else size for at, size in enumerate(first.shape))
    pieces = []
    for rank, array in enumerate(arrays):
        size = array.pieces[0].data.size // halves
        for half in range(halves):
            at = (half * tp + rank) * step
            data = array.pieces[0].data.part(half * size, size)
            box = (step, first.shape[1]) if axis == 0 else first.shape
            pieces.append(ByteBox(data, (at, 0) if axis == 0 else (0, at), box))
    return StoredArray(name, first.dtype, shape, tuple(pieces))
