"""A NeMo archive's model_config.yaml as the config.json that its model has on the hub.

What is silent takes NeMo's own default, and what changes the graph in a way that no graph written
here has is refused by its key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import yaml

from minitron_trt.convert.nemo.archive import CONFIG_NAME, ByteRange
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.yaml_bounds import check_bounds

_AT_MOST: Final = 1 << 20
# YAML 1.1 takes 1e-5 for text; OmegaConf, which NeMo reads it with, does not.
_FLOAT: Final = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
# What NeMo scales the frequencies with where `scale_positional_embedding` is set.
_LLAMA3_SCALING: Final[Mapping[str, Any]] = MappingProxyType(
    {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
)


@dataclass(frozen=True, slots=True)
class NemoGraph:
    """A graph of transformers' that a NeMo model is, by its activation and normalization."""

    architecture: str
    model_type: str
    activation: str
    epsilon_key: str
    gated: bool


_NEMOTRON: Final = NemoGraph("NemotronForCausalLM", "nemotron", "relu2", "norm_eps", gated=False)
_LLAMA: Final = NemoGraph("LlamaForCausalLM", "llama", "silu", "rms_norm_eps", gated=True)
_GRAPHS: Final[Mapping[tuple[str, str], NemoGraph]] = MappingProxyType(
    {
        ("squared-relu", "layernorm1p"): _NEMOTRON,
        ("swiglu", "rmsnorm"): _LLAMA,
        ("fast-swiglu", "rmsnorm"): _LLAMA,
    }
)


@dataclass(frozen=True, slots=True)
class NemoConfig:
    """The raw record with typed, checked access; errors name the key and what it holds."""

    record: Mapping[str, Any]

    @classmethod
    def read(cls, file: ByteRange) -> NemoConfig:
        """Read the YAML, plain data only; UnsupportedError where no graph here computes it."""
        try:
            text = file.read(_AT_MOST)
            check_bounds(text)
            record = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise BadInputError(f"{CONFIG_NAME} is not YAML ({reason})") from error
        if not isinstance(record, dict):
            raise BadInputError(f"{CONFIG_NAME} is not a mapping of keys")
        # A config of a whole training run has the model's in it.
        model = record.get("model")
        config = cls(model if isinstance(model, dict) and "num_layers" in model else record)
        config._refuse_what_the_graph_lacks()
        return config

    def integer(self, key: str, default: int | None = None) -> int:
        """Return a whole number above 0, or the default where the key is absent or null."""
        value = self.number(key, default)
        if value != int(value) or value < 1:
            raise BadInputError(
                f"{CONFIG_NAME}: {key} is {value!r}; expected a whole number above 0"
            )
        return int(value)

    def number(self, key: str, default: float | None = None) -> float:
        """Return a finite number, or the default where the key is absent or null."""
        value = self.record.get(key)
        value = default if value is None else value
        if value is None:
            raise BadInputError(f"{CONFIG_NAME} has no {key}; expected a GPT model's config")
        # No number is longer, and a text of megabytes is not worth a look.
        if isinstance(value, str) and len(value) < 32 and _FLOAT.fullmatch(value):
            value = float(value)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise BadInputError(f"{CONFIG_NAME}: {key} is {value!r}; expected a number")
        # Beyond it a float no longer holds every whole number.
        if abs(value) > 2**53 or not math.isfinite(value):
            raise BadInputError(f"{CONFIG_NAME}: {key} is too large or no number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """Return true or false."""
        value = self.record.get(key)
        value = default if value is None else value
        if not isinstance(value, bool):
            raise BadInputError(f"{CONFIG_NAME}: {key} is {value!r}; expected true or false")
        return value

    def section(self, key: str) -> Mapping[str, Any]:
        """Return a mapping, empty where it is absent."""
        value = self.record.get(key) or {}
        if not isinstance(value, dict):
            raise BadInputError(f"{CONFIG_NAME}: {key} is {value!r}; expected a mapping")
        return value

    @property
    def graph(self) -> NemoGraph:
        """Return the graph; UnsupportedError where there is none of its parts here."""
        parts = (
            str(self.record.get("activation", "gelu")),
            str(self.record.get("normalization", "layernorm")).lower(),
        )
        if parts not in _GRAPHS:
            known = ", ".join(" with ".join(pair) for pair in _GRAPHS)
            raise UnsupportedError(
                f"{CONFIG_NAME} has activation {parts[0]!r} with normalization {parts[1]!r}; "
                f"converted are {known}"
            )
        return _GRAPHS[parts]

    @property
    def layers(self) -> int:
        """Return the number of layers."""
        return self.integer("num_layers")

    @property
    def hidden(self) -> int:
        """Return the width between layers."""
        return self.integer("hidden_size")

    @property
    def heads(self) -> int:
        """Return the number of query heads."""
        return self.integer("num_attention_heads")

    @property
    def groups(self) -> int:
        """Return the number of key/value heads."""
        groups = self.integer("num_query_groups", self.heads)
        if self.heads % groups:
            raise BadInputError(
                f"{CONFIG_NAME}: {self.heads} attention heads cannot share {groups} query groups "
                "evenly"
            )
        return groups

    @property
    def head_size(self) -> int:
        """Return the size of a head; pruned models state it, since it is not hidden // heads."""
        return self.integer("kv_channels", max(1, self.hidden // self.heads))

    @property
    def intermediate(self) -> int:
        """Return the width within an MLP."""
        return self.integer("ffn_hidden_size", 4 * self.hidden)

    @property
    def tied(self) -> bool:
        """Return whether the head is the embedding."""
        return self.flag("share_embeddings_and_output_weights", True)

    def hf_config(self, vocabulary: int, *, tied: bool) -> dict[str, Any]:
        """Return the config.json of the model."""
        graph = self.graph
        config: dict[str, Any] = {
            "architectures": [graph.architecture],
            "model_type": graph.model_type,
            "hidden_act": graph.activation,
            "hidden_size": self.hidden,
            "intermediate_size": self.intermediate,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.groups,
            "head_dim": self.head_size,
            "vocab_size": vocabulary,
            "max_position_embeddings": self.integer(
                "max_position_embeddings", self.integer("encoder_seq_length", 512)
            ),
            graph.epsilon_key: self.number("layernorm_epsilon", 1e-5),
            "rope_theta": self.number("rotary_base", 10000.0),
            "tie_word_embeddings": tied,
        }
        fraction = self.number("rotary_percentage", 1.0)
        if graph is _NEMOTRON:
            config["partial_rotary_factor"] = fraction
        elif fraction != 1:
            raise UnsupportedError(
                f"{CONFIG_NAME}: rotary_percentage is {fraction}, which the {graph.architecture} "
                "graph written here does not have"
            )
        if self.flag("scale_positional_embedding", False):
            config["rope_scaling"] = dict(_LLAMA3_SCALING)
        return config

    def _refuse_what_the_graph_lacks(self) -> None:
        target = str(self.record.get("target") or "")
        if target and "MegatronGPT" not in target.rpartition(".")[2]:
            raise UnsupportedError(
                f"{CONFIG_NAME} is of a {target.rpartition('.')[2]}; converted are GPT models "
                "(MegatronGPTModel)"
            )
        if not self.flag("mcore_gpt", False):
            raise UnsupportedError(
                f"{CONFIG_NAME}: mcore_gpt is not set: this is a model of before Megatron Core; "
                "convert it with NeMo's convert_gpt_nemo_to_mcore.py first"
            )
        graph = self.graph
        for key, default, accepted in _FIXED:
            value = self.record.get(key, default)
            if not accepted(default if value is None else value):
                raise UnsupportedError(
                    f"{CONFIG_NAME}: {key} is {value!r}, which the {graph.architecture} graph "
                    "written here does not have"
                )


def _off(value: Any) -> bool:
    return value in (False, None, 0, {}, [])


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: value in values


# Key, NeMo's default, and what the graphs written here compute of it.
_FIXED: Final[tuple[tuple[str, Any, Callable[[Any], bool]], ...]] = (
    ("bias", True, _off),
    ("qkv_bias", False, _off),
    ("add_qkv_bias", False, _off),
    ("position_embedding_type", "learned_absolute", _is("rope")),
    ("rotary_interleaved", False, _off),
    ("seq_len_interpolation_factor", None, _is(None, 1)),
    ("num_moe_experts", None, _off),
    ("window_size", None, _off),
    ("headscale", False, _off),
    ("transformer_block_type", "pre_ln", _is("pre_ln")),
    ("openai_gelu", False, _off),
    ("normalize_attention_scores", True, _is(True)),
    ("attention_type", "multihead", _is("multihead")),
    ("qk_layernorm", False, _off),
    ("layernorm_zero_centered_gamma", False, _off),
    ("apply_embedding_scaling", False, _off),
    ("apply_residual_connection_post_layernorm", False, _off),
    ("attn_logit_softcapping", None, _off),
    ("final_logit_softcapping", None, _off),
    ("query_pre_attn_scalar", None, _off),
    ("softmax_scale", None, _off),
    ("multi_latent_attention", False, _off),
    ("mcore_customization_config", None, _off),
    ("hyena", None, _off),
    ("megatron_legacy", False, _off),
    # What the layers are made of: any other name, such as a Falcon's, is another graph.
    ("name", "", _is("", "te_gpt", "modelopt")),
)
