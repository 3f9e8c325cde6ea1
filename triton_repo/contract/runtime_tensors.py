"""The tensors of the model `tensorrt_llm`, whichever runtime is behind it.

Source: config.pbtxt of TensorRT-LLM's `inflight_batcher_llm/tensorrt_llm`.
"""

from __future__ import annotations

from dataclasses import replace

from minitron_trt.triton_repo.contract.tensors import (
    WORD_IDS,
    ElementTypes,
    Signature,
    Tensor,
    added,
    optional,
    outputs,
    statistics,
)


def tensorrt_llm(types: ElementTypes, *, reports_streams: bool) -> Signature:
    """Return the tensors of `tensorrt_llm`.

    With `reports_streams` they include the stream's id and why it ended, which TensorRT-LLM's own
    backend does not say.
    """
    inputs = (
        *_prompt(),
        *_sampling(),
        *_responses(),
        *_adapters(types),
        *_cache(),
        *_decoding(types),
    )
    results = (
        Tensor("output_ids", "INT32", (-1, -1)),
        Tensor("sequence_length", "INT32", (-1,)),
        *statistics(types),
        Tensor("context_phase_params", "UINT8", (-1,)),
    )
    if reports_streams:
        told = (*outputs("UINT64", "stream_id"), *outputs("STRING", "finish_reason"))
        inputs = (*inputs, *added(optional("UINT64", "stream_id")))
        results = (*results, *added(told))
    return Signature(inputs, results)


def _scalars(type_: str, *names: str) -> tuple[Tensor, ...]:
    return tuple(Tensor(name, type_, optional=True, scalar=True) for name in names)


def _ragged(type_: str, *names: str, dims: tuple[int, ...] = (1,)) -> tuple[Tensor, ...]:
    return tuple(replace(tensor, ragged=True) for tensor in optional(type_, *names, dims=dims))


def _prompt() -> tuple[Tensor, ...]:
    return (
        *_ragged("INT32", "input_ids", dims=(-1,)),
        *_ragged("INT32", "decoder_input_ids", dims=(-1,)),
        Tensor("input_lengths", "INT32", scalar=True),
        Tensor("request_output_len", "INT32", scalar=True),
        *_scalars("INT32", "decoder_input_lengths"),
        *_scalars("INT32", "num_return_sequences", "end_id", "pad_id"),
        *_ragged("INT32", "stop_words_list", "bad_words_list", dims=WORD_IDS),
        *_ragged("FP32", "embedding_bias", dims=(-1,)),
    )


def _sampling() -> tuple[Tensor, ...]:
    return (
        *_scalars("INT32", "beam_width"),
        *_scalars("FP32", "temperature"),
        *_scalars("INT32", "runtime_top_k"),
        *_scalars("FP32", "runtime_top_p", "runtime_top_p_min", "runtime_top_p_decay"),
        *_scalars("INT32", "runtime_top_p_reset_ids"),
        *_scalars("FP32", "len_penalty"),
        *_scalars("BOOL", "early_stopping"),
        *_scalars("FP32", "repetition_penalty"),
        *_scalars("INT32", "min_tokens"),
        *_scalars("FP32", "beam_search_diversity_rate"),
        *_scalars("FP32", "presence_penalty", "frequency_penalty"),
        *_scalars("UINT64", "seed"),
    )


def _responses() -> tuple[Tensor, ...]:
    return (
        *_scalars("BOOL", "return_log_probs", "return_context_logits"),
        *_scalars("BOOL", "return_generation_logits", "return_perf_metrics"),
        *_scalars("BOOL", "return_num_input_tokens", "return_num_output_tokens"),
        *_scalars("BOOL", "exclude_input_in_output", "stop", "streaming"),
    )


# Declared whatever the runtime, so that one without LoRA or prompt tables can refuse them: Triton's
# HTTP endpoint generate passes over inputs that a model does not declare.
def _adapters(types: ElementTypes) -> tuple[Tensor, ...]:
    return (
        *_ragged(types.prompt_table, "prompt_embedding_table", dims=(-1, -1)),
        *_ragged("UINT64", "prompt_table_extra_ids", dims=(-1,)),
        *_scalars("INT32", "prompt_vocab_size"),
        *_scalars("UINT64", "lora_task_id"),
        *_ragged("FP16", "lora_weights", dims=(-1, -1)),
        *_ragged("INT32", "lora_config", dims=(-1, 3)),
    )


def _cache() -> tuple[Tensor, ...]:
    ranges = ("starts", "ends", "priorities", "durations_ms")
    return (
        *_ragged("UINT8", "context_phase_params", dims=(-1,)),
        *_ragged("INT32", *(f"retention_token_range_{name}" for name in ranges), dims=(-1,)),
        *_ragged("INT32", "retention_decode_priority", "retention_decode_duration_ms"),
    )


def _decoding(types: ElementTypes) -> tuple[Tensor, ...]:
    lookahead = ("window_size", "ngram_size", "verification_set_size")
    return (
        *_ragged("INT32", "draft_input_ids", dims=(-1,)),
        *_ragged(types.logits, "draft_logits", dims=(-1, -1)),
        *_scalars("FP32", "draft_acceptance_threshold"),
        *_ragged("STRING", "guided_decoding_guide_type", "guided_decoding_guide"),
        *_ragged("INT32", *(f"lookahead_{name}" for name in lookahead)),
    )
