"""A GGUF file as a source: what is read from its facts, and how the command goes about it."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tests.convert.plans import plan_of

from minitron_trt.artifacts import CHECKPOINT, Manifest
from minitron_trt.convert.conversion import ConvertOptions, convert, open_and_plan
from minitron_trt.convert.gguf.rope_factors import recover_scaling, scaling_factors
from minitron_trt.samples import sample_folder
from minitron_trt.spec import Llama3Scaling
from minitron_trt.tensorfile import read_header

MakeModel = Callable[..., Path]
WriteGguf = Callable[..., Path]
Refusal = Callable[..., str]
Command = Callable[..., Result]


@pytest.mark.parametrize("kind", ["llama", "mistral", "nemotron"])
def test_the_facts_of_the_model_are_those_of_its_config(
    kind: str, make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = make_model(kind)
    path = write_gguf(source, tmp_path / "m.gguf", "F16")
    known, expected = plan_of(path).spec.to_json(), plan_of(source).spec.to_json()
    # llama.cpp calls a Mistral a Llama, which is the same graph.
    expected["architecture"] = {"mistral": "LlamaForCausalLM"}.get(kind, known["architecture"])
    if kind == "llama":
        # So few frequencies do not tell the length; every length between gives the same factors.
        expected["rope"]["scaling"] = known["rope"]["scaling"]

    assert known == expected


def test_a_file_without_an_output_head_shares_the_embedding(
    make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = make_model("nemotron", tie_word_embeddings=True)
    path = write_gguf(source, tmp_path / "m.gguf", "BF16")
    convert(str(path), tmp_path / "a", ConvertOptions())
    convert(str(source), tmp_path / "b", ConvertOptions())

    assert plan_of(path).spec.tied
    name = "rank0.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


PUBLISHED: dict[str, tuple[float, int, float, float, float, int]] = {
    "Llama-3.1 and its Minitrons": (500000.0, 128, 8.0, 1.0, 4.0, 8192),
    "Llama-3.2": (500000.0, 64, 32.0, 1.0, 4.0, 8192),
}


def written_factors(theta: float, size: int, scaling: Llama3Scaling) -> Any:
    """Return the factors as the converter writes them, in float32."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    factors = []
    for index in range(size // 2):
        length = 2 * math.pi * theta ** (2 * index / size)
        smooth = (scaling.original_max_positions / length - low) / (high - low)
        smooth = min(max(smooth, 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return np.array(factors, np.float32).astype(np.float64)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_rope_scalings_are_recovered_number_by_number(name: str) -> None:
    theta, size, factor, low, high, original = PUBLISHED[name]
    factors = written_factors(theta, size, Llama3Scaling(factor, low, high, original))

    assert recover_scaling(factors, theta) == Llama3Scaling(factor, low, high, original)


@given(
    theta=st.sampled_from([10000.0, 500000.0, 1e6]),
    size=st.sampled_from([64, 80, 96, 128, 256]),
    factor=st.floats(2, 64),
    original=st.integers(256, 32768),
)
def test_a_recovered_rope_scaling_divides_every_frequency_as_the_one_written(
    theta: float, size: int, factor: float, original: int
) -> None:
    factors = written_factors(theta, size, Llama3Scaling(factor, 1.0, 4.0, original))
    found = recover_scaling(factors, theta)
    turns = theta ** (-2 * np.arange(size // 2) / size) / (2 * math.pi)

    if factors[-1] == factors.max() and (factors == factors.max()).sum() > 1:
        assert found is not None
    if found is not None:
        assert np.allclose(scaling_factors(found, turns), factors, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    "factors",
    [np.linspace(1, 2, 64), np.geomspace(1, 32, 64), np.full(64, np.nan), np.full(64, 0.5)],
    ids=["linear", "geometric", "nan", "shorter"],
)
def test_other_factors_are_no_llama3_scaling(factors: Any) -> None:
    assert recover_scaling(factors, 500000.0) is None


def test_a_frequency_that_does_not_follow_the_others_is_no_llama3_scaling() -> None:
    factors = written_factors(500000.0, 128, Llama3Scaling(8.0, 1.0, 4.0, 8192))
    between = [index for index, value in enumerate(factors) if 1 < value < 8]
    factors[between[len(between) // 2]] *= 1.01

    assert recover_scaling(factors, 500000.0) is None


@pytest.mark.parametrize(
    "facts",
    [
        {"llama.attention.head_count": [12, 12, 12]},
        {"llama.attention.head_count_kv": [2, 2, 2], "llama.feed_forward_length": [48, 48, 48]},
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0},
        {"llama.rope.scaling.type": "linear"},
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 4.0},
        {"llama.rope.scaling.attn_factor": 1.0, "llama.rope.scaling.finetuned": True},
        {"llama.rope.scaling.original_context_length": 32},
        {"split.count": 0},
        {"split.count": 1, "split.no": 0},
    ],
    ids=lambda facts: ", ".join(facts),
)
def test_facts_that_llama_cpp_takes_for_nothing_change_nothing(
    facts: dict[str, Any], tiny_llama: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    plain = write_gguf(tiny_llama, tmp_path / "plain.gguf", "BF16")
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "BF16", facts=facts)

    assert plan_of(path).spec == plan_of(plain).spec


def test_fp16_keeps_the_bits_of_a_file_in_f16_and_bf16_says_that_it_does_not(
    tiny_llama: Path, write_gguf: WriteGguf, command: Command, tmp_path: Path
) -> None:
    wide = {"token_embd.weight": np.linspace(0.1, 1.7, 131 * 40, dtype=np.float32).reshape(131, 40)}
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "F16", tensors=wide)
    name = "transformer.vocab_embedding.weight"
    results = {
        precision: command("convert", path, "-o", tmp_path / precision, "--precision", precision)
        for precision in ("fp16", "bf16")
    }
    kept = load_file(tmp_path / "fp16" / "rank0.safetensors")[name]
    rounded = load_file(tmp_path / "bf16" / "rank0.safetensors")[name].astype(np.float32)
    expected = wide["token_embd.weight"].astype(np.float16)
    assert kept.tobytes() == expected.tobytes()
    assert (rounded != expected).mean() > 0.5
    assert "keeps them all" not in results["fp16"].stdout
    assert re.fullmatch(
        r"  float16 to bfloat16: [\d,]+ of [\d,]+ values rounded, by at most 0\.003\d of "
        r"themselves \(model\.embed_tokens\.weight\); --precision fp16 keeps them all",
        results["bf16"].stdout.splitlines()[1],
    )


def test_factors_of_one_are_no_scaling(
    make_model: MakeModel, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    source = make_model("mistral")
    plain = {"rope_freqs.weight": np.ones(4, np.float32)}
    path = write_gguf(source, tmp_path / "m.gguf", "F16", tensors=plain)

    assert plan_of(path).spec.rope.scaling is None


def test_the_share_of_a_head_that_turns_is_read_or_mended_where_the_converter_errs(
    make_model: MakeModel,
    write_gguf: WriteGguf,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = make_model("nemotron")
    stated = {"nemotron.rope.dimension_count": 6}
    wrong = write_gguf(source, tmp_path / "wrong.gguf", "BF16")
    right = write_gguf(source, tmp_path / "right.gguf", "BF16", facts=stated)
    with caplog.at_level(logging.WARNING):
        shares = [plan_of(path).spec.rope.fraction for path in (wrong, right)]

    assert shares == [0.5, 0.75]
    assert [record.getMessage() for record in caplog.records] == [
        "wrong.gguf: 1 of 8 values of a head turn, which llama.cpp's converter writes for this "
        "shape by mistake; using 4, half of the head"
    ]


def test_the_manifest_names_the_file_and_nothing_unpacked_stays(
    tiny_llama: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "F16")
    convert(str(path), tmp_path / "out", ConvertOptions())
    manifest = Manifest.read(tmp_path / "out", CHECKPOINT)

    assert manifest.source == {"path": str(path)}
    assert {file.name for file in tmp_path.iterdir()} == {"m.gguf", "out"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        *("config.json", "generation_config.json", "minitron.json", "rank0.safetensors")
    }


def test_a_folder_with_one_file_and_a_file_of_another_name_are_sources_too(
    tiny_llama: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    write_gguf(tiny_llama, folder / "m.gguf", "F16")
    (folder / "config.json").write_text('{"model_type": "llama"}')
    shutil.copyfile(folder / "m.gguf", tmp_path / "unnamed")
    convert(str(folder), tmp_path / "a", ConvertOptions())
    convert(str(tmp_path / "unnamed"), tmp_path / "b", ConvertOptions())

    assert Manifest.read(tmp_path / "a", CHECKPOINT).source == {"path": str(folder / "m.gguf")}
    name = "rank0.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_safetensors_beside_a_file_go_first(
    tiny_llama: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    both = tmp_path / "both"
    shutil.copytree(tiny_llama, both)
    write_gguf(tiny_llama, both / "m.gguf", "F16")

    with open_and_plan(str(both), ConvertOptions()) as (source, _):
        assert source.folder == both


def test_the_files_of_an_opened_file_are_there_until_it_is_closed(
    tiny_llama: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "F16")
    with open_and_plan(str(path), ConvertOptions()) as (source, plan):
        files = {part.source.path for rank in plan.ranks for t in rank for part in t.parts}
        inside = [file.is_file() for file in (*source.extras, *files)]

    assert len(inside) > 1
    assert all(inside)
    assert not source.folder.exists()


def test_a_dry_run_forecasts_the_memory_that_a_tokenizer_takes(
    write_gguf: WriteGguf, command: Command, tmp_path: Path
) -> None:
    path = write_gguf(sample_folder("solar-llama"), tmp_path / "m.gguf", "F16")
    result = command("convert", path, "--dry-run", "--precision", "fp8")

    assert (result.exit_code, result.stderr) == (0, "")


def test_the_config_of_a_hugging_face_folder_is_the_one_of_the_file(
    write_gguf: WriteGguf, command: Command, tmp_path: Path
) -> None:
    folder = sample_folder("solar-llama")
    path = write_gguf(folder, tmp_path / "m.gguf", "F16")
    result = command("convert", path, "-o", tmp_path / "out", "--format", "hf")
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    expected = json.loads((folder / "config.json").read_text())

    assert result.exit_code == 0, result.stderr
    assert {key: written[key] for key in ("bos_token_id", "eos_token_id", "rms_norm_eps")} == {
        key: expected[key] for key in ("bos_token_id", "eos_token_id", "rms_norm_eps")
    }
    assert written["torch_dtype"] == "bfloat16"


@pytest.mark.slow
def test_a_dry_run_unpacks_no_weights(
    make_model: MakeModel,
    write_gguf: WriteGguf,
    command: Command,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = make_model("llama", vocab_size=100_000, hidden_size=64, intermediate_size=64)
    path = write_gguf(source, tmp_path / "m.gguf", "Q8_0")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    result = command("convert", path, "--dry-run", "--json", "--tp", "2")
    same = command("convert", source, "--dry-run", "--json", "--tp", "2")

    assert (result.exit_code, list(scratch.iterdir())) == (0, [])
    records = [json.loads(found.stdout) for found in (result, same)]
    from_file, from_folder = (record.pop("peak_memory_bytes") for record in records)
    assert records[0] == records[1]
    assert from_file > from_folder


def test_ranks_of_a_file_are_cut_as_those_of_a_folder(
    tiny_llama: Path, write_gguf: WriteGguf, command: Command, tmp_path: Path
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "F16")
    result = command("convert", path, "-o", tmp_path / "out", "--tp", "2", "--precision", "fp16")
    whole = plan_of(path).spec
    embedding = load_file(tmp_path / "out" / "rank1.safetensors")[
        "transformer.vocab_embedding.weight"
    ]

    assert result.exit_code == 0
    assert embedding.dtype == np.float16
    assert embedding.shape == (whole.vocab, whole.hidden)
    assert {
        entry.dtype for entry in read_header(tmp_path / "out" / "rank0.safetensors").values()
    } == {"F16"}


def test_a_disk_too_small_for_the_unpacked_weights_is_named(
    tiny_llama: Path,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "F16")
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: real._replace(free=70_000))

    assert refusal(path, 1) == (
        "m.gguf unpacks to 0.00 GB but the disk of the output has 0.00 GB free; choose another disk"
    )


def test_an_existing_output_is_refused_before_anything_is_unpacked(
    tiny_llama: Path, write_gguf: WriteGguf, command: Command, tmp_path: Path
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "F16")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes").write_text("mine")
    result = command("convert", path, "-o", tmp_path / "out")

    assert result.exit_code == 2
    assert {file.name for file in tmp_path.iterdir()} == {"m.gguf", "out"}
