"""What Megatron did to a model, undone: its config and the origin of every tensor.

Megatron keeps q, k and v as one matrix: for each key/value head its query heads, then itself, then
its value head, so that a tensor-parallel rank has whole groups. A gated MLP's first matrix is the
gate's rows, then the others. A distributed checkpoint stacks the layers of each tensor. All of it
is rows in another order; no value is changed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.convert.nemo.archive import CONFIG_NAME, NemoArchive
from minitron_trt.convert.nemo.nemo_config import NemoConfig
from minitron_trt.convert.nemo.rank_files import rank_files, read_ranks, without_prefix
from minitron_trt.convert.nemo.stored_array import StoredArray, StoredMatrix
from minitron_trt.convert.nemo.tokenizer_files import NemoTokenizer
from minitron_trt.convert.nemo.torch_dist import METADATA_NAME, read_torch_dist
from minitron_trt.convert.nemo.zarr_arrays import ARRAY_NAME, read_zarr
from minitron_trt.convert.source.weight_files import tensor_names
from minitron_trt.dtypes import UNQUANTIZED
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import EMBEDDING, HEAD

WEIGHTS_FOLDER: Final = "model_weights"
_EMBEDDING: Final = "embedding.word_embeddings.weight"
_HEAD: Final = "output_layer.weight"
_LAYERS: Final = "decoder.layers."
_NUMBER: Final = re.compile(r"[0-9]{1,6}")
_QKV: Final = "self_attention.linear_qkv.weight"
_FC1: Final = "mlp.linear_fc1.weight"
# Transformer Engine has a norm and the matrix after it in one module; Megatron's own layers do not.
_SPELLINGS: Final[Mapping[str, str]] = MappingProxyType(
    {
        f"{module}.{part}": f"{fused}.layer_norm_{part}"
        for module, fused in (
            ("input_layernorm", "self_attention.linear_qkv"),
            ("pre_mlp_layernorm", "mlp.linear_fc1"),
        )
        for part in ("weight", "bias")
    }
)
# Kept by layers that follow from the config, or by Transformer Engine for training in FP8.
_NO_WEIGHTS: Final = ("_extra_state", "rotary_pos_emb.inv_freq")


@dataclass(frozen=True, slots=True)
class NemoTensor:
    """A tensor of a Hugging Face folder: rows of one of Megatron's."""

    name: str
    source: StoredMatrix
    spans: tuple[tuple[int, int], ...]  # rows of the source, in order

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the rows together."""
        return (sum(stop - start for start, stop in self.spans), *self.source.shape[1:])


@dataclass(frozen=True, slots=True)
class NemoModel:
    """A NeMo archive read as a model."""

    archive: NemoArchive
    config: Mapping[str, Any]
    tensors: tuple[NemoTensor, ...]
    tokenizer: NemoTokenizer
    warnings: tuple[str, ...]  # what the user should know of it

    @property
    def path(self) -> Path:
        """Return what the user named."""
        return self.archive.path

    @classmethod
    def read(cls, archive: NemoArchive) -> NemoModel:
        """Read config, tokenizer and places of the weights; nothing is loaded.

        BadInputError or UnsupportedError say what is wrong, or what no graph here computes.
        """
        if CONFIG_NAME not in archive.members:
            raise _no_config(archive)
        config = NemoConfig.read(archive.members[CONFIG_NAME])
        tokenizer = NemoTokenizer.read(archive, config)
        # A damaged config could claim millions of layers, each of which is given names below.
        if config.layers * config.hidden > sum(file.size for file in archive.members.values()):
            raise BadInputError(
                f"{CONFIG_NAME} says {config.layers} layers of {config.hidden}, which do not fit "
                f"into {archive.path}"
            )
        stored = {
            name: array
            for name, array in _unstacked(_stored_arrays(archive, config), config)
            if not name.endswith(_NO_WEIGHTS)
        }
        tied = config.tied and _HEAD not in stored
        shapes = dict(_shapes(config, tied=tied))
        _check(stored, shapes)
        matrices = {name: StoredMatrix.of(array) for name, array in stored.items()}
        vocabulary = _vocabulary(matrices[_EMBEDDING].shape[0], tokenizer)
        return cls(
            archive,
            config.hf_config(vocabulary, tied=tied),
            tuple(_tensors(matrices, config, vocabulary)),
            tokenizer,
            tuple(_warnings(tokenizer, config, vocabulary)),
        )


def _no_config(archive: NemoArchive) -> Exception:
    if any(name.startswith(("context/", "weights/")) for name in archive.members):
        return UnsupportedError(
            f"{archive.path} is a checkpoint of NeMo 2; export it to a Hugging Face folder first: "
            "nemo.collections.llm.export_ckpt(target='hf')"
        )
    return BadInputError(f"{archive.path} has no {CONFIG_NAME}; expected a NeMo archive")


def _stored_arrays(archive: NemoArchive, config: NemoConfig) -> dict[str, StoredArray]:
    """Return the tensors of whichever form the weights have."""
    folder = archive.under(WEIGHTS_FOLDER)
    if METADATA_NAME in folder:
        stored = read_torch_dist(folder)
    elif any(name.endswith(f"/{ARRAY_NAME}") for name in folder):
        stored = read_zarr(folder)
    elif ranks := rank_files(archive.members):
        return read_ranks(ranks, config)
    else:
        raise BadInputError(
            f"{archive.path} has no weights; expected model_weights.ckpt, one of each rank, or "
            f"{WEIGHTS_FOLDER}/ with zarr arrays or torch's {METADATA_NAME}"
        )
    return {
        without_prefix(name): replace(array, name=without_prefix(name))
        for name, array in stored.items()
    }


def _unstacked(
    stored: Mapping[str, StoredArray], config: NemoConfig
) -> Iterator[tuple[str, StoredArray]]:
    """Yield every layer's tensors by themselves, by the names that Transformer Engine gives."""
    for name, array in stored.items():
        inner = name.removeprefix(_LAYERS)
        if inner == name:
            yield name, array
            continue
        number, _, rest = inner.partition(".")
        if _NUMBER.fullmatch(number):
            yield f"{_LAYERS}{int(number)}.{_SPELLINGS.get(rest, rest)}", array
            continue
        if array.shape[:1] != (config.layers,):
            raise BadInputError(
                f"tensor {name} is {list(array.shape)}; {CONFIG_NAME} says {config.layers} layers"
            )
        for layer, part in enumerate(array.layers()):
            yield f"{_LAYERS}{layer}.{_SPELLINGS.get(inner, inner)}", part


def _shapes(config: NemoConfig, *, tied: bool) -> Iterator[tuple[str, tuple[int | None, ...]]]:
    """Yield the tensors that a model must have and their shapes; None is the vocabulary."""
    hidden, inner = config.hidden, config.intermediate
    query, keys = config.heads * config.head_size, config.groups * config.head_size
    parts = ("weight",) if config.graph.gated else ("weight", "bias")
    yield _EMBEDDING, (None, hidden)
    for layer in range(config.layers):
        start = f"{_LAYERS}{layer}"
        yield f"{start}.{_QKV}", (query + 2 * keys, hidden)
        yield f"{start}.self_attention.linear_proj.weight", (hidden, query)
        yield f"{start}.{_FC1}", (inner * (1 + config.graph.gated), hidden)
        yield f"{start}.mlp.linear_fc2.weight", (hidden, inner)
        for part in parts:
            yield f"{start}.self_attention.linear_qkv.layer_norm_{part}", (hidden,)
            yield f"{start}.mlp.linear_fc1.layer_norm_{part}", (hidden,)
    for part in parts:
        yield f"decoder.final_layernorm.{part}", (hidden,)
    if not tied:
        yield _HEAD, (None, hidden)


def _check(stored: Mapping[str, StoredArray], shapes: Mapping[str, tuple[int | None, ...]]) -> None:
    """Raise unless a checkpoint has what its config says and nothing else."""
    missing, extra = sorted(shapes.keys() - stored.keys()), sorted(stored.keys() - shapes.keys())
    if missing:
        raise BadInputError(f"the archive lacks {tensor_names(missing)}; expected by {CONFIG_NAME}")
    if any("adapter" in name or "lora" in name for name in extra):
        raise UnsupportedError(
            f"the archive has {tensor_names(extra)}: adapters; merge them first, with NeMo's "
            "merge.py of its scripts for LoRA"
        )
    if extra:
        raise UnsupportedError(
            f"the archive has {tensor_names(extra)}, which the graph written here does not have"
        )
    # Only a first axis is left open, and that is the vocabulary: of the embedding, so of the head.
    rows = stored[_EMBEDDING].shape[:1]
    for name, shape in shapes.items():
        array = stored[name]
        expected = tuple(
            known if size is None else size for size, known in zip(shape, (*rows, 0), strict=False)
        )
        if array.shape != expected:
            raise BadInputError(
                f"tensor {name} is {list(array.shape)}; {CONFIG_NAME} implies {list(expected)}"
            )
        if array.dtype not in UNQUANTIZED:
            raise BadInputError(
                f"tensor {name} is {array.dtype}; expected one of {', '.join(sorted(UNQUANTIZED))}"
            )


def _vocabulary(rows: int, tokenizer: NemoTokenizer) -> int:
    """Return how many rows of the embedding are tokens: NeMo adds some until they divide."""
    if tokenizer.size is None:
        return rows
    if tokenizer.size > rows:
        raise BadInputError(
            f"the tokenizer has {tokenizer.size} tokens but the embedding {rows} rows; they are "
            "not of one model"
        )
    return tokenizer.size


def _warnings(tokenizer: NemoTokenizer, config: NemoConfig, vocabulary: int) -> Iterator[str]:
    if tokenizer.size is None:
        per = config.integer("make_vocab_size_divisible_by", 128)
        multiple = per * config.integer("tensor_model_parallel_size", 1)
        yield (
            f"how many tokens the tokenizer has is not in the archive: all {vocabulary} rows of "
            f"the embedding are kept, the last of which may be padding to a multiple of {multiple}"
        )


def _tensors(
    matrices: Mapping[str, StoredMatrix], config: NemoConfig, vocabulary: int
) -> Iterator[NemoTensor]:
    for name, matrix in matrices.items():
        inner = name.removeprefix(_LAYERS)
        number, _, rest = inner.partition(".")
        whole = ((0, matrix.shape[0]),)
        if name in _WHOLE_NAMES:
            target = _WHOLE_NAMES[name]
            cut = target in (EMBEDDING, HEAD)
            yield NemoTensor(target, matrix, ((0, vocabulary),) if cut else whole)
        elif rest == _QKV:
            for part, spans in _qkv_spans(config).items():
                yield NemoTensor(f"model.layers.{number}.self_attn.{part}.weight", matrix, spans)
        elif rest == _FC1:
            half = config.intermediate
            halves = {"gate_proj": (0, half), "up_proj": (half, 2 * half)}
            for part, span in halves.items() if config.graph.gated else [("up_proj", whole[0])]:
                yield NemoTensor(f"model.layers.{number}.mlp.{part}.weight", matrix, (span,))
        else:
            yield NemoTensor(f"model.layers.{number}.{_LAYER_NAMES[rest]}", matrix, whole)


def _qkv_spans(config: NemoConfig) -> dict[str, tuple[tuple[int, int], ...]]:
    """Return the rows of q, k and v: each group has its query heads, a key head, a value head."""
    size, queries = config.head_size, config.heads // config.groups
    starts = [group * (queries + 2) * size for group in range(config.groups)]
    places = {"q_proj": (0, queries), "k_proj": (queries, 1), "v_proj": (queries + 1, 1)}
    return {
        name: tuple((start + head * size, start + (head + count) * size) for start in starts)
        for name, (head, count) in places.items()
    }


_WHOLE_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        _EMBEDDING: EMBEDDING,
        _HEAD: HEAD,
        "decoder.final_layernorm.weight": "model.norm.weight",
        "decoder.final_layernorm.bias": "model.norm.bias",
    }
)
_LAYER_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "mlp.linear_fc2.weight": "mlp.down_proj.weight",
        "self_attention.linear_qkv.layer_norm_weight": "input_layernorm.weight",
        "self_attention.linear_qkv.layer_norm_bias": "input_layernorm.bias",
        "mlp.linear_fc1.layer_norm_weight": "post_attention_layernorm.weight",
        "mlp.linear_fc1.layer_norm_bias": "post_attention_layernorm.bias",
    }
)
