"""FP8 folders as a source: every spelling, every cut, and those that convert itself writes."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip(
    "torch", reason="FP8 folders are made with torch: pip install minitron-trt[quantize]"
)

from safetensors.torch import save_file  # noqa: E402
from tests.convert.source.fp8_folders import (  # noqa: E402
    FP8_DTYPE,
    Tensors,
    brought_together,
    by_hand,
    dequantized,
    load_file,
    stored,
)

from minitron_trt.checkpoint import Checkpoint  # noqa: E402
from minitron_trt.convert.calibration.text import CalibrationText  # noqa: E402
from minitron_trt.convert.conversion import ConvertOptions, convert  # noqa: E402
from minitron_trt.executor.merged_weights import read_weights  # noqa: E402

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Path]
Command = Callable[..., Result]
WEIGHTS = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
COMPRESSED: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": WEIGHTS, "input_activations": WEIGHTS}
    },
    "ignore": ["lm_head"],
}
MODELOPT = {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}
ROWWISE = {"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}
NAMED = {**COMPRESSED["config_groups"]["group_0"], "targets": ["re:.*_proj"]}


def bits(tensors: Tensors) -> dict[str, Any]:
    return {
        name: (tensor.dtype, tensor.shape, tensor.reshape(-1).view(torch.uint8).tolist())
        for name, tensor in tensors.items()
    }


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("rank*.safetensors")}


def write_scales(folder: Path, **scales: float) -> None:
    """Add scales to every layer's attention; `__` in a name stands for a dot."""
    tensors = load_file(folder / "model.safetensors")
    for layer in range(3):
        for name, scale in scales.items():
            where = f"model.layers.{layer}.self_attn.{name.replace('__', '.')}"
            tensors[where] = torch.tensor([scale * (layer + 1)])
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    "quantization",
    [
        MODELOPT,
        {**MODELOPT, "ignore": [], "exclude_modules": ["lm_head", "model.embed*"]},
        {key: value for key, value in MODELOPT.items() if key != "quant_method"},
        COMPRESSED,
        {**COMPRESSED, "config_groups": {"any": NAMED}, "ignore": ["re:.*lm_head"]},
        {**COMPRESSED, "sparsity_config": {}, "transform_config": {}, "kv_cache_scheme": None},
        {"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]},
    ],
    ids=lambda record: json.dumps(record)[:70],
)
def test_every_spelling_of_one_quantization_gives_the_same_checkpoint(
    quantization: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    folder = by_hand(make_model("llama"), quantization)
    convert(str(folder), tmp_path / "fp8", ConvertOptions(tp=2))
    convert(str(by_hand(make_model("llama"))), tmp_path / "auto", ConvertOptions("fp8", tp=2))

    assert files(tmp_path / "fp8") == files(tmp_path / "auto")


def test_early_folders_say_it_in_another_place(make_model: MakeModel, tmp_path: Path) -> None:
    modelopt, compressed = by_hand(make_model("llama"), {}), by_hand(make_model("llama"), {})
    record = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8"}}
    (modelopt / "hf_quant_config.json").write_text(json.dumps(record))
    config = json.loads((compressed / "config.json").read_text())
    (compressed / "config.json").write_text(
        json.dumps({**config, "compression_config": COMPRESSED})
    )
    convert(str(modelopt), tmp_path / "one", ConvertOptions())
    convert(str(compressed), tmp_path / "other", ConvertOptions())

    assert Checkpoint.open(tmp_path / "one").precision.name == "fp8"
    assert files(tmp_path / "one") == files(tmp_path / "other")


@pytest.mark.parametrize(
    ("scales", "larger"),
    [
        ({"k_proj__k_scale": 0.25, "v_proj__v_scale": 0.5}, 0.5),
        ({"k_scale": 0.125, "v_scale": 0.0625}, 0.125),
        ({"k_proj__output_scale": 2.0, "v_proj__output_scale": 4.0}, 4.0),
        ({"kv_scale": 0.75}, 0.75),
    ],
    ids=str,
)
@pytest.mark.parametrize("precision", ["fp8", "bf16"])
def test_scales_of_the_kv_cache_are_found_under_every_name_they_had(
    precision: str, scales: dict[str, float], larger: float, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = by_hand(make_model("mistral"))
    write_scales(folder, **scales)
    convert(str(folder), tmp_path / "auto", ConvertOptions(precision, tp=2, pp=3))
    convert(str(folder), tmp_path / "fp8", ConvertOptions(precision, kv_cache="fp8", tp=2, pp=3))
    convert(str(folder), tmp_path / "none", ConvertOptions(precision, keep_kv_cache=False))
    found = read_weights(Checkpoint.open(tmp_path / "auto"))
    name = "transformer.layers.{}.attention.kv_cache_scaling_factor"

    assert [found[name.format(i)].item() for i in range(3)] == [larger * (i + 1) for i in range(3)]
    assert files(tmp_path / "auto") == files(tmp_path / "fp8")
    assert Checkpoint.open(tmp_path / "auto").kv_cache == "fp8"
    assert Checkpoint.open(tmp_path / "none").kv_cache is None


KV_ALONE: list[dict[str, Any]] = [
    {
        "quant_method": "modelopt",
        "ignore": [],
        "kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"},
    },
    {"quant_method": "modelopt", "quant_algo": None, "kv_cache_quant_algo": "FP8"},
]


def kv_quantized(folder: Path, quantization: dict[str, Any]) -> Path:
    """Say that the KV cache of a bf16 folder is quantized, and nothing else."""
    config = json.loads((folder / "config.json").read_text())
    record = {**config, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(record))
    write_scales(folder, k_proj__k_scale=0.25, v_proj__v_scale=0.5)
    return folder


@pytest.mark.parametrize("quantization", KV_ALONE, ids=["flat", "algorithms"])
@pytest.mark.parametrize("precision", [None, "bf16", "fp16", "fp8-rowwise", "w4a16"])
def test_a_folder_that_quantizes_its_kv_cache_alone_is_unquantized_with_scales(
    precision: str | None, quantization: dict[str, Any], make_model: MakeModel, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"precision": precision, "tp": 2, "pp": 3}
    plain = make_model("llama")
    convert(str(plain), tmp_path / "plain", ConvertOptions(**options))
    folder = kv_quantized(make_model("llama"), quantization)
    convert(str(folder), tmp_path / "auto", ConvertOptions(**options))
    convert(str(folder), tmp_path / "none", ConvertOptions(**options, keep_kv_cache=False))
    weights = read_weights(Checkpoint.open(tmp_path / "auto"))
    name = "transformer.layers.{}.attention.kv_cache_scaling_factor"
    scales = [weights.pop(name.format(layer)).item() for layer in range(3)]
    opened = Checkpoint.open(tmp_path / "auto")

    assert (opened.precision.name, opened.kv_cache) == (precision or "bf16", "fp8")
    assert scales == [0.5, 1.0, 1.5]
    assert bits(weights) == bits(read_weights(Checkpoint.open(tmp_path / "plain")))
    assert files(tmp_path / "none") == files(tmp_path / "plain")


def test_scales_of_the_kv_cache_go_with_quantized_weights_into_the_hugging_face_form(
    command: Command, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = kv_quantized(make_model("llama"), KV_ALONE[0])
    source = load_file(folder / "model.safetensors")
    options = ("--format", "hf", "--precision")
    bf16 = command("convert", folder, "-o", tmp_path / "bf16", *options, "bf16")
    rowwise = command("convert", folder, "-o", tmp_path / "rowwise", *options, "fp8-rowwise")
    config = json.loads((tmp_path / "bf16" / "config.json").read_text())
    found = load_file(tmp_path / "rowwise" / "model.safetensors")

    assert (bf16.exit_code, rowwise.exit_code, rowwise.stderr) == (0, 0, "")
    assert bf16.stderr == (
        "warning: the scales of the source's KV cache are left out: --format hf has none beside "
        "bf16\n"
    )
    assert "quantization_config" not in config
    assert bits(load_file(tmp_path / "bf16" / "model.safetensors")) == bits(
        {name: tensor for name, tensor in source.items() if not name.endswith("scale")}
    )
    for name in (name for name in source if name.endswith("scale")):
        assert (list(found[name].shape), found[name].item()) == ([], source[name].item())


def test_a_record_of_no_quantization_is_none(make_model: MakeModel, tmp_path: Path) -> None:
    plain, told = make_model("llama"), make_model("llama")
    record = {"quantization": {"quant_algo": None, "kv_cache_quant_algo": None}}
    (told / "hf_quant_config.json").write_text(json.dumps(record))
    for folder, output in ((plain, "plain"), (told, "told")):
        convert(str(folder), tmp_path / output, ConvertOptions(kv_cache=None))

    assert files(tmp_path / "told") == files(tmp_path / "plain")


def test_a_layer_left_wide_is_dequantized_with_the_rest(
    make_model: MakeModel, refusal: Callable[..., str], tmp_path: Path
) -> None:
    left = "model.layers.1.mlp.down_proj"
    original = make_model("llama")
    weight = load_file(original / "model.safetensors")[f"{left}.weight"]
    folder = by_hand(original, {**COMPRESSED, "ignore": ["lm_head", left]})
    tensors = load_file(folder / "model.safetensors")
    for scale in ("weight_scale", "input_scale"):
        del tensors[f"{left}.{scale}"]
    save_file({**tensors, f"{left}.weight": weight}, folder / "model.safetensors")
    convert(str(folder), tmp_path / "out", ConvertOptions("bf16", pp=2))
    found = read_weights(Checkpoint.open(tmp_path / "out"))

    assert torch.equal(found["transformer.layers.1.mlp.proj.weight"], weight)
    assert refusal(folder, 4) == (
        "the source is fp8 except tensor model.layers.1.mlp.down_proj.weight, and a checkpoint has "
        "all linear layers in one precision; use --precision bf16, or convert the bf16 model"
    )


@st.composite
def legal_cuts(draw: st.DrawFn) -> tuple[dict[str, Any], int, int]:
    """Draw sizes that some tp and pp divide legally."""
    tp, keys = draw(st.sampled_from([(1, 1), (1, 3), (2, 1), (2, 4), (3, 3), (4, 2), (6, 3)]))
    layers = draw(st.integers(1, 4))
    config = {
        "hidden_size": draw(st.integers(1, 9)),
        "intermediate_size": tp * draw(st.integers(1, 4)),
        "num_hidden_layers": layers,
        "num_attention_heads": tp * keys * draw(st.integers(1, 2)),
        "num_key_value_heads": keys,
        "head_dim": 2 * draw(st.integers(1, 3)),
        "vocab_size": draw(st.integers(1, 11)),
    }
    return config, tp, draw(st.integers(1, layers))


@given(legal_cuts(), st.booleans())
@settings(max_examples=60)
def test_merging_the_ranks_gives_the_stored_bytes_back(
    make_model: MakeModel, cut: tuple[dict[str, Any], int, int], rowwise: bool
) -> None:
    changes, tp, pp = cut
    folder = by_hand(make_model("llama", **changes), ROWWISE if rowwise else MODELOPT, rowwise)
    source = stored(folder)
    with TemporaryDirectory() as scratch:
        convert(str(folder), Path(scratch, "out"), ConvertOptions(tp=tp, pp=pp))
        found = read_weights(Checkpoint.open(Path(scratch, "out")))
    scale = "per_channel_scale" if rowwise else "weights_scaling_factor"
    wanted: Tensors = {}
    for layer in range(changes["num_hidden_layers"]):
        for target, names in {
            "attention.qkv": [f"self_attn.{part}_proj" for part in "qkv"],
            "attention.dense": ["self_attn.o_proj"],
            "mlp.fc": ["mlp.gate_proj"],
            "mlp.gate": ["mlp.up_proj"],
            "mlp.proj": ["mlp.down_proj"],
        }.items():
            ours = f"transformer.layers.{layer}.{target}"
            weights = [source[f"model.layers.{layer}.{name}.weight"] for name in names]
            scales = [source[f"model.layers.{layer}.{name}.weight_scale"] for name in names]
            wanted[f"{ours}.weight"] = torch.cat(weights).view(torch.uint8)
            wanted[f"{ours}.{scale}"] = torch.cat(scales) if rowwise else scales[0]

    assert bits({name: found[name] for name in wanted}) == bits(wanted)


@pytest.mark.parametrize("rowwise", [True, False], ids=["rowwise", "fp8"])
def test_tensors_larger_than_a_block_arrive_whole(
    rowwise: bool, make_model: MakeModel, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 1500, "num_hidden_layers": 1, "intermediate_size": 2002}
    heads = {"num_attention_heads": 2, "head_dim": 750}
    folder = make_model("llama", **sizes, **heads)
    by_hand(folder, ROWWISE if rowwise else MODELOPT, rowwise)
    tensors = load_file(folder / "model.safetensors")
    query = "model.layers.0.self_attn.q_proj.weight"
    tensors[f"{query}_scale"] *= 3
    save_file(tensors, folder / "model.safetensors")
    source = stored(folder)
    kept = source if rowwise else brought_together(source)
    found = {}
    for precision in (None, "bf16"):
        convert(str(folder), tmp_path / str(precision), ConvertOptions(precision, tp=2))
        found[precision] = read_weights(Checkpoint.open(tmp_path / str(precision)))
    for target, names in {
        "attention.qkv": [f"self_attn.{part}_proj" for part in "qkv"],
        "mlp.fc": ["mlp.gate_proj"],
        "mlp.proj": ["mlp.down_proj"],
    }.items():
        ours = f"transformer.layers.0.{target}.weight"
        theirs = [f"model.layers.0.{name}.weight" for name in names]
        codes = torch.cat([kept[name] for name in theirs]).view(torch.uint8)
        weight = torch.cat([dequantized(source, name) for name in theirs]).bfloat16()

        assert torch.equal(found[None][ours], codes)
        assert torch.equal(found["bf16"][ours], weight)


def scaled(found: Tensors, layer: str) -> tuple[Any, Any]:
    """Return a layer's weight as numbers, and its scale."""
    scale = found[f"{layer}.weights_scaling_factor"]
    return found[f"{layer}.weight"].view(FP8_DTYPE).float() * scale, scale


@pytest.fixture
def text(tmp_path: Path) -> CalibrationText:
    """Return ready token ids, so that no tokenizer is needed."""
    path = tmp_path / "ids.jsonl"
    path.write_text(
        "".join(json.dumps({"input_ids": list(range(i, i + 64))}) + "\n" for i in (1, 60))
    )
    return CalibrationText(str(path), samples=2, length=64, batch=2)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_our_own_fp8_folder_becomes_the_checkpoint_of_its_source(
    kind: str, make_model: MakeModel, text: CalibrationText, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt", reason="NOT CHECKED: pip install minitron-trt[quantize]")
    options: dict[str, Any] = {"precision": "fp8", "calibration": text}
    folder = make_model(kind, num_attention_heads=8)
    convert(str(folder), tmp_path / "hf", ConvertOptions(form="hf", **options))
    convert(str(folder), tmp_path / "direct", ConvertOptions(tp=2, **options))
    convert(str(tmp_path / "hf"), tmp_path / "again", ConvertOptions(tp=2))
    direct, again = (read_weights(Checkpoint.open(tmp_path / n)) for n in ("direct", "again"))
    differing = {name for name in direct if not torch.equal(direct[name], again[name])}

    # fc and gate are given one scale when they are quantized together; q, k and v round twice.
    assert direct.keys() == again.keys()
    assert {name.split(".", 3)[3] for name in differing} <= {
        "attention.qkv.weight",
        *(f"mlp.{n}.{t}" for n in ("fc", "gate") for t in ("weight", "weights_scaling_factor")),
    }
    for layer in {name.removesuffix(".weight") for name in differing if name.endswith(".weight")}:
        weights, scales = zip(*(scaled(found, layer) for found in (direct, again)), strict=True)
        largest = torch.maximum(weights[0].abs(), weights[1].abs()) / max(scales)
        step = torch.exp2(largest.log2().floor().clamp(min=-6) - 3) * max(scales)

        # Half a step rounding once and, on the other way, half a step twice.
        assert bool(((weights[0] - weights[1]).abs() <= 1.501 * step).all())


def test_our_own_rowwise_folder_becomes_the_same_bytes_without_torch(
    tiny_llama: Path, tmp_path: Path
) -> None:
    convert(str(tiny_llama), tmp_path / "hf", ConvertOptions("fp8-rowwise", form="hf"))
    convert(str(tiny_llama), tmp_path / "direct", ConvertOptions("fp8-rowwise", tp=4, pp=3))
    arguments = ["convert", str(tmp_path / "hf"), "-o", str(tmp_path / "again")]
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['torch', 'transformers', 'modelopt']))\n"
        "from minitron_trt.cli import main\n"
        f"main({[*arguments, '--tp', '4', '--pp', '3']!r})"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

    assert len(files(tmp_path / "direct")) == 12
    assert files(tmp_path / "again") == files(tmp_path / "direct")


@pytest.mark.parametrize("quantization", [MODELOPT, COMPRESSED], ids=["modelopt", "compressed"])
def test_an_fp8_folder_is_written_again_in_the_form_of_modelopt(
    quantization: dict[str, Any], command: Command, make_model: MakeModel, tmp_path: Path
) -> None:
    folder = by_hand(make_model("llama"), quantization)
    before = stored(folder)
    write_scales(folder, k_scale=1.0, v_scale=0.5)
    result = command("convert", folder, "-o", tmp_path / "hf", "--format", "hf")
    again = command("convert", tmp_path / "hf", "-o", tmp_path / "bf16", "--precision", "bf16")
    unquantized = tmp_path / "unquantized"
    options = ("--format", "hf", "--precision", "bf16")
    from_fp8 = command("convert", folder, "-o", unquantized, *options)
    block = json.loads((tmp_path / "hf" / "config.json").read_text())["quantization_config"]

    assert (result.exit_code, again.exit_code, from_fp8.exit_code) == (0, 0, 0)
    narrower = (
        "warning: the source is fp8; bf16 holds what that left of the model, not the model it was "
        "made of\n"
    )
    kv_scales = {
        f"model.layers.{layer}.self_attn.{part}_proj.{part}_scale": torch.tensor(
            [scale * (layer + 1)]
        )
        for layer in range(3)
        for part, scale in (("k", 1.0), ("v", 0.5))
    }

    assert (result.stderr, again.stderr) == ("", narrower)
    assert from_fp8.stderr == narrower + (
        "warning: the scales of the source's KV cache are left out: --format hf has none beside "
        "bf16\n"
    )
    assert bits(stored(tmp_path / "hf")) == bits({**before, **kv_scales})
    assert (block["quant_method"], block["quant_algo"]) == ("modelopt", "FP8")
    assert block["kv_cache_scheme"] == {"dynamic": False, "num_bits": 8, "type": "float"}
    assert "quantization_config" not in json.loads((unquantized / "config.json").read_text())
    assert bits(load_file(unquantized / "model.safetensors")) == bits(
        {
            name: dequantized(before, name).to(torch.bfloat16)
            for name in before
            if not name.endswith("scale")
        }
    )


def test_a_dry_run_reads_the_precision_of_the_folder(
    command: Command, make_model: MakeModel
) -> None:
    folder = by_hand(make_model("nemotron"))
    record = json.loads(command("convert", folder, "--dry-run", "--json").stdout)

    assert record["precision"] == "fp8"
    # No text runs, so that the libraries for it need no memory.
    assert record["peak_memory_bytes"] < 300_000_000
