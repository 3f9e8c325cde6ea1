"""What llama.cpp's converter did to a model, undone: its config and the origin of every tensor.

The converter renames the tensors and facts, writes rows of llama's query and key weights in another
order (its rotary embedding turns neighbours, transformers' turns halves of a head), adds one to the
weights of LayerNorm1P, and replaces the four numbers of llama3's rope scaling by one factor for
each frequency. Mistral models are written as `llama`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.convert.gguf.config_json import (
    ARCHITECTURES,
    GgufModelFacts,
    refuse_what_the_graph_lacks,
)
from minitron_trt.convert.gguf.file import GgufFile, GgufTensor
from minitron_trt.convert.gguf.rope_factors import ROPE_FACTORS
from minitron_trt.convert.gguf.vocabulary import Vocabulary
from minitron_trt.errors import BadInputError, UnsupportedError

_WHOLE_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
)
_LAYER_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
)
_PASS: Final = "pass the model's own GGUF file"
_ADAPTER: Final = "an adapter; merge it into its model first: llama-export-lora"
_MATRIX: Final = f"an importance matrix, which only llama-quantize reads; {_PASS}"
_PROJECTOR: Final = f"the projector of images or sound for a model; {_PASS}"
_VECTOR: Final = f"a control vector; {_PASS}"
# The facts that tell them; older files have no general.type. None is any value.
_NO_MODELS: Final[Mapping[tuple[str, str | None], str]] = MappingProxyType(
    {
        ("general.type", "adapter"): _ADAPTER,
        ("adapter.type", None): _ADAPTER,
        ("general.type", "imatrix"): _MATRIX,
        ("imatrix.datasets", None): _MATRIX,
        ("general.type", "mmproj"): _PROJECTOR,
        ("general.architecture", "clip"): _PROJECTOR,
        ("general.architecture", "controlvector"): _VECTOR,
    }
)
# No number with a leading zero: `blk.00` would be a second name of `blk.0`.
_TENSOR_NAME: Final = re.compile(r"(?:blk\.(0|[1-9][0-9]{0,8})\.)?(\w+)\.(weight|bias)", re.ASCII)


@dataclass(frozen=True, slots=True)
class UnpackedTensor:
    """A tensor of a Hugging Face folder and how it comes from a GGUF file."""

    name: str
    source: GgufTensor
    interleaved_rows: int = 0  # rows of a head that are in llama.cpp's order; 0 for none
    minus_one: bool = False


@dataclass(frozen=True, slots=True)
class GgufModel:
    """A GGUF file read as a model."""

    file: GgufFile
    config: Mapping[str, Any]
    tensors: tuple[UnpackedTensor, ...]
    vocabulary: Vocabulary | None  # None of a file without a tokenizer

    @property
    def path(self) -> Path:
        """Return the file."""
        return self.file.path

    @classmethod
    def read(cls, file: GgufFile) -> GgufModel:
        """Read the facts; UnsupportedError where the result would compute something else."""
        _refuse_what_is_no_model(file)
        architecture = file.string("general.architecture")
        if architecture not in ARCHITECTURES:
            raise UnsupportedError(
                f"{file.path} has architecture {architecture!r}; GGUF files are read of "
                f"{', '.join(ARCHITECTURES)}"
            )
        refuse_what_the_graph_lacks(file, architecture)
        facts = GgufModelFacts(file, architecture)
        config = facts.config()
        vocabulary = Vocabulary.read(file, config["vocab_size"])
        return cls(file, config, tuple(_tensors(file, facts)), vocabulary)


def _refuse_what_is_no_model(file: GgufFile) -> None:
    """Raise BadInputError for what else GGUF files hold."""
    facts = file.facts
    for (key, value), held in _NO_MODELS.items():
        if key in facts and value in (None, facts[key]):
            raise BadInputError(f"{file.path} holds {held}")
    kind = facts.get("general.type", "model")
    if kind != "model":
        raise BadInputError(f"{file.path}: general.type is {kind!r}; expected 'model'")
    if not file.tensors:
        raise BadInputError(f"{file.path} has no tensors, at most a vocabulary; {_PASS}")


def _tensors(file: GgufFile, facts: GgufModelFacts) -> Iterator[UnpackedTensor]:
    for tensor in file.tensors.values():
        match = _TENSOR_NAME.fullmatch(tensor.name)
        layer, stem, part = match.groups() if match else (None, "", "")
        scaling = tensor.name == ROPE_FACTORS and facts.architecture.rope_factors
        # llama.cpp has a name for a layer's frequencies, and loads nothing by it: they follow from
        # the facts.
        if scaling or stem == "attn_rot_embd":
            continue
        name = (_WHOLE_NAMES if layer is None else _LAYER_NAMES).get(stem)
        if name is None:
            raise UnsupportedError(
                f"{file.path} has tensor {tensor.name!r}, which the {facts.architecture.name} "
                "graph written here does not have"
            )
        place = f"model.layers.{int(layer)}." if layer else ""
        turned = facts.architecture.interleaved and stem in ("attn_q", "attn_k")
        yield UnpackedTensor(
            f"{place}{name}.{part}",
            tensor,
            interleaved_rows=_rows_of_a_head(file, tensor, facts.head_size) if turned else 0,
            minus_one=facts.architecture.plus_one and stem.endswith("norm") and part == "weight",
        )


def _rows_of_a_head(file: GgufFile, tensor: GgufTensor, head_size: int) -> int:
    if tensor.shape[0] % head_size or head_size % 2:
        raise BadInputError(
            f"{file.path}: tensor {tensor.name!r} has {tensor.shape[0]} rows; expected whole "
            f"heads of {head_size}, an even number"
        )
    return head_size
