"""The sizes an engine is built for: from options, profile, the model and the GPU's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.context_attention import ContextAttention
from minitron_trt.build.recipe.engine_memory import Forecast, forecast_memory, kv_bytes_per_token
from minitron_trt.build.recipe.request import BuildRequest, Setting
from minitron_trt.console import size_text
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.gpus import Target


@dataclass(frozen=True, slots=True)
class Profile:
    """The sizes that a kind of service starts from."""

    batch_size: int
    seq_len: int
    num_tokens: int


# Where the choice begins, by judgement and not by measurement: what a GPU does not hold is lowered
# below, with its reason.
PROFILE_SIZES: Final[Mapping[str, Profile]] = MappingProxyType(
    {
        "latency": Profile(8, 8192, 4096),
        "balanced": Profile(64, 8192, 8192),
        "throughput": Profile(256, 4096, 8192),
    }
)
SAFE_NUM_TOKENS: Final = 16384
"""Above this TensorRT-LLM warns; with several profiles such a build was seen to fail."""
# A length that is shortened here is a multiple of it.
_STEP: Final = 256
# Tokens for an answer beside the longest prompt that was asked for.
_OUTPUT_ROOM: Final = 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest batch of an engine in sequences, and its sequence, prompt and step in tokens."""

    max_batch_size: int
    max_seq_len: int
    max_input_len: int
    max_num_tokens: int
    max_beam_width: int = 1
    tokens_per_block: int = 32


@dataclass(slots=True)
class LimitChoice:
    """Limits on their way: each choice notes its reason, and what the user should know."""

    model: EngineModel
    target: Target
    request: BuildRequest
    attention: ContextAttention
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def choose(self) -> tuple[Limits, Forecast]:
        """Return limits that fit and what they take; UnsupportedError says by how much not."""
        limits = self._start()
        forecast = self.forecast(limits)
        if self.request.weight_streaming:
            self.notes.append(
                "weights may stream from host memory, so the memory is not checked; the share on "
                "the GPU is set at run time (gpu_weights_percent)"
            )
        else:
            self._check_room(limits, forecast)
            # The length comes first: fewer sequences at once wait longer, one that never fits is
            # lost.
            limits = self._shorten(limits)
            limits = self._shrink_batch(limits)
            self._check_explicit(limits)
        limits = self._with_tokens(limits)
        # Fewer sequences have fewer tokens in a step, whose activations leave more to the KV cache.
        return limits, self.forecast(limits)

    def forecast(self, limits: Limits) -> Forecast:
        """Return what lies in the GPU's memory with these limits."""
        return forecast_memory(
            self.model,
            self.target.gpu,
            max_num_tokens=limits.max_num_tokens,
            sequences=limits.max_batch_size * limits.max_beam_width,
            tokens_per_block=limits.tokens_per_block,
            context_logits=self.request.gather_logits in ("context", "all"),
        )

    def settings(self, limits: Limits) -> tuple[Setting, ...]:
        """Return the limits as arguments with their reasons."""
        names = ("max_batch_size", "max_seq_len", "max_input_len", "max_num_tokens")
        return tuple(
            Setting(name, getattr(limits, name), self.reasons[name])
            for name in (*names, "max_beam_width")
        )

    def _start(self) -> Limits:
        request, profile = self.request, PROFILE_SIZES[self.request.profile]
        self.reasons["max_beam_width"] = "as asked" if request.max_beam_width > 1 else "no beams"
        limits = Limits(
            max_batch_size=request.max_batch_size or profile.batch_size,
            max_seq_len=(seq := self._seq_len(profile)),
            max_input_len=request.max_input_len or seq,
            # Set last: it depends on all the others.
            max_num_tokens=0,
            max_beam_width=request.max_beam_width,
            tokens_per_block=request.tokens_per_block,
        )
        self.reasons["max_batch_size"] = (
            "as asked" if request.max_batch_size else f"the {request.profile} profile"
        )
        self.reasons["max_input_len"] = (
            "as asked"
            if request.max_input_len
            else "any prompt that fits a sequence; with packed input it costs nothing"
        )
        return self._with_tokens(limits)

    def _seq_len(self, profile: Profile) -> int:
        request, positions = self.request, self.model.spec.max_positions
        if request.max_seq_len:
            self.reasons["max_seq_len"] = "as asked"
            if request.max_seq_len > positions:
                self.notes.append(
                    f"max_seq_len {request.max_seq_len} is beyond the {positions} positions the "
                    "model was trained for"
                )
            return request.max_seq_len
        wanted = max(profile.seq_len, (request.max_input_len or 0) + _OUTPUT_ROOM)
        if request.max_input_len and request.max_input_len > positions:
            raise UsageError(
                f"max_input_len {request.max_input_len} exceeds the model's {positions} positions"
            )
        self.reasons["max_seq_len"] = (
            f"all the model's positions; the {request.profile} profile allows {wanted}"
            if positions <= wanted
            else f"the {request.profile} profile; TensorRT-LLM would take all {positions} positions"
        )
        return min(positions, wanted)

    def _with_tokens(self, limits: Limits) -> Limits:
        request, profile = self.request, PROFILE_SIZES[self.request.profile]
        # trtllm-build's own rules: it caps a step at all tokens of a full batch, raises it to a
        # token and the drafts of every sequence, and refuses less than a block.
        most = limits.max_seq_len * limits.max_batch_size * limits.max_beam_width
        drafted = limits.max_batch_size * limits.max_beam_width * (1 + request.max_draft_len)
        least = max(drafted, limits.tokens_per_block)
        reason = f"the {request.profile} profile"
        tokens = profile.num_tokens
        if request.max_draft_len and drafted > tokens:
            reason = "one token and the draft tokens of every sequence"
        if not self.attention.paged and limits.max_input_len > least:
            least, reason = limits.max_input_len, "a whole prompt in one step: there are no chunks"
        if request.max_num_tokens is None:
            tokens = max(tokens, least)
            if tokens > most:
                tokens, reason = max(most, limits.tokens_per_block), "all tokens of a full batch"
        else:
            tokens, reason = request.max_num_tokens, "as asked"
            if tokens < least:
                drafts = request.max_draft_len
                raise UsageError(
                    f"max_num_tokens {tokens} is below the {least} tokens that one step needs "
                    f"(max_batch_size {limits.max_batch_size}, max_input_len "
                    f"{limits.max_input_len}{'' if self.attention.paged else ' without chunks'}"
                    f"{f', max_draft_len {drafts}' if drafts else ''})"
                )
            if tokens > most:
                tokens = max(most, limits.tokens_per_block)
                reason = f"lowered from {request.max_num_tokens} to all tokens of a full batch"
        self.reasons["max_num_tokens"] = reason
        return dataclasses.replace(limits, max_num_tokens=tokens)

    def _check_room(self, limits: Limits, forecast: Forecast) -> None:
        if forecast.kv_tokens >= limits.tokens_per_block:
            return
        held = forecast.weights_bytes + forecast.activation_bytes + forecast.reserve_bytes
        raise UnsupportedError(
            f"{self.model.name} in {self.model.precision} does not fit {self.target.label}: "
            f"weights {size_text(forecast.weights_bytes)}, activations "
            f"{size_text(forecast.activation_bytes)} and reserve "
            f"{size_text(forecast.reserve_bytes)} are {size_text(held)} of "
            f"{size_text(forecast.gpu_bytes)}, {size_text(max(-forecast.free_bytes, 0))} too much; "
            "convert with more --tp ranks or a smaller precision, or lower --max-num-tokens"
        )

    def _shorten(self, limits: Limits) -> Limits:
        """Make one full sequence fit the KV cache, where the user left the length open."""
        fit = self.forecast(limits).kv_tokens
        if limits.max_seq_len <= fit:
            return limits
        missing = (limits.max_seq_len - fit) * kv_bytes_per_token(self.model)
        least = max(self.request.max_input_len or 0, _STEP)
        if self.request.max_seq_len or fit // _STEP * _STEP < least:
            raise UnsupportedError(
                f"one sequence of {limits.max_seq_len} tokens does not fit the KV cache of "
                f"{self.target.label}, which holds {fit}: {size_text(missing)} are missing; lower "
                "--max-seq-len or convert with more --tp ranks"
            )
        seq = fit // _STEP * _STEP
        self.reasons["max_seq_len"] = (
            f"the longest sequence that the KV cache of {fit} tokens holds"
        )
        short = dataclasses.replace(
            limits, max_seq_len=seq, max_input_len=min(limits.max_input_len, seq)
        )
        return self._with_tokens(short)

    def _shrink_batch(self, limits: Limits) -> Limits:
        """Halve an open batch until half-full sequences of it fit the KV cache."""
        if self.request.max_batch_size:
            return limits
        while limits.max_batch_size > 1:
            # Sequences that run at once are anywhere in their answers: half full, on average.
            half = limits.max_batch_size * limits.max_beam_width * limits.max_seq_len // 2
            if half <= self.forecast(limits).kv_tokens:
                break
            batch = limits.max_batch_size // 2
            limits = self._with_tokens(dataclasses.replace(limits, max_batch_size=batch))
            self.reasons["max_batch_size"] = (
                f"lowered from {PROFILE_SIZES[self.request.profile].batch_size} until half-full "
                "sequences fit the KV cache"
            )
        return limits

    def _check_explicit(self, limits: Limits) -> None:
        """Compare a full batch of full sequences with the KV cache.

        UnsupportedError where a continuous cache would have to hold them all; else a note.
        """
        forecast = self.forecast(limits)
        tokens = limits.max_batch_size * limits.max_beam_width * limits.max_seq_len
        beyond = (tokens - forecast.kv_tokens) * forecast.kv_bytes_per_token
        if beyond <= 0:
            return
        said = (
            f"{limits.max_batch_size} sequences of {limits.max_seq_len} tokens are "
            f"{size_text(beyond)} more than the KV cache of {size_text(forecast.kv_pool_bytes)}"
        )
        if self.request.kv_cache_type == "continuous":
            raise UnsupportedError(
                f"{said}, and a continuous cache holds them all; lower --max-batch-size or "
                "--max-seq-len, or use --kv-cache-type paged"
            )
        # Paged blocks are taken as sequences grow, so what was asked for can be built; where one of
        # the two was chosen here, nobody asked for so many.
        if self.request.max_batch_size and self.request.max_seq_len:
            self.notes.append(
                f"{said}: {forecast.sequences(limits.max_seq_len)} full ones fit, others wait"
            )
