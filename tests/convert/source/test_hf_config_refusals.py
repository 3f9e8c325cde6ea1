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
