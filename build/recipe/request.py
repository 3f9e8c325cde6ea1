"""What the user requests of an engine, before the rules turn it into settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from minitron_trt.build.containers import TRTLLM_VERSION
from minitron_trt.build.recipe.flags import flags_of
from minitron_trt.errors import UsageError

PROFILES: Final = ("latency", "balanced", "throughput")
GATHERED: Final = ("none", "context", "generation", "all")
SPECULATION: Final = ("none", "lookahead_decoding", "draft_tokens_external")
"""The modes that work on any base checkpoint; the others need one trained for them."""
BLOCK_SIZES: Final = (8, 16, 32, 64, 128)
_COUNTS: Final = (
    "max_batch_size",
    "max_input_len",
    "max_seq_len",
    "max_num_tokens",
    "opt_num_tokens",
    "max_beam_width",
    "workers",
)


@dataclass(frozen=True, slots=True)
class BuildRequest:
    """Explicit options; None leaves the choice to the profile."""

    profile: str = "balanced"
    version: str = TRTLLM_VERSION
    max_batch_size: int | None = None
    max_input_len: int | None = None
    max_seq_len: int | None = None
    max_num_tokens: int | None = None
    opt_num_tokens: int | None = None
    max_beam_width: int = 1
    tokens_per_block: int = 32
    kv_cache_type: str = "paged"
    kv_cache_reuse: bool | None = None
    fp8_context_fmha: bool | None = None
    gemm_plugin: str | None = None
    low_latency_gemm: bool = False
    gemm_swiglu: bool = False
    multiple_profiles: bool | None = None
    reduce_fusion: bool | None = None
    weight_streaming: bool = False
    gather_logits: str = "none"
    logits_dtype: str | None = None
    speculation: str = "none"
    max_draft_len: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        # A version without a table of flags is refused here, before anything is read.
        flags_of(self.version)
        for name in _COUNTS:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; expected at least 1")
        if self.max_draft_len < 0:
            raise UsageError(f"max_draft_len is {self.max_draft_len}; expected 0 or more")
        if self.tokens_per_block not in BLOCK_SIZES:
            sizes = ", ".join(map(str, BLOCK_SIZES))
            raise UsageError(
                f"tokens_per_block is {self.tokens_per_block}; expected one of {sizes}"
            )
        self._check_pairs()

    def _check_pairs(self) -> None:
        """Refuse pairs that trtllm-build itself refuses, or changes without being told."""
        seq, tokens, block = self.max_seq_len, self.max_num_tokens, self.tokens_per_block
        if seq and self.max_input_len and self.max_input_len > seq:
            raise UsageError(
                f"max_input_len {self.max_input_len} exceeds max_seq_len {seq}; lower the one or "
                "raise the other"
            )
        if tokens and tokens < block:
            raise UsageError(
                f"max_num_tokens {tokens} is below tokens_per_block {block}; raise it to at least "
                f"{block}"
            )
        if self.opt_num_tokens and tokens and self.opt_num_tokens > tokens:
            raise UsageError(
                f"opt_num_tokens {self.opt_num_tokens} exceeds max_num_tokens {tokens}"
            )
        if self.opt_num_tokens and self.multiple_profiles:
            raise UsageError("opt_num_tokens does not go with multiple profiles; choose one")
        if (self.max_draft_len > 0) != (self.speculation != "none"):
            raise UsageError("--speculation and --max-draft-len go together; give both or neither")
        if self.max_draft_len and self.gather_logits in ("context", "all"):
            raise UsageError(
                "context logits cannot be gathered with draft tokens; drop one of them"
            )
        if self.weight_streaming:
            self._check_streaming()

    def _check_streaming(self) -> None:
        """Refuse what keeps weights in a plugin, which TensorRT cannot stream."""
        kernels = {
            f"gemm_plugin {self.gemm_plugin}": self.gemm_plugin not in (None, "disable"),
            "--low-latency-gemm": self.low_latency_gemm,
            "--gemm-swiglu": self.gemm_swiglu,
        }
        for name, requested in kernels.items():
            if requested:
                raise UsageError(f"weight streaming does not go with {name}; leave one of them out")


@dataclass(frozen=True, slots=True)
class Setting:
    """One argument of the compiler and why it is so; value True stands for a bare switch."""

    flag: str
    value: str | int | bool
    reason: str

    @property
    def argument(self) -> str:
        """Return the argument as `trtllm-build` takes it."""
        return f"--{self.flag}" if self.value is True else f"--{self.flag}={self.value}"


def switch(on: bool) -> str:
    """Return how `trtllm-build` spells on and off."""
    return "enable" if on else "disable"
