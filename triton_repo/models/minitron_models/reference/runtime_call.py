"""From the input tensors of `tensorrt_llm` to a request of the executor; refuses what it lacks.

Defaults and meanings are those of TensorRT-LLM's own model: greedy without runtime_top_k and
runtime_top_p, 0 as the seed, penalties over prompt and answer. Differences: word lists have to be
whole, and a request that does not fit max_seq_len is refused instead of shortened.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.executor import Request, Sampling

Arrays = Mapping[str, NDArray[Any]]
"""The inputs of one request by name; the first axis is the batch's."""

MAX_LOGITS_BYTES: Final = 2**30
"""The most logits that one response may hold, or a draft be checked by.

A message of gRPC ends at 2**31 - 1 bytes."""
MAX_WORD_IDS: Final = 2**16
"""The most ids of one word list, every word of which the executor may look at per token."""

_SAMPLING: Final[Mapping[str, str]] = MappingProxyType(
    {
        "temperature": "temperature",
        "runtime_top_k": "top_k",
        "repetition_penalty": "repetition_penalty",
        "presence_penalty": "presence_penalty",
        "frequency_penalty": "frequency_penalty",
        "min_tokens": "min_tokens",
        "return_log_probs": "log_probs",
    }
)
"""From scalar inputs to fields of Sampling."""

_NEUTRAL: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = MappingProxyType(
    {
        "beam_width": (lambda value: value in (0, 1), "beam search"),
        # TensorRT-LLM's own default.
        "runtime_top_p_min": (lambda value: value <= 1e-6, "a top-p that decays"),
        "runtime_top_p_decay": (lambda value: value == 1, "a top-p that decays"),
        "runtime_top_p_reset_ids": (lambda value: value < 0, "a top-p that decays"),
    }
)
"""Inputs that may be sent with a value that changes nothing alone, and what others would need.

len_penalty, early_stopping and beam_search_diversity_rate may have any: without beams they never
change anything."""

_PROMPT_TABLE, _LORA, _REUSE = "a prompt table", "LoRA adapters", "reuse of its KV cache"
_GUIDED, _LOOKAHEAD = "guided decoding", "lookahead decoding"
_DRAFT_LOGITS = "drafts that are accepted by their probabilities"
_LACKS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "prompt_embedding_table": _PROMPT_TABLE,
        "prompt_table_extra_ids": _PROMPT_TABLE,
        "prompt_vocab_size": _PROMPT_TABLE,
        "lora_task_id": _LORA,
        "lora_weights": _LORA,
        "lora_config": _LORA,
        "context_phase_params": "disaggregated serving",
        "retention_token_range_starts": _REUSE,
        "retention_token_range_ends": _REUSE,
        "retention_token_range_priorities": _REUSE,
        "retention_token_range_durations_ms": _REUSE,
        "retention_decode_priority": _REUSE,
        "retention_decode_duration_ms": _REUSE,
        "guided_decoding_guide_type": _GUIDED,
        "guided_decoding_guide": _GUIDED,
        "lookahead_window_size": _LOOKAHEAD,
        "lookahead_ngram_size": _LOOKAHEAD,
        "lookahead_verification_set_size": _LOOKAHEAD,
        "draft_logits": _DRAFT_LOGITS,
        "draft_acceptance_threshold": _DRAFT_LOGITS,
    }
)
"""Inputs that may not be sent, and what each would need."""


@dataclass(frozen=True, slots=True)
class RuntimeOffer:
    """What the model offers, the same to every request."""

    vocab: int
    max_seq_len: int
    decoupled: bool
    exclude_input: bool


@dataclass(frozen=True, slots=True)
class RuntimeCall:
    """One row of a client's request: what to run, and what to answer with."""

    request: Request
    streaming: bool
    prepend_prompt: bool
    count_input: bool
    count_output: bool


def split_rows(arrays: Arrays) -> list[dict[str, NDArray[Any]]]:
    """Split a batch into requests of one row each; BadInputError names a tensor of other rows."""
    if "input_lengths" not in arrays:
        raise BadInputError("input_lengths is missing; expected the number of the prompt's ids")
    count = len(arrays["input_lengths"])
    for name, array in arrays.items():
        if len(array) != count:
            raise BadInputError(f"{name} has {len(array)} rows but input_lengths has {count}")
    return [{name: array[n : n + 1] for name, array in arrays.items()} for n in range(count)]


def scalar(arrays: Arrays, name: str, default: Any = None) -> Any:
    """Return the one value of an input, or the default when the client left it out."""
    if name not in arrays:
        return default
    if arrays[name].size != 1:
        raise BadInputError(f"{name} holds {arrays[name].size} values; expected one")
    return arrays[name].item()


def read_runtime_call(
    arrays: Arrays, request_id: str, timeout_us: int, offer: RuntimeOffer
) -> RuntimeCall:
    """Read one row; BadInputError or UnsupportedError names the tensor that is wrong.

    `request_id` is the executor's name for it, which no client chooses.
    """
    _refuse_what_is_lacking(arrays)
    prompt, max_tokens = _prompt(arrays, offer), scalar(arrays, "request_output_len", 0)
    if max_tokens < 1:
        # Text models pass max_tokens on by this name, and their users know no other.
        raise BadInputError(f"request_output_len / max_tokens is {max_tokens}; expected at least 1")
    call = RuntimeCall(
        request=Request(
            request_id=request_id,
            prompt=prompt,
            max_tokens=max_tokens,
            sampling=_sampling(arrays),
            timeout_s=timeout_us / 1e6 if timeout_us else None,
            sequences=scalar(arrays, "num_return_sequences", 1),
            context_logits=scalar(arrays, "return_context_logits", False),
            generation_logits=scalar(arrays, "return_generation_logits", False),
            timing=scalar(arrays, "return_perf_metrics", False),
            draft=tuple(arrays["draft_input_ids"].reshape(-1).tolist())
            if "draft_input_ids" in arrays
            else (),
        ),
        streaming=scalar(arrays, "streaming", False),
        prepend_prompt=not scalar(arrays, "exclude_input_in_output", offer.exclude_input),
        count_input=scalar(arrays, "return_num_input_tokens", False),
        count_output=scalar(arrays, "return_num_output_tokens", False),
    )
    _check(call, offer)
    return call


def _refuse_what_is_lacking(arrays: Arrays) -> None:
    for name, need in _LACKS.items():
        if name in arrays and arrays[name].size:
            raise UnsupportedError(f"{name} needs {need}, which the reference runtime lacks")
    for name, (is_neutral, need) in _NEUTRAL.items():
        if name in arrays and not is_neutral(value := scalar(arrays, name)):
            raise UnsupportedError(
                f"{name} is {value}, which needs {need}; the reference runtime lacks it"
            )


def _check(call: RuntimeCall, offer: RuntimeOffer) -> None:
    request = call.request
    if not offer.decoupled and call.streaming:
        raise BadInputError("streaming is true, which needs a model with decoupled responses")
    if not offer.decoupled and request.sequences > 1:
        raise BadInputError(
            f"num_return_sequences is {request.sequences}; more than one needs a model with "
            "decoupled responses"
        )
    checked = len(request.draft) + 1
    size = checked * offer.vocab * 4
    if request.draft and size > MAX_LOGITS_BYTES:
        raise BadInputError(
            f"draft_input_ids has {len(request.draft)} ids, to check which takes {checked} × "
            f"{offer.vocab} logits, {size / 1e9:.2f} GB at once; at most "
            f"{MAX_LOGITS_BYTES / 1e9:.2f} GB: send a shorter draft"
        )
    at_once = checked if call.streaming else request.max_tokens
    for name, wanted, count in (
        ("return_context_logits", request.context_logits, len(request.prompt)),
        ("return_generation_logits", request.generation_logits, at_once),
    ):
        size = count * offer.vocab * 4
        if wanted and size > MAX_LOGITS_BYTES:
            raise BadInputError(
                f"{name} would send {count} × {offer.vocab} logits, {size / 1e9:.2f} GB, in one "
                f"response; at most {MAX_LOGITS_BYTES / 1e9:.2f} GB: ask for fewer tokens"
            )


def _prompt(arrays: Arrays, offer: RuntimeOffer) -> tuple[int, ...]:
    if "input_ids" not in arrays:
        raise BadInputError("input_ids is missing; expected the prompt's token ids")
    ids = arrays["input_ids"].reshape(-1)
    length = scalar(arrays, "input_lengths")
    if not 0 <= length <= len(ids):
        raise BadInputError(f"input_lengths is {length} but input_ids holds {len(ids)} ids")
    if length > offer.max_seq_len:
        raise BadInputError(
            f"input_ids has {length} tokens; this model holds max_seq_len {offer.max_seq_len} "
            "with the answer: shorten the prompt"
        )
    return tuple(ids[:length].tolist())


def _sampling(arrays: Arrays) -> Sampling:
    options = {field: scalar(arrays, name) for name, field in _SAMPLING.items() if name in arrays}
    end_id, bias = scalar(arrays, "end_id", -1), arrays.get("embedding_bias")
    return Sampling(
        **options,
        # Upstream 0 means that top-p is off; to the executor only None does.
        top_p=scalar(arrays, "runtime_top_p") or None,
        seed=scalar(arrays, "seed", 0),
        end_ids=(end_id,) if end_id >= 0 else (),
        stop_words=_words(arrays, "stop_words_list"),
        bad_words=_words(arrays, "bad_words_list"),
        # A copy: the request's memory is gone when the executor needs it.
        embedding_bias=bias.reshape(-1).copy() if bias is not None and bias.size else None,
    )


def _words(arrays: Arrays, name: str) -> tuple[tuple[int, ...], ...]:
    """Read words packed as [1, 2, n]: ids one after another; the offset of each's end, then -1."""
    packed = arrays.get(name)
    if packed is None or not packed.size:
        return ()
    ids, offsets = packed.reshape(2, -1)
    if len(ids) > MAX_WORD_IDS:
        raise BadInputError(f"{name} has {len(ids)} ids; expected at most {MAX_WORD_IDS}")
    ends = offsets[: np.argmax(offsets == -1)] if -1 in offsets else offsets
    bounds = [0, *ends.tolist()]
    rising = all(start < end for start, end in itertools.pairwise(bounds))
    if not rising or bounds[-1] > len(ids) or np.any(offsets[len(ends) :] != -1):
        raise BadInputError(
            f"{name} has the offsets {_shortened(offsets)}; expected where each word ends among "
            f"{len(ids)} ids, rising, then only -1"
        )
    words = ids.tolist()
    return tuple(tuple(words[start:end]) for start, end in itertools.pairwise(bounds))


def _shortened(values: NDArray[Any]) -> str:
    said = ", ".join(str(value) for value in values[:8])
    return f"[{said}, …]" if len(values) > 8 else f"[{said}]"
