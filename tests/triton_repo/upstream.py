"""Repositories as TensorRT-LLM's templates leave them: its models, tensors, keys and `${...}`."""

from __future__ import annotations

import shutil
import string
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from tests.build.engines import write_engine

from minitron_trt.samples import sample_folder

# A line: type, dims, flags (o optional, s reshaped to a scalar, r ragged), names.
PREPROCESSING_INPUTS: Final = """
STRING 1 - QUERY
STRING 1 o DECODER_QUERY IMAGE_URL
UINT8 -1,-1,-1,-1 o IMAGE_BYTES VIDEO_BYTES
INT32 1 - REQUEST_OUTPUT_LEN
STRING -1 o BAD_WORDS_DICT STOP_WORDS_DICT EMBEDDING_BIAS_WORDS
FP32 -1 o EMBEDDING_BIAS_WEIGHTS
INT32 1 o END_ID PAD_ID
UINT64 1 o PROMPT_TABLE_EXTRA_ID
"""
PREPROCESSING_OUTPUTS: Final = """
INT32 -1 - INPUT_ID DECODER_INPUT_ID REQUEST_OUTPUT_LEN
INT32 1 - REQUEST_INPUT_LEN REQUEST_DECODER_INPUT_LEN OUT_END_ID OUT_PAD_ID
INT32 2,-1 - BAD_WORDS_IDS STOP_WORDS_IDS
FP32 -1 - EMBEDDING_BIAS
UINT64 -1 - OUT_PROMPT_TABLE_EXTRA_IDS
FP16 -1,-1,-1,-1 - PIXEL_VALUES
BOOL 1 - IS_VIDEO_INPUT
"""
RUNTIME_INPUTS: Final = """
INT32 -1 or input_ids draft_input_ids decoder_input_ids
${encoder_input_features_data_type} -1,-1 or encoder_input_features
INT32 1 s input_lengths request_output_len
INT32 1 os encoder_output_lengths num_return_sequences decoder_input_lengths end_id pad_id
${logits_datatype} -1,-1 or draft_logits
FP32 1 os draft_acceptance_threshold
INT32 2,-1 or stop_words_list bad_words_list
FP32 -1 or embedding_bias
INT32 1 os beam_width runtime_top_k runtime_top_p_reset_ids min_tokens prompt_vocab_size
FP32 1 os temperature runtime_top_p runtime_top_p_min runtime_top_p_decay len_penalty
FP32 1 os repetition_penalty beam_search_diversity_rate presence_penalty frequency_penalty
UINT64 1 os seed lora_task_id
BOOL 1 os early_stopping return_log_probs return_context_logits return_generation_logits
BOOL 1 os return_perf_metrics return_num_input_tokens return_num_output_tokens
BOOL 1 os exclude_input_in_output stop streaming
${prompt_embedding_table_data_type} -1,-1 or prompt_embedding_table
UINT64 -1 or prompt_table_extra_ids
BOOL -1,-1 or cross_attention_mask
FP32 -1 o mrope_rotary_cos_sin
INT64 1 o mrope_position_deltas
FP16 -1,-1 or lora_weights
INT32 -1,3 or lora_config
UINT8 -1 or context_phase_params
BOOL 1 or skip_cross_attn_blocks
INT32 -1 or retention_token_range_starts retention_token_range_ends
INT32 -1 or retention_token_range_priorities retention_token_range_durations_ms
INT32 1 or retention_decode_priority retention_decode_duration_ms
STRING 1 or guided_decoding_guide_type guided_decoding_guide
INT32 1 or lookahead_window_size lookahead_ngram_size lookahead_verification_set_size
"""
STATISTICS: Final = """
FP32 -1 - cum_log_probs
FP32 -1,-1 - output_log_probs
${logits_datatype} -1,-1 - context_logits
${logits_datatype} -1,-1,-1 - generation_logits
INT32 1 - batch_index sequence_index kv_cache_alloc_new_blocks kv_cache_reused_blocks
INT32 1 - kv_cache_alloc_total_blocks
INT64 1 - arrival_time_ns first_scheduled_time_ns first_token_time_ns last_token_time_ns
FP32 1 - acceptance_rate
INT32 1 - total_accepted_draft_tokens total_draft_tokens num_input_tokens num_output_tokens
"""
RUNTIME_OUTPUTS: Final = f"""
INT32 -1,-1 - output_ids
INT32 -1 - sequence_length
{STATISTICS}
UINT8 -1 - context_phase_params
"""
TEXT_INPUTS: Final = """
STRING 1 - text_input
STRING 1 o decoder_text_input guided_decoding_guide_type guided_decoding_guide
INT32 1 - max_tokens
INT32 1 o num_return_sequences end_id pad_id top_k min_tokens beam_width prompt_vocab_size
STRING -1 o bad_words stop_words embedding_bias_words
BOOL 1 o exclude_input_in_output return_log_probs return_context_logits stream
BOOL 1 o return_generation_logits return_perf_metrics return_num_input_tokens
BOOL 1 o return_num_output_tokens
FP32 1 o top_p temperature length_penalty repetition_penalty presence_penalty frequency_penalty
UINT64 1 o seed prompt_table_extra_id lora_task_id
FP16 -1,-1 o prompt_embedding_table
FP32 -1 o embedding_bias_weights
FP16 -1,-1 or lora_weights
INT32 -1,3 or lora_config
"""
RELAY_INPUTS: Final = f"{TEXT_INPUTS}INT32 1 o num_draft_tokens\nBOOL 1 os use_draft_logits"
TEXT_OUTPUTS: Final = f"STRING -1 - text_output\n{STATISTICS}"
POSTPROCESSING_INPUTS: Final = "INT32 -1,-1 - TOKENS_BATCH\nINT32 -1 - SEQUENCE_LENGTH"

# Upstream's ensemble names one output twice.
TWICE: Final = "\nINT32 1 - kv_cache_alloc_total_blocks"

ENCODED: Final = {
    "INPUT_ID": "input_ids",
    "REQUEST_INPUT_LEN": "input_lengths",
    "DECODER_INPUT_ID": "decoder_input_ids",
    "REQUEST_DECODER_INPUT_LEN": "decoder_input_lengths",
    "REQUEST_OUTPUT_LEN": "request_output_len",
    "STOP_WORDS_IDS": "stop_words_list",
    "BAD_WORDS_IDS": "bad_words_list",
    "EMBEDDING_BIAS": "embedding_bias",
    "OUT_END_ID": "end_id",
    "OUT_PAD_ID": "pad_id",
    "OUT_PROMPT_TABLE_EXTRA_IDS": "prompt_table_extra_ids",
}
PREPROCESSED: Final = {
    "QUERY": "text_input",
    "DECODER_QUERY": "decoder_text_input",
    "REQUEST_OUTPUT_LEN": "max_tokens",
    "BAD_WORDS_DICT": "bad_words",
    "STOP_WORDS_DICT": "stop_words",
    "EMBEDDING_BIAS_WORDS": "embedding_bias_words",
    "EMBEDDING_BIAS_WEIGHTS": "embedding_bias_weights",
    "END_ID": "end_id",
    "PAD_ID": "pad_id",
    "PROMPT_TABLE_EXTRA_ID": "prompt_table_extra_id",
}
RENAMED: Final = {
    "top_k": "runtime_top_k",
    "top_p": "runtime_top_p",
    "length_penalty": "len_penalty",
    "stream": "streaming",
}
RUNTIME_KEYS: Final = (
    "max_beam_width",
    "encoder_model_path",
    "max_tokens_in_paged_kv_cache",
    "max_attention_window_size",
    "sink_token_length",
    "batch_scheduler_policy",
    "kv_cache_free_gpu_mem_fraction",
    "cross_kv_cache_fraction",
    "kv_cache_host_memory_bytes",
    "kv_cache_onboard_blocks",
    "enable_trt_overlap",
    "exclude_input_in_output",
    "cancellation_check_period_ms",
    "stats_check_period_ms",
    "iter_stats_max_iterations",
    "request_stats_max_iterations",
    "enable_kv_cache_reuse",
    "normalize_log_probs",
    "enable_chunked_context",
    "gpu_device_ids",
    "participant_ids",
    "num_nodes",
    "lora_cache_optimal_adapter_size",
    "lora_cache_max_adapter_size",
    "lora_cache_gpu_memory_fraction",
    "lora_cache_host_memory_bytes",
    "lora_prefetch_dir",
    "decoding_mode",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
    "medusa_choices",
    "eagle_choices",
    "gpu_weights_percent",
    "enable_context_fmha_fp32_acc",
    "multi_block_mode",
    "cuda_graph_mode",
    "cuda_graph_cache_size",
    "speculative_decoding_fast_logits",
    "tokenizer_dir",
    "guided_decoding_backend",
    "xgrammar_tokenizer_info_path",
)


def _tensors(table: str) -> str:
    blocks = []
    for line in filter(None, table.splitlines()):
        kind, dims, flags, *names = line.split()
        kind = kind if kind.startswith("$") else f"TYPE_{kind}"
        for name in names:
            lines = [f'    name: "{name}"', f"    data_type: {kind}"]
            lines.append(f"    dims: [ {dims.replace(',', ', ')} ]")
            lines += ["    reshape: { shape: [ ] }"] * ("s" in flags)
            lines += ["    optional: true"] * ("o" in flags)
            lines += ["    allow_ragged_batch: true"] * ("r" in flags)
            blocks.append("  {\n" + "\n".join(lines) + "\n  }")
    return ",\n".join(blocks)


def _parameters(values: Mapping[str, str]) -> str:
    return "".join(
        f'parameters: {{\n  key: "{key}"\n  value: {{\n    string_value: "{value}"\n  }}\n}}\n'
        for key, value in values.items()
    )


def _model(
    name: str, *, inputs: str, outputs: str, middle: str, parameters: Mapping[str, str], end: str
) -> str:
    return (
        f'# A model of the template: ${{this}} is a comment.\nname: "{name}"\n{middle}'
        "max_batch_size: ${triton_max_batch_size}\n\n"
        f"input [\n{_tensors(inputs)}\n]\noutput [\n{_tensors(outputs)}\n]\n"
        f"{_parameters(parameters)}{end}"
    )


def _instances(count: str) -> str:
    return f"instance_group [\n  {{\n    count: {count}\n    kind : KIND_CPU\n  }}\n]\n"


def _same(names: Iterable[str]) -> dict[str, str]:
    return {name: f"${{{name}}}" for name in names}


def _names(table: str) -> list[str]:
    return [name for line in table.splitlines() if line for name in line.split()[3:]]


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    sides = (("input_map", inputs), ("output_map", outputs))
    maps = "".join(
        f'      {side} {{\n        key: "{key}"\n        value: "{value}"\n      }}\n'
        for side, entries in sides
        for key, value in entries.items()
    )
    return f'    {{\n      model_name: "{model}"\n      model_version: -1\n{maps}    }}'


def _scheduling() -> str:
    passed = {RENAMED.get(name, name): name for name in _names(TEXT_INPUTS)}
    for name in PREPROCESSED.values():
        passed.pop(name, None)
    results = {"output_ids": "_TOKENS_BATCH", "sequence_length": "_SEQUENCE_LENGTH"}
    steps = (
        _step("preprocessing", PREPROCESSED, {name: f"_{name}" for name in ENCODED}),
        _step(
            "tensorrt_llm",
            {target: f"_{name}" for name, target in ENCODED.items()} | passed,
            results | {name: name for name in _names(STATISTICS)},
        ),
        _step(
            "postprocessing",
            {"TOKENS_BATCH": "_TOKENS_BATCH", "SEQUENCE_LENGTH": "_SEQUENCE_LENGTH"},
            {"OUTPUT": "text_output"},
        ),
    )
    return "ensemble_scheduling {\n  step [\n" + ",\n".join(steps) + "\n  ]\n}\n"


DECOUPLED: Final = "model_transaction_policy {\n  decoupled: ${decoupled_mode}\n}\n"
BATCHING: Final = (
    "dynamic_batching {\n    preferred_batch_size: [ ${triton_max_batch_size} ]\n"
    "    max_queue_delay_microseconds: ${max_queue_delay_microseconds}\n"
    "    default_queue_policy: { max_queue_size: ${max_queue_size} }\n}\n"
)


RELAY_KEYS: Final = (
    "accumulate_tokens",
    "tensorrt_llm_model_name",
    "tensorrt_llm_draft_model_name",
    "multimodal_encoders_name",
)


def templates() -> dict[str, str]:
    """Return the five configs, nothing filled in."""
    tokenizer = _same(["tokenizer_dir"])
    prompts = _same(["add_special_tokens", "multimodal_model_path", "max_num_images"])
    runtime = {"FORCE_CPU_ONLY_INPUT_TENSORS": "no", "gpt_model_type": "${batching_strategy}"}
    runtime |= {"gpt_model_path": "${engine_dir}"} | _same(RUNTIME_KEYS)
    runtime |= {"executor_worker_path": "/opt/tritonserver/backends/tensorrtllm/worker"}
    python = 'backend: "python"\n'
    return {
        "preprocessing": _model(
            "preprocessing",
            inputs=PREPROCESSING_INPUTS,
            outputs=PREPROCESSING_OUTPUTS,
            middle=python + BATCHING,
            parameters=tokenizer | prompts | {"gpt_model_path": "${engine_dir}"},
            end=_instances("${preprocessing_instance_count}"),
        ),
        "tensorrt_llm": _model(
            "tensorrt_llm",
            inputs=RUNTIME_INPUTS,
            outputs=RUNTIME_OUTPUTS,
            middle='backend: "${triton_backend}"\n' + DECOUPLED + BATCHING,
            parameters=runtime,
            end=_instances("1"),
        ),
        "postprocessing": _model(
            "postprocessing",
            inputs=POSTPROCESSING_INPUTS,
            outputs="STRING -1 - OUTPUT",
            middle=python,
            parameters=tokenizer | _same(["skip_special_tokens"]),
            end=_instances("${postprocessing_instance_count}"),
        ),
        "ensemble": _model(
            "ensemble",
            inputs=TEXT_INPUTS,
            outputs=TEXT_OUTPUTS + TWICE,
            middle='platform: "ensemble"\n',
            parameters={},
            end=_scheduling(),
        ),
        "tensorrt_llm_bls": _model(
            "tensorrt_llm_bls",
            inputs=RELAY_INPUTS,
            outputs=TEXT_OUTPUTS,
            middle=python + DECOUPLED,
            parameters=_same(RELAY_KEYS),
            end=_instances("${bls_instance_count}"),
        ),
    }


REQUIRED: Final = {
    "triton_backend": "tensorrtllm",
    "triton_max_batch_size": "4",
    "decoupled_mode": "true",
    "max_queue_delay_microseconds": "0",
    "max_queue_size": "0",
    "encoder_input_features_data_type": "TYPE_FP16",
    "logits_datatype": "TYPE_FP32",
    "prompt_embedding_table_data_type": "TYPE_FP16",
    "batching_strategy": "inflight_fused_batching",
    "preprocessing_instance_count": "5",
    "postprocessing_instance_count": "5",
    "bls_instance_count": "4",
}


def write_upstream(folder: Path, values: Mapping[str, str] | None = None) -> Path:
    """Write a repository filled as its documentation says; `values` replace or add some."""
    here = {"tokenizer_dir": f"{folder}-model", "engine_dir": f"{folder}-engine"}
    shutil.copytree(sample_folder("solar-llama"), here["tokenizer_dir"])
    write_engine(Path(here["engine_dir"]), size_bytes=1000, pretrained={"vocab_size": 1024})
    for name, text in templates().items():
        model = folder / name
        (model / "1").mkdir(parents=True)
        filled = string.Template(text).safe_substitute({**REQUIRED, **here, **(values or {})})
        (model / "config.pbtxt").write_text(filled.replace("# A model of", "# From"))
        if name in ("preprocessing", "postprocessing", "tensorrt_llm_bls"):
            (model / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    return folder


def write_templates(folder: Path) -> Path:
    """Write a repository that nobody filled in."""
    for name, text in templates().items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(text)
        (folder / name / "1" / "model.py").write_text("class TritonPythonModel: ...\n")
    return folder
