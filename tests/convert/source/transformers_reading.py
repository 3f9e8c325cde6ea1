"""What the transformers installed beside it makes of a config.json: one on a line, one answer each.

A program of its own, so that a second environment's transformers can answer too.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def reading_of(record: dict[str, Any]) -> dict[str, Any]:
    """Return what transformers computes with, or why it cannot."""
    import torch
    from transformers import AutoConfig
    from transformers.models.auto import modeling_auto

    auto: Any = modeling_auto.AutoModelForCausalLM  # its methods have no types

    try:
        config = AutoConfig.for_model(**json.loads(json.dumps(record)))
        with torch.device("meta"):
            model = auto.from_config(config)
        rotary = type(model.model.rotary_emb)(config=config)
        cosines, _ = rotary(torch.zeros(1), torch.arange(4)[None])
        if record["model_type"] != "nemotron" and cosines.shape[-1] != config.head_dim:
            return {"fails": "its heads do not turn whole"}
        weights = model.state_dict()
        return {
            "frequencies": rotary.inv_freq.tolist(),
            "key_rows": len(weights["model.layers.0.self_attn.k_proj.weight"]),
            "embedding": list(weights["model.embed_tokens.weight"].shape),
            "inner": len(weights["model.layers.0.mlp.up_proj.weight"]),
            "layers": config.num_hidden_layers,
            "heads": config.num_attention_heads,
            "epsilon": getattr(model.model.norm, "variance_epsilon", None) or model.model.norm.eps,
            "window": getattr(config, "sliding_window", None)
            if record["model_type"] == "mistral"
            else None,
            "tied": bool(config.tie_word_embeddings),
        }
    except Exception as error:  # whatever it is, this config is not one that it can run
        return {"fails": f"{type(error).__name__}: {error}"}


def defaults_of(kind: str) -> dict[str, Any]:
    """Return what a config class holds when it is told nothing."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    return {**vars(config), **config.to_dict()}


if __name__ == "__main__":
    for line in sys.stdin:
        asked = json.loads(line)
        answer = defaults_of(asked) if isinstance(asked, str) else reading_of(asked)
        sys.stdout.write(json.dumps(answer, default=str) + "\n")
        sys.stdout.flush()
