"""The fate of every setting that checkpoints, engines and their Triton models have.

Names on the left are those of a checkpoint's and an engine's config.json and of config.pbtxt; on
the right stand the arguments of TensorRT-LLM 1.2's LLM class and the fields of a ServingRecipe.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from minitron_trt.migrate.fates import Fate, Rule
from minitron_trt.triton_repo.contract.model_names import (
    ENSEMBLE,
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
)

Rules = Mapping[str, Rule]


def _lost(reason: str, *names: str) -> dict[str, Rule]:
    return dict.fromkeys(names, Rule(reason=reason))


def _off(reason: str, *names: str) -> dict[str, Rule]:
    """Return the rules of what is off unless it is asked for: only what was on can be lost."""
    rule = Rule(
        kept=("false", "0", "disable", "none"),
        kept_as="off, and there is none here",
        otherwise=Fate.LOST,
        reason=reason,
    )
    return dict.fromkeys(names, rule)


def _truth(value: str) -> str:
    """Return true or false for each word that TensorRT-LLM's models take for one."""
    return json.dumps(value.lower() in ("true", "1", "t", "yes", "y"))


def _windows(value: str) -> str:
    # The backend takes numbers with commas between, LLM a list.
    return json.dumps([int(part) for part in value.split(",")])


_RUNTIME: Final = "the PyTorch runtime"
_KERNELS: Final = f"{_RUNTIME} chooses its kernels by itself"
_COMPILED: Final = f"of the compilation, which {_RUNTIME} does not need"
SPECULATION: Final = (
    "speculative decoding is set up anew: --set llm.speculative_config, with a model for this "
    "runtime"
)
_LORA: Final = "the models written here take no LoRA weights"
_OTHER_MODELS: Final = "these models have no images and no encoder"
_GRAPH: Final = "config.json names the class, whose graph this is"

MODEL: Final[Rules] = MappingProxyType(
    {
        **{
            name: Rule(kept_as=f"config.json: {key}")
            for name, key in (
                ("architecture", "architectures"),
                ("dtype", "torch_dtype"),
                ("vocab_size", "vocab_size"),
                ("max_position_embeddings", "max_position_embeddings"),
                ("hidden_size", "hidden_size"),
                ("num_hidden_layers", "num_hidden_layers"),
                ("num_attention_heads", "num_attention_heads"),
                ("num_key_value_heads", "num_key_value_heads"),
                ("head_size", "head_dim"),
                ("hidden_act", "hidden_act"),
                ("intermediate_size", "intermediate_size"),
                ("norm_epsilon", "the norms' epsilon"),
                ("rotary_base", "rope_theta"),
                ("rotary_scaling", "rope_scaling"),
                ("rotary_pct", "partial_rotary_factor"),
                ("rotary_embedding_dim", "head_dim and partial_rotary_factor"),
                ("tie_word_embeddings", "tie_word_embeddings"),
            )
        },
        **{
            name: Rule(kept_as=_GRAPH)
            for name in (
                "position_embedding_type",
                "gpt_variant",
                "bias",
                "attn_bias",
                "mlp_bias",
                "residual_mlp",
                "qk_layernorm",
                "q_scaling",
                "apply_query_key_layer_scaling",
                "remove_duplicated_kv_heads",
                "moe",
                "embedding_multiplier",
                "attention_multiplier",
                "residual_multiplier",
                "output_multiplier_scale",
                "rotary_embedding_percentage",
                "inner_layernorm",
                "norm_before_bmm1",
                "embedding_scale",
            )
        },
        "logits_dtype": Rule(
            kept=("float32",),
            kept_as=f"{_RUNTIME} hands out float32 logits",
            reason="they were narrower",
        ),
        **_off(
            f"{_RUNTIME} shards the embedding by itself",
            "use_parallel_embedding",
            "embedding_sharding_dim",
            "share_embedding_table",
        ),
        **_off(
            _COMPILED,
            "disable_weight_only_quant_plugin",
            "producer",
            "runtime_defaults",
            "is_pruned",
            "rank",
            "fc_after_embed",
            "use_input_layernorm_in_first_layer",
            "use_last_layernorm",
            "layer_idx_offset",
            "has_partial_lora_mask",
        ),
    }
)
"""A checkpoint's config.json and an engine's `pretrained_config`, but for the two below."""

MAPPING: Final[Rules] = MappingProxyType(
    {
        "tp_size": Rule("recipe.tp"),
        "pp_size": Rule("recipe.pp"),
        "world_size": Rule(kept_as="tp × pp"),
        "cp_size": Rule(kept=("1",), kept_as="one rank each", reason="--set llm.cp_config"),
        "gpus_per_node": Rule(reason=f"{_RUNTIME} counts them"),
        **_lost(
            "these models have no experts",
            "moe_tp_size",
            "moe_ep_size",
            "moe_cluster_size",
            "moe_tp_cluster_rank",
        ),
        **_lost(
            f"{_RUNTIME} divides layers and attention by itself",
            "pp_partition",
            "attn_tp_size",
            "attn_cp_size",
            "cp_config",
            "auto_parallel",
            "rank",
            "enable_attention_dp",
            "enable_lm_head_tp_in_adp",
        ),
    }
)
"""How the ranks share a model."""

QUANTIZATION: Final[Rules] = MappingProxyType(
    {
        "group_size": Rule(kept_as="hf_quant_config.json, where the format has groups"),
        "exclude_modules": Rule(kept_as="hf_quant_config.json: embedding, norms and head"),
        **_lost(
            "of formats that the weights are not in",
            "smoothquant_val",
            "clamp_val",
            "use_meta_recipe",
            "has_zero_point",
            "pre_quant_scale",
            "mamba_ssm_cache_dtype",
        ),
    }
)
"""Details of a quantization; what is decisive of it is compared with the weights."""

BUILD: Final[Rules] = MappingProxyType(
    {
        "max_batch_size": Rule("recipe.max_batch_size"),
        "max_seq_len": Rule("recipe.max_seq_len"),
        "max_num_tokens": Rule("llm.max_num_tokens"),
        # Here and below a default is LLM's own: TorchLlmArgs', or its KvCacheConfig's.
        "max_beam_width": Rule("llm.max_beam_width", default="1"),
        "gather_generation_logits": Rule(
            "llm.gather_generation_logits", convert=_truth, default="false"
        ),
        "kv_cache_type": Rule(
            kept=("paged", "1", "kvcachetype.paged"),
            kept_as="a paged KV cache",
            reason="this runtime has no other",
        ),
        "max_input_len": Rule(kept_as="prompts of up to max_seq_len", kept=(), reason="one limit"),
        "gather_context_logits": Rule(kept_as="logits of prompts, for requests that ask"),
        # 1 is SpeculativeDecodingMode.NONE: an engine has the flag's number.
        "speculative_decoding_mode": Rule(
            kept=("1", "none"),
            kept_as="every token is the model's own",
            otherwise=Fate.LOST,
            reason=SPECULATION,
        ),
        "max_draft_len": Rule(
            kept=("0",), kept_as="no drafts", otherwise=Fate.LOST, reason=SPECULATION
        ),
        **_lost(_LORA, "lora_config", "max_lora_rank"),
        **_off(
            _OTHER_MODELS,
            "max_encoder_input_len",
            "max_prompt_embedding_table_size",
            "use_mrope",
        ),
        **_off(
            _COMPILED,
            "opt_num_tokens",
            "opt_batch_size",
            "strongly_typed",
            "force_num_profiles",
            "profiling_verbosity",
            "enable_debug_output",
            "use_refit",
            "input_timing_cache",
            "output_timing_cache",
            "weight_sparsity",
            "weight_streaming",
            "use_strip_plan",
            "auto_parallel_config",
            "monitor_memory",
            "dry_run",
            "visualize_network",
            "builder_opt",
            "max_draft_tokens",
            "use_fused_mlp",
        ),
    }
)
"""An engine's `build_config`."""

PLUGINS: Final[Rules] = MappingProxyType(
    {
        "tokens_per_block": Rule("llm.kv_cache_config.tokens_per_block", default="32"),
        "use_paged_context_fmha": Rule(
            kept=("true",),
            kept_as="reuse of the KV cache and chunked prefill need no plugin",
            reason="they can be had now",
        ),
        "paged_kv_cache": Rule(
            kept=("true", "enable"), kept_as="a paged KV cache", reason="no other"
        ),
        "remove_input_padding": Rule(
            kept=("true",), kept_as="packed input", reason="this runtime has no other"
        ),
        "lora_plugin": Rule(reason=_LORA),
        # On unless turned off.
        **_lost(_KERNELS, "context_fmha", "enable_xqa", "use_fused_mlp"),
    }
)
"""Plugins with a counterpart; of the others the runtime decides."""
OTHER_PLUGIN: Final = Rule(
    kept=("false", "disable"),
    kept_as="off, and there is none here",
    otherwise=Fate.LOST,
    reason=_KERNELS,
)

_KV: Final = "llm.kv_cache_config"
_TEXT: Final[Rules] = MappingProxyType(
    {
        "tokenizer_dir": Rule(kept_as="the tokenizer's files lie in the repository"),
        "add_special_tokens": Rule("recipe.add_special_tokens", convert=_truth),
        "skip_special_tokens": Rule("recipe.skip_special_tokens", convert=_truth),
        "apply_chat_template": Rule(
            "recipe.apply_chat_template",
            convert=_truth,
            default="false",
            kept_as="prompts are texts, unless a request differs",
        ),
        "exclude_input_in_output": Rule("recipe.exclude_input_in_output", convert=_truth),
        # What our own models have, made from the model's files again.
        **{
            name: Rule(kept_as="made again from the model's files")
            for name in (
                "end_ids",
                "vocab_size",
                "max_prompt_characters",
                "finish_reason",
                "empty_final_response",
            )
        },
        **_lost(
            _OTHER_MODELS, "multimodal_model_path", "max_num_images", "multimodal_encoders_name"
        ),
        "gpt_model_path": Rule(reason="these models need no engine"),
        "engine_dir": Rule(reason="these models need no engine"),
    }
)

PARAMETERS: Final[Mapping[str, Rules]] = MappingProxyType(
    {
        PREPROCESSING: _TEXT,
        POSTPROCESSING: _TEXT,
        ENSEMBLE: {},
        TENSORRT_LLM_BLS: {
            **_TEXT,
            "accumulate_tokens": Rule(f"{TENSORRT_LLM_BLS}.accumulate_tokens", convert=_truth),
            "tensorrt_llm_model_name": Rule(
                kept=(TENSORRT_LLM,), kept_as=f"the model {TENSORRT_LLM}", reason="its only name"
            ),
            "tensorrt_llm_draft_model_name": Rule(reason=SPECULATION),
        },
        TENSORRT_LLM: {
            "gpt_model_type": Rule(
                kept=("inflight_fused_batching", "inflight_batching"),
                kept_as="in-flight batching",
                reason="this runtime has no other",
            ),
            "gpt_model_path": Rule(kept_as="the model that it is an engine of"),
            "tokenizer_dir": _TEXT["tokenizer_dir"],
            "max_beam_width": Rule("llm.max_beam_width", default="1"),
            "max_tokens_in_paged_kv_cache": Rule(f"{_KV}.max_tokens"),
            "max_attention_window_size": Rule(f"{_KV}.max_attention_window", convert=_windows),
            "sink_token_length": Rule(f"{_KV}.sink_token_length"),
            "kv_cache_free_gpu_mem_fraction": Rule(f"{_KV}.free_gpu_memory_fraction"),
            "kv_cache_host_memory_bytes": Rule(f"{_KV}.host_cache_size", default="0"),
            "kv_cache_onboard_blocks": Rule(
                f"{_KV}.onboard_blocks", convert=_truth, default="true"
            ),
            "enable_kv_cache_reuse": Rule(f"{_KV}.enable_block_reuse", convert=_truth),
            # CapacitySchedulerPolicy has the backend's words in capitals.
            "batch_scheduler_policy": Rule(
                "llm.scheduler_config.capacity_scheduler_policy",
                convert=str.upper,
                default="GUARANTEED_NO_EVICT",
            ),
            "enable_chunked_context": Rule(
                "llm.enable_chunked_prefill", convert=_truth, default="false"
            ),
            "max_num_tokens": Rule("llm.max_num_tokens"),
            "iter_stats_max_iterations": Rule("llm.iter_stats_max_iterations"),
            "request_stats_max_iterations": Rule("llm.request_stats_max_iterations"),
            "guided_decoding_backend": Rule("llm.guided_decoding_backend"),
            "exclude_input_in_output": Rule(
                f"{TENSORRT_LLM}.exclude_input_in_output", convert=_truth
            ),
            "cancellation_check_period_ms": Rule(f"{TENSORRT_LLM}.cancellation_check_period_ms"),
            "cuda_graph_mode": Rule(
                kept=("true", "1"),
                kept_as="CUDA graphs, which this runtime has by itself",
                reason="turn them off by --set llm.cuda_graph_config=null",
            ),
            "enable_trt_overlap": Rule(
                kept=("true", "1"),
                kept_as="the overlap of steps, which this runtime has by itself",
                reason="turn it off by --set llm.disable_overlap_scheduler=true",
            ),
            "decoding_mode": Rule(
                kept=("top_k", "top_p", "top_k_top_p", "beam_search"),
                kept_as="each request says how its tokens are chosen",
                otherwise=Fate.LOST,
                reason=SPECULATION,
            ),
            "xgrammar_tokenizer_info_path": Rule(kept_as="made from the tokenizer"),
            **_lost(
                SPECULATION,
                "lookahead_window_size",
                "lookahead_ngram_size",
                "lookahead_verification_set_size",
                "medusa_choices",
                "eagle_choices",
                "speculative_decoding_fast_logits",
            ),
            **_lost(
                _LORA,
                "lora_cache_optimal_adapter_size",
                "lora_cache_max_adapter_size",
                "lora_cache_gpu_memory_fraction",
                "lora_cache_host_memory_bytes",
                "lora_prefetch_dir",
            ),
            **_lost(
                "GPUs are those that the server sees: set CUDA_VISIBLE_DEVICES",
                "gpu_device_ids",
                "participant_ids",
                "num_nodes",
            ),
            **_lost(
                f"of the C++ backend, which {_RUNTIME} does not use",
                "FORCE_CPU_ONLY_INPUT_TENSORS",
                "executor_worker_path",
                "recv_poll_period_ms",
                "stats_check_period_ms",
                "normalize_log_probs",
                "cuda_graph_cache_size",
            ),
            **_lost(
                _KERNELS, "multi_block_mode", "enable_context_fmha_fp32_acc", "gpu_weights_percent"
            ),
            **_lost(_OTHER_MODELS, "cross_kv_cache_fraction", "encoder_model_path"),
        },
    }
)
"""The parameters of each Triton model, by its role."""

FIELDS: Final[Mapping[str, Rules]] = MappingProxyType(
    {
        PREPROCESSING: {"instance_group.count": Rule("recipe.preprocessing_instances")},
        POSTPROCESSING: {
            "instance_group.count": Rule(
                kept=("1",), kept_as="1 instance", reason="it keeps the streams' state"
            )
        },
        TENSORRT_LLM_BLS: {
            "instance_group.count": Rule("recipe.bls_instances"),
            "decoupled": Rule(kept_as="as tensorrt_llm is"),
        },
        TENSORRT_LLM: {
            "max_batch_size": Rule("recipe.max_batch_size"),
            "decoupled": Rule("recipe.decoupled", convert=_truth),
            "max_queue_size": Rule("recipe.max_queue_size"),
            "max_queue_delay_microseconds": Rule(
                kept=("0",), kept_as="nobody waits for a batch", reason="this runtime never waits"
            ),
            "instance_group.count": Rule(kept=("1",), kept_as="1 instance", reason="the only one"),
        },
        ENSEMBLE: {},
    }
)
"""The fields of a config.pbtxt besides its parameters, by the model's role."""
SHARED_FIELDS: Final[Rules] = MappingProxyType(
    {
        "max_batch_size": Rule(kept_as=f"that of {TENSORRT_LLM}"),
        "preferred_batch_size": Rule(reason="a batch is whatever waits"),
        "max_queue_delay_microseconds": Rule(
            kept=("0",), kept_as="nobody waits for a batch", reason="these models never wait"
        ),
        "max_queue_size": Rule(kept_as=f"requests wait before {TENSORRT_LLM}"),
        "instance_group.count": Rule(kept=("1",), kept_as="1 instance", reason="the only one"),
    }
)
