"""A transformers model of a source's own tensors, whatever files they lie in."""

from __future__ import annotations

import os
from typing import Any

import ml_dtypes
import numpy as np
import torch
import transformers

from minitron_trt.convert.conversion_plan import BLOCK_BYTES
from minitron_trt.convert.source.hf_config import config_record
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.writing.blocks import Files, read_blocks
from minitron_trt.dtypes import DTYPES, FP8, UNQUANTIZED
from minitron_trt.families import HEAD
from minitron_trt.spec import ModelSpec
from minitron_trt.tensorfile import TensorEntry

_TORCH_DTYPES = {name: getattr(torch, DTYPES[name].name) for name in (*UNQUANTIZED, FP8)}


def load_model(source: ModelSource, device: str) -> Any:
    """Return the model in bfloat16, ready to run; weights on a CPU stay in their mapped files."""
    config = config_of(source.spec)
    kind = getattr(transformers, source.spec.architecture)
    with torch.device("meta"):
        model = kind(config).to(torch.bfloat16)
    with Files() as files:
        weights = {name: _tensor(entry, files) for name, entry in source.tensors.items()}
    if source.spec.tied:
        weights.pop(HEAD)
    model.load_state_dict(weights, strict=not source.spec.tied, assign=True)
    model.tie_weights()
    # Rotary frequencies are not in the checkpoint: transformers computes them when the module is
    # made, which was on the meta device, where nothing has a value.
    model.model.rotary_emb = type(model.model.rotary_emb)(config=config)
    return model.to(device).eval()


def config_of(spec: ModelSpec) -> Any:
    """Return transformers' config of a model."""
    kind = getattr(transformers, spec.architecture).config_class
    unset = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"))
    return kind.from_dict({**config_record(spec), **unset})


def _tensor(entry: TensorEntry, files: Files) -> torch.Tensor:
    if entry.dtype in UNQUANTIZED and entry.offset % 4 == 0:
        return mapped_tensor(entry).to(torch.bfloat16)
    reader = files.descriptor(entry.path, os.O_RDONLY)
    whole = np.empty(entry.shape, ml_dtypes.bfloat16)
    flat = whole.reshape(len(whole), -1)
    for start, rows in read_blocks(entry, reader, (0, len(whole)), BLOCK_BYTES):
        flat[start : start + len(rows)] = rows
    return torch.from_numpy(whole.view(np.uint16)).view(torch.bfloat16)


def mapped_tensor(entry: TensorEntry) -> torch.Tensor:
    """Return a tensor where it lies in its file, or a copy if the file has it at an odd place."""
    path = entry.path
    # The mapping is private, so that no write to a tensor can reach the user's file.
    data = torch.from_file(str(path), shared=False, size=path.stat().st_size, dtype=torch.uint8)
    part = data[entry.offset : entry.offset + entry.size_bytes]
    dtype = DTYPES[entry.dtype]
    aligned = part if entry.offset % dtype.size_bytes == 0 else part.clone()
    return aligned.view(_TORCH_DTYPES[entry.dtype]).view(entry.shape)
