"""What a Hugging Face folder says about its FP8 layers: by ModelOpt, compressed-tensors or AutoFP8.

TensorRT-LLM has two of the many kinds: one scale per weight with a fixed one per input, and one per
row of the weight with the inputs' computed token by token. Every other is refused by name.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.artifacts import CONFIG_NAME
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.quantization.precisions import PRECISIONS

QUANTIZATION_FILE: Final = "hf_quant_config.json"
QUANTIZATION_KEYS: Final = ("quantization_config", "compression_config")  # the second is old
_FP8, _ROWWISE = PRECISIONS["fp8"], PRECISIONS["fp8-rowwise"]
_LINEAR: Final = "Linear"  # the class of transformers, which names every linear layer at once
_PLAIN_FORMATS: Final = (
    None,
    "float-quantized",
    "naive-quantized",
)  # not packed


@dataclass(frozen=True, slots=True)
class HfQuantization:
    """Which linear layers of a folder are FP8, and which scales it must hold."""

    precision: str | None  # by name: the one whose tensors the folder has; None: none is FP8
    kv_cache: bool  # whether the KV cache is said to have scales
    targets: tuple[re.Pattern[str], ...]
    ignored: tuple[re.Pattern[str], ...]

    def is_quantized(self, module: str) -> bool:
        """Return whether a linear layer is FP8, by its name in the folder."""
        ignored = any(pattern.match(module) for pattern in self.ignored)
        return not ignored and any(pattern.match(module) for pattern in self.targets)


@dataclass(frozen=True, slots=True)
class _Block:
    """A record that describes quantization, and where it stands."""

    origin: str
    record: Mapping[str, Any]

    def nested(self, key: str) -> _Block:
        """Return an object of the record; an absent one is empty."""
        value = self.record.get(key) or {}
        if not isinstance(value, Mapping):
            raise BadInputError(f"{self.origin}: {key} is {value!r}; expected an object")
        return _Block(f"{self.origin}: {key}", value)

    def name(self, key: str) -> str | None:
        """Return a name of a method or an algorithm; None where there is none."""
        value = self.record.get(key)
        if value is not None and not isinstance(value, str):
            raise BadInputError(f"{self.origin}: {key} is {value!r}; expected a name")
        return value

    def patterns(self, key: str, spelled: Callable[[str], str]) -> tuple[re.Pattern[str], ...]:
        """Return a list of names as regular expressions."""
        value = self.record.get(key) or []
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise BadInputError(f"{self.origin}: {key} is {value!r}; expected a list of names")
        try:
            return tuple(re.compile(spelled(name)) for name in value)
        except re.error as error:
            raise BadInputError(f"{self.origin}: {key} has a bad pattern ({error})") from error

    def refused(self, what: str, remedy: str = "") -> UnsupportedError:
        """Return the refusal of something that is converted to no form of TensorRT-LLM's."""
        return UnsupportedError(
            f"{self.origin} has {what}, which is not supported; {remedy}convert the bf16 model "
            "instead"
        )

    def strategy(self, what: str) -> str:
        """Return which numbers share a scale; UnsupportedError when they are not FP8."""
        record = self.record
        bits, kind = record.get("num_bits"), record.get("type")
        grouping = record.get("strategy") or ("group" if record.get("group_size") else "tensor")
        if (bits, kind, record.get("symmetric", True)) != (8, "float", True):
            symmetric = "" if record.get("symmetric", True) else "asymmetric "
            raise self.refused(f"{what} of {symmetric}{kind}{bits} by {grouping}")
        return f"dynamic {grouping}" if record.get("dynamic") else str(grouping)


def read_quantization(folder: Path, config: Mapping[str, Any]) -> HfQuantization | None:
    """Return what a folder says; None where nothing is quantized.

    UnsupportedError names what is not FP8 as TensorRT-LLM has it.
    """
    blocks = [
        _Block(CONFIG_NAME, config).nested(key) for key in QUANTIZATION_KEYS if config.get(key)
    ]
    if (folder / QUANTIZATION_FILE).is_file():
        nested = _Block(QUANTIZATION_FILE, read_json(folder, QUANTIZATION_FILE))
        record = {**nested.nested("quantization").record, "quant_method": "modelopt"}
        blocks.append(_Block(QUANTIZATION_FILE, record))
    readings = [_read(block) for block in blocks]
    for block, other in zip(blocks[1:], readings[1:], strict=True):
        if (other.precision, other.kv_cache) != (readings[0].precision, readings[0].kv_cache):
            raise BadInputError(
                f"{blocks[0].origin} and {block.origin} describe different quantizations; expected "
                "one: download the folder again"
            )
    nothing = all(one.precision is None and not one.kv_cache for one in readings)
    return None if nothing else readings[0]


def _read(block: _Block) -> HfQuantization:
    method = block.name("quant_method")
    # Early versions of ModelOpt wrote no quant_method.
    method = "modelopt" if method is None and "quant_algo" in block.record else method
    if method not in _READERS:
        raise block.refused(f"quant_method {method!r}")
    return _READERS[method](block)


def _modelopt(block: _Block) -> HfQuantization:
    algorithm = block.name("quant_algo")
    if algorithm is None:
        return HfQuantization(None, _kv_cache(block), targets=(), ignored=())
    known = {precision.algorithm: precision.name for precision in (_FP8, _ROWWISE)}
    if algorithm not in known:
        served = any(each.in_hf and each.algorithm == algorithm for each in PRECISIONS.values())
        as_it_is = "serve the folder as it is (minitron-trt triton-repo), or "
        raise block.refused(f"quant_algo {algorithm!r}", as_it_is if served else "")
    # `ignore` is the list's name in config.json, `exclude_modules` in hf_quant_config.json.
    ignored = [block.patterns(key, fnmatch.translate) for key in ("ignore", "exclude_modules")]
    return HfQuantization(known[algorithm], _kv_cache(block), _ALL, ignored[0] + ignored[1])


def _compressed_tensors(block: _Block) -> HfQuantization:
    form = block.record.get("format")
    if form not in _PLAIN_FORMATS:
        raise block.refused(f"format {form!r}")
    sparsity = block.nested("sparsity_config").record.get("format", "dense")
    if sparsity != "dense":
        raise block.refused(f"sparsity_config {sparsity!r}")
    if block.record.get("transform_config"):
        raise block.refused("a transform_config")
    groups = block.nested("config_groups")
    if len(groups.record) != 1:
        raise groups.refused(f"{len(groups.record)} groups")
    group = groups.nested(next(iter(groups.record)))
    for key in ("weights", "input_activations"):
        if not group.record.get(key):
            raise group.refused(f"no {key}")
    if group.record.get("output_activations"):
        raise group.refused("output_activations")
    weights = group.nested("weights").strategy("numbers")
    inputs = group.nested("input_activations").strategy("numbers")
    known = {
        ("tensor", "tensor"): _FP8.name,
        ("channel", "dynamic token"): _ROWWISE.name,
    }
    if (weights, inputs) not in known:
        raise group.refused(f"weights by {weights} with inputs by {inputs}")
    return HfQuantization(
        known[weights, inputs],
        _kv_cache(block),
        group.patterns("targets", _name_or_pattern),
        block.patterns("ignore", _name_or_pattern),
    )


def _autofp8(block: _Block) -> HfQuantization:
    scheme = block.record.get("activation_scheme")
    if scheme != "static" or block.record.get("weight_block_size"):
        blocks = " and weight_block_size" if block.record.get("weight_block_size") else ""
        raise block.refused(f"quant_method 'fp8' with activation_scheme {scheme!r}{blocks}")
    ignored = block.patterns("ignored_layers", _name_or_pattern)
    return HfQuantization(_FP8.name, _kv_cache(block), _ALL, ignored)


def _kv_cache(block: _Block) -> bool:
    algorithm = block.record.get("kv_cache_quant_algo")
    scheme = block.record.get("kv_cache_scheme")
    if algorithm not in (None, "FP8"):
        raise block.refused(f"kv_cache_quant_algo {algorithm!r}")
    if isinstance(scheme, str):
        if scheme != "static":
            raise block.refused(f"kv_cache_scheme {scheme!r}")
    elif scheme:
        nested = block.nested("kv_cache_scheme")
        strategy = nested.strategy("numbers")
        if strategy != "tensor":
            raise nested.refused(f"scales by {strategy}")
    return bool(algorithm or scheme)


def _name_or_pattern(name: str) -> str:
    """Return the expression of a name as compressed-tensors spells it."""
    if name.startswith("re:"):
        return name.removeprefix("re:")
    return ".*" if name == _LINEAR else re.escape(name) + r"\Z"


_ALL: Final = (re.compile(".*"),)
_READERS: Final[Mapping[Any, Callable[[_Block], HfQuantization]]] = MappingProxyType(
    {"modelopt": _modelopt, "compressed-tensors": _compressed_tensors, "fp8": _autofp8}
)
