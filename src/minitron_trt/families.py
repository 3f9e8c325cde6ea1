"""What distinguishes the architectures: norm, activation, rotary fraction, and their tensors.

The tensor rules are the contract between a Hugging Face checkpoint and a TensorRT-LLM checkpoint:
the converter reads them from source to target, the reference model merges ranks by their `split`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from minitron_trt.errors import UnsupportedError
from minitron_trt.spec import ModelSpec


class Split(enum.Enum):
    """How a tensor is sharded across tensor-parallel ranks. Weights are [out, in]."""

    WHOLE = "whole"  # every rank holds all of it
    COLUMN = "column"  # axis 0: each rank computes some outputs
    ROW = "row"  # axis 1: each rank sums over some inputs
    QKV = "qkv"  # axis 0 of q, k and v apart, then joined; key/value heads may repeat
    VOCAB = "vocab"  # axis 0, zero rows added until it divides


class Place(enum.Enum):
    """Which pipeline rank holds a tensor."""

    FIRST = "first"
    LAYER = "layer"
    LAST = "last"


class Norm(enum.Enum):
    """The normalization before each block."""

    RMS = "rms"
    LAYER_1P = "layer_1p"  # LayerNorm whose stored weight is one less than the factor


@dataclass(frozen=True, slots=True)
class Source:
    """A Hugging Face tensor and the ModelSpec sizes that its axes must have."""

    name: str
    axes: tuple[str, ...]

    def shape(self, spec: ModelSpec) -> tuple[int, ...]:
        """Return the shape a model of these sizes must have here."""
        return tuple(getattr(spec, axis) for axis in self.axes)


@dataclass(frozen=True, slots=True)
class TensorRule:
    """How one checkpoint tensor is made; `{}` in a name stands for the layer."""

    target: str
    sources: tuple[Source, ...]
    split: Split
    place: Place
    plus_one: bool = False  # LayerNorm1P: TensorRT-LLM's LayerNorm multiplies by the weight itself

    @property
    def linear(self) -> str | None:
        """Return the name of the linear layer whose weight this is, if a precision may quantize it.

        The embedding, the head and the norms stay unquantized in all of them.
        """
        if self.split not in (Split.QKV, Split.COLUMN, Split.ROW):
            return None
        return self.target.removesuffix(".weight")


def _norm(target: str, source: str, place: Place, norm: Norm) -> tuple[TensorRule, ...]:
    def rule(part: str, plus_one: bool) -> TensorRule:
        origin = Source(f"{source}.{part}", ("hidden",))
        return TensorRule(f"{target}.{part}", (origin,), Split.WHOLE, place, plus_one)

    if norm is Norm.RMS:
        return (rule("weight", False),)
    return (rule("weight", True), rule("bias", False))


def _layer(
    target: str, sources: tuple[str, ...], axes: tuple[tuple[str, str], ...], split: Split
) -> TensorRule:
    return TensorRule(
        f"transformer.layers.{{}}.{target}.weight",
        tuple(
            Source(f"model.layers.{{}}.{source}.weight", axis)
            for source, axis in zip(sources, axes, strict=True)
        ),
        split,
        Place.LAYER,
    )


def _rules(norm: Norm, gated: bool) -> tuple[TensorRule, ...]:
    to, origin = "transformer.layers.{}", "model.layers.{}"
    up, down = ("intermediate", "hidden"), ("hidden", "intermediate")
    # `fc` is the branch that goes through the activation: gate_proj where there is a gate.
    branches = (("mlp.fc", "mlp.gate_proj"), ("mlp.gate", "mlp.up_proj"))
    mlp = branches if gated else (("mlp.fc", "mlp.up_proj"),)
    vocabulary = ("vocab", "hidden")
    return (
        TensorRule(
            "transformer.vocab_embedding.weight",
            (Source(EMBEDDING, vocabulary),),
            Split.WHOLE,
            Place.FIRST,
        ),
        *_norm(f"{to}.input_layernorm", f"{origin}.input_layernorm", Place.LAYER, norm),
        _layer(
            "attention.qkv",
            ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            (("query_size", "hidden"), ("kv_size", "hidden"), ("kv_size", "hidden")),
            Split.QKV,
        ),
        _layer("attention.dense", ("self_attn.o_proj",), (("hidden", "query_size"),), Split.ROW),
        *_norm(f"{to}.post_layernorm", f"{origin}.post_attention_layernorm", Place.LAYER, norm),
        *(_layer(target, (source,), (up,), Split.COLUMN) for target, source in mlp),
        _layer("mlp.proj", ("mlp.down_proj",), (down,), Split.ROW),
        *_norm("transformer.ln_f", "model.norm", Place.LAST, norm),
        TensorRule("lm_head.weight", (Source(HEAD, vocabulary),), Split.VOCAB, Place.LAST),
    )


EMBEDDING: Final = "model.embed_tokens.weight"
HEAD: Final = "lm_head.weight"
KEY_PROJECTION: Final = "model.layers.{}.self_attn.k_proj"
VALUE_PROJECTION: Final = "model.layers.{}.self_attn.v_proj"


@dataclass(frozen=True, slots=True)
class Family:
    """The facts of an architecture that its config does not spell out."""

    architecture: str
    norm: Norm
    gated: bool
    activations: tuple[str, ...]  # accepted spellings of hidden_act in a Hugging Face config
    trtllm_activation: str
    epsilon_keys: tuple[str, ...]
    rotary_fraction: float  # when the config is silent
    rules: tuple[TensorRule, ...]


def _llama(architecture: str) -> Family:
    return Family(
        architecture,
        norm=Norm.RMS,
        gated=True,
        # transformers knows the same function by both names.
        activations=("silu", "swish"),
        trtllm_activation="silu",
        epsilon_keys=("rms_norm_eps",),
        rotary_fraction=1.0,
        rules=_rules(Norm.RMS, gated=True),
    )


FAMILIES: Final[Mapping[str, Family]] = MappingProxyType(
    {
        family.architecture: family
        for family in (
            _llama("LlamaForCausalLM"),
            _llama("MistralForCausalLM"),
            Family(
                "NemotronForCausalLM",
                norm=Norm.LAYER_1P,
                gated=False,
                activations=("relu2", "squared-relu", "squared_relu"),
                trtllm_activation="squared-relu",
                epsilon_keys=("norm_eps", "layer_norm_eps"),
                # transformers' default; TensorRT-LLM's own converter falls back to 1.0.
                rotary_fraction=0.5,
                rules=_rules(Norm.LAYER_1P, gated=False),
            ),
        )
    }
)


def family_of(architecture: str) -> Family:
    """Return the family of an architecture; UnsupportedError names the known ones."""
    try:
        return FAMILIES[architecture]
    except KeyError:
        raise UnsupportedError(
            f"architecture {architecture!r} is not supported; known are {', '.join(FAMILIES)}"
        ) from None
