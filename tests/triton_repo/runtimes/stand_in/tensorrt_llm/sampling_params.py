"""The stand-in's SamplingParams and GuidedDecodingParams: published fields, and their rules."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(slots=True, kw_only=True)
class GuidedDecodingParams:
    """What an answer must be like; one of the fields."""

    json: str | None = None
    regex: str | None = None
    grammar: str | None = None
    json_object: bool = False
    structural_tag: str | None = None


@dataclass(slots=True, kw_only=True)
class SamplingParams:
    """How to continue a prompt; only what Triton's contract reaches."""

    end_id: int | None = None
    pad_id: int | None = None
    max_tokens: int = 32
    bad: list[str] | None = None
    _bad_word_ids: list[list[int]] | None = field(default=None, init=False)
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    embedding_bias: torch.Tensor | None = None
    n: int = 1
    best_of: int | None = None
    use_beam_search: bool = False
    top_k: int | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: int | None = None
    top_p_decay: float | None = None
    seed: int | None = None
    temperature: float | None = None
    min_tokens: int | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logprobs: int | None = None
    return_context_logits: bool = False
    return_generation_logits: bool = False
    return_perf_metrics: bool = False
    guided_decoding: GuidedDecodingParams | None = None
    ignore_eos: bool = False
    detokenize: bool = True

    def __post_init__(self) -> None:
        if self.temperature is not None and self.temperature < 0:
            raise ValueError(f"require temperature >= 0, got temperature={self.temperature}")
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise ValueError(f"require 0 <= top_p <= 1, got top_p={self.top_p}")
        self.best_of = self.best_of or self.n
        if self.best_of < self.n:
            raise ValueError(f"best_of={self.best_of} is below n={self.n}")
        if self.best_of > 1 and self.greedy:
            raise ValueError("Greedy decoding in the LLM API does not allow multiple returns")

    @property
    def beams(self) -> int:
        """Return the width of a search, 1 for anything else."""
        return (self.best_of or self.n) if self.use_beam_search else 1

    @property
    def greedy(self) -> bool:
        """Return whether the likeliest token is always taken."""
        if self.use_beam_search:
            return False
        nothing = self.temperature is None and self.top_k is None and self.top_p is None
        return nothing or self.top_k == 1 or self.top_p == 0 or self.temperature == 0
