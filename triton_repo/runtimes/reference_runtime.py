"""Runtime `reference`: our executor over a checkpoint, on a CPU or a GPU, for correctness."""

from __future__ import annotations

from typing import Final

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.errors import UnsupportedError
from minitron_trt.spec import ModelSpec
from minitron_trt.triton_repo.contract.model_names import TENSORRT_LLM
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import ElementTypes
from minitron_trt.triton_repo.model_config import python_model
from minitron_trt.triton_repo.parameters import defaults
from minitron_trt.triton_repo.runtimes.runtime import (
    Runtime,
    check_max_seq_len,
    find_end_ids,
    find_tokenizer,
)
from minitron_trt.triton_repo.runtimes.runtime_names import REFERENCE
from minitron_trt.triton_repo.serving_recipe import ServingRecipe
from minitron_trt.verification_record import verification_facts

DEFAULT_MAX_BATCH_SIZE: Final = 8
# Each slot has room for so many from the start: with all 131,072 positions of
# Llama-3.1-Minitron-4B the 8 slots would be 137 GB in bf16.
DEFAULT_MAX_SEQ_LEN: Final = 4096
_CHECKPOINT: Final = "checkpoint"


def plan_reference(
    checkpoint: Checkpoint, recipe: ServingRecipe, *, name: str = TENSORRT_LLM
) -> Runtime:
    """Serve a checkpoint as it is, by the model of a name.

    BadInputError when it has no tokenizer, UsageError when the recipe does not fit it,
    UnsupportedError for several GPUs.
    """
    recipe.refuse(REFERENCE, "tp", "pp", "mount", "max_queue_delay_us")
    _check_gpu(recipe)
    batch = recipe.max_batch_size or DEFAULT_MAX_BATCH_SIZE
    parameters = {
        "gpt_model_path": _CHECKPOINT,
        "gpt_model_type": "inflight_fused_batching",
        "max_batch_size": str(batch),
        "max_seq_len": str(seq_len(checkpoint.spec, recipe)),
        "max_queue_size": str(recipe.max_queue_size),
        "stream_interval": str(recipe.stream_interval),
        "cancellation_check_period_ms": "20",
        **defaults(TENSORRT_LLM, REFERENCE),
        **recipe.settings_of(TENSORRT_LLM),
    }
    types = ElementTypes()
    tokenizer = find_tokenizer(recipe.tokenizer or checkpoint.folder)
    return Runtime(
        name=REFERENCE,
        config=python_model(
            name,
            tensorrt_llm(types, reports_streams=True),
            parameters,
            max_batch_size=batch,
            decoupled=recipe.decoupled,
        ),
        texts={},
        links={
            f"{_CHECKPOINT}/{path.relative_to(checkpoint.folder)}": path
            for path in checkpoint.files
        },
        tokenizer=tokenizer,
        end_ids=find_end_ids(
            checkpoint.tokens, (recipe.tokenizer,), tokenizer, checkpoint.spec.vocab
        ),
        vocab_size=checkpoint.spec.vocab,
        max_seq_len=seq_len(checkpoint.spec, recipe),
        types=types,
        reports_streams=True,
        # Each is a process beside the model, which computes on the same processor.
        most_text_instances=2,
        facts={"world_size": 1, **verification_facts(checkpoint.verification)},
    )


def seq_len(spec: ModelSpec, recipe: ServingRecipe) -> int:
    """Return how many tokens a sequence may have; UsageError beyond the model's positions."""
    check_max_seq_len(recipe, spec.max_positions)
    return recipe.max_seq_len or min(spec.max_positions, DEFAULT_MAX_SEQ_LEN)


def _check_gpu(recipe: ServingRecipe) -> None:
    gpu = recipe.settings_of(TENSORRT_LLM).get("gpu_device_ids", "0")
    if not gpu.isdecimal():
        raise UnsupportedError(
            f"gpu_device_ids is {gpu!r}; the reference runtime computes on one GPU: name one"
        )
