"""What a config.json may not say, and the message for each."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest

from minitron_trt.convert.source.hf_config import HfConfig, read_spec
from minitron_trt.errors import MinitronError

STRETCH = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 3072,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128256,
}


NUMBERS = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "rms_norm_eps",
    "rope_theta",
    "vocab_size",
)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, True, "32", [32], 10**400], ids=repr
)
@pytest.mark.parametrize("key", NUMBERS)
def test_what_is_not_a_finite_number_is_refused_by_its_key(key: str, value: Any) -> None:
    with pytest.raises(MinitronError) as caught:
        read_spec(HfConfig({**LLAMA, key: value}), head_size=128)

    assert (str(caught.value), caught.value.exit_code) == (
        f"config.json: {key} is {value!r}; expected a finite number",
        3,
    )


@pytest.mark.parametrize(
    ("changes", "message", "exit_code"),
    [
        ({"hidden_size": 0}, "hidden is 0; expected at least 1", 3),
        ({"num_hidden_layers": -1}, "layers is -1; expected at least 1", 3),
        ({"vocab_size": 1.5}, "config.json: vocab_size is 1.5; expected a whole number", 3),
        ({"vocab_size": None}, "config.json has no vocab_size", 3),
        ({"rms_norm_eps": None}, "config.json has no rms_norm_eps", 3),
        ({"rms_norm_eps": 0}, "norm_epsilon is 0; expected a finite number above 0", 3),
        ({"rope_theta": -1}, "rope_theta is -1; expected a finite number above 0", 3),
        (
            {"num_key_value_heads": 5},
            "32 attention heads cannot share 5 key/value heads evenly",
            3,
        ),
        (
            {"rope_scaling": "llama3"},
            "config.json: rope_scaling is 'llama3'; expected an object",
            3,
        ),
        (
            {"rope_parameters": [1]},
            "config.json: rope_parameters is [1]; expected an object",
            3,
        ),
        (
            {"rope_scaling": {"type": "llama3"}},
            "config.json has no factor",
            3,
        ),
        (
            {"rope_scaling": {**STRETCH, "type": "llama3", "factor": "8"}},
            "config.json: factor is '8'; expected a finite number",
            3,
        ),
        (
            {"rope_scaling": {**STRETCH, "type": "llama3", "low_freq_factor": 4.0}},
            "rope_scaling has factor 8.0, low_freq_factor 4.0 and high_freq_factor 4.0; expected "
            "factor >= 1 and 0 < low < high",
            3,
        ),
        (
            {"rope_scaling": {**STRETCH, "type": "llama3", "original_max_position_embeddings": 0}},
            "rope_scaling has original_max_position_embeddings 0; expected at least 1",
            3,
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "rope_scaling of type 'yarn' is not supported; known are 'default' and 'llama3'",
            4,
        ),
        (
            {"tie_word_embeddings": "false"},
            "config.json: tie_word_embeddings is 'false'; expected true or false",
            3,
        ),
        (
            {"hidden_act": "gelu"},
            "hidden_act is 'gelu'; LlamaForCausalLM is converted with 'silu'",
            4,
        ),
        (
            {"attention_bias": True},
            "config.json: attention_bias is True, which the LlamaForCausalLM graph written here "
            "does not have",
            4,
        ),
        (
            {"sliding_window": 4096},
            "config.json: sliding_window is 4096, which the LlamaForCausalLM graph written here "
            "does not have",
            4,
        ),
        (
            {"sliding_window": "4096"},
            "config.json: sliding_window is '4096'; expected a finite number",
            3,
        ),
        (
            {"architectures": ["FalconForCausalLM"]},
            "architecture 'FalconForCausalLM' is not supported; known are LlamaForCausalLM, "
            "MistralForCausalLM, NemotronForCausalLM",
            4,
        ),
        (
            {"architectures": None, "model_type": "gpt2"},
            "architecture 'gpt2' is not supported; known are LlamaForCausalLM, "
            "MistralForCausalLM, NemotronForCausalLM",
            4,
        ),
        (
            {"architectures": None, "model_type": ["llama"]},
            "architecture \"['llama']\" is not supported; known are LlamaForCausalLM, "
            "MistralForCausalLM, NemotronForCausalLM",
            4,
        ),
        (
            {"architectures": None, "model_type": None},
            "config.json has neither architectures nor model_type; expected a model folder",
            3,
        ),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)
def test_a_config_that_cannot_be_right_is_refused(
    changes: dict[str, Any], message: str, exit_code: int
) -> None:
    with pytest.raises(MinitronError) as caught:
        read_spec(HfConfig({**LLAMA, **changes}), head_size=128)

    assert (str(caught.value), caught.value.exit_code) == (message, exit_code)


NEMOTRON = {**LLAMA, "architectures": ["NemotronForCausalLM"]}


@pytest.mark.parametrize(
    ("changes", "message", "exit_code"),
    [
        (
            {"partial_rotary_factor": 1.5},
            "partial_rotary_factor is 1.5; expected a share in (0, 1]",
            3,
        ),
        (
            {"partial_rotary_factor": 0.001},
            "head size 128 × rotary share 0.001 = 0; rotary embedding needs an even number above 0",
            3,
        ),
        (
            {"partial_rotary_factor": 0.008},
            "head size 128 × rotary share 0.008 = 1; rotary embedding needs an even number above 0",
            3,
        ),
    ],
    ids=str,
)
def test_a_rotary_share_that_cannot_be_right_is_refused(
    changes: dict[str, Any], message: str, exit_code: int
) -> None:
    with pytest.raises(MinitronError) as caught:
        read_spec(HfConfig({**NEMOTRON, **changes}), head_size=128)

    assert (str(caught.value), caught.value.exit_code) == (message, exit_code)


LLAMA3 = {**STRETCH, "rope_type": "llama3"}
OWN = {**LLAMA3, "rope_theta": 500000.0}


@pytest.mark.parametrize(
    ("kind", "changes", "message", "exit_code"),
    [
        (
            "Llama",
            {"rope_theta": 10000.0, "rope_parameters": OWN},
            "config.json: rope_theta is 10000.0 but rope_parameters.rope_theta is 500000.0; keep "
            "the one that the model was trained with",
            3,
        ),
        (
            "Mistral",
            {"rope_scaling": LLAMA3, "rope_parameters": OWN},
            "config.json: rope_parameters.rope_theta is 500000.0 but transformers takes 10000.0; "
            "keep the one that the model was trained with",
            3,
        ),
        (
            "Llama",
            {"rope_scaling": OWN},
            "config.json: rope_scaling.rope_theta is 500000.0, which transformers 5 takes and 4.57 "
            "does not (it takes 10000.0); state rope_theta beside rope_scaling",
            3,
        ),
        (
            "Llama",
            {"rope_scaling": {**LLAMA3, "factor": 4.0}, "rope_parameters": LLAMA3},
            "config.json: rope_scaling and rope_parameters scale differently; keep the one that "
            "the model was trained with",
            3,
        ),
        (
            "Mistral",
            {"rope_scaling": {"type": "default"}, "rope_parameters": LLAMA3},
            "config.json: rope_scaling and rope_parameters scale differently; keep the one that "
            "the model was trained with",
            3,
        ),
        (
            "Llama",
            {"rope_scaling": {**LLAMA3, "type": "default"}},
            "config.json: rope_scaling has rope_type 'llama3' and type 'default'; transformers "
            "4.57 takes the second and 5 the first",
            3,
        ),
        (
            "Llama",
            {"rope_scaling": STRETCH},
            "config.json: rope_scaling has a factor but no rope_type; transformers 5 then passes "
            "over it and 4.57 does not load it",
            3,
        ),
        (
            "Llama",
            {"rope_parameters": LLAMA3, "original_max_position_embeddings": 4096},
            "config.json: original_max_position_embeddings is 4096 but rope_parameters."
            "original_max_position_embeddings is 8192; keep the one that the model was trained "
            "with",
            3,
        ),
        (
            "Mistral",
            {"rope_parameters": {"full_attention": OWN}},
            "config.json: rope_parameters holds an object for 'full_attention'; expected one "
            "rotary embedding for all layers",
            3,
        ),
        (
            "Llama",
            {"partial_rotary_factor": 0.5},
            "config.json: partial_rotary_factor is 0.5, which the LlamaForCausalLM graph does not "
            "have",
            4,
        ),
        (
            "Mistral",
            {"rope_parameters": {**OWN, "partial_rotary_factor": 0.5}},
            "config.json: rope_parameters.partial_rotary_factor is 0.5, which the "
            "MistralForCausalLM graph does not have",
            4,
        ),
        (
            "Nemotron",
            {"rope_percent": 0.25},
            "config.json: rope_percent is 0.25, which transformers passes over for "
            "partial_rotary_factor, here 0.5; state that",
            3,
        ),
        (
            "Nemotron",
            {"partial_rotary_factor": None},
            "config.json: partial_rotary_factor is null, which is 1.0 to transformers 5 and an "
            "error to 4.57; state it",
            3,
        ),
        (
            "Nemotron",
            {"rope_scaling": LLAMA3},
            "config.json: rope_scaling is of type 'llama3', which transformers 5 computes for "
            "NemotronForCausalLM and 4.57 does not; remove rope_scaling or move it to "
            "rope_parameters",
            3,
        ),
        (
            "Nemotron",
            {"layer_norm_eps": 1e-6},
            "config.json: layer_norm_eps is 1e-06, which transformers passes over for norm_eps, "
            "here 1e-05; state that",
            3,
        ),
        (
            "Mistral",
            {},
            "config.json: sliding_window is 4096 where it is absent, which the MistralForCausalLM "
            "graph written here does not have",
            4,
        ),
        (
            "Mistral",
            {"sliding_window": 4096, "use_sliding_window": False},
            "config.json: sliding_window is 4096, which the MistralForCausalLM graph written here "
            "does not have",
            4,
        ),
        (
            "Llama",
            {"is_causal": False},
            "config.json: is_causal is False, which the LlamaForCausalLM graph written here does "
            "not have",
            4,
        ),
        (
            "Llama",
            {"per_layer_config": {"0": {"head_dim": 64}}},
            "config.json: per_layer_config is {'0': {'head_dim': 64}}, which the LlamaForCausalLM "
            "graph written here does not have",
            4,
        ),
        (
            "Llama",
            {"model_type": "mistral"},
            "config.json: architectures names LlamaForCausalLM but model_type is 'mistral', which "
            "decides in transformers; make them agree",
            3,
        ),
    ],
)
def test_what_transformers_would_read_otherwise_is_refused(
    kind: str, changes: dict[str, Any], message: str, exit_code: int
) -> None:
    window = {} if "sliding_window" in message else {"sliding_window": None}
    config = {**LLAMA, "architectures": [f"{kind}ForCausalLM"], **window, **changes}
    with pytest.raises(MinitronError) as caught:
        read_spec(HfConfig(config), head_size=128)

    assert (str(caught.value), caught.value.exit_code) == (message, exit_code)
