"""A Hugging Face config.json: read, in every spelling that Minitrons have, and written in one."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import Family, Norm, family_of
from minitron_trt.spec import Llama3Scaling, ModelSpec, Rope

log = logging.getLogger(__name__)

_ARCHITECTURE_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "nemotron": "NemotronForCausalLM",
    }
)
_HEAD_SIZE_KEYS: Final = ("head_dim", "kv_channels")
_FRACTION_KEYS: Final = ("partial_rotary_factor", "rope_percent", "rope_percentage")


@dataclass(frozen=True, slots=True)
class HfConfig:
    """The raw record with typed, checked access; errors name the key and what it holds."""

    record: Mapping[str, Any]

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number, or the default where the key is absent or null."""
        value = self.number(key, default)
        if value != int(value):
            raise BadInputError(f"config.json: {key} is {value}; expected a whole number")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number, or the default where the key is absent or null."""
        return _number(self.record, key, default)

    def first(self, keys: tuple[str, ...]) -> float | None:
        """Return the number under the first key that is there."""
        present = [key for key in keys if self.record.get(key) is not None]
        return self.number(present[0]) if present else None

    @property
    def family(self) -> Family:
        """Return the family by `architectures`, else by `model_type`."""
        names = self.record.get("architectures")
        if isinstance(names, list) and names:
            return family_of(str(names[0]))
        kind = self.record.get("model_type")
        if kind is None:
            raise BadInputError(
                "config.json has neither architectures nor model_type; expected a model folder"
            )
        return family_of(_ARCHITECTURE_OF.get(str(kind), str(kind)))

    @property
    def head_size(self) -> int | None:
        """Return the head size when the config states one."""
        stated = self.first(_HEAD_SIZE_KEYS)
        return None if stated is None else int(stated)

    @property
    def tied(self) -> bool:
        """Return whether lm_head shares the embedding's weights."""
        value = self.record.get("tie_word_embeddings") or False
        if not isinstance(value, bool):
            raise BadInputError(
                f"config.json: tie_word_embeddings is {value!r}; expected true or false"
            )
        return value

    def rope(self, family: Family) -> Rope:
        """Return the rotary embedding; transformers 5 gathers its keys in `rope_parameters`."""
        nested = _object(self.record, "rope_parameters")
        merged = HfConfig({**nested, **{k: v for k, v in self.record.items() if v is not None}})
        scaling = _object(self.record, "rope_scaling") or nested
        fraction = merged.first(_FRACTION_KEYS)
        return Rope(
            theta=merged.number("rope_theta", 10000.0),
            fraction=family.rotary_fraction if fraction is None else fraction,
            scaling=_scaling(scaling),
        )


def _number(record: Mapping[str, Any], key: str, default: float | None = None) -> float:
    value = record.get(key)
    value = default if value is None else value
    if value is None:
        raise BadInputError(f"config.json has no {key}")
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that NaN fails, and a whole number too large for a float does not overflow.
    if not number or not abs(value) <= sys.float_info.max:
        raise BadInputError(f"config.json: {key} is {value!r}; expected a finite number")
    return value


def _object(record: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = record.get(key) or {}
    if not isinstance(value, Mapping):
        raise BadInputError(f"config.json: {key} is {value!r}; expected an object")
    return value


def _scaling(record: Mapping[str, Any]) -> Llama3Scaling | None:
    kind = record.get("rope_type") or record.get("type") or "default"
    if kind == "default":
        return None
    if kind != Llama3Scaling.KIND:
        raise UnsupportedError(
            f"rope_scaling of type {kind!r} is not supported; known are 'default' and 'llama3'"
        )
    return Llama3Scaling.from_config(
        {key: _number(record, key) for key in Llama3Scaling.CONFIG_KEYS}
    )


def config_record(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json of a model, which `read_spec` reads back."""
    family, scaling = family_of(spec.architecture), spec.rope.scaling
    partial = {"partial_rotary_factor": spec.rope.fraction}
    return {
        "architectures": [spec.architecture],
        "model_type": next(k for k, name in _ARCHITECTURE_OF.items() if name == spec.architecture),
        "hidden_size": spec.hidden,
        "intermediate_size": spec.intermediate,
        "num_hidden_layers": spec.layers,
        "num_attention_heads": spec.heads,
        "num_key_value_heads": spec.kv_heads,
        "head_dim": spec.head_size,
        "vocab_size": spec.vocab,
        "max_position_embeddings": spec.max_positions,
        "hidden_act": family.activations[0],
        family.epsilon_keys[0]: spec.norm_epsilon,
        "rope_theta": spec.rope.theta,
        **(partial if family.norm is Norm.LAYER_1P else {}),
        "rope_scaling": scaling and scaling.to_config(),
        "tie_word_embeddings": spec.tied,
    }


def read_spec(config: HfConfig, head_size: int) -> ModelSpec:
    """Return the facts of a config; the head size comes from the weights, which cannot be wrong.

    UnsupportedError where the model has what the TensorRT-LLM graph of its family lacks.
    """
    family = config.family
    _refuse_what_the_graph_lacks(config, family)
    heads = config.integer("num_attention_heads")
    return ModelSpec(
        architecture=family.architecture,
        layers=config.integer("num_hidden_layers"),
        hidden=config.integer("hidden_size"),
        heads=heads,
        kv_heads=config.integer("num_key_value_heads", heads),
        head_size=head_size,
        intermediate=config.integer("intermediate_size"),
        vocab=config.integer("vocab_size"),
        max_positions=config.integer("max_position_embeddings"),
        norm_epsilon=_epsilon(config, family),
        rope=config.rope(family),
        tied=config.tied,
    )


def _epsilon(config: HfConfig, family: Family) -> float:
    epsilon = config.first(family.epsilon_keys)
    if epsilon is None:
        raise BadInputError(f"config.json has no {family.epsilon_keys[0]}")
    return epsilon


def _refuse_what_the_graph_lacks(config: HfConfig, family: Family) -> None:
    activation = config.record.get("hidden_act", family.activations[0])
    if activation not in family.activations:
        raise UnsupportedError(
            f"hidden_act is {activation!r}; {family.architecture} is converted with "
            f"{family.activations[0]!r}"
        )
    checks: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("attention_bias", bool),
        ("mlp_bias", bool),
        (
            "sliding_window",
            lambda window: (
                window is not None
                and config.record.get("use_sliding_window", True)
                and config.number("sliding_window") < config.number("max_position_embeddings")
            ),
        ),
    )
    for key, refused in checks:
        value = config.record.get(key)
        if refused(value):
            raise UnsupportedError(
                f"config.json: {key} is {value!r}, which the {family.architecture} graph written "
                "here does not have"
            )
