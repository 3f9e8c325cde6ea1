"""Run text through a model with ModelOpt's quantizers in it, and read off the amax they saw."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import gc
import io
import logging
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

import ml_dtypes
import numpy as np

from minitron_trt.console import Advance
from minitron_trt.convert.calibration.text import CalibrationText, Ids
from minitron_trt.convert.conversion_plan import ConversionPlan
from minitron_trt.convert.source.model_folder import ModelSource
from minitron_trt.convert.source.weight_files import few_of
from minitron_trt.convert.writing.quantize import Calibration
from minitron_trt.errors import BadInputError, MissingExtraError
from minitron_trt.families import KEY_PROJECTION, VALUE_PROJECTION, TensorRule, family_of
from minitron_trt.quantization.precisions import KV_CACHES, Need
from minitron_trt.quantization.schemes import Ranges

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_MMAP_THRESHOLD: Final = -3  # M_MMAP_THRESHOLD of malloc.h
_RETURNED_BYTES: Final = 1 << 20
_KEPT_BYTES: Final = 32 << 20  # where glibc's own threshold ends up


def calibrate(
    model: ModelSource, plan: ConversionPlan, text: CalibrationText, advance: Advance
) -> Calibration:
    """Return what the plan's precision and KV cache need to know; `advance` hears of tokens.

    MissingExtraError without torch, transformers and ModelOpt; BadInputError when the text is
    unusable or leaves a layer without a finite range.
    """
    batches = text.batches(model)
    try:
        with _quiet():
            import modelopt.torch.quantization as mtq
        import torch

        from minitron_trt.convert.torch_model import load_model
    except ImportError as error:
        purpose = f"calibrating {plan.precision.name}"
        raise MissingExtraError(error.name or "nvidia-modelopt", "quantize", purpose) from None
    torch.manual_seed(text.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.inference_mode(), _quiet(), _memory_returned():
        calibration = _measure(mtq, load_model(model, device), plan, batches, advance)
    # The modules form reference cycles, so only the collector frees them; AWQ's hold each weight
    # twice.
    gc.collect()
    _check(calibration, batches)
    return calibration


def _measure(
    mtq: Any, network: Any, plan: ConversionPlan, batches: list[Ids], advance: Advance
) -> Calibration:
    """Run the batches through a network that ModelOpt's quantizers are put into."""
    import torch

    def run(network: Any) -> None:
        """Show the quantizers the text."""
        for ids in batches:
            # `network.model` is the network without its head, which is not quantized.
            network.model(torch.from_numpy(ids).to(network.device), use_cache=False)
            advance(ids.size)

    mtq.quantize(network, _settings(mtq, plan), run)
    return _read(network, plan)


@contextlib.contextmanager
def _memory_returned() -> Iterator[None]:
    """Have large blocks go back to the system as soon as they are freed.

    The C library would keep activations of many sizes for a next time that does not fit them.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is None:  # a C library other than GNU's
        yield
        return
    set_option(_MMAP_THRESHOLD, _RETURNED_BYTES)
    try:
        yield
    finally:
        set_option(_MMAP_THRESHOLD, _KEPT_BYTES)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep ModelOpt's remarks off stdout, where results go, and out of the user's warnings."""
    said = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(said):
        warnings.simplefilter("ignore")
        yield
    log.debug("%s", said.getvalue().strip())


def _settings(mtq: Any, plan: ConversionPlan) -> dict[str, Any]:
    """Return ModelOpt's configuration: the precision's preset, less what only costs time."""
    settings: dict[str, Any] = {"quant_cfg": [_switch("*", False)], "algorithm": "max"}
    preset = plan.precision.preset
    if preset and plan.measures_inputs:
        settings = copy.deepcopy(getattr(mtq, preset))
        if Need.PREQUANT not in plan.precision.needs:
            # The converter computes the weights' amax itself, block by block.
            settings["quant_cfg"].append(_switch("*weight_quantizer", False))
    if plan.kv_cache and plan.measures_kv_cache:
        bits = {"num_bits": KV_CACHES[plan.kv_cache].calibration_bits, "axis": None}
        settings["quant_cfg"].append({"quantizer_name": "*[kv]_bmm_quantizer", "cfg": bits})
    return settings


def _switch(name: str, on: bool) -> dict[str, Any]:
    return {"quantizer_name": name, "enable": on}


def _read(network: Any, plan: ConversionPlan) -> Calibration:
    linears: dict[str, Ranges] = {}
    kv_caches: dict[str, float] = {}
    for layer in range(plan.spec.layers):
        for rule in family_of(plan.spec.architecture).rules:
            if rule.linear and plan.measures_inputs:
                linears[rule.linear.format(layer)] = _ranges(network, rule, layer, plan)
        if plan.measures_kv_cache:
            attention = network.get_submodule(f"model.layers.{layer}.self_attn")
            kv_caches[KEY_PROJECTION.format(layer)] = _amax(attention.k_bmm_quantizer)
            kv_caches[VALUE_PROJECTION.format(layer)] = _amax(attention.v_bmm_quantizer)
    return Calibration(linears, kv_caches)


def _ranges(network: Any, rule: TensorRule, layer: int, plan: ConversionPlan) -> Ranges:
    names = [source.name.format(layer).removesuffix(".weight") for source in rule.sources]
    quantizers = [network.get_submodule(name).input_quantizer for name in names]
    amax, prequant = 0.0, None
    if Need.PREQUANT in plan.precision.needs:
        # q, k and v have one input, so they share its factors.
        factors: list[Any] = [quantizer.pre_quant_scale.float() for quantizer in quantizers]
        mean: Any = sum(factors[1:], factors[0]) / len(factors)
        prequant = mean.cpu().numpy().reshape(-1).astype(ml_dtypes.bfloat16)
    if Need.INPUT in plan.precision.needs:
        amax = _largest([_amax(quantizer) for quantizer in quantizers])
    return Ranges(input=amax, prequant=prequant)


def _amax(quantizer: Any) -> float:
    amax: torch.Tensor | None = quantizer.amax
    return math.nan if amax is None else float(amax.max())


def _largest(values: list[float]) -> float:
    return math.nan if any(math.isnan(value) for value in values) else max(values)


def _check(calibration: Calibration, batches: list[Ids]) -> None:
    """Raise BadInputError that names the layers which the text left without a usable range."""
    wrong = [name for name, amax in calibration.kv_caches.items() if not _usable(amax)]
    for name, ranges in calibration.linears.items():
        factors = np.ones(1) if ranges.prequant is None else ranges.prequant.astype(np.float32)
        # AWQ without quantized inputs measures factors only; its input amax stays 0.
        fine = ranges.prequant is not None and not ranges.input
        if not ((fine or _usable(ranges.input)) and np.all((factors > 0) & np.isfinite(factors))):
            wrong.append(name)
    if wrong:
        raise BadInputError(
            f"calibration on {sum(ids.size for ids in batches)} tokens found no finite range above "
            f"0 for {few_of(wrong)}; calibrate with more text, or check the model"
        )


def _usable(amax: float) -> bool:
    return math.isfinite(amax) and amax > 0
