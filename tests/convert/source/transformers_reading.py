"""What the transformers installed beside it makes of a config.json or a model folder.

A question is a line of JSON and so is its answer.

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


def logits_of(folder: str, ids: list[int]) -> Any:
    """Return the logits of a model folder in float32, one list for each token."""
    import torch
    from transformers.models.auto import modeling_auto

    auto: Any = modeling_auto.AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].tolist()


def answer_of(question: Any) -> Any:
    """Answer a question: a class's name, a config, or a folder with token ids."""
    if isinstance(question, str):
        return defaults_of(question)
    if "folder" in question:
        return logits_of(question["folder"], question["ids"])
    return reading_of(question)


def defaults_of(kind: str) -> dict[str, Any]:
    """Return what a config class holds when it is told nothing."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind)
    return {**vars(config), **config.to_dict()}


if __name__ == "__main__":
    for line in sys.stdin:
        answer = answer_of(json.loads(line))
        sys.stdout.write(json.dumps(answer, default=str) + "\n")
        sys.stdout.flush()
