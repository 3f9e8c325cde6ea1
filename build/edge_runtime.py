"""Whether a Hugging Face folder works in TensorRT Edge-LLM, another engine runtime of NVIDIA's.

Read from release 0.11 (the wheels on PyPI) and, where a CPU can tell, seen with its exporter: which
classes and formats it exports, that a chat template is a must, and the GPUs that its wheels have
compiled code for, which must be a GPU's exact SM. It casts weights and cache to FP16.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.build.compatibility import LoadFault, all_fit
from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.recipe.engine_memory import (
    activation_bytes,
    kv_bytes_per_token,
    reserve_bytes,
    weights_bytes,
)
from minitron_trt.console import size_text
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.model_folder import folder_formats, folder_spec
from minitron_trt.convert.source.tokenizer_folder import TOKENIZER_CONFIG
from minitron_trt.gpus import GPUS, Target
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.spec import ModelSpec

EDGE_VERSION: Final = "0.11"
PAYLOADS: Final[Mapping[str, tuple[int, ...]]] = MappingProxyType(
    {"x86_64": (80, 86, 100, 120), "aarch64": (87, 110, 120, 121)}
)
"""The SMs that each of its wheels has code for, by the processor beside the GPU."""
# GPUs that come with a Grace processor, which takes the other wheel.
_ON_ARM: Final = ("GH200", "GB200", "GB300")
_GRAPHS: Final = ("LlamaForCausalLM", "MistralForCausalLM")
_FORMATS: Final = ("bf16", "fp16", "fp8", "nvfp4")
_HEAD_SIZES: Final = (64, 128, 256, 512)
_TEMPLATE: Final = "chat_template.jinja"
_CHAT_FILES: Final = ("chat_template.json", "processor_config.json", TOKENIZER_CONFIG)


@dataclass(frozen=True, slots=True)
class EdgeReport:
    """Everything that was compared, for one folder."""

    folder: Path
    spec: ModelSpec
    precision: str
    findings: tuple[LoadFault, ...]

    @property
    def works(self) -> bool | None:
        """Return whether it will work; None when something could not be known."""
        return all_fit(self.findings)

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "folder": str(self.folder),
            "runtime": f"TensorRT Edge-LLM {EDGE_VERSION}",
            "architecture": self.spec.architecture,
            "precision": self.precision,
            "works": self.works,
            "findings": [asdict(finding) for finding in self.findings],
        }


def check_edge(folder: Path, target: Target | None, length: int) -> EdgeReport:
    """Compare a model folder with Edge-LLM, and with a GPU unless that is None.

    `length` is how many tokens one sequence may have. BadInputError or UnsupportedError when it is
    no folder of a Llama, Mistral or Nemotron.
    """
    spec, precision = folder_spec(folder), folder_formats(folder).weights
    findings = [
        _architecture(spec, folder),
        _template(folder),
        _format(precision),
        *_head(spec),
    ]
    if target is not None:
        findings += [_payload(target), _memory(spec, precision, target, length)]
    return EdgeReport(folder, spec, precision, tuple(findings))


def _architecture(spec: ModelSpec, folder: Path) -> LoadFault:
    name = "architecture"
    if spec.architecture in _GRAPHS:
        return LoadFault(name, fits=True, found=f"{spec.architecture}, which is its default graph")
    return LoadFault(
        name,
        fits=False,
        found=f"{spec.architecture} is exported as a Llama graph without a word: RMSNorm for "
        "LayerNorm1P, SiLU for squared ReLU",
        remedy="it would answer nonsense; serve it otherwise: minitron-trt triton-repo "
        f"{folder} -o repository",
    )


def _template(folder: Path) -> LoadFault:
    name = "chat template"
    if (folder / _TEMPLATE).is_file():
        if (folder / _TEMPLATE).read_text(encoding="utf-8", errors="replace").strip():
            return LoadFault(name, fits=True, found=_TEMPLATE)
        return LoadFault(name, fits=False, found=f"{_TEMPLATE} is empty", remedy=_WRITE_ONE)
    for file in _CHAT_FILES:
        template = read_json(folder, file).get("chat_template") if _there(folder, file) else None
        if template:
            return LoadFault(name, fits=True, found=f"in {file}")
    return LoadFault(
        name,
        fits=False,
        found="there is none, without which its exporter ends in an error, after its work",
        remedy=_WRITE_ONE,
    )


_WRITE_ONE: Final = (
    f"put one into {_TEMPLATE}: that of the model's instruct version, or a plain one of "
    "minitron_trt/chat_templates"
)


def _there(folder: Path, name: str) -> bool:
    return (folder / name).is_file()


def _format(precision: str) -> LoadFault:
    name = "precision"
    if precision == "bf16":
        found = "bf16, which it casts to FP16: what is beyond 65504 would be infinite"
        return LoadFault(name, fits=True, found=found)
    if precision in _FORMATS:
        return LoadFault(name, fits=True, found=precision)
    known = ", ".join(_FORMATS)
    found = f"{precision}; expected one of {known}"
    if precision == "fp8-rowwise":
        found += ": rows' scales are exported along the other axis, inputs with a scale of 1"
    return LoadFault(
        name,
        fits=False,
        found=found,
        remedy="convert again: minitron-trt convert SOURCE --format hf --precision fp8",
    )


def _head(spec: ModelSpec) -> Iterator[LoadFault]:
    if spec.head_size not in _HEAD_SIZES:
        sizes = ", ".join(map(str, _HEAD_SIZES))
        yield LoadFault(
            "head size",
            fits=None,
            found=f"{spec.head_size}; it exports, but the runtime's cache names {sizes} alone",
        )


def _payload(target: Target) -> LoadFault:
    name = "payload"
    host = "aarch64" if target.gpu.name in _ON_ARM else "x86_64"
    if target.sm in PAYLOADS[host]:
        return LoadFault(name, fits=True, found=f"{target.label}, in the wheel for {host}")
    sms = ", ".join(map(str, PAYLOADS[host]))
    able = ", ".join(
        gpu.name for gpu in GPUS if gpu.sm in PAYLOADS["x86_64"] and gpu.name not in _ON_ARM
    )
    return LoadFault(
        name,
        fits=False,
        found=f"{target.label}; the wheel for {host} has code for SM{sms} only",
        remedy=f"use one of {able}; or build it from its sources for SM{target.sm}",
    )


def _memory(spec: ModelSpec, precision: str, target: Target, length: int) -> LoadFault:
    stored = precision if precision in PRECISIONS else "bf16"
    model = EngineModel("model", spec).stored_as(stored)
    weights, length = weights_bytes(model), min(length, spec.max_positions)
    cache = length * kv_bytes_per_token(model)
    rest = activation_bytes(model, length, 1) + reserve_bytes(model)
    need, gpu = weights + cache + rest, target.gpu
    found = (
        f"weights {size_text(weights)}, a sequence of {length} tokens {size_text(cache)}, the rest "
        f"about {size_text(rest)}, of {gpu.name}'s {size_text(gpu.memory_bytes)}"
    )
    if need <= gpu.memory_bytes:
        return LoadFault("memory", fits=True, found=found)
    return LoadFault(
        "memory",
        fits=False,
        found=f"{found}: {size_text(need - gpu.memory_bytes)} are missing",
        remedy="convert to a narrower precision, or shorten --length",
    )
