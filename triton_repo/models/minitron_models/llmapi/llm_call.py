"""From a Triton request to a call of TensorRT-LLM's LLM class; what it cannot do is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from minitron_models.triton_io import scalar, tensor
from minitron_models.triton_types import TritonRequest
from numpy.typing import NDArray

REFUSED = (
    "prompt_embedding_table",
    "prompt_table_extra_ids",
    "prompt_vocab_size",
    "lora_task_id",
    "lora_weights",
    "lora_config",
    "context_phase_params",
    "retention_token_range_starts",
    "retention_token_range_ends",
    "retention_token_range_priorities",
    "retention_token_range_durations_ms",
    "retention_decode_priority",
    "retention_decode_duration_ms",
    "lookahead_window_size",
    "lookahead_ngram_size",
    "lookahead_verification_set_size",
    "draft_input_ids",
    "draft_logits",
    "draft_acceptance_threshold",
)
"""Inputs of TensorRT-LLM's own model that are refused, whatever they hold."""

EVERY_SAMPLER = {
    "temperature": "temperature",
    "runtime_top_k": "top_k",
    "runtime_top_p": "top_p",
    "min_tokens": "min_tokens",
    "seed": "seed",
    "num_return_sequences": "n",
}
"""From inputs to the fields of SamplingParams that every sampler obeys."""

NOT_EVERY_SAMPLER = {
    "repetition_penalty": ("repetition_penalty", 1.0),
    "presence_penalty": ("presence_penalty", 0.0),
    "frequency_penalty": ("frequency_penalty", 0.0),
    "runtime_top_p_min": ("top_p_min", 1e-6),
    "runtime_top_p_decay": ("top_p_decay", 1.0),
    "runtime_top_p_reset_ids": ("top_p_reset_ids", -1),
}
"""Same for those that the default sampler silently ignores, with the values that change nothing."""

IGNORED_BY_BEAMS = {"len_penalty": 0.0, "beam_search_diversity_rate": 0.0, "early_stopping": True}
"""Inputs that beam search silently ignores, with the values that change nothing."""

GUIDES = {
    "json": "json_object",
    "json_schema": "json",
    "regex": "regex",
    "ebnf_grammar": "grammar",
    "structural_tag": "structural_tag",
}
"""From guide types to the fields of GuidedDecodingParams."""


@dataclass(frozen=True)
class Abilities:
    """What the arguments in model.yaml let requests ask for."""

    every_penalty: bool  # the sampler knows penalties and bad words
    guided: bool
    streaming: bool
    beams: int = 1  # of every request: TensorRT-LLM takes no other width


@dataclass(frozen=True)
class LlmCall:
    """One request: ids to continue, how, and what to answer with."""

    prompt: list[int]
    sampling: dict[str, Any]  # fields of SamplingParams
    guide: dict[str, Any]  # fields of GuidedDecodingParams
    bias: NDArray[np.float32] | None  # [vocabulary]
    bad_words: list[list[int]]
    stop_words: list[list[int]]  # of several ids; the others are in `sampling`
    end_id: int
    stream_id: int | None
    streaming: bool
    excludes_input: bool
    timeout_s: float | None
    wishes: frozenset[str] = field(default=frozenset())

    @property
    def has_beams(self) -> bool:
        """Return whether it is a search, whose beams are the rows of one answer."""
        return "use_beam_search" in self.sampling

    @property
    def sequences(self) -> int:
        """Return how many answers there will be."""
        return 1 if self.has_beams else int(self.sampling.get("n", 1))

    @property
    def rows(self) -> int:
        """Return how many rows of ids an answer has."""
        return int(self.sampling["n"]) if self.has_beams else 1

    @property
    def in_steps(self) -> bool:
        """Return whether tokens are to be seen as they are made."""
        # A stop word of several ids is found in what comes; beams change until they end.
        return self.streaming or (bool(self.stop_words) and not self.has_beams)


WISHES = (
    "return_log_probs",
    "return_context_logits",
    "return_generation_logits",
    "return_perf_metrics",
    "return_num_input_tokens",
    "return_num_output_tokens",
)
"""Inputs that ask for further outputs."""


def read_llm_call(request: TritonRequest, abilities: Abilities, excludes_input: bool) -> LlmCall:
    """Read a request; ValueError names the input that is wrong or cannot be served."""
    for name in REFUSED:
        if tensor(request, name) is not None:
            raise ValueError(f"{name}: TensorRT-LLM's PyTorch runtime does not take it here")
    streaming = bool(scalar(request, "streaming", False))
    if streaming and not abilities.streaming:
        raise ValueError("streaming is true, but the model is not decoupled")
    wishes = frozenset(name for name in WISHES if scalar(request, name, False))
    end_id = int(scalar(request, "end_id", -1))
    stops = read_words(request, "stop_words_list")
    sampling = {
        **_sampling(request, abilities),
        **_beams(request, abilities, streaming),
        "end_id": end_id,
        "pad_id": scalar(request, "pad_id", end_id),
        "ignore_eos": end_id < 0,
        "stop_token_ids": [word[0] for word in stops if len(word) == 1] or None,
        "return_context_logits": "return_context_logits" in wishes,
        "return_generation_logits": "return_generation_logits" in wishes,
        "return_perf_metrics": "return_perf_metrics" in wishes,
        "detokenize": False,
    }
    if "return_log_probs" in wishes:
        sampling["logprobs"] = 1
    bias = tensor(request, "embedding_bias")
    timeout_us = request.timeout()
    call = LlmCall(
        prompt=_prompt(request),
        sampling=sampling,
        guide=_guide(request, abilities),
        # A copy: it is read after `execute`, when the request's memory is Triton's again.
        bias=None if bias is None else bias.reshape(-1).copy(),
        bad_words=_bad_words(request, abilities),
        stop_words=[word for word in stops if len(word) > 1],
        end_id=end_id,
        stream_id=scalar(request, "stream_id"),
        streaming=streaming,
        excludes_input=bool(scalar(request, "exclude_input_in_output", excludes_input)),
        timeout_s=timeout_us / 1e6 if timeout_us else None,
        wishes=wishes,
    )
    if call.sequences > 1 and not abilities.streaming:
        raise ValueError("num_return_sequences is above 1, but the model is not decoupled")
    return call


def _prompt(request: TritonRequest) -> list[int]:
    values = tensor(request, "input_ids")
    ids: list[int] = [] if values is None else values.reshape(-1).tolist()
    length = scalar(request, "input_lengths", len(ids))
    if not 0 < length <= len(ids):
        raise ValueError(f"input_lengths is {length} but input_ids holds {len(ids)} ids")
    return ids[:length]


def _sampling(request: TritonRequest, abilities: Abilities) -> dict[str, Any]:
    length = scalar(request, "request_output_len", 0)
    if length < 1:
        raise ValueError(f"max_tokens is {length}; expected at least 1")
    fields = {"max_tokens": length}
    for name, target in EVERY_SAMPLER.items():
        if (value := scalar(request, name)) is not None:
            fields[target] = value
    if fields.get("n", 1) < 1:
        raise ValueError(f"num_return_sequences is {fields['n']}; expected at least 1")
    for name, (target, neutral) in NOT_EVERY_SAMPLER.items():
        value = scalar(request, name)
        # What comes as a float32 is not quite the number that stands above.
        if value is None or math.isclose(value, neutral, rel_tol=1e-5):
            continue
        if not abilities.every_penalty:
            raise ValueError(_needs_sampler(f"{name} is {value}"))
        fields[target] = value
    return fields


def _beams(request: TritonRequest, abilities: Abilities, streaming: bool) -> dict[str, Any]:
    """Return the fields of SamplingParams for a search, none for a width of 1."""
    width = scalar(request, "beam_width", 1)
    if width != abilities.beams:
        raise ValueError(
            f"beam_width is {width}, but max_beam_width is {abilities.beams} in model.yaml, and "
            f"TensorRT-LLM's PyTorch runtime takes no other; expected {abilities.beams}"
        )
    if width == 1:
        return {}
    if streaming:
        raise ValueError(f"streaming is true, but beam_width is {width}; beams are sent whole")
    sequences = scalar(request, "num_return_sequences", width)
    if sequences not in (1, width):
        raise ValueError(
            f"num_return_sequences is {sequences}, but beam_width is {width}; expected 1 for the "
            f"best beam, or {width} for all"
        )
    for name, neutral in IGNORED_BY_BEAMS.items():
        if (value := scalar(request, name, neutral)) != neutral:
            raise ValueError(f"{name} is {value}, which TensorRT-LLM 1.2's beam search ignores")
    return {"use_beam_search": True, "best_of": width, "n": sequences}


def _bad_words(request: TritonRequest, abilities: Abilities) -> list[list[int]]:
    words = read_words(request, "bad_words_list")
    if words and not abilities.every_penalty:
        raise ValueError(_needs_sampler("bad_words are given"))
    return words


def _needs_sampler(option: str) -> str:
    return (
        f"{option}, which TensorRT-LLM's default sampler ignores; serve with "
        "sampler_type: TRTLLMSampler in model.yaml"
    )


def _guide(request: TritonRequest, abilities: Abilities) -> dict[str, Any]:
    kind, guide = (_text(request, f"guided_decoding_{name}") for name in ("guide_type", "guide"))
    if kind is None:
        if guide is not None:
            raise ValueError("guided_decoding_guide is given without guided_decoding_guide_type")
        return {}
    if kind not in GUIDES:
        raise ValueError(
            f"guided_decoding_guide_type is {kind!r}; expected one of {', '.join(GUIDES)}"
        )
    if not abilities.guided:
        raise ValueError(
            "guided_decoding_guide_type is given, but model.yaml has no guided_decoding_backend; "
            "set it to xgrammar"
        )
    if kind == "json":
        return {"json_object": True}
    if not guide:
        raise ValueError(f"guided_decoding_guide is missing; a {kind} guide needs its text")
    return {GUIDES[kind]: guide}


def _text(request: TritonRequest, name: str) -> str | None:
    value = scalar(request, name)
    return None if value is None else str(value.decode("utf-8"))


def read_words(request: TritonRequest, name: str) -> list[list[int]]:
    """Unpack words of [1, 2, n]: ids one after another, and below them where each ends, then -1.

    ValueError when they are packed in another way: an empty word would stop every answer.
    """
    packed = tensor(request, name)
    if packed is None:
        return []
    ids, offsets = packed.reshape(2, -1).tolist()
    ends = list(itertools.takewhile(lambda end: end != -1, offsets))
    words = list(itertools.pairwise([0, *ends]))
    rising = all(start < end <= len(ids) for start, end in words)
    if not rising or any(end != -1 for end in offsets[len(ends) :]):
        raise ValueError(
            f"{name} has the offsets {offsets[:8]}; expected where each word ends among {len(ids)} "
            "ids, rising, then only -1"
        )
    return [ids[start:end] for start, end in words]


def find_word(ids: Sequence[int], words: Sequence[Sequence[int]], start: int) -> int | None:
    """Return where the first word to end at or after `start` ends in `ids`, or None."""
    for end in range(start + 1, len(ids) + 1):
        for word in words:
            if ids[max(0, end - len(word)) : end] == word:
                return end
    return None
