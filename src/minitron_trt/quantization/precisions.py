"""The number formats a checkpoint can have: one entry each, and one scheme of math in `schemes`.

An entry says everything that is not arithmetic: TensorRT-LLM's name and settings, the tensors a
linear layer has on disk, what has to be measured first, and which architectures cannot have it.
The converter, the checkpoint reader and the reference model all go by the entry.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.errors import UnsupportedError

if TYPE_CHECKING:
    from minitron_trt.quantization.schemes import Scheme


class Side(enum.Enum):
    """What an axis of a linear layer's tensor counts; ranks cut it as they cut the weight there."""

    OUT = "out"
    IN = "in"
    ONE = "one"  # an axis of length 1


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a stored tensor, and how many of the weight's values an entry stands for."""

    side: Side
    per: int = 1

    def length(self, rows: int, columns: int) -> int:
        """Return the axis's length for a weight of [rows, columns]."""
        return {Side.OUT: rows, Side.IN: columns, Side.ONE: 1}[self.side] // self.per


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor that a linear layer has on disk."""

    suffix: str
    storage: str
    axes: tuple[Axis, ...]
    is_scale: bool = True
    hf_suffix: str = ""  # ModelOpt's name of it in a Hugging Face folder

    def shape(self, rows: int, columns: int) -> tuple[int, ...]:
        """Return its shape for a weight of [rows, columns]."""
        return tuple(axis.length(rows, columns) for axis in self.axes)

    def dimension(self, side: Side) -> int | None:
        """Return which of its axes counts a side of the weight, if any."""
        return next((i for i, axis in enumerate(self.axes) if axis.side is side), None)

    @property
    def per_row(self) -> bool:
        """Return whether it grows with the weight's rows; the rest is known before they are."""
        return self.dimension(Side.OUT) is not None


class Inputs(enum.Enum):
    """How a linear layer's input is quantized while the engine runs."""

    WIDE = "wide"  # not at all
    STATIC_FP8 = "static_fp8"  # one calibrated scale
    TOKEN_FP8 = "token_fp8"  # one scale per token, found as it comes
    BLOCK_FP4 = "block_fp4"  # blocks of 16, their scales found as they come


class Need(enum.Enum):
    """What a scheme must know of a layer before it can write the first row."""

    WEIGHT = "weight"  # the largest weight
    INPUT = "input"  # the largest input, by calibration
    PREQUANT = "prequant"  # AWQ's factor of each input, by calibration


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are stored: our name, TensorRT-LLM's dtype, safetensors' dtype, and the rest."""

    name: str
    dtype: str
    storage: str
    algorithm: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tensors: tuple[Stored, ...] = ()  # of a linear layer; none means its plain weight
    scheme_name: str | None = None
    needs: frozenset[Need] = frozenset()
    preset: str | None = None  # ModelOpt's configuration that measures it
    inputs: Inputs = Inputs.WIDE
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)  # architecture → why
    untried: frozenset[str] = frozenset()  # architectures where only TensorRT-LLM's code says yes
    fused_range: bool = False  # layers that runtimes fuse need one range, even when stored apart
    in_hf: bool = False  # whether ModelOpt's Hugging Face form has it as the tensors here are

    @property
    def scheme(self) -> Scheme | None:
        """Return the arithmetic; None where weights are kept as they are."""
        if self.scheme_name is None:
            return None
        # numpy is not needed to print help.
        found: Scheme = import_module("minitron_trt.quantization.schemes").SCHEMES[self.scheme_name]
        return found

    @property
    def calibrated(self) -> bool:
        """Return whether text has to run through the model first."""
        return bool(self.needs & {Need.INPUT, Need.PREQUANT})

    def quantization(self, kv_cache: str | None = None) -> dict[str, Any]:
        """Return the `quantization` block of a checkpoint's config.json."""
        return {
            "quant_algo": self.algorithm,
            "kv_cache_quant_algo": KV_CACHES[kv_cache].algorithm if kv_cache else None,
            **self.settings,
        }

    def check(self, architecture: str, kv_cache: str | None = None) -> None:
        """Raise UnsupportedError where TensorRT-LLM has no such engine."""
        if architecture in self.refused:
            raise UnsupportedError(
                f"--precision {self.name} is not available for {architecture}: "
                f"{self.refused[architecture]}"
            )
        if self.algorithm == "W8A16" and kv_cache == "fp8":
            raise UnsupportedError(
                "INT8 weights with an FP8 KV cache do not build (TensorRT-LLM issue 1113); "
                "use --kv-cache int8 or auto"
            )


@dataclass(frozen=True, slots=True)
class KVCacheFormat:
    """A narrow KV cache: TensorRT-LLM's name, the range of its numbers and its smallest scale."""

    name: str
    algorithm: str
    largest: float
    smallest_scale: float


KV_CACHES: Final[Mapping[str, KVCacheFormat]] = MappingProxyType(
    {
        # ModelOpt's advice for FP8: never spread small values, the format has range to spare.
        "fp8": KVCacheFormat("fp8", "FP8", 448.0, 1.0),
        "int8": KVCacheFormat("int8", "INT8", 127.0, 0.0),
    }
)
_ONE: Final = Axis(Side.ONE)
_ROWS, _COLUMNS = Axis(Side.OUT), Axis(Side.IN)
KV_SCALE: Final = Stored("attention.kv_cache_scaling_factor", "F32", (_ONE,))
_GPT: Final = "NemotronForCausalLM"
_NOT_LISTED: Final = "TensorRT-LLM's table does not list it for the GPT graph that Nemotron runs on"
_HEAD_WIDE: Final = MappingProxyType({"exclude_modules": ["lm_head"]})


def _awq(name: str, algorithm: str, *, narrow_inputs: bool) -> Precision:
    second = (Stored("weights_scaling_factor_2", "F32", ()),) if narrow_inputs else ()
    third = (Stored("activation_scaling_factor", "F32", (_ONE,)),) if narrow_inputs else ()
    needs = {Need.PREQUANT} | ({Need.INPUT, Need.WEIGHT} if narrow_inputs else set())
    return Precision(
        *(name, "bfloat16", "BF16", algorithm),
        settings={
            **_HEAD_WIDE,
            "group_size": 128,
            "has_zero_point": False,
            "pre_quant_scale": True,
        },
        tensors=(
            Stored("weight", "I8", (Axis(Side.OUT, 2), _COLUMNS), is_scale=False),
            Stored("weights_scaling_factor", "F32", (_ROWS, Axis(Side.IN, 128))),
            Stored("prequant_scaling_factor", "BF16", (_COLUMNS,)),
            *second,
            *third,
        ),
        scheme_name=name,
        needs=frozenset(needs),
        preset="W4A8_AWQ_BETA_CFG" if narrow_inputs else "INT4_AWQ_CFG",
        inputs=Inputs.STATIC_FP8 if narrow_inputs else Inputs.WIDE,
        refused={_GPT: _NOT_LISTED} if narrow_inputs else {},
        untried=frozenset() if narrow_inputs else frozenset({_GPT}),
    )


_ALL: Final = (
    Precision("bf16", "bfloat16", "BF16", in_hf=True),
    Precision("fp16", "float16", "F16", in_hf=True),
    Precision(
        *("fp8", "bfloat16", "BF16", "FP8", _HEAD_WIDE),
        tensors=(
            Stored("weight", "F8_E4M3", (_ROWS, _COLUMNS), is_scale=False, hf_suffix="weight"),
            Stored("weights_scaling_factor", "F32", (_ONE,), hf_suffix="weight_scale"),
            Stored("activation_scaling_factor", "F32", (_ONE,), hf_suffix="input_scale"),
        ),
        in_hf=True,
        scheme_name="fp8",
        needs=frozenset({Need.WEIGHT, Need.INPUT}),
        preset="FP8_DEFAULT_CFG",
        inputs=Inputs.STATIC_FP8,
    ),
    Precision(
        *("fp8-rowwise", "bfloat16", "BF16", "FP8_PER_CHANNEL_PER_TOKEN", _HEAD_WIDE),
        tensors=(
            Stored("weight", "F8_E4M3", (_ROWS, _COLUMNS), is_scale=False, hf_suffix="weight"),
            Stored("per_channel_scale", "F32", (_ROWS,), hf_suffix="weight_scale"),
        ),
        in_hf=True,
        scheme_name="fp8-rowwise",
        inputs=Inputs.TOKEN_FP8,
        untried=frozenset({_GPT}),
    ),
    # Plain weights: trtllm-build quantizes them itself, in a layout that depends on the GPU.
    Precision("w8a16", "bfloat16", "BF16", "W8A16", scheme_name="w8a16"),
    Precision("w4a16", "bfloat16", "BF16", "W4A16", scheme_name="w4a16"),
    _awq("w4a16-awq", "W4A16_AWQ", narrow_inputs=False),
    _awq("w4a8-awq", "W4A8_AWQ", narrow_inputs=True),
    Precision(
        *("nvfp4", "bfloat16", "BF16", "NVFP4", {**_HEAD_WIDE, "group_size": 16}),
        tensors=(
            Stored("weight", "U8", (_ROWS, Axis(Side.IN, 2)), is_scale=False, hf_suffix="weight"),
            Stored(
                *("weights_scaling_factor", "F8_E4M3", (_ROWS, Axis(Side.IN, 16))),
                hf_suffix="weight_scale",
            ),
            Stored("weights_scaling_factor_2", "F32", (), hf_suffix="weight_scale_2"),
            Stored("activation_scaling_factor", "F32", (), hf_suffix="input_scale"),
        ),
        fused_range=True,
        in_hf=True,
        scheme_name="nvfp4",
        needs=frozenset({Need.WEIGHT, Need.INPUT}),
        preset="NVFP4_DEFAULT_CFG",
        inputs=Inputs.BLOCK_FP4,
        refused={_GPT: _NOT_LISTED},
    ),
)
PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType({p.name: p for p in _ALL})


def precision_of(dtype: str, algorithm: str | None) -> Precision:
    """Return the precision that a checkpoint's config.json describes; KeyError when none does."""
    return {(p.dtype, p.algorithm): p for p in PRECISIONS.values()}[dtype, algorithm]
