"""Every parameter that the models of a repository take, and what `--set` makes of a value.

Names are those of TensorRT-LLM's config.pbtxt; its template's other names for some are known too.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from minitron_trt.errors import UsageError
from minitron_trt.triton_repo.contract.model_names import (
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM,
    TENSORRT_LLM_BLS,
)
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI, REFERENCE, RUNTIMES, TRTLLM


@dataclass(frozen=True, slots=True)
class ValueKind:
    """A type of value: what it must look like, in words and as a check."""

    expected: str
    accepts: Callable[[str], bool]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of one model; without a default it is left out, and the model chooses."""

    name: str
    kind: ValueKind
    meaning: str
    default: str | None = None
    runtimes: tuple[str, ...] = RUNTIMES


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _is_whole(text: str) -> bool:
    # TensorRT-LLM's backend reads them into 64 bits, which hold 18 digits in any case.
    return text.isascii() and text.isdecimal() and len(text) <= 18


def _id_lists(text: str) -> bool:
    return all(_is_whole(part) for group in text.split(";") for part in group.split(","))


BOOL: Final = ValueKind("true or false", lambda text: text in ("true", "false"))
COUNT: Final = ValueKind(
    "a whole number of at least 1", lambda text: _is_whole(text) and int(text) > 0
)
WHOLE: Final = ValueKind("a whole number of at least 0", _is_whole)
FRACTION_OR_ZERO: Final = ValueKind("a number from 0 to 1", lambda text: 0 <= _number(text) <= 1)
FRACTION: Final = ValueKind("a number above 0, at most 1", lambda text: 0 < _number(text) <= 1)
COUNTS: Final = ValueKind(
    "whole numbers with commas between",
    lambda text: all(COUNT.accepts(part) for part in text.split(",")),
)
DEVICES: Final = ValueKind("numbers with commas between, semicolons between instances", _id_lists)
TEXT: Final = ValueKind("some text", bool)


def one_of(*values: str) -> ValueKind:
    """Return the kind of value that is one of a few words."""
    return ValueKind(f"one of {', '.join(values)}", lambda text: text in values)


SPECULATIVE: Final = ("medusa", "redrafter", "lookahead", "eagle")
DECODING_MODES: Final = ("top_k", "top_p", "top_k_top_p", "beam_search", *SPECULATIVE)
_SCHEDULING: Final = one_of("guaranteed_no_evict", "max_utilization")
_BATCHING: Final = one_of("inflight_fused_batching", "inflight_batching", "V1")


def _engine(name: str, kind: ValueKind, meaning: str, default: str | None = None) -> Parameter:
    return Parameter(name, kind, meaning, default=default, runtimes=(TRTLLM,))


_ENCODING: Final = (
    Parameter("tokenizer_dir", TEXT, "Folder of the tokenizer, from the model's version folder"),
    Parameter("add_special_tokens", BOOL, "Put the tokenizer's special tokens around a prompt"),
    Parameter("apply_chat_template", BOOL, "Prompts are messages, put into the chat template"),
    Parameter("exclude_input_in_output", BOOL, "Leave the prompt out of the answer"),
    Parameter("max_prompt_characters", COUNT, "Longer prompts are refused before tokenizing"),
)
_DECODING: Final = (Parameter("skip_special_tokens", BOOL, "Leave special tokens out of the text"),)

PARAMETERS: Final[Mapping[str, tuple[Parameter, ...]]] = {
    PREPROCESSING: _ENCODING,
    POSTPROCESSING: (_ENCODING[0], *_DECODING),
    TENSORRT_LLM_BLS: (
        *_ENCODING,
        *_DECODING,
        Parameter("accumulate_tokens", BOOL, "Send the whole text so far in every response"),
    ),
    TENSORRT_LLM: (
        Parameter("exclude_input_in_output", BOOL, "Send the answer's ids alone", default="false"),
        Parameter("cancellation_check_period_ms", COUNT, "Time between looks for who left"),
        Parameter(
            "stats_check_period_ms",
            COUNT,
            "Time between looks at statistics",
            default="100",
            runtimes=(REFERENCE, TRTLLM),
        ),
        Parameter(
            "max_num_tokens",
            COUNT,
            "Prompt tokens processed at once",
            runtimes=(REFERENCE,),
        ),
        _engine("max_beam_width", COUNT, "Beams per request, at most the engine's"),
        _engine("gpt_model_type", _BATCHING, "How requests are batched", "inflight_fused_batching"),
        _engine("gpt_model_path", TEXT, "Folder of the engine, in the container"),
        _engine("batch_scheduler_policy", _SCHEDULING, "Room per request", "guaranteed_no_evict"),
        _engine("max_tokens_in_paged_kv_cache", COUNT, "Tokens in the KV cache; wins if smaller"),
        _engine("max_attention_window_size", COUNTS, "Tokens a layer attends to, per layer"),
        _engine("sink_token_length", WHOLE, "First tokens that a window always keeps"),
        _engine("kv_cache_free_gpu_mem_fraction", FRACTION, "Free memory for the KV cache", "0.9"),
        _engine("cross_kv_cache_fraction", FRACTION, "Share of cross attention; encoders only"),
        _engine("kv_cache_host_memory_bytes", WHOLE, "CPU memory for evicted blocks"),
        _engine("kv_cache_onboard_blocks", BOOL, "Copy evicted blocks back before use"),
        _engine("enable_kv_cache_reuse", BOOL, "Share blocks of equal prompt starts"),
        _engine("enable_chunked_context", BOOL, "Process long prompts in chunks"),
        _engine("iter_stats_max_iterations", WHOLE, "Iterations whose statistics are kept"),
        _engine("request_stats_max_iterations", WHOLE, "Same, with each request's"),
        _engine("normalize_log_probs", BOOL, "Normalize log probabilities", "true"),
        Parameter(
            "gpu_device_ids",
            DEVICES,
            "GPUs by rank; without, the reference runtime computes on the CPU",
            runtimes=(REFERENCE, TRTLLM),
        ),
        _engine("participant_ids", DEVICES, "MPI ranks, in orchestrator mode"),
        _engine("num_nodes", COUNT, "Machines that share the engine"),
        _engine("executor_worker_path", TEXT, "Program that orchestrator mode spawns"),
        _engine("recv_poll_period_ms", WHOLE, "Time between looks for requests; 0 never sleeps"),
        _engine("lora_cache_optimal_adapter_size", COUNT, "LoRA size the cache is laid out for"),
        _engine("lora_cache_max_adapter_size", COUNT, "Largest LoRA size"),
        _engine("lora_cache_gpu_memory_fraction", FRACTION, "Free GPU memory for LoRA weights"),
        _engine("lora_cache_host_memory_bytes", COUNT, "CPU memory for LoRA weights"),
        _engine("lora_prefetch_dir", TEXT, "Folder of LoRA weights to load at the start"),
        _engine("decoding_mode", one_of(*DECODING_MODES), "How tokens are chosen"),
        _engine("lookahead_window_size", COUNT, "Columns of lookahead decoding"),
        _engine("lookahead_ngram_size", COUNT, "Rows of lookahead decoding"),
        _engine("lookahead_verification_set_size", COUNT, "Guesses checked per step"),
        _engine("medusa_choices", TEXT, "Medusa's tree, like {0},{0,0},{1}"),
        _engine("eagle_choices", TEXT, "EAGLE's tree, like {0},{0,0},{1}"),
        _engine("speculative_decoding_fast_logits", BOOL, "Pass draft logits between ranks"),
        _engine("gpu_weights_percent", FRACTION_OR_ZERO, "Share of weights on the GPU"),
        _engine("enable_context_fmha_fp32_acc", BOOL, "Sum attention of prompts in FP32"),
        _engine("multi_block_mode", BOOL, "Split long attention over blocks"),
        _engine("cuda_graph_mode", BOOL, "Record each generation step as a CUDA graph"),
        _engine("cuda_graph_cache_size", WHOLE, "CUDA graphs that are kept"),
        _engine("enable_trt_overlap", BOOL, "Overlap steps; experimental"),
        _engine(
            "guided_decoding_backend",
            one_of("xgrammar"),
            "What guides answers",
        ),
        _engine("xgrammar_tokenizer_info_path", TEXT, "Its file, if not ours"),
    ),
}
"""What `--set` can give, by model."""

_OTHER_NAMES: Final = {"batching_strategy": "gpt_model_type", "engine_dir": "gpt_model_path"}
"""Names of TensorRT-LLM's template where they differ from the key that it fills."""

# Names of TensorRT-LLM's templates, too: whoever brings them is told which option they are here.
_OPTIONS: Final = {
    "triton_max_batch_size": "--max-batch-size",
    "max_batch_size": "--max-batch-size",
    "max_seq_len": "--max-seq-len",
    "max_queue_size": "--max-queue-size",
    "max_queue_delay_microseconds": "--max-queue-delay-us",
    "stream_interval": "--stream-interval",
    "decoupled_mode": "--decoupled or --no-decoupled",
    "preprocessing_instance_count": "--preprocessing-instances",
    "bls_instance_count": "--bls-instances",
}
_FIXED: Final = {
    "postprocessing_instance_count": "postprocessing keeps the streams' state and has one instance",
    "logits_datatype": "the engine decides it",
    "prompt_embedding_table_data_type": "the engine decides it",
    "triton_backend": "--runtime decides it",
    "end_ids": "the artifact decides it",
    "finish_reason": "the runtime decides it",
    "empty_final_response": "--decoupled decides it",
    "vocab_size": "the artifact decides it",
    "multimodal_model_path": "these models have no images",
    "encoder_model_path": "these models have no encoder",
}


def parse_settings(
    pairs: Iterable[str], runtime: str, llm_arguments: Collection[str]
) -> dict[str, dict[str, str]]:
    """Read `model.parameter=value` pairs for a runtime; UsageError says what is wrong with one.

    `llm.` stands for the arguments of TensorRT-LLM's LLM class, whose values are not checked.
    """
    settings: dict[str, dict[str, str]] = {}
    for pair in pairs:
        place, equals, value = pair.partition("=")
        model, dot, name = place.partition(".")
        if not (equals and dot and name):
            raise UsageError(f"--set {pair!r} is not of the form model.parameter=value")
        if model == "llm" and runtime == LLMAPI:
            head = name.partition(".")[0]
            if head not in llm_arguments:
                raise UsageError(f"LLM has no argument {head!r}; {_nearest(head, llm_arguments)}")
        else:
            name, value = _checked(model, name, value, runtime)
        settings.setdefault(model, {})[name] = value
    return settings


def _checked(model: str, name: str, value: str, runtime: str) -> tuple[str, str]:
    name = _OTHER_NAMES.get(name, name)
    if model not in PARAMETERS:
        raise UsageError(f"--set names the model {model!r}; {_nearest(model, PARAMETERS)}")
    if name in _FIXED:
        raise UsageError(f"{name} cannot be set: {_FIXED[name]}")
    known = {parameter.name: parameter for parameter in PARAMETERS[model]}
    if name not in known:
        if name in _OPTIONS:
            raise UsageError(f"{name} is an option of its own: {_OPTIONS[name]}")
        names = [p.name for p in known.values() if runtime in p.runtimes]
        raise UsageError(f"{model} has no parameter {name!r}; {_nearest(name, names)}")
    parameter = known[name]
    if runtime not in parameter.runtimes:
        raise UsageError(
            f"{model}.{name} is of the runtime {' and '.join(parameter.runtimes)}; "
            f"this repository is for {runtime}"
        )
    if parameter.kind is BOOL:
        # NVIDIA's instructions fill in True and False.
        value = value.lower()
    if not parameter.kind.accepts(value):
        raise UsageError(f"{model}.{name} is {value!r}; expected {parameter.kind.expected}")
    return name, value


def _nearest(name: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(near)}?" if near else f"expected {', '.join(sorted(known))}"


def parse_end_ids(text: str) -> tuple[int, ...]:
    """Return the ids that the parameter `end_ids` of a text model holds; ValueError for others."""
    try:
        return tuple(msgspec.json.decode(text, type=list[int]))
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise ValueError(str(error)) from error


def defaults(model: str, runtime: str) -> dict[str, str]:
    """Return the parameters of a model that are always written, with their values."""
    return {
        parameter.name: parameter.default
        for parameter in PARAMETERS[model]
        if parameter.default is not None and runtime in parameter.runtimes
    }


def table() -> str:
    """Return every parameter as a line of text, by model."""
    lines = []
    for model, parameters in PARAMETERS.items():
        for parameter in parameters:
            where = "" if parameter.runtimes == RUNTIMES else f" ({', '.join(parameter.runtimes)})"
            default = "" if parameter.default is None else f"  [default: {parameter.default}]"
            lines.append(f"{model}.{parameter.name}{where}: {parameter.meaning}{default}")
            lines.append(f"    {parameter.kind.expected}")
    return "\n".join(lines)
