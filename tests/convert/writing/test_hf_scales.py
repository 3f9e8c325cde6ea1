"""Scales in the Hugging Face form: shared by what runtimes join, so that nothing is rounded twice.

TensorRT-LLM and vLLM join q, k and v, and gate and up, and requantize them to the largest scale as
they load them. Their arithmetic is written out here, from their documented code: no GPU is needed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tests.convert.plans import plan_of

from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.convert.hf_output import HfModel
from minitron_trt.convert.writing.quantize import Calibration
from minitron_trt.convert.writing.ranks import write_ranks
from minitron_trt.families import KEY_PROJECTION, VALUE_PROJECTION
from minitron_trt.quantization.number_formats import E4M3, Array
from minitron_trt.quantization.schemes import Fp8, Ranges, amax_of
from minitron_trt.tensorfile import read_header

MakeModel = Callable[..., Path]
Load = Callable[[Array, np.float32, np.float32], Array]
LAYERS: Final = range(3)
JOINED: Final = {
    "llama": [
        ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
        ["mlp.gate_proj", "mlp.up_proj"],
    ],
    "nemotron": [["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]],
}
# By how much the values of a layer are smaller than others of its kind.
SMALLER: Final = {"k_proj": 0.61, "v_proj": 0.37, "up_proj": 0.7}


@pytest.fixture
def uneven(make_model: MakeModel) -> Callable[[str], Path]:
    """Return a writer of models in which what is joined differs in amax."""

    def make(kind: str) -> Path:
        # Sixteen columns share a scale in nvfp4.
        folder = make_model(kind, hidden_size=48)
        tensors = load_file(folder / "model.safetensors")
        for name in tensors:
            module = name.removesuffix(".weight").rpartition(".")[2]
            factor = ml_dtypes.bfloat16(SMALLER.get(module, 1.0))
            tensors[name] = tensors[name] * factor
        save_file(tensors, folder / "model.safetensors")
        return folder

    return make


def written(source: Path, output: Path, kv_cache: str | None = None, **options: Any) -> Path:
    """Write a folder as a conversion does whose text has shown these amax."""
    output.mkdir()
    plan = plan_of(source, ConvertOptions(form="hf", kv_cache=kv_cache, **options))
    linears = {t.calibrated_as: Ranges(input=3.0) for t in plan.ranks[0] if t.linear}
    caches = {
        projection.format(layer): amax * (layer + 1)
        for layer in LAYERS
        for projection, amax in ((KEY_PROJECTION, 5.0), (VALUE_PROJECTION, 0.75))
    }
    write_ranks(plan, output, lambda _: None, Calibration(linears, caches))
    model = HfModel(plan.spec, plan.precision, plan.kv_cache)
    model.write_configs(output, json.loads((source / "config.json").read_text()))
    return output


def stored(folder: Path) -> dict[str, Array]:
    """Return the tensors of a folder, FP8 as its codes."""
    found = {}
    path = folder / "model.safetensors"
    kinds = {"F8_E4M3": np.uint8, "U8": np.uint8, "BF16": ml_dtypes.bfloat16, "F32": np.float32}
    for name, entry in read_header(path).items():
        kind = np.dtype(kinds[entry.dtype])
        flat = np.fromfile(path, kind, entry.size_bytes // kind.itemsize, offset=entry.offset)
        found[name] = flat.reshape(entry.shape)
    return found


def by_tensorrt_llm(codes: Array, own: np.float32, largest: np.float32) -> Array:
    """Requantize as TensorRT-LLM's FP8 linear layer does: in bfloat16, always."""
    bfloat16 = ml_dtypes.bfloat16
    product = (E4M3.decode(codes) * own).astype(bfloat16).astype(np.float32)
    quotient = (product / largest).astype(bfloat16).astype(np.float32)
    return E4M3.encode(quotient)


def by_vllm(codes: Array, own: np.float32, largest: np.float32) -> Array:
    """Requantize as vLLM's modelopt loader does: in float16, where scales differ."""
    if own == largest:
        return codes
    product = (E4M3.decode(codes).astype(np.float16) * np.float16(own)).astype(np.float32)
    return E4M3.encode(product / largest)


LOADS: Final = (by_tensorrt_llm, by_vllm)


@pytest.mark.parametrize("precision", ["fp8", "nvfp4"])
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_what_runtimes_join_has_one_scale(
    kind: str, precision: str, uneven: Callable[[str], Path], tmp_path: Path
) -> None:
    if (kind, precision) == ("nemotron", "nvfp4"):
        pytest.skip("Nemotron has no nvfp4")
    source = uneven(kind)
    weights = load_file(source / "model.safetensors")
    found = stored(written(source, tmp_path / "hf", precision=precision))
    suffix, largest = {"fp8": ("weight_scale", 448), "nvfp4": ("weight_scale_2", 6 * 448)}[
        precision
    ]
    alone = [["self_attn.o_proj"], ["mlp.down_proj"]] + [["mlp.up_proj"]] * (kind == "nemotron")
    for layer in LAYERS:
        for modules in JOINED[kind] + alone:
            names = [f"model.layers.{layer}.{module}" for module in modules]
            amax = np.float32(max(amax_of(weights[f"{name}.weight"]) for name in names))

            for name in names:
                assert found[f"{name}.{suffix}"] == amax / np.float32(largest)
                assert found[f"{name}.input_scale"] == np.float32(3) / np.float32(largest)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_loading_changes_no_weight(
    kind: str, load: Load, uneven: Callable[[str], Path], tmp_path: Path
) -> None:
    found = stored(written(uneven(kind), tmp_path / "hf", precision="fp8"))
    for modules in JOINED[kind]:
        names = [f"model.layers.{layer}.{module}" for layer in LAYERS for module in modules]
        for name in names:
            codes, scale = found[f"{name}.weight"], np.float32(found[f"{name}.weight_scale"])

            assert load(codes, scale, scale).tobytes() == codes.tobytes()


@pytest.mark.parametrize("load", LOADS)
def test_scales_of_their_own_would_be_rounded_twice(
    load: Load, uneven: Callable[[str], Path], tmp_path: Path
) -> None:
    source = uneven("llama")
    weights = {
        name: tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if any(name.endswith(f"{module}.weight") for module in SMALLER)
    }
    found = stored(written(source, tmp_path / "hf", precision="fp8"))
    fp8 = Fp8()
    apart: dict[str, Array] = {}
    loaded: dict[str, Array] = {}
    together: dict[str, Array] = {}
    for name, weight in weights.items():
        shared = np.float32(found[f"{name}_scale"])
        ranges = Ranges(weight=amax_of(weight))
        own = fp8.constants(ranges)["weights_scaling_factor"][0]
        codes = fp8.rows(weight, ranges)["weight"]
        apart[name] = E4M3.decode(codes) * own
        loaded[name] = E4M3.decode(load(codes, own, shared)) * shared
        together[name] = E4M3.decode(found[name]) * shared
    as_written, after_load, one_scale = (
        relative_rms(values, weights) for values in (apart, loaded, together)
    )

    assert after_load > 1.25 * as_written
    assert one_scale < 1.02 * as_written


def relative_rms(values: dict[str, Array], weights: dict[str, Array]) -> float:
    """Return the root of the mean squared error, as a share of that of the weights."""
    exact = {name: weight.astype(np.float64) for name, weight in weights.items()}
    error = sum(((values[name] - exact[name]) ** 2).sum() for name in exact)
    return float(np.sqrt(error / sum((weight**2).sum() for weight in exact.values())))


@pytest.mark.parametrize("precision", ["fp8", "fp8-rowwise", "nvfp4"])
def test_the_scales_of_the_kv_cache_lie_beside_the_projections_that_fill_it(
    precision: str, uneven: Callable[[str], Path], tmp_path: Path
) -> None:
    source = uneven("llama")
    plain = written(source, tmp_path / "plain", precision=precision)
    folder = written(source, tmp_path / "hf", "fp8", precision=precision)
    found, without = stored(folder), stored(plain)
    scales = {name: found.pop(name) for name in sorted(found.keys() - without.keys())}
    said = json.loads((folder / "hf_quant_config.json").read_text())["quantization"]
    block = json.loads((folder / "config.json").read_text())["quantization_config"]

    assert {name: (scale.shape, scale.item()) for name, scale in scales.items()} == {
        f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale": (
            (),
            np.float32(amax * (layer + 1)) / np.float32(448),
        )
        for layer in LAYERS
        for part, amax in (("k", 5.0), ("v", 0.75))
    }
    assert {k: v.tobytes() for k, v in found.items()} == {
        k: v.tobytes() for k, v in without.items()
    }
    assert said["kv_cache_quant_algo"] == "FP8"
    assert block["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert (
        "kv_cache_scheme"
        not in json.loads((plain / "config.json").read_text())["quantization_config"]
    )
