"""How a tensor is called on either side of two models; read by the ensemble and the models."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

PASSED_ON: Final[Mapping[str, str]] = MappingProxyType(
    {
        "num_return_sequences": "num_return_sequences",
        "top_k": "runtime_top_k",
        "top_p": "runtime_top_p",
        "temperature": "temperature",
        "length_penalty": "len_penalty",
        "repetition_penalty": "repetition_penalty",
        "min_tokens": "min_tokens",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "seed": "seed",
        "return_log_probs": "return_log_probs",
        "return_context_logits": "return_context_logits",
        "return_generation_logits": "return_generation_logits",
        "return_perf_metrics": "return_perf_metrics",
        "return_num_input_tokens": "return_num_input_tokens",
        "return_num_output_tokens": "return_num_output_tokens",
        "beam_width": "beam_width",
        "stream": "streaming",
        "prompt_embedding_table": "prompt_embedding_table",
        "prompt_vocab_size": "prompt_vocab_size",
        "lora_task_id": "lora_task_id",
        "lora_weights": "lora_weights",
        "lora_config": "lora_config",
        "guided_decoding_guide_type": "guided_decoding_guide_type",
        "guided_decoding_guide": "guided_decoding_guide",
    }
)
"""From the client's inputs to tensorrt_llm's, untouched."""

TEXT_INPUTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "text_input": "QUERY",
        "decoder_text_input": "DECODER_QUERY",
        "bad_words": "BAD_WORDS_DICT",
        "stop_words": "STOP_WORDS_DICT",
        "embedding_bias_words": "EMBEDDING_BIAS_WORDS",
        "embedding_bias_weights": "EMBEDDING_BIAS_WEIGHTS",
        "end_id": "END_ID",
        "pad_id": "PAD_ID",
        "prompt_table_extra_id": "PROMPT_TABLE_EXTRA_ID",
        "apply_chat_template": "APPLY_CHAT_TEMPLATE",
    }
)
"""From the client's inputs that become ids to preprocessing's."""

ENCODED_INPUTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "input_ids": "INPUT_ID",
        "input_lengths": "REQUEST_INPUT_LEN",
        "bad_words_list": "BAD_WORDS_IDS",
        "stop_words_list": "STOP_WORDS_IDS",
        "embedding_bias": "EMBEDDING_BIAS",
        "end_id": "OUT_END_ID",
        "pad_id": "OUT_PAD_ID",
        "prompt_table_extra_ids": "OUT_PROMPT_TABLE_EXTRA_IDS",
    }
)
"""From tensorrt_llm's inputs that text becomes to preprocessing's outputs."""
