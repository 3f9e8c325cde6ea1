"""The draft model: a smaller checkpoint whose tokens tensorrt_llm checks."""

from __future__ import annotations

from pathlib import Path

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import UnsupportedError
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM_DRAFT
from minitron_trt.triton_repo.runtimes.reference_runtime import plan_reference
from minitron_trt.triton_repo.runtimes.runtime import Runtime
from minitron_trt.triton_repo.serving_recipe import ServingRecipe


def plan_draft(folder: Path, target: Runtime, recipe: ServingRecipe) -> Runtime:
    """Serve a checkpoint as the draft model of another.

    UnsupportedError where one model's ids are not the other's, or where the draft model would end
    before the target does.
    """
    draft = plan_reference(Checkpoint.open(folder), recipe, name=TENSORRT_LLM_DRAFT)
    if draft.vocab_size != target.vocab_size:
        raise UnsupportedError(
            f"{folder} has {draft.vocab_size} token ids and the model to draft for has "
            f"{target.vocab_size}; expected as many"
        )
    if draft.tokenizer.ids != target.tokenizer.ids:
        raise UnsupportedError(
            f"the tokenizer of {folder} gives other ids than that of the model to draft for; "
            "expected the same vocabulary"
        )
    if draft.max_seq_len < target.max_seq_len:
        raise UnsupportedError(
            f"{folder} holds sequences of {draft.max_seq_len} tokens and the model to draft for "
            f"of {target.max_seq_len}; lower --max-seq-len to {draft.max_seq_len}"
        )
    return draft
