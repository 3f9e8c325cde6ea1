"""A Hugging Face config.json: read, in every spelling that Minitrons have, and written in one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.convert.source.class_defaults import CLASS_DEFAULTS
from minitron_trt.convert.source.config_values import finite_number
from minitron_trt.convert.source.rope_config import ORIGINAL_LENGTH, PERCENT_KEYS, read_rope
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.families import Family, Norm, family_of
from minitron_trt.spec import ModelSpec

_ARCHITECTURE_OF: Final[Mapping[str, str]] = MappingProxyType(
    {
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "nemotron": "NemotronForCausalLM",
    }
)
# `kv_channels` is NeMo's word, which the first configs of Minitron-8B have.
_HEAD_SIZE_KEYS: Final = ("head_dim", "kv_channels")
UNREAD_KEYS: Final = ("kv_channels", *PERCENT_KEYS, "layer_norm_eps", ORIGINAL_LENGTH)
"""Other spellings of facts, which transformers passes over or which stand elsewhere as well."""


@dataclass(frozen=True, slots=True)
class HfConfig:
    """The raw record with typed, checked access; errors name the key and what it holds."""

    record: Mapping[str, Any]

    def value(self, key: str) -> Any:
        """Return what transformers takes for a key: what is there, else its class's default."""
        return self.record.get(key, CLASS_DEFAULTS[self.family.architecture].get(key))

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number, or the default where the key is null."""
        value = self.number(key, default)
        if value != int(value):
            raise BadInputError(f"config.json: {key} is {value}; expected a whole number")
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number, or the default where the key is null."""
        value = self.value(key)
        value = default if value is None else value
        if value is None:
            raise BadInputError(f"config.json has no {key}")
        return finite_number(value, key)

    @property
    def family(self) -> Family:
        """Return the family by `architectures`, else by `model_type`.

        transformers goes by the second, so BadInputError where they name different ones.
        """
        names, kind = self.record.get("architectures"), self.record.get("model_type")
        by_kind = _ARCHITECTURE_OF.get(str(kind), str(kind))
        if not isinstance(names, list) or not names:
            if kind is None:
                raise BadInputError(
                    "config.json has neither architectures nor model_type; expected a model folder"
                )
            return family_of(by_kind)
        family = family_of(str(names[0]))
        if kind is not None and by_kind != family.architecture:
            raise BadInputError(
                f"config.json: architectures names {family.architecture} but model_type is "
                f"{kind!r}, which decides in transformers; make them agree"
            )
        return family

    @property
    def heads(self) -> int:
        """Return the number of attention heads; a head size is found by dividing by it."""
        heads = self.integer("num_attention_heads")
        if heads < 1:
            raise BadInputError(f"config.json: num_attention_heads is {heads}; expected at least 1")
        return heads

    @property
    def head_size(self) -> int | None:
        """Return the head size when the config states one."""
        keys = [key for key in _HEAD_SIZE_KEYS if self.record.get(key) is not None]
        return int(self.number(keys[0])) if keys else None

    @property
    def tied(self) -> bool:
        """Return whether lm_head shares the embedding's weights."""
        value = self.record.get("tie_word_embeddings") or False
        if not isinstance(value, bool):
            raise BadInputError(
                f"config.json: tie_word_embeddings is {value!r}; expected true or false"
            )
        return value

    @property
    def epsilon(self) -> float:
        """Return the norms' epsilon; transformers reads one of its spellings only."""
        key, *others = self.family.epsilon_keys
        epsilon = self.number(key)
        for other in others:
            stated = self.record.get(other)
            if stated is not None and finite_number(stated, other) != epsilon:
                raise BadInputError(
                    f"config.json: {other} is {stated}, which transformers passes over for {key}, "
                    f"here {epsilon}; state that"
                )
        return epsilon


def config_record(spec: ModelSpec) -> dict[str, Any]:
    """Return the config.json of a model, which `read_spec` reads back."""
    family, scaling = family_of(spec.architecture), spec.rope.scaling
    theta, plain = {"rope_theta": spec.rope.theta}, {"rope_type": "default"}
    turned = {"partial_rotary_factor": spec.rope.fraction}
    partial = turned if family.norm is Norm.LAYER_1P else {}
    has_window = "sliding_window" in CLASS_DEFAULTS[spec.architecture]
    no_window: dict[str, Any] = {"sliding_window": None} if has_window else {}
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
        # As transformers 4.57 reads them, and as 5 does.
        **theta,
        **partial,
        "rope_scaling": scaling and scaling.to_config(),
        "rope_parameters": {**(scaling.to_config() if scaling else plain), **theta, **partial},
        **no_window,
        "tie_word_embeddings": spec.tied,
    }


def read_spec(config: HfConfig, head_size: int) -> ModelSpec:
    """Return the facts of a config; the head size comes from the weights, which cannot be wrong.

    UnsupportedError where the model has what the TensorRT-LLM graph of its family lacks.
    """
    family = config.family
    _refuse_what_the_graph_lacks(config, family)
    heads = config.heads
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
        norm_epsilon=config.epsilon,
        rope=read_rope(config.record, family),
        tied=config.tied,
    )


def _refuse_what_the_graph_lacks(config: HfConfig, family: Family) -> None:
    activation = config.value("hidden_act")
    if activation not in family.activations:
        raise UnsupportedError(
            f"hidden_act is {activation!r}; {family.architecture} is converted with "
            f"{family.activations[0]!r}"
        )
    checks: tuple[tuple[str, Callable[[Any], bool]], ...] = (
        ("attention_bias", bool),
        ("mlp_bias", bool),
        # To transformers 5 these say that tokens see what follows them, and that layers differ.
        ("is_causal", lambda causal: "is_causal" in config.record and not causal),
        ("per_layer_config", bool),
        ("sliding_window", lambda window: window is not None and _slides(config)),
    )
    for key, refused in checks:
        value = config.value(key)
        if refused(value):
            absent = "" if key in config.record else " where it is absent"
            raise UnsupportedError(
                f"config.json: {key} is {value!r}{absent}, which the {family.architecture} graph "
                "written here does not have"
            )


def _slides(config: HfConfig) -> bool:
    """Return whether a window is shorter than the context."""
    window = config.number("sliding_window") < config.number("max_position_embeddings")
    # Of these classes only Mistral's has a window, which nothing turns off.
    own = "sliding_window" in CLASS_DEFAULTS[config.family.architecture]
    return window and (own or bool(config.record.get("use_sliding_window", True)))
