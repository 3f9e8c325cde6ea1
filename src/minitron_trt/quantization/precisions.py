"""The number formats a checkpoint can have: one entry each, and one scheme of math in `schemes`.

An entry says everything that is not arithmetic: TensorRT-LLM's name and settings, the tensors that
a linear layer has on disk and on the GPU, what has to be measured first, how inputs are rounded,
and what refuses it: model architectures, GPUs, compilers, KV caches. Converter, checkpoint reader,
reference model, GPU tables, memory forecast and builder all go by the entry, so a new precision is
an entry here and its arithmetic there.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from math import prod
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from minitron_trt.dtypes import DTYPES
from minitron_trt.errors import UnsupportedError

if TYPE_CHECKING:
    from minitron_trt.quantization.schemes import Scheme


class Side(enum.Enum):
    """What an axis of a linear layer's tensor counts; it is sharded as the weight's own axis is."""

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

    def size_bytes(self, rows: int, columns: int) -> int:
        """Return its bytes for a weight of [rows, columns]."""
        return prod(self.shape(rows, columns)) * DTYPES[self.storage].size_bytes

    def dimension(self, side: Side) -> int | None:
        """Return which of its axes counts a side of the weight, if any."""
        return next((i for i, axis in enumerate(self.axes) if axis.side is side), None)

    @property
    def per_row(self) -> bool:
        """Return whether it grows with the weight's rows; the rest is known before they are."""
        return self.dimension(Side.OUT) is not None


class Inputs(enum.Enum):
    """How a linear layer's input is quantized while the engine runs."""

    UNQUANTIZED = "unquantized"  # the model's dtype
    STATIC_FP8 = "static_fp8"  # one calibrated scale
    TOKEN_FP8 = "token_fp8"  # one scale per token, computed at each step
    BLOCK_FP4 = "block_fp4"  # one scale per block of 16, computed at each step

    @property
    def multiplied_in(self) -> str:
        """Return which of a GPU's rates applies: `bf16`, `fp8` or `fp4`.

        Weights of fewer bits are dequantized first where inputs are not quantized.
        """
        if self is Inputs.UNQUANTIZED:
            return "bf16"
        return "fp4" if self is Inputs.BLOCK_FP4 else "fp8"


class Need(enum.Enum):
    """What a scheme must know of a layer before it can write the first row."""

    WEIGHT = "weight"  # the largest weight
    INPUT = "input"  # the largest input, by calibration
    PREQUANT = "prequant"  # AWQ's factor of each input, by calibration


@dataclass(frozen=True, slots=True)
class Precision:
    """How weights are stored, kept and multiplied, and what can build and run them."""

    name: str
    storage: str  # the dtype of what is not quantized, as safetensors names it
    gpus: str  # support on each of gpus.SMS, by the letters explained there
    instead: tuple[str, ...] = ()  # the precisions that come closest, best first
    algorithm: str | None = None  # TensorRT-LLM's `quant_algo`; None means not quantized
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tensors: tuple[Stored, ...] = ()  # of a linear layer; none means its plain weight
    resident: tuple[Stored, ...] = ()  # the same in an engine's memory; none means as on disk
    needs: frozenset[Need] = frozenset()
    preset: str | None = None  # ModelOpt's configuration that measures it
    inputs: Inputs = Inputs.UNQUANTIZED
    refused: Mapping[str, str] = field(default_factory=dict, hash=False)  # architecture → why
    untried: frozenset[str] = frozenset()  # architectures where only TensorRT-LLM's code says yes
    refused_kv_caches: Mapping[str, str] = field(default_factory=dict, hash=False)  # format → why
    in_hf: bool = False  # whether ModelOpt's Hugging Face form has it as the tensors here are
    in_tensorrt: bool = False  # whether --compiler tensorrt has a network for it
    fp8_attention: bool = False  # whether context attention may run in FP8 beside it
    gemm_plugin: str = "auto"  # trtllm-build's, for large batches
    own_gemm_plugin: str | None = None  # the value that stands for kernels of its own
    own_flags: frozenset[str] = frozenset()  # trtllm-build's flags that few precisions have

    @property
    def built_in(self) -> bool:
        """Return whether `trtllm-build` quantizes, and a checkpoint has the weights as they are."""
        return self.algorithm is not None and not self.tensors

    @property
    def dtype(self) -> str:
        """Return the dtype of what is not quantized, as TensorRT-LLM and torch name it."""
        return DTYPES[self.storage].name

    @property
    def scheme(self) -> Scheme | None:
        """Return the arithmetic; None where weights are kept as they are."""
        if self.algorithm is None:
            return None
        # numpy is not needed to print help.
        scheme: Scheme = import_module("minitron_trt.quantization.schemes").SCHEMES[self.name]
        return scheme

    @property
    def calibrated(self) -> bool:
        """Return whether text has to run through the model first."""
        return bool(self.needs & {Need.INPUT, Need.PREQUANT})

    @property
    def group_size(self) -> int | None:
        """Return how many neighbours of a weight's row share a scale, if they do in groups."""
        size: int | None = self.settings.get("group_size")
        return size

    def stored_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a linear layer of [rows, columns] in a checkpoint."""
        return self._size_bytes(self.tensors, rows, columns)

    def resident_bytes(self, rows: int, columns: int) -> int:
        """Return the bytes of a linear layer of [rows, columns] in an engine's memory."""
        return self._size_bytes(self.resident or self.tensors, rows, columns)

    def _size_bytes(self, tensors: tuple[Stored, ...], rows: int, columns: int) -> int:
        plain = (Stored("weight", self.storage, (_ROWS, _COLUMNS)),)
        return sum(stored.size_bytes(rows, columns) for stored in tensors or plain)

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
        if kv_cache and kv_cache in self.refused_kv_caches:
            others = [name for name in KV_CACHES if name not in self.refused_kv_caches]
            raise UnsupportedError(
                f"{self.refused_kv_caches[kv_cache]}; use --kv-cache {' or '.join(others)} or auto"
            )


@dataclass(frozen=True, slots=True)
class KVCacheFormat:
    """A quantized KV cache; None stands for one in the model's own dtype."""

    name: str
    algorithm: str  # TensorRT-LLM's `kv_cache_quant_algo`
    largest: float  # of its numbers
    smallest_scale: float
    calibration_bits: int | tuple[int, int]  # ModelOpt's `num_bits`: (exponent, fraction) if two
    gpus: str  # as of a Precision
    instead: tuple[str, ...] = ()
    in_hf: bool = False  # whether the runtimes of ModelOpt's Hugging Face form have it

    @property
    def feature(self) -> str:
        """Return its name among gpus.FEATURES."""
        return f"kv-{self.name}"


KV_CACHES: Final[Mapping[str, KVCacheFormat]] = MappingProxyType(
    {
        kv_cache.name: kv_cache
        for kv_cache in (
            KVCacheFormat(
                name="fp8",
                algorithm="FP8",
                largest=448.0,
                # ModelOpt's advice: never spread small values, the format has range to spare.
                smallest_scale=1.0,
                calibration_bits=(4, 3),
                gpus="UUTTTUU",
                instead=("int8",),
                in_hf=True,
            ),
            KVCacheFormat(
                name="int8",
                algorithm="INT8",
                largest=127.0,
                smallest_scale=0.0,
                calibration_bits=8,
                gpus="DDDDXXU",
                instead=("fp8",),
            ),
        )
    }
)
AWQ_GROUP: Final = 128
NVFP4_BLOCK: Final = 16
"""How many neighbours share a scale."""

_ONE: Final = Axis(Side.ONE)
_ROWS, _COLUMNS = Axis(Side.OUT), Axis(Side.IN)
KV_SCALE: Final = Stored("attention.kv_cache_scaling_factor", "F32", (_ONE,))
_GPT: Final = "NemotronForCausalLM"
_NOT_LISTED: Final = "TensorRT-LLM's table does not list it for the GPT graph that Nemotron runs on"
_HEAD_UNQUANTIZED: Final = MappingProxyType({"exclude_modules": ["lm_head"]})
_FP8_WEIGHT: Final = Stored(
    "weight", "F8_E4M3", (_ROWS, _COLUMNS), is_scale=False, hf_suffix="weight"
)


def _awq(
    name: str, algorithm: str, *, gpus: str, instead: tuple[str, ...], fp8_inputs: bool
) -> Precision:
    weight = Stored("weight", "I8", (Axis(Side.OUT, 2), _COLUMNS), is_scale=False)
    prequant = Stored("prequant_scaling_factor", "BF16", (_COLUMNS,))
    fp8_scales = (
        Stored("weights_scaling_factor_2", "F32", ()),
        Stored("activation_scaling_factor", "F32", (_ONE,)),
    )
    others = (prequant, *(fp8_scales if fp8_inputs else ()))
    group_axes = (_ROWS, Axis(Side.IN, AWQ_GROUP))
    return Precision(
        name=name,
        storage="BF16",
        gpus=gpus,
        instead=instead,
        algorithm=algorithm,
        settings={
            **_HEAD_UNQUANTIZED,
            "group_size": AWQ_GROUP,
            "has_zero_point": False,
            "pre_quant_scale": True,
        },
        tensors=(weight, Stored("weights_scaling_factor", "F32", group_axes), *others),
        # TensorRT-LLM converts the groups' scales to the model's dtype when it builds.
        resident=(weight, Stored("weights_scaling_factor", "BF16", group_axes), *others),
        needs=frozenset(Need) if fp8_inputs else frozenset({Need.PREQUANT}),
        preset="W4A8_AWQ_BETA_CFG" if fp8_inputs else "INT4_AWQ_CFG",
        inputs=Inputs.STATIC_FP8 if fp8_inputs else Inputs.UNQUANTIZED,
        refused={_GPT: _NOT_LISTED} if fp8_inputs else {},
        untried=frozenset() if fp8_inputs else frozenset({_GPT}),
        fp8_attention=fp8_inputs,
    )


def _weight_only(
    name: str,
    algorithm: str,
    *,
    columns: Axis,
    gpus: str,
    instead: tuple[str, ...],
    refused_kv_caches: Mapping[str, str] = MappingProxyType({}),
) -> Precision:
    return Precision(
        name=name,
        storage="BF16",
        gpus=gpus,
        instead=instead,
        algorithm=algorithm,
        # No exclude_modules: TensorRT-LLM's own list then spares embedding and head, where a list
        # of the head alone would have the embedding quantized to INT8.
        # On disk the weight is plain: trtllm-build quantizes it, in a layout that depends on the
        # GPU.
        resident=(
            Stored("weight", "I8", (_ROWS, columns), is_scale=False),
            Stored("per_channel_scale", "BF16", (_ROWS,)),
        ),
        refused_kv_caches=refused_kv_caches,
    )


_NVFP4_TENSORS: Final = (
    Stored("weight", "U8", (_ROWS, Axis(Side.IN, 2)), is_scale=False, hf_suffix="weight"),
    Stored(
        "weights_scaling_factor",
        "F8_E4M3",
        (_ROWS, Axis(Side.IN, NVFP4_BLOCK)),
        hf_suffix="weight_scale",
    ),
    Stored("weights_scaling_factor_2", "F32", (), hf_suffix="weight_scale_2"),
    Stored("activation_scaling_factor", "F32", (), hf_suffix="input_scale"),
)
_ALL: Final = (
    Precision("bf16", "BF16", gpus="TTTTTUU", in_hf=True, in_tensorrt=True),
    Precision("fp16", "F16", gpus="TTTTDUU", in_hf=True, in_tensorrt=True),
    Precision(
        name="fp8",
        storage="BF16",
        gpus="--TTTUU",
        instead=("w8a16", "w4a16-awq", "bf16"),
        algorithm="FP8",
        settings=_HEAD_UNQUANTIZED,
        tensors=(
            _FP8_WEIGHT,
            Stored("weights_scaling_factor", "F32", (_ONE,), hf_suffix="weight_scale"),
            Stored("activation_scaling_factor", "F32", (_ONE,), hf_suffix="input_scale"),
        ),
        needs=frozenset({Need.WEIGHT, Need.INPUT}),
        preset="FP8_DEFAULT_CFG",
        inputs=Inputs.STATIC_FP8,
        in_hf=True,
        in_tensorrt=True,
        fp8_attention=True,
        gemm_plugin="disable",
        own_gemm_plugin="fp8",
        own_flags=frozenset(
            {
                "low_latency_gemm_plugin",
                "gemm_swiglu_plugin",
                "use_fused_mlp",
                "user_buffer",
                "multiple_profiles",
            }
        ),
    ),
    Precision(
        name="fp8-rowwise",
        storage="BF16",
        gpus="--TDXX.",
        instead=("fp8", "w8a16", "bf16"),
        algorithm="FP8_PER_CHANNEL_PER_TOKEN",
        settings=_HEAD_UNQUANTIZED,
        tensors=(
            _FP8_WEIGHT,
            Stored("per_channel_scale", "F32", (_ROWS,), hf_suffix="weight_scale"),
        ),
        inputs=Inputs.TOKEN_FP8,
        untried=frozenset({_GPT}),
        in_hf=True,
        own_flags=frozenset({"fp8_rowwise_gemm_plugin"}),
    ),
    _weight_only(
        "w8a16",
        "W8A16",
        columns=_COLUMNS,
        gpus="DDDDXXU",
        instead=("fp8", "bf16"),
        refused_kv_caches={
            "fp8": "INT8 weights with an FP8 KV cache do not build (TensorRT-LLM issue 1113)"
        },
    ),
    _weight_only(
        "w4a16",
        "W4A16",
        columns=Axis(Side.IN, 2),
        gpus="DDDDXXU",
        instead=("nvfp4", "w4a16-awq", "fp8", "bf16"),
    ),
    _awq(
        "w4a16-awq",
        "W4A16_AWQ",
        gpus="TDDDXX.",
        instead=("nvfp4", "fp8", "bf16"),
        fp8_inputs=False,
    ),
    _awq(
        "w4a8-awq",
        "W4A8_AWQ",
        gpus="--DDXX.",
        instead=("nvfp4", "w4a16-awq", "fp8", "bf16"),
        fp8_inputs=True,
    ),
    Precision(
        name="nvfp4",
        storage="BF16",
        gpus="----TUU",
        instead=("w4a8-awq", "fp8", "w4a16-awq", "bf16"),
        algorithm="NVFP4",
        settings={**_HEAD_UNQUANTIZED, "group_size": NVFP4_BLOCK},
        tensors=_NVFP4_TENSORS,
        # The builder adds the product of both tensor scales, which the kernel multiplies by.
        resident=(*_NVFP4_TENSORS, Stored("alpha", "F32", ())),
        needs=frozenset({Need.WEIGHT, Need.INPUT}),
        preset="NVFP4_DEFAULT_CFG",
        inputs=Inputs.BLOCK_FP4,
        refused={_GPT: _NOT_LISTED},
        in_hf=True,
        fp8_attention=True,
        gemm_plugin="nvfp4",
        own_gemm_plugin="nvfp4",
        own_flags=frozenset({"norm_quant_fusion", "user_buffer"}),
    ),
)
PRECISIONS: Final[Mapping[str, Precision]] = MappingProxyType({p.name: p for p in _ALL})
TENSORRT_PRECISIONS: Final = tuple(p.name for p in _ALL if p.in_tensorrt)
"""What `--compiler tensorrt` computes; the others need kernels that only TensorRT-LLM has."""


def precision_of(dtype: str, algorithm: str | None) -> Precision:
    """Return the precision that a checkpoint's config.json describes; KeyError when none does."""
    return {(p.dtype, p.algorithm): p for p in PRECISIONS.values()}[dtype, algorithm]


def of_algorithm(algorithm: str) -> Precision:
    """Return the precision of a `quant_algo`, whatever dtype is beside it; KeyError for none."""
    return {p.algorithm: p for p in PRECISIONS.values()}[algorithm]


def kv_cache_of(algorithm: str | None) -> str | None:
    """Return the name of the KV cache format that a config.json describes; KeyError for none."""
    names = {kv_cache.algorithm: name for name, kv_cache in KV_CACHES.items()}
    return None if algorithm is None else names[algorithm]
