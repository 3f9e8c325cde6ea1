"""What transformers takes for a field that a config.json leaves out, by architecture.

Both transformers 4.57 and 5 have these in their config classes. A field that is there but null is
not left out. Rotary facts, which have several spellings, are with their reader.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final

CLASS_DEFAULTS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {
        "LlamaForCausalLM": MappingProxyType(
            {
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 11008,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": None,  # as many as heads
                "hidden_act": "silu",
                "max_position_embeddings": 2048,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "attention_bias": False,
                "mlp_bias": False,
            }
        ),
        "MistralForCausalLM": MappingProxyType(
            {
                "vocab_size": 32000,
                "hidden_size": 4096,
                "intermediate_size": 14336,
                "num_hidden_layers": 32,
                "num_attention_heads": 32,
                "num_key_value_heads": 8,
                "hidden_act": "silu",
                "max_position_embeddings": 131072,
                "rms_norm_eps": 1e-6,
                "tie_word_embeddings": False,
                "sliding_window": 4096,
            }
        ),
        "NemotronForCausalLM": MappingProxyType(
            {
                "vocab_size": 256000,
                "hidden_size": 6144,
                "intermediate_size": 24576,
                "num_hidden_layers": 32,
                "num_attention_heads": 48,
                "num_key_value_heads": None,
                "hidden_act": "relu2",
                "max_position_embeddings": 4096,
                "norm_eps": 1e-5,
                "tie_word_embeddings": False,
                "attention_bias": False,
                "mlp_bias": False,
            }
        ),
    }
)
