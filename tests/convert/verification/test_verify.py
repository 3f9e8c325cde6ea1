"""A right checkpoint is verified, and what is wrong with a wrong one is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="pip install minitron-trt[reference]")

from click.testing import Result  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from minitron_trt.checkpoint import Checkpoint  # noqa: E402
from minitron_trt.console import no_display  # noqa: E402
from minitron_trt.convert.calibration.text import CalibrationText  # noqa: E402
from minitron_trt.convert.conversion import ConvertOptions, convert  # noqa: E402
from minitron_trt.convert.source.model_folder import ModelSource  # noqa: E402
from minitron_trt.convert.verification import comparison  # noqa: E402
from minitron_trt.convert.verification.gate import verified  # noqa: E402
from minitron_trt.errors import BadInputError, UsageError  # noqa: E402
from minitron_trt.quantization.precisions import PRECISIONS  # noqa: E402
from minitron_trt.samples import sample_folder  # noqa: E402
from minitron_trt.tensorfile import read_header  # noqa: E402

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.usefixtures("calibrate_once"),
]

Command = Callable[..., Result]
MakeModel = Callable[..., Path]
Tensors = dict[str, Any]
LAYER: Final = "transformer.layers.1"
# Groups of 128 columns divide among two ranks; a head's size is not hidden / heads.
SIZES: Final[dict[str, int]] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "head_dim": 32,
}


@pytest.fixture(scope="module")
def sources(make_model: MakeModel) -> dict[str, Path]:
    """Return a model of each architecture."""
    return {kind: make_model(kind, **SIZES) for kind in ("llama", "mistral", "nemotron")}


@pytest.fixture(scope="module")
def ids(tmp_path_factory: pytest.TempPathFactory) -> CalibrationText:
    """Return a text of ready ids, for models without a tokenizer."""
    path = tmp_path_factory.mktemp("ids") / "ids.jsonl"
    drawn = np.random.default_rng(1).integers(3, 131, 48).tolist()
    path.write_text(json.dumps({"input_ids": drawn}) + "\n")
    return CalibrationText(str(path), samples=1, length=48)


@pytest.fixture(scope="module")
def bf16(sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the models in bf16, to be copied before they are changed."""
    folder = tmp_path_factory.mktemp("bf16")
    for kind in ("llama", "nemotron"):
        convert(str(sources[kind]), folder / kind, ConvertOptions())
    return {kind: folder / kind for kind in ("llama", "nemotron")}


def fault_of(checkpoint: Path, source: Path) -> str | None:
    found = verified(checkpoint, ModelSource.open(source), no_display, tokens=24)

    assert len(found.layers) == Checkpoint.open(checkpoint).spec.layers
    return found.fault


@pytest.mark.parametrize("ranks", [(1, 1), (2, 2)], ids=["one", "tp2-pp2"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_a_right_checkpoint_of_every_precision_is_verified(
    kind: str,
    precision: str,
    ranks: tuple[int, int],
    sources: dict[str, Path],
    ids: CalibrationText,
    tmp_path: Path,
) -> None:
    tp, pp = ranks
    if "NemotronForCausalLM" in PRECISIONS[precision].refused and kind == "nemotron":
        pytest.skip("TensorRT-LLM has no such Nemotron")
    options = ConvertOptions(precision, tp=tp, pp=pp, calibration=ids)
    convert(str(sources[kind]), tmp_path / "out", options)

    assert fault_of(tmp_path / "out", sources[kind]) is None


@pytest.mark.parametrize("kv_cache", ["fp8", "int8"])
def test_a_quantized_kv_cache_is_verified(
    kv_cache: str, sources: dict[str, Path], ids: CalibrationText, tmp_path: Path
) -> None:
    options = ConvertOptions(kv_cache=kv_cache, calibration=ids)
    convert(str(sources["llama"]), tmp_path / "out", options)

    assert fault_of(tmp_path / "out", sources["llama"]) is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32], ids=["fp16", "fp32"])
@pytest.mark.parametrize("kind", ["llama", "mistral", "nemotron"])
def test_more_ranks_than_kv_heads_and_sources_of_other_dtypes_are_verified(
    kind: str, dtype: Any, make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model(kind, dtype=dtype, hidden_size=48, tie_word_embeddings=True)
    convert(str(source), tmp_path / "out", ConvertOptions(tp=4, pp=3))

    assert fault_of(tmp_path / "out", source) is None


def test_a_gguf_file_is_verified_by_its_dequantized_weights(
    write_gguf: Callable[..., Path], command: Command, sources: dict[str, Path], tmp_path: Path
) -> None:
    file = write_gguf(sources["llama"], tmp_path / "model.gguf", kind="Q8_0")
    convert(str(file), tmp_path / "out", ConvertOptions("fp16"))
    right = command("verify", tmp_path / "out", file, "--tokens", 24, "--json")
    wrong = command("verify", tmp_path / "out", sources["nemotron"], "--tokens", 24)

    assert right.exit_code == 0
    # Less than Q8_0 takes from the folder's weights.
    assert max(layer["relative"] for layer in json.loads(right.stdout)["layers"]) < 0.002
    assert (wrong.exit_code, wrong.stdout) == (3, "")
    assert "is another model than its source: architecture is LlamaForCausalLM" in wrong.stderr


def test_an_fp8_folder_is_verified_by_its_numbers_times_their_scales(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "fp8"
    convert(str(sources["llama"]), folder, ConvertOptions("fp8-rowwise", form="hf"))
    convert(str(folder), tmp_path / "out", ConvertOptions())
    found = verified(tmp_path / "out", ModelSource.open(folder), no_display, tokens=24)

    assert (found.precision, found.fault) == ("fp8-rowwise", None)


def swap_branches(tensors: Tensors) -> None:
    fc, gate = f"{LAYER}.mlp.fc.weight", f"{LAYER}.mlp.gate.weight"
    tensors[fc], tensors[gate] = tensors[gate], tensors[fc]


def double(tensors: Tensors) -> None:
    tensors[f"{LAYER}.mlp.proj.weight"] *= 2


def take_one(tensors: Tensors) -> None:
    tensors[f"{LAYER}.input_layernorm.weight"] -= 1


def take_one_at_the_end(tensors: Tensors) -> None:
    tensors["transformer.ln_f.weight"] -= 1


def permute(tensors: Tensors, split: tuple[int, int] = (2, 16)) -> None:
    weight = tensors[f"{LAYER}.attention.qkv.weight"]
    rows = (8 + 2) * 32
    heads = weight[:rows].reshape(10, *split, -1).transpose(1, 2).reshape(rows, -1)
    tensors[f"{LAYER}.attention.qkv.weight"] = torch.cat([heads, weight[rows:]])


def permute_back(tensors: Tensors) -> None:
    permute(tensors, (16, 2))


def tie(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors["transformer.vocab_embedding.weight"].clone()


def turn_embedding(tensors: Tensors) -> None:
    # The last row, which no text of these tests has.
    tensors["transformer.vocab_embedding.weight"][-1] += 1


def spoil(tensors: Tensors) -> None:
    tensors[f"{LAYER}.attention.dense.weight"][0, 0] = torch.nan


FAULTS: Final = (
    ("llama", swap_branches, "layer 1", "mlp.fc.weight is the source's other branch"),
    ("llama", double, "layer 1", "mlp.proj.weight is off by 2 to the power of 1"),
    ("nemotron", double, "layer 1", "mlp.proj.weight is off by 2 to the power of 1"),
    ("nemotron", take_one, "layer 1", "input_layernorm.weight lacks the 1 that LayerNorm1P adds"),
    ("nemotron", take_one_at_the_end, "the head", "ln_f.weight lacks the 1 that LayerNorm1P adds"),
    ("llama", permute, "layer 1", "rows of q and k in GGUF's order"),
    ("nemotron", permute, "layer 1", "rows of q and k in GGUF's order"),
    ("llama", permute_back, "layer 1", "rows of q and k in GGUF's order"),
    ("llama", tie, "the head", "it is the embedding, to which the source does not tie its head"),
    ("nemotron", tie, "the head", "it is the embedding, to which the source does not tie its head"),
    ("llama", turn_embedding, "the embedding", "differs from the source's"),
    ("nemotron", turn_embedding, "the embedding", "differs from the source's"),
    ("llama", spoil, "layer 1", "attention.dense.weight differs from the source's by nan"),
    ("nemotron", spoil, "layer 1", "attention.dense.weight differs from the source's by nan"),
)


def planted(folder: Path, plant: Callable[[Tensors], None]) -> None:
    """Change tensors in their places, so that the manifest's sizes hold."""
    path = folder / "rank0.safetensors"
    tensors = load_file(path)
    plant(tensors)
    with path.open("r+b") as file:
        for name, entry in read_header(path).items():
            file.seek(entry.offset)
            file.write(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())


@pytest.mark.parametrize(("kind", "plant", "where", "cause"), FAULTS)
def test_a_planted_fault_is_named(
    kind: str,
    plant: Callable[[Tensors], None],
    where: str,
    cause: str,
    sources: dict[str, Path],
    bf16: dict[str, Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(bf16[kind], tmp_path / "out")
    planted(tmp_path / "out", plant)
    fault = fault_of(tmp_path / "out", sources[kind])

    assert fault is not None
    assert fault.startswith(where)
    assert cause in fault


@pytest.mark.parametrize("kind", ["llama", "nemotron"])
def test_a_tied_head_that_was_ignored_is_named(
    kind: str, make_model: MakeModel, tmp_path: Path
) -> None:
    source = make_model(kind, hidden_size=48, tie_word_embeddings=True)
    convert(str(source), tmp_path / "out", ConvertOptions())
    planted(tmp_path / "out", lambda tensors: tensors["lm_head.weight"].normal_())

    assert str(fault_of(tmp_path / "out", source)).endswith(
        "the source's head is tied to its embedding, and that was ignored"
    )


HEAD_SIZE: Final = "head_size is 16, in the source 32; a wrong head size"
EPSILON: Final = "norm_epsilon is 0.1, in the source 1e-05"
# Nothing follows: no scaling is lost.
BASES: Final = {
    "llama": "scaling=Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, "
    "original_max_positions=32))",
    "nemotron": "in the source Rope(theta=10000.0, fraction=0.5, scaling=None)",
}


@pytest.mark.parametrize(
    ("kind", "changes", "cause"),
    [
        ("llama", {"head_size": 16}, HEAD_SIZE),
        ("nemotron", {"head_size": 16}, HEAD_SIZE),
        ("llama", {"rotary_scaling": None}, "; its rope scaling is lost"),
        ("llama", {"rotary_base": 500.0}, BASES["llama"]),
        ("nemotron", {"rotary_base": 500.0}, BASES["nemotron"]),
        ("llama", {"norm_epsilon": 0.1}, EPSILON),
        ("nemotron", {"norm_epsilon": 0.1}, EPSILON),
    ],
)
def test_facts_that_differ_are_named(
    kind: str,
    changes: dict[str, Any],
    cause: str,
    sources: dict[str, Path],
    bf16: dict[str, Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(bf16[kind], tmp_path / "out")
    path = tmp_path / "out" / "config.json"
    size = path.stat().st_size
    text = json.dumps(json.loads(path.read_text()) | changes)
    path.write_text(text.ljust(size))

    with pytest.raises(BadInputError, match="is another model than its source: ") as caught:
        fault_of(tmp_path / "out", sources[kind])
    assert str(caught.value).endswith(cause)


@pytest.mark.parametrize(
    ("kind", "read", "true"),
    [
        ("llama", {"rope_scaling": None}, {}),
        ("nemotron", {"partial_rotary_factor": 1.0}, {"partial_rotary_factor": 0.25}),
    ],
)
def test_rotary_facts_that_the_converter_reads_wrongly_are_seen_by_transformers(
    kind: str,
    read: dict[str, Any],
    true: dict[str, Any],
    sources: dict[str, Path],
    tmp_path: Path,
) -> None:
    shutil.copytree(sources[kind], tmp_path / "other")
    path = tmp_path / "other" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | read))
    convert(str(tmp_path / "other"), tmp_path / "out", ConvertOptions())
    # As if the converter had read this in the source's own config.
    source = ModelSource.open(tmp_path / "other")
    object.__setattr__(source, "config", config | true)
    fault = verified(tmp_path / "out", source, no_display, tokens=64).fault

    assert str(fault).startswith("the rotary embedding turns by other angles than the source's")


def test_the_command_shows_each_layer_and_ends_in_what_is_wrong(
    command: Command, tmp_path: Path
) -> None:
    sample = sample_folder("solar-llama")
    convert(str(sample), tmp_path / "out", ConvertOptions("fp8-rowwise"))
    right = command("verify", tmp_path / "out", sample, "--json")
    path = tmp_path / "out" / "rank0.safetensors"
    scale = read_header(path)["transformer.layers.2.mlp.proj.per_channel_scale"]
    with path.open("r+b") as file:
        file.seek(scale.offset)
        values = np.frombuffer(file.read(scale.size_bytes), np.float32) * 2
        file.seek(scale.offset)
        file.write(values.astype(np.float32).tobytes())
    wrong = command("verify", tmp_path / "out", sample)
    layers = json.loads((sample / "config.json").read_text())["num_hidden_layers"]

    assert (right.exit_code, len(json.loads(right.stdout)["layers"])) == (0, layers)
    assert json.loads(right.stdout)["logits"]["same_top"] > 0.7
    assert (wrong.exit_code, len(wrong.stdout.splitlines())) == (3, layers + 3)
    assert ": layer 2 departs from the source" in wrong.stderr
    assert "mlp.proj.weight is off by 2 to the power of 1" in wrong.stderr


def test_a_verified_conversion_is_shown_by_what_is_made_of_it(
    command: Command, tmp_path: Path
) -> None:
    sample = sample_folder("solar-nemotron")
    made = command("convert", sample, "-o", tmp_path / "out", "--verify")
    shown = command("triton-repo", tmp_path / "out", "-o", tmp_path / "repository")
    checked = command("check", tmp_path / "repository", "--json")
    record = json.loads((tmp_path / "out" / "minitron.json").read_text())["verification"]

    assert (made.exit_code, shown.exit_code, checked.exit_code) == (0, 0, 0)
    assert (record["tokens"], record["bound"]) == (64, comparison.BOUNDS["bf16"])
    assert 0 < record["largest_layer_error"] < record["bound"]
    assert "its checkpoint was verified against its source: layers within" in shown.stdout
    assert json.loads(checked.stdout)["verification"] == record


def test_a_conversion_that_departs_does_not_appear(
    monkeypatch: pytest.MonkeyPatch, command: Command, tmp_path: Path
) -> None:
    # Less than the rounding of LayerNorm1P's sums, as the fault of a converter would be.
    monkeypatch.setattr(comparison, "BOUNDS", {"bf16": 1e-6})
    sample = sample_folder("solar-nemotron")
    result = command("convert", sample, "-o", tmp_path / "out", "--verify")

    assert (result.exit_code, list(tmp_path.iterdir())) == (3, [])
    assert "layer 0 departs from the source by" in result.stderr


def test_a_hugging_face_folder_cannot_be_verified(tmp_path: Path) -> None:
    options = ConvertOptions(form="hf", verify=True)

    with pytest.raises(UsageError, match="--verify is for --format trtllm"):
        convert(str(sample_folder("solar-llama")), tmp_path / "out", options)
