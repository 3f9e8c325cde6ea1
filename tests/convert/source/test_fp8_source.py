"""FP8 folders that ModelOpt and compressed-tensors wrote: bytes and scales are kept."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip(
    "torch", reason="FP8 folders are made with torch: pip install minitron-trt[quantize]"
)

from tests.convert.source import fp8_folders  # noqa: E402
from tests.convert.source.fp8_folders import (  # noqa: E402
    FP8_DTYPE,
    AutoModelForCausalLM,
    Tensors,
    brought_together,
    dequantized,
    simulated,
    stored,
)

from minitron_trt.checkpoint import Checkpoint  # noqa: E402
from minitron_trt.convert.calibration.text import CalibrationText  # noqa: E402
from minitron_trt.convert.conversion import ConvertOptions, convert  # noqa: E402
from minitron_trt.executor import StepBatch  # noqa: E402
from minitron_trt.executor.merged_weights import read_weights  # noqa: E402
from minitron_trt.executor.reference import ReferenceModel  # noqa: E402

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.slow]
FP8, ROWWISE = "FP8_DEFAULT_CFG", "FP8_PER_CHANNEL_PER_TOKEN_CFG"
# Who wrote the folder, the model, what was asked, whether with an FP8 KV cache.
Made = tuple[str, str, Any, bool]
STATIC: list[Made] = [
    ("modelopt", "llama", FP8, False),
    ("modelopt", "mistral", FP8, True),
    ("modelopt", "nemotron", FP8, True),
    ("compressed-tensors", "llama", False, True),
    ("compressed-tensors", "nemotron", False, False),
]
DYNAMIC: list[Made] = [
    ("modelopt", "llama", ROWWISE, False),
    ("modelopt", "nemotron", ROWWISE, False),
    ("compressed-tensors", "mistral", True, False),
]
CUTS = [(1, 1), (2, 1), (1, 2), (4, 3)]
WRITERS: dict[str, Callable[..., Path]] = {
    "modelopt": fp8_folders.by_modelopt,
    "compressed-tensors": fp8_folders.by_compressed_tensors,
}
Alone = Iterator[tuple[str, str]]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Made], Path]:
    """Return the folder that a tool wrote, made once."""

    @functools.cache
    def make(made: Made) -> Path:
        writer, kind, asked, kv_cache = made
        name = {"modelopt": "modelopt", "compressed-tensors": "compressed_tensors"}[writer]
        pytest.importorskip(name, reason=f"NOT CHECKED against {writer}, which is not installed")
        return WRITERS[writer](kind, asked, kv_cache, tmp_path_factory.mktemp(writer))

    return make


def converted(source: Path, output: Path, **options: Any) -> tuple[dict[str, Any], Tensors]:
    """Convert, and return the quantization block and the whole tensors as the runtime merges them.

    FP8 numbers come back as FP8.
    """
    convert(str(source), output, ConvertOptions(**options))
    weights = read_weights(Checkpoint.open(output))
    block = json.loads((output / "config.json").read_text())["quantization"]
    return block, {
        name: tensor.view(FP8_DTYPE) if tensor.dtype == torch.uint8 else tensor
        for name, tensor in weights.items()
    }


def alone(source: Tensors) -> Alone:
    """Yield the layers that stay matrices of their own, by their names there and here."""
    for layer in range(3):
        origin, target = f"model.layers.{layer}", f"transformer.layers.{layer}"
        yield f"{origin}.self_attn.o_proj", f"{target}.attention.dense"
        yield f"{origin}.mlp.down_proj", f"{target}.mlp.proj"
        gated = f"{origin}.mlp.gate_proj.weight" in source
        if gated:
            yield f"{origin}.mlp.gate_proj", f"{target}.mlp.fc"
        yield f"{origin}.mlp.up_proj", f"{target}.mlp.gate" if gated else f"{target}.mlp.fc"


def same(one: Any, other: Any) -> bool:
    bits = [tensor.reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return bool(one.dtype == other.dtype and torch.equal(*bits))


@pytest.mark.parametrize(("tp", "pp"), CUTS)
@pytest.mark.parametrize("made", STATIC, ids=str)
def test_weights_with_a_scale_of_their_own_are_kept_byte_for_byte(
    made: Made, tp: int, pp: int, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    source = stored(folder_of(made))
    block, found = converted(folder_of(made), tmp_path / "out", tp=tp, pp=pp)

    assert block["quant_algo"] == "FP8"
    for theirs, ours in alone(source):
        assert same(found[f"{ours}.weight"], source[f"{theirs}.weight"])
        assert same(found[f"{ours}.weights_scaling_factor"], source[f"{theirs}.weight_scale"])
        assert same(found[f"{ours}.activation_scaling_factor"], source[f"{theirs}.input_scale"])


@pytest.mark.parametrize(("tp", "pp"), CUTS)
@pytest.mark.parametrize("made", STATIC, ids=str)
def test_q_k_and_v_are_brought_to_the_largest_scale(
    made: Made, tp: int, pp: int, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    source = stored(folder_of(made))
    _, found = converted(folder_of(made), tmp_path / "out", tp=tp, pp=pp)
    unequal, together = 0, brought_together(source)
    for layer in range(3):
        names = [f"model.layers.{layer}.self_attn.{part}_proj" for part in "qkv"]
        ours = f"transformer.layers.{layer}.attention.qkv"
        shared = found[f"{ours}.weights_scaling_factor"]
        lengths = [len(source[f"{name}.weight"]) for name in names]

        assert same(shared, max(source[f"{name}.weight_scale"] for name in names))
        assert same(
            found[f"{ours}.activation_scaling_factor"],
            max(source[f"{name}.input_scale"] for name in names),
        )
        for name, part in zip(names, torch.split(found[f"{ours}.weight"], lengths), strict=True):
            own = source[f"{name}.weight_scale"]
            unequal += not same(own, shared)
            wanted = source[f"{name}.weight"].double() * own.double() / shared.double()
            # Half the distance to the next number there is.
            half = torch.exp2(wanted.abs().log2().floor().clamp(min=-6) - 4)
            assert same(part, together[f"{name}.weight"])
            assert same(own, shared) <= same(part, source[f"{name}.weight"])
            assert bool(((part.double() - wanted).abs() <= half).all())
    assert unequal


@pytest.mark.parametrize(("tp", "pp"), CUTS)
@pytest.mark.parametrize("made", DYNAMIC, ids=str)
def test_rows_with_scales_of_their_own_are_kept_byte_for_byte(
    made: Made, tp: int, pp: int, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    source = stored(folder_of(made))
    block, found = converted(folder_of(made), tmp_path / "out", tp=tp, pp=pp)
    heads = [
        ([f"model.layers.{i}.self_attn.{part}_proj" for part in "qkv"], f"{i}.attention.qkv")
        for i in range(3)
    ]
    others = [([theirs], ours.split(".", 2)[2]) for theirs, ours in alone(source)]

    assert block["quant_algo"] == "FP8_PER_CHANNEL_PER_TOKEN"
    for names, ours in heads + others:
        for mine, theirs in (("weight", "weight"), ("per_channel_scale", "weight_scale")):
            wanted = torch.cat([source[f"{name}.{theirs}"] for name in names])
            assert same(found[f"transformer.layers.{ours}.{mine}"], wanted)


@pytest.mark.parametrize("made", STATIC + DYNAMIC, ids=str)
def test_the_scales_of_the_kv_cache_are_kept_where_there_are_any(
    made: Made, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    source = stored(folder_of(made))
    block, found = converted(folder_of(made), tmp_path / "out", tp=2)
    scales = [
        max(
            t for n, t in source.items() if f"layers.{i}." in n and n[-7:] in ("k_scale", "v_scale")
        )
        for i in (range(3) if made[3] else ())
    ]
    ours = [found[n] for n in found if n.endswith("kv_cache_scaling_factor")]

    assert block["kv_cache_quant_algo"] == ("FP8" if made[3] else None)
    assert len(ours) == len(scales)
    assert all(same(one, other) for one, other in zip(ours, scales, strict=True))


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "bfloat16"), ("fp16", "float16")])
@pytest.mark.parametrize("made", [STATIC[0], STATIC[4], DYNAMIC[1], DYNAMIC[2]], ids=str)
def test_an_unquantized_precision_holds_the_numbers_times_their_scales(
    made: Made, precision: str, dtype: str, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    source = stored(folder_of(made))
    _, found = converted(folder_of(made), tmp_path / "out", precision=precision, tp=2, pp=2)
    for theirs, ours in alone(source):
        unquantized = dequantized(source, f"{theirs}.weight")
        assert same(found[f"{ours}.weight"], unquantized.to(getattr(torch, dtype)))
    for layer in range(3):
        names = [f"model.layers.{layer}.self_attn.{part}_proj.weight" for part in "qkv"]
        unquantized = torch.cat([dequantized(source, name) for name in names])
        together = found[f"transformer.layers.{layer}.attention.qkv.weight"]
        assert same(together, unquantized.to(getattr(torch, dtype)))


@pytest.mark.parametrize("made", STATIC + DYNAMIC, ids=str)
def test_the_checkpoint_computes_what_the_folder_does(
    made: Made, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    folder, ids = folder_of(made), list(range(3, 120))
    convert(str(folder), tmp_path / "out", ConvertOptions(tp=2, pp=2, keep_kv_cache=False))
    checkpoint = Checkpoint.open(tmp_path / "out")
    model = ReferenceModel(checkpoint, slots=1, max_seq_len=len(ids), dtype=torch.float32)
    parts = (ids, range(len(ids)), [0], [len(ids)])
    batch = StepBatch(*(np.array(part, dtype=np.int32) for part in parts))
    ours = model.forward(batch, all_logits=True)
    tensors = stored(folder)
    together = brought_together(tensors) if made in STATIC else tensors
    unquantized = AutoModelForCausalLM.from_pretrained(folder.parent / "bf16", dtype=torch.float32)
    with torch.inference_mode():
        exact, theirs, before = (
            found(torch.tensor([ids])).logits[0]
            for found in (simulated(folder, together), simulated(folder, tensors), unquantized)
        )

    # An input that lies between two FP8 numbers may fall either way.
    assert (ours - exact).norm() < 1e-3 * exact.norm()
    # One scale for q, k and v costs less than FP8 had cost already.
    assert (ours - theirs).norm() < (theirs - before).norm()


@pytest.mark.usefixtures("calibrate_once")
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_a_folder_that_quantizes_its_kv_cache_alone_is_an_unquantized_source(
    kind: str, folder_of: Callable[[Made], Path], tmp_path: Path
) -> None:
    folder = folder_of(("modelopt", kind, None, True))
    plain = folder.parent / "bf16"
    text = tmp_path / "ids.jsonl"
    text.write_text(json.dumps({"input_ids": list(range(3, 67))}) + "\n")
    options: dict[str, Any] = {"tp": 2, "calibration": CalibrationText(str(text), samples=1)}
    block, weights = converted(folder, tmp_path / "auto", **options)
    fp8_block, fp8 = converted(folder, tmp_path / "fp8", precision="fp8", **options)
    int8_block, int8 = converted(folder, tmp_path / "int8", kv_cache="int8", **options)
    bf16 = converted(plain, tmp_path / "plain", **options)[1]
    bf16_fp8 = converted(plain, tmp_path / "plain-fp8", precision="fp8", **options)[1]
    bf16_int8 = converted(plain, tmp_path / "plain-int8", kv_cache="int8", **options)[1]
    source = stored(folder)
    stored_scales = {
        f"transformer.layers.{i}.attention.kv_cache_scaling_factor": max(
            source[f"model.layers.{i}.self_attn.{part}_proj.{part}_scale"] for part in "kv"
        )
        for i in range(3)
    }

    assert [b["quant_algo"] for b in (block, fp8_block, int8_block)] == [None, "FP8", None]
    assert [b["kv_cache_quant_algo"] for b in (block, fp8_block, int8_block)] == [
        "FP8",
        "FP8",
        "INT8",
    ]
    assert all_same(weights, {**bf16, **stored_scales})
    assert all_same(fp8, {**bf16_fp8, **stored_scales})
    assert all_same(int8, bf16_int8)


def all_same(one: Tensors, other: Tensors) -> bool:
    return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
