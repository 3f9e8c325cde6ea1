"""The config.json that a GGUF file's model had, from the facts that llama.cpp's converter wrote."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np

from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.gguf.rope_factors import read_scaling
from minitron_trt.convert.source.hf_config import config_record
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.spec import ModelSpec, Rope

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GgufArchitecture:
    """An architecture of llama.cpp and what transformers calls it."""

    name: str
    epsilon_key: str
    interleaved: bool  # rows of query and key weights are in llama.cpp's order
    plus_one: bool  # LayerNorm1P: GGUF stores 1 + weight, Hugging Face the weight
    rope_factors: bool  # its graph divides the frequencies by a tensor


ARCHITECTURES: Final[Mapping[str, GgufArchitecture]] = MappingProxyType(
    {
        "llama": GgufArchitecture(
            name="LlamaForCausalLM",
            epsilon_key="attention.layer_norm_rms_epsilon",
            interleaved=True,
            plus_one=False,
            rope_factors=True,
        ),
        "nemotron": GgufArchitecture(
            name="NemotronForCausalLM",
            epsilon_key="attention.layer_norm_epsilon",
            interleaved=False,
            plus_one=True,
            rope_factors=False,
        ),
    }
)
_ROTARY_FRACTION_OF_NEMOTRON = 0.5  # of every published Nemotron and Minitron
# Facts that change what the model computes, with the values that change nothing.
_NEUTRAL: Final[Mapping[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "expert_count": (0,),
        "rope.scaling.attn_factor": (1.0,),
        "attention.causal": (True,),
        "attention.clamp_kqv": (0.0,),
        "attention.max_alibi_bias": (0.0,),
        "use_parallel_residual": (False,),
        # A scale of 0 is llama.cpp's mark of one that is not set.
        **dict.fromkeys(("attention.scale", "logit_scale"), (0.0, 1.0)),
        **dict.fromkeys(("embedding_scale", "residual_scale"), (0.0, 1.0)),
        **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping"), (0.0,)),
    }
)
_SCALING_TYPE: Final = "rope.scaling.type"
_FACTORS: Final = ("rope.scaling.factor", "rope.scale_linear")  # the second in old files only
_QUERY: Final = "blk.0.attn_q.weight"


class GgufModelFacts:
    """The facts of one architecture in a file, by the converter's keys."""

    def __init__(self, file: GgufFile, prefix: str) -> None:
        self.file, self.prefix = file, prefix
        self.architecture = ARCHITECTURES[prefix]
        self.layers = file.integer(f"{prefix}.block_count")
        self.heads = self.integer("attention.head_count")
        if self.heads < 1:
            raise BadInputError(
                f"{file.path}: {prefix}.attention.head_count is {self.heads}; expected at least 1"
            )
        self.kv_heads = self.integer("attention.head_count_kv", self.heads)
        self.hidden = self.integer("embedding_length")
        self.head_size = self._head_size()

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number of this architecture's facts; one for each layer is one for all."""
        return self.file.integer(f"{self.prefix}.{key}", default, layers=self.layers)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number of this architecture's facts."""
        return self.file.number(f"{self.prefix}.{key}", default)

    def _head_size(self) -> int:
        """Return the head size that the weights have; old files state none."""
        if _QUERY not in self.file.tensors:
            raise BadInputError(f"{self.file.path} has no tensor {_QUERY}; it is no complete model")
        rows = self.file.tensors[_QUERY].shape[0]
        size, rest = divmod(rows, self.heads)
        for key in ("attention.key_length", "attention.value_length"):
            stated = self.integer(key, size)
            if rest or stated != size:
                raise BadInputError(
                    f"{self.file.path}: {_QUERY} has {rows} rows for {self.heads} heads but "
                    f"{self.prefix}.{key} is {stated}; download it again"
                )
        return size

    def config(self) -> dict[str, Any]:
        """Return the config.json that the model had."""
        theta = _shortest(self.number("rope.freq_base", 10000.0))
        spec = ModelSpec(
            architecture=self.architecture.name,
            layers=self.layers,
            hidden=self.hidden,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_size=self.head_size,
            intermediate=self.integer("feed_forward_length"),
            vocab=self._vocabulary(),
            max_positions=self.integer("context_length"),
            norm_epsilon=_shortest(self.number(self.architecture.epsilon_key)),
            rope=self._rope(theta),
            # llama.cpp multiplies by the embedding where a file has no head.
            tied="output.weight" not in self.file.tensors,
        )
        # The folder's own check then refuses one that is shorter than the context.
        window = self.integer("attention.sliding_window", 0)
        return config_record(spec) | ({"sliding_window": window} if window else {})

    def _vocabulary(self) -> int:
        name = "token_embd.weight"
        if name not in self.file.tensors:
            raise BadInputError(f"{self.file.path} has no tensor {name}; it is no complete model")
        return self.file.tensors[name].shape[0]

    def _rope(self, theta: float) -> Rope:
        size = self.integer("rope.dimension_count", self.head_size)
        if self.prefix == "nemotron":
            return Rope(theta, self._rotary_fraction(size))
        if size != self.head_size:
            raise UnsupportedError(
                f"{self.file.path}: {self.prefix}.rope.dimension_count is {size} but a head has "
                f"{self.head_size} values; partial rotary embedding is not in llama's graph"
            )
        return Rope(theta, scaling=read_scaling(self.file, theta, self.head_size))

    def _rotary_fraction(self, size: int) -> float:
        usual = _ROTARY_FRACTION_OF_NEMOTRON
        # The converter takes the fraction of hidden // heads, which is not the head size.
        if size == int(usual * self.hidden) // self.heads and size != usual * self.head_size:
            log.warning(
                "%s: %d of %d values of a head turn, which llama.cpp's converter writes for this "
                "shape by mistake; using %g, half of the head",
                self.file.path.name,
                size,
                self.head_size,
                usual * self.head_size,
            )
            return usual
        fraction = size / self.head_size
        # Readers of the config round fraction * head size down, which must give this size again.
        return fraction if int(fraction * self.head_size) == size else math.nextafter(fraction, 1)


def refuse_what_the_graph_lacks(file: GgufFile, prefix: str) -> None:
    """Raise UnsupportedError where a fact asks for what the model's graph does not compute."""
    for key, neutral in (*_NEUTRAL.items(), _unscaled(file, prefix)):
        value = file.facts.get(f"{prefix}.{key}", neutral[0])
        if value not in neutral:
            raise UnsupportedError(
                f"{file.path}: {prefix}.{key} is {value!r}, which the "
                f"{ARCHITECTURES[prefix].name} graph written here does not have"
            )


def _unscaled(file: GgufFile, prefix: str) -> tuple[str, tuple[Any, ...]]:
    """Return the key that decides whether positions are scaled, and where they are not.

    As llama.cpp reads them: a factor without a type is linear, zero is no factor, and one beside
    the type `none` is passed over.
    """
    kind = f"{prefix}.{_SCALING_TYPE}"
    if file.facts.get(kind) == "none":
        return _SCALING_TYPE, ("none",)
    if file.facts.get(kind, "linear") != "linear":
        return _SCALING_TYPE, ("linear", "none")
    stated = next((key for key in _FACTORS if f"{prefix}.{key}" in file.facts), _FACTORS[0])
    return stated, (1.0, 0.0)


def _shortest(value: float) -> float:
    """Return the shortest decimal that rounds to the same float32, in which GGUF stores numbers."""
    with np.errstate(over="ignore"):
        return float(str(np.float32(value)))
