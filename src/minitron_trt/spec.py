"""The facts about a model that every later stage needs, read once at the edge."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Final

from minitron_trt.errors import BadInputError, UnsupportedError

_LARGEST_SIZE: Final = 2**31 - 1  # TensorRT-LLM keeps sizes in 32 bits
# What is done for each layer or rank would never end for numbers that no model has.
_LARGEST: Final[Mapping[str, int]] = MappingProxyType({"layers": 10_000})
_MOST_RANKS: Final = 65_536


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """The `llama3` scaling of the rotary frequencies for long contexts.

    A config has it as an object: Hugging Face's under `rope_scaling`, TensorRT-LLM's under
    `rotary_scaling`.
    """

    KIND: ClassVar[str] = "llama3"
    CONFIG_KEYS: ClassVar[tuple[str, ...]] = (
        "factor",
        "low_freq_factor",
        "high_freq_factor",
        "original_max_position_embeddings",
    )

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def __post_init__(self) -> None:
        low, high = self.low_freq_factor, self.high_freq_factor
        # Written so that NaN and infinity are wrong.
        if not (1 <= self.factor < math.inf and 0 < low < high < math.inf):
            raise BadInputError(
                f"rope_scaling has factor {self.factor}, low_freq_factor {low} "
                f"and high_freq_factor {high}; expected factor >= 1 and "
                "0 < low < high"
            )
        if self.original_max_positions < 1:
            raise BadInputError(
                f"rope_scaling has original_max_position_embeddings {self.original_max_positions}; "
                "expected at least 1"
            )

    @classmethod
    def from_config(cls, record: Mapping[str, Any]) -> Llama3Scaling:
        """Read a config's object; KeyError names a missing key."""
        factor, low, high, original = (record[key] for key in cls.CONFIG_KEYS)
        return cls(factor, low, high, int(original))

    def to_config(self) -> dict[str, Any]:
        """Return the object of a config."""
        numbers = (
            self.factor,
            self.low_freq_factor,
            self.high_freq_factor,
            self.original_max_positions,
        )
        return {"rope_type": self.KIND, **dict(zip(self.CONFIG_KEYS, numbers, strict=True))}


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding: base, fraction of each head that turns, and scaling."""

    theta: float
    fraction: float = 1.0
    scaling: Llama3Scaling | None = None

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise BadInputError(
                f"partial_rotary_factor is {self.fraction}; expected a share in (0, 1]"
            )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The facts about a model; sizes are totals over all ranks, head_size is per head."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    max_positions: int
    norm_epsilon: float
    rope: Rope
    tied: bool = False

    def __post_init__(self) -> None:
        for name in (
            *("layers", "hidden", "heads", "kv_heads", "head_size"),
            *("intermediate", "vocab", "max_positions"),
        ):
            if getattr(self, name) < 1:
                raise BadInputError(f"{name} is {getattr(self, name)}; expected at least 1")
            if getattr(self, name) > _LARGEST.get(name, _LARGEST_SIZE):
                raise BadInputError(
                    f"{name} is {getattr(self, name)}; expected at most "
                    f"{_LARGEST.get(name, _LARGEST_SIZE)}"
                )
        for name, value in (("norm_epsilon", self.norm_epsilon), ("rope_theta", self.rope.theta)):
            if not math.isfinite(value) or value <= 0:
                raise BadInputError(f"{name} is {value}; expected a finite number above 0")
        if self.heads % self.kv_heads:
            raise BadInputError(
                f"{self.heads} attention heads cannot share {self.kv_heads} key/value heads evenly"
            )
        # Values turn in pairs.
        if self.rotary_size < 2 or self.rotary_size % 2:
            raise BadInputError(
                f"head size {self.head_size} × rotary share {self.rope.fraction} = "
                f"{self.rotary_size}; rotary embedding needs an even number above 0"
            )

    @property
    def rotary_size(self) -> int:
        """Return how many values of each head turn with the position."""
        return int(self.head_size * self.rope.fraction)

    @property
    def query_size(self) -> int:
        """Return the width of all query heads; not `hidden` in a width-pruned model."""
        return self.heads * self.head_size

    @property
    def kv_size(self) -> int:
        """Return the width of all key (or value) heads."""
        return self.kv_heads * self.head_size

    def to_json(self) -> dict[str, Any]:
        """Return the record as a manifest stores it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Parallelism:
    """Tensor-parallel and pipeline-parallel sizes; rank = pp_rank * tp + tp_rank."""

    tp: int = 1
    pp: int = 1

    def __post_init__(self) -> None:
        if self.tp < 1 or self.pp < 1:
            raise BadInputError(f"tp is {self.tp} and pp {self.pp}; expected at least 1")
        if self.world_size > _MOST_RANKS:
            raise UnsupportedError(
                f"tp {self.tp} and pp {self.pp} are {self.world_size} ranks; at most "
                f"{_MOST_RANKS} can be had"
            )

    @property
    def world_size(self) -> int:
        """Return the number of ranks, one checkpoint file each."""
        return self.tp * self.pp

    def check(self, spec: ModelSpec) -> None:
        """Raise UnsupportedError when the model cannot be sharded this way.

        The rules are TensorRT-LLM's: heads and the MLP divide by tp; key/value heads divide by
        tp or are repeated a whole number of times; no pipeline rank is empty.
        """
        tp, kv = self.tp, spec.kv_heads
        if spec.heads % tp:
            raise UnsupportedError(f"--tp {tp} does not divide the {spec.heads} attention heads")
        if kv % tp and tp % kv:
            raise UnsupportedError(
                f"--tp {tp} neither divides nor is a multiple of the {kv} key/value heads"
            )
        if spec.intermediate % tp:
            raise UnsupportedError(
                f"--tp {tp} does not divide the intermediate size {spec.intermediate}"
            )
        if self.pp > spec.layers:
            raise UnsupportedError(
                f"--pp {self.pp} is more than the model's {spec.layers} layers; lower it"
            )

    def layers_of(self, pp_rank: int, layers: int) -> range:
        """Return the layers of a pipeline rank; the first ranks take one more when uneven.

        TensorRT-LLM's Mapping divides them so, and its builder looks for these in a rank's file.
        """
        base, extra = divmod(layers, self.pp)
        start = pp_rank * base + min(pp_rank, extra)
        return range(start, start + base + (pp_rank < extra))


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """The ids that begin and end a text; any of eos_ids ends it."""

    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()
    pad_id: int | None = None

    def __post_init__(self) -> None:
        single = [token for token in (self.bos_id, self.pad_id) if token is not None]
        for token in (*single, *self.eos_ids):
            if isinstance(token, bool) or not isinstance(token, int):
                raise BadInputError(f"a special token's id is {token!r}; expected a whole number")
            if abs(token) > _LARGEST_SIZE:
                raise BadInputError(f"a special token's id is {token}; expected 32 bits")

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SpecialTokens:
        """Read from a Hugging Face config, a generation_config or a manifest."""
        eos = record.get("eos_ids", record.get("eos_token_id"))
        return cls(
            bos_id=record.get("bos_id", record.get("bos_token_id")),
            eos_ids=tuple(eos) if isinstance(eos, (list, tuple)) else () if eos is None else (eos,),
            pad_id=record.get("pad_id", record.get("pad_token_id")),
        )
