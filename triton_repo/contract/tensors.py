"""The tensors of the models of text, by TensorRT-LLM's names; shapes leave out the batch axis.

Source: config.pbtxt of TensorRT-LLM's `inflight_batcher_llm` models, without what only
encoder-decoder and multimodal models use; of those, the text of a decoder and its ids are declared
and ignored, since NVIDIA's scripts pass them on. What is `added` to theirs is what postprocessing
needs to cut a text exactly, however many tokens a runtime puts into one response.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final


@dataclass(frozen=True, slots=True)
class Tensor:
    """One input or output of a model."""

    name: str
    type: str  # Triton's literal, without TYPE_
    dims: tuple[int, ...] = (1,)
    optional: bool = False
    ragged: bool = False  # requests of one batch may differ in shape
    scalar: bool = False  # the model sees the batch axis alone
    added: bool = False  # TensorRT-LLM's own model of that name lacks it


@dataclass(frozen=True, slots=True)
class Signature:
    """The tensors of one model."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


LOGITS_TYPES: Final[Mapping[str, str]] = MappingProxyType({"float32": "FP32", "float16": "FP16"})
LOGITS_OUTPUTS: Final = ("context_logits", "generation_logits")
PROMPT_TABLE_TYPES: Final[Mapping[str, str]] = MappingProxyType(
    {"float16": "FP16", "bfloat16": "BF16", "float32": "FP32"}
)
"""Triton's types by the dtypes that an engine may have."""


@dataclass(frozen=True, slots=True)
class ElementTypes:
    """Data types that an engine decides."""

    logits: str = "FP32"
    prompt_table: str = "FP16"


def optional(type_: str, *names: str, dims: tuple[int, ...] = (1,)) -> tuple[Tensor, ...]:
    """Return optional inputs of one type and shape."""
    return tuple(Tensor(name, type_, dims, optional=True) for name in names)


def outputs(type_: str, *names: str, dims: tuple[int, ...] = (1,)) -> tuple[Tensor, ...]:
    """Return outputs of one type and shape."""
    return tuple(Tensor(name, type_, dims) for name in names)


def added(tensors: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Return tensors as those that TensorRT-LLM's own models lack."""
    return tuple(replace(tensor, added=True) for tensor in tensors)


WORD_IDS: Final = (2, -1)  # row 0: ids one after another; row 1: where each word ends, then -1

PREPROCESSING_TENSORS: Final = Signature(
    inputs=(
        Tensor("QUERY", "STRING"),
        *optional("STRING", "DECODER_QUERY"),
        Tensor("REQUEST_OUTPUT_LEN", "INT32"),
        *optional("STRING", "BAD_WORDS_DICT", "STOP_WORDS_DICT", dims=(-1,)),
        *optional("STRING", "EMBEDDING_BIAS_WORDS", dims=(-1,)),
        *optional("FP32", "EMBEDDING_BIAS_WEIGHTS", dims=(-1,)),
        *optional("INT32", "END_ID", "PAD_ID"),
        *optional("UINT64", "PROMPT_TABLE_EXTRA_ID"),
        *added(optional("BOOL", "STREAM", "EXCLUDE_INPUT_IN_OUTPUT", "APPLY_CHAT_TEMPLATE")),
    ),
    outputs=(
        Tensor("INPUT_ID", "INT32", (-1,)),
        Tensor("DECODER_INPUT_ID", "INT32", (-1,)),
        *outputs("INT32", "REQUEST_INPUT_LEN", "REQUEST_DECODER_INPUT_LEN"),
        *outputs("INT32", "BAD_WORDS_IDS", "STOP_WORDS_IDS", dims=WORD_IDS),
        Tensor("EMBEDDING_BIAS", "FP32", (-1,)),
        Tensor("REQUEST_OUTPUT_LEN", "INT32", (-1,)),
        *outputs("INT32", "OUT_END_ID", "OUT_PAD_ID"),
        Tensor("OUT_PROMPT_TABLE_EXTRA_IDS", "UINT64", (-1,)),
        *added(outputs("BOOL", "OUT_EXCLUDE_INPUT_IN_OUTPUT")),
        *added(outputs("UINT64", "STREAM_ID")),
    ),
)

POSTPROCESSING_TENSORS: Final = Signature(
    inputs=(
        Tensor("TOKENS_BATCH", "INT32", (-1, -1)),
        *optional("INT32", "SEQUENCE_LENGTH", dims=(-1,)),
        *added(optional("INT32", "BATCH_INDEX", "SEQUENCE_INDEX")),
        *added(optional("UINT64", "STREAM_ID")),
        *added(optional("STRING", "FINISH_REASON")),
        # From preprocessing, before the first response: what the stream's text depends on.
        *added(optional("INT32", "OPEN_MAX_TOKENS")),
        *added(optional("BOOL", "OPEN_STREAM")),
        *added(optional("STRING", "OPEN_STOP_WORDS", dims=(-1,))),
        *added(optional("INT32", "OPEN_ECHO", dims=(-1,))),
        # From tensorrt_llm_bls: the request of this one's id is to end.
        *added(optional("BOOL", "STOP")),
        # From tensorrt_llm: how many responses each of these streams has had, -1 if not known.
        *added(optional("UINT64", "WATCHED_STREAM_IDS", dims=(-1,))),
    ),
    outputs=(
        *outputs("STRING", "OUTPUT", dims=(-1,)),
        *added(outputs("STRING", "FINISH_REASON", dims=(-1,))),
        *added(outputs("INT32", "WATCHED_RESPONSES", dims=(-1,))),
    ),
)


def statistics(types: ElementTypes) -> tuple[Tensor, ...]:
    """Return the outputs that pass from tensorrt_llm to the client as they are."""
    return (
        Tensor("cum_log_probs", "FP32", (-1,)),
        Tensor("output_log_probs", "FP32", (-1, -1)),
        Tensor("context_logits", types.logits, (-1, -1)),
        Tensor("generation_logits", types.logits, (-1, -1, -1)),
        *outputs("INT32", "batch_index", "sequence_index"),
        *outputs("INT32", "kv_cache_alloc_new_blocks", "kv_cache_reused_blocks"),
        *outputs("INT32", "kv_cache_alloc_total_blocks"),
        *outputs("INT64", "arrival_time_ns", "first_scheduled_time_ns"),
        *outputs("INT64", "first_token_time_ns", "last_token_time_ns"),
        *outputs("FP32", "acceptance_rate"),
        *outputs("INT32", "total_accepted_draft_tokens", "total_draft_tokens"),
        *outputs("INT32", "num_input_tokens", "num_output_tokens"),
    )


def text_model(types: ElementTypes) -> Signature:
    """Return what the ensemble and the BLS model offer."""
    return Signature(
        inputs=(
            Tensor("text_input", "STRING"),
            *optional("STRING", "decoder_text_input"),
            Tensor("max_tokens", "INT32"),
            *optional("INT32", "num_return_sequences"),
            *optional("STRING", "bad_words", "stop_words", dims=(-1,)),
            *optional("BOOL", "exclude_input_in_output"),
            *optional("INT32", "end_id", "pad_id", "top_k"),
            *optional("FP32", "top_p", "temperature", "length_penalty", "repetition_penalty"),
            *optional("INT32", "min_tokens"),
            *optional("FP32", "presence_penalty", "frequency_penalty"),
            *optional("UINT64", "seed"),
            *optional("BOOL", "return_log_probs", "return_context_logits"),
            *optional("BOOL", "return_generation_logits", "return_perf_metrics"),
            *optional("BOOL", "return_num_input_tokens", "return_num_output_tokens"),
            *optional("INT32", "beam_width"),
            *optional("BOOL", "stream"),
            *optional(types.prompt_table, "prompt_embedding_table", dims=(-1, -1)),
            *optional("UINT64", "prompt_table_extra_id"),
            *optional("INT32", "prompt_vocab_size"),
            *optional("STRING", "embedding_bias_words", dims=(-1,)),
            *optional("FP32", "embedding_bias_weights", dims=(-1,)),
            *optional("UINT64", "lora_task_id"),
            *optional("FP16", "lora_weights", dims=(-1, -1)),
            *optional("INT32", "lora_config", dims=(-1, 3)),
            *optional("STRING", "guided_decoding_guide_type", "guided_decoding_guide"),
            *added(optional("BOOL", "apply_chat_template")),
        ),
        outputs=(
            Tensor("text_output", "STRING", (-1,)),
            *statistics(types),
            *added(outputs("STRING", "finish_reason", dims=(-1,))),
        ),
    )


def bls_model(types: ElementTypes) -> Signature:
    """Return what the BLS model offers: of drafts, which it has made, the ensemble has nothing."""
    signature = text_model(types)
    drafts = (*optional("INT32", "num_draft_tokens"), *optional("BOOL", "use_draft_logits"))
    return replace(signature, inputs=(*signature.inputs, *drafts))
