"""What the GPUs can do: architectures, products, and which precision and feature runs where.

Everything that asks "will this work on that GPU?" reads these tables. What is said of a precision
or a KV cache format stands in its entry, in `quantization.precisions`, by the letters of _CELLS.

Memory is what nvidia-smi reports. Rates are dense: half of what a data sheet gives with sparsity,
and for GeForce those with FP32 accumulation, as engines multiply. Compared with NVIDIA's data
sheets, or with quotes of them, were:

    A100 (r4), A40, L4, L40, L40S, H100 SXM, H200 SXM
    B200 and GB200: the Blackwell data sheet (HGX B200 has 180 GB at 7.7 TB/s, GB200 186 GB at 8)

Links are those of NVLink's and PCIe's generations: NVLink 3, 4 and 5 of SXM boards and superchips,
PCIe 5 for the cards of Hopper and Blackwell. A bridge between two cards is not counted.

The others are marked unverified: their figures were not found at their source, or sources disagree.
Of B300 they give 13.1, 13.5 and 14 PFLOPS in FP4 and 7.7 and 8 TB/s; the larger stands here, since
rates serve as bounds.

What runs where follows TensorRT-LLM: the tables of features/quantization and of the legacy support
matrix, what its builder raises, and the test lists of its CI for the engine backend, which runs on
A30, A10, L40S, H100 and B200 and skips engines for SM103 and later. FP8 rowwise on SM89 is in those
lists, though not in the tables.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS


class Sure(enum.Enum):
    """How we know a fact."""

    DOCUMENTED = "documented"
    TESTED = "tested upstream"  # TensorRT-LLM's CI builds and runs such an engine there
    UNVERIFIED = "unverified"  # listed or derived; nobody is known to have run it


@dataclass(frozen=True, slots=True)
class Architecture:
    """A generation of GPUs; `typical` is the product that its bare name stands for."""

    name: str
    sms: tuple[int, ...]
    typical: str
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Gpu:
    """A product: memory, its bandwidth, and dense multiplication rates (0: not in hardware).

    `link_gbs` is the bandwidth to other GPUs, both directions together: NVLink where every board of
    the product has it, else PCIe, of which 64 is the fourth generation's. `sure` is about these
    figures; what runs on the GPU goes by its SM.
    """

    name: str
    sm: int
    memory_mib: int
    bandwidth_gbs: float
    bf16_tflops: float
    fp8_tflops: float = 0
    fp4_tflops: float = 0
    aliases: tuple[str, ...] = ()
    sure: Sure = Sure.DOCUMENTED
    link_gbs: float = 64

    @property
    def memory_bytes(self) -> int:
        """Return the memory in bytes."""
        return self.memory_mib << 20

    def tflops(self, precision: str) -> float:
        """Return the dense rate at which the GPU multiplies in a precision."""
        rates = {"fp8": self.fp8_tflops, "fp4": self.fp4_tflops}
        return rates.get(PRECISIONS[precision].inputs.multiplied_in, 0) or self.bf16_tflops


ARCHITECTURES: Final = (
    Architecture("ampere", (80, 86), "A100-80GB"),
    Architecture("ada", (89,), "L40", ("lovelace", "adalovelace")),
    Architecture("hopper", (90,), "H100-SXM"),
    Architecture("blackwell", (100, 103), "B200"),
    Architecture("blackwell-rtx", (120,), "RTX-PRO-6000"),
)

_U: Final = Sure.UNVERIFIED
GPUS: Final = (
    Gpu("A100-40GB", 80, 40960, 1555, 312, aliases=("A100-SXM4-40GB", "A100-PCIE-40GB")),
    Gpu(
        "A100-80GB",
        sm=80,
        memory_mib=81920,
        bandwidth_gbs=2039,
        bf16_tflops=312,
        aliases=("A100", "A100-SXM", "A100-SXM4-80GB"),
        link_gbs=600,
    ),
    Gpu("A100-80GB-PCIe", 80, 81920, 1935, 312, aliases=("A100-PCIe", "A100 80GB PCIe")),
    Gpu("A30", 80, 24576, 933, 165, sure=_U),
    Gpu("A10", 86, 23028, 600, 125, sure=_U),
    Gpu("A10G", 86, 23028, 600, 70, sure=_U),
    Gpu("A40", 86, 46068, 696, 149.7),
    Gpu("RTX-A6000", 86, 49140, 768, 154.8, aliases=("A6000",), sure=_U),
    Gpu("RTX-3090", 86, 24576, 936, 71, sure=_U),
    Gpu("L4", 89, 23034, 300, 121, 242),
    Gpu("L40", 89, 46068, 864, 181, 362),
    Gpu("L40S", 89, 46068, 864, 362, 733),
    Gpu("RTX-6000-Ada", 89, 49140, 960, 364, 728, aliases=("RTX 6000 Ada Generation",), sure=_U),
    Gpu("RTX-4090", 89, 24564, 1008, 165.2, 330.3, sure=_U),
    Gpu(
        "H100-SXM",
        sm=90,
        memory_mib=81559,
        bandwidth_gbs=3350,
        bf16_tflops=989,
        fp8_tflops=1979,
        aliases=("H100", "H100-SXM5", "H100 80GB HBM3"),
        link_gbs=900,
    ),
    Gpu("H100-PCIe", 90, 81559, 2000, 756, 1513, sure=_U, link_gbs=128),
    Gpu("H100-NVL", 90, 95830, 3900, 835, 1671, sure=_U, link_gbs=128),
    Gpu(
        "GH200",
        sm=90,
        memory_mib=97871,
        bandwidth_gbs=4000,
        bf16_tflops=989,
        fp8_tflops=1979,
        aliases=("GH200 480GB", "GH200-96GB"),
        sure=_U,
        link_gbs=900,
    ),
    Gpu("H200", 90, 143771, 4800, 989, 1979, aliases=("H200-SXM",), link_gbs=900),
    Gpu("H200-NVL", 90, 143771, 4800, 835, 1671, sure=_U, link_gbs=128),
    Gpu("B200", 100, 183359, 7700, 2250, 4500, 9000, link_gbs=1800),
    Gpu("GB200", 100, 189471, 8000, 2500, 5000, 10000, link_gbs=1800),
    Gpu("B300", 103, 275040, 8000, 2250, 4500, 14000, sure=_U, link_gbs=1800),
    Gpu("GB300", 103, 284208, 8000, 2500, 5000, 15000, sure=_U, link_gbs=1800),
    Gpu(
        "RTX-PRO-6000",
        sm=120,
        memory_mib=97887,
        bandwidth_gbs=1597,
        bf16_tflops=500,
        fp8_tflops=1000,
        fp4_tflops=2000,
        aliases=("RTX PRO 6000 Blackwell", "RTX PRO 6000 Blackwell Server Edition"),
        sure=_U,
        link_gbs=128,
    ),
    Gpu(
        "RTX-PRO-6000-Workstation",
        sm=120,
        memory_mib=97887,
        bandwidth_gbs=1792,
        bf16_tflops=503.8,
        fp8_tflops=1007.6,
        fp4_tflops=2015.2,
        aliases=("RTX PRO 6000 Blackwell Workstation Edition",),
        sure=_U,
        link_gbs=128,
    ),
    Gpu("RTX-5090", 120, 32607, 1792, 209.5, 419, 1676, sure=_U, link_gbs=128),
)

SMS: Final = tuple(sm for architecture in ARCHITECTURES for sm in architecture.sms)
# Per feature, one letter for each of SMS: T tested upstream, D documented, U unverified; and
# refused: - the hardware lacks it, X TensorRT-LLM raises at build, . not listed by upstream.
# The letters of precisions and KV caches stand in their own entries.
_CELLS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{precision.name: precision.gpus for precision in PRECISIONS.values()},
        **{kv_cache.feature: kv_cache.gpus for kv_cache in KV_CACHES.values()},
        "fp8-context-fmha": "--TTTUU",
        "fp8-gemm-plugin": "--DTDUU",
        "gemm-swiglu-plugin": "---TX..",
        "low-latency-gemm-plugin": "--UTXUU",
    }
)
_HARDWARE: Final[Mapping[str, str]] = MappingProxyType(
    {
        "fp8": "it needs FP8 tensor cores, SM89 (Ada) or newer",
        "fp4": "it needs FP4 tensor cores, SM100 (Blackwell) or newer",
    }
)
# Why the hardware lacks a feature.
_NEEDS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{
            precision.name: _HARDWARE.get(precision.inputs.multiplied_in, "")
            for precision in PRECISIONS.values()
        },
        **dict.fromkeys(
            ("fp8-context-fmha", "fp8-gemm-plugin", "low-latency-gemm-plugin"), _HARDWARE["fp8"]
        ),
        "gemm-swiglu-plugin": "it is written for SM90 (Hopper)",
    }
)
_REFUSALS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "X": "TensorRT-LLM's builder refuses it on this architecture",
        ".": "TensorRT-LLM does not list it for this architecture",
    }
)
_SURE: Final = MappingProxyType({"T": Sure.TESTED, "D": Sure.DOCUMENTED, "U": Sure.UNVERIFIED})
_INSTEAD: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        **{precision.name: precision.instead for precision in PRECISIONS.values()},
        **{
            kv_cache.feature: tuple(KV_CACHES[name].feature for name in kv_cache.instead)
            for kv_cache in KV_CACHES.values()
        },
    }
)
FEATURES: Final = tuple(_CELLS)


@dataclass(frozen=True, slots=True)
class Target:
    """What to compile for: an SM, and the GPU whose memory and rates count."""

    name: str
    sm: int
    gpu: Gpu

    @property
    def label(self) -> str:
        """Return the target as messages name it."""
        return f"{self.name} (SM{self.sm})"

    @property
    def architecture(self) -> Architecture:
        """Return the generation that the SM belongs to."""
        return next(a for a in ARCHITECTURES if self.sm in a.sms)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether something runs on a target, why, how sure that is, and what runs instead."""

    supported: bool
    reason: str
    sure: Sure
    alternatives: tuple[str, ...] = ()


def find_gpu(name: str) -> Gpu:
    """Return a product by any of its names; UsageError offers the nearest."""
    return find_target(name).gpu


def find_target(name: str) -> Target:
    """Return what an architecture, SM or GPU name stands for; UsageError offers the nearest."""
    key = _key(name)
    for gpu in GPUS:
        if key in _keys(gpu.name, *gpu.aliases):
            return Target(gpu.name, gpu.sm, gpu)
    for architecture in ARCHITECTURES:
        if key in _keys(architecture.name, *architecture.aliases):
            return Target(architecture.name, architecture.sms[0], find_gpu(architecture.typical))
        if key in {f"sm{sm}" for sm in architecture.sms}:
            return _bare_sm(int(key[2:]), architecture)
    # Takes a while to import, and only a mistake needs it.
    from difflib import get_close_matches

    known = {_key(known): known for known in (*(a.name for a in ARCHITECTURES), *_gpu_names())}
    near = [known[match] for match in get_close_matches(key, known, cutoff=0.5)]
    hint = f"did you mean {' or '.join(near)}" if near else f"known are {', '.join(known.values())}"
    raise UsageError(f"GPU or architecture {name!r} is not known; {hint}")


def complete_gpu(_context: object, _parameter: object, incomplete: str) -> list[str]:
    """Return the GPUs and architectures that a shell may offer for the beginning of a name."""
    names = (*_gpu_names(), *(architecture.name for architecture in ARCHITECTURES))
    return [name for name in names if name.lower().startswith(incomplete.lower())]


def support(feature: str, target: Target) -> Verdict:
    """Say whether a precision or feature (a name in FEATURES) runs on a target."""
    if feature not in _CELLS:
        raise UsageError(f"{feature!r} is not known; expected one of {', '.join(FEATURES)}")
    cell = _CELLS[feature][SMS.index(target.sm)]
    if cell in _SURE:
        return Verdict(True, f"{target.label} runs {feature}", _SURE[cell])
    why = _NEEDS[feature] if cell == "-" else _REFUSALS[cell]
    instead = tuple(
        other for other in _INSTEAD.get(feature, ()) if _CELLS[other][SMS.index(target.sm)] in _SURE
    )
    return Verdict(False, f"{target.label} cannot run {feature}: {why}", Sure.DOCUMENTED, instead)


def check_support(feature: str, target: Target) -> Verdict:
    """Return the verdict when it is yes; UnsupportedError says why not and what to use instead."""
    verdict = support(feature, target)
    if not verdict.supported:
        instead = f"; use {' or '.join(verdict.alternatives)}" if verdict.alternatives else ""
        raise UnsupportedError(verdict.reason + instead)
    return verdict


def _key(name: str) -> str:
    return re.sub(r"nvidia|geforce|tensor core|[^a-z0-9]", "", name.lower())


@cache
def _keys(*spellings: str) -> frozenset[str]:
    return frozenset(map(_key, spellings))


def _gpu_names() -> tuple[str, ...]:
    return tuple(gpu.name for gpu in GPUS)


def _bare_sm(sm: int, architecture: Architecture) -> Target:
    typical = find_gpu(architecture.typical)
    # What fits the smallest GPU of an SM fits all of them.
    smallest = min((gpu for gpu in GPUS if gpu.sm == sm), key=lambda gpu: gpu.memory_mib)
    return Target(f"sm{sm}", sm, typical if typical.sm == sm else smallest)
