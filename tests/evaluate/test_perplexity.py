"""Perplexity and its like: by their definitions, and what is refused."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.evaluate.baseline_file import BaselineFile
from minitron_trt.evaluate.divergence import Divergence, TokenScores, compare
from minitron_trt.evaluate.perplexity import chunks_of, log_likelihoods, mean, perplexity
from minitron_trt.evaluate.scoring import Scored
from minitron_trt.evaluate.table import rows_of
from minitron_trt.evaluate.text_tokens import TextTokens, read_text
from minitron_trt.samples import HELD_OUT_TEXT, sample_folder
from minitron_trt.tensorfile import read_header

pytestmark = pytest.mark.slow

Command = Callable[..., Result]
SAMPLE = sample_folder("solar-llama")
CORPUS = (SAMPLE.parent / "corpus.txt").read_text(encoding="utf-8")
CausalLM: Any = AutoModelForCausalLM  # its methods have no types


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text that the sample has not learnt by heart: its words in another order."""
    words = CORPUS[:3000].split()
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(words[::-1]) + "\n", encoding="utf-8")
    return path


def test_chunks_are_disjoint_and_scored_by_their_second_half() -> None:
    chunks = chunks_of(range(35), 8, begin=99)

    assert [chunk.inputs.tolist() for chunk in chunks] == [
        [99, *range(start + 1, start + 8)] for start in (0, 8, 16, 24)
    ]
    assert [chunk.targets.tolist() for chunk in chunks[:2]] == [[5, 6, 7], [13, 14, 15]]
    assert chunks[0].first_row == 4
    assert len(chunks_of(range(1024), 512, begin=None)[0].targets) == 255
    assert len(chunks_of(range(35), 8, begin=None, at_most=2)) == 2


def test_chunks_that_overlap_are_scored_by_as_many_tokens_as_they_go_on() -> None:
    chunks = chunks_of(range(21), 8, begin=99, stride=3)

    # The one that would end with the text is left out, as llama.cpp leaves it.
    assert [chunk.inputs.tolist() for chunk in chunks] == [
        list(range(start, start + 8)) for start in (0, 3, 6, 9, 12)
    ]
    assert [chunk.targets.tolist() for chunk in chunks[:2]] == [[5, 6, 7], [8, 9, 10]]
    assert chunks[0].first_row == 4
    assert len(chunks_of(range(21), 8, begin=None, stride=3, at_most=2)) == 2


@pytest.mark.parametrize("stride", [0, 8, 9])
def test_a_stride_that_leaves_no_context_is_refused(stride: int) -> None:
    with pytest.raises(UsageError, match=f"the stride is {stride}; expected 1 to 7, less than"):
        chunks_of(range(50), 8, begin=None, stride=stride)


def test_a_text_shorter_than_two_chunks_and_a_context_of_nothing_are_refused() -> None:
    with pytest.raises(BadInputError, match="has 15 tokens; a context of 8 needs at least 16"):
        chunks_of(range(15), 8, begin=None)
    with pytest.raises(UsageError, match="expected at least 4 tokens"):
        chunks_of(range(15), 3, begin=None)


def test_the_error_of_a_perplexity_is_that_of_its_exponent() -> None:
    nll = np.random.default_rng(1).exponential(2.0, 1000)
    average = float(np.mean(nll))
    error = math.sqrt((np.mean(nll**2) - average**2) / 999)
    estimate = perplexity(nll)

    assert mean(nll).value == pytest.approx(average)
    assert (estimate.value, estimate.error) == pytest.approx(
        (math.exp(average), math.exp(average) * error)
    )


def test_logits_without_numbers_are_refused() -> None:
    with pytest.raises(BadInputError, match="logits are NaN"):
        log_likelihoods(np.array([[0.0, np.nan]]))


def test_the_figures_beside_a_baseline_are_those_of_their_definitions() -> None:
    random = np.random.default_rng(2)
    one, other = (log_likelihoods(random.normal(0, 3, (500, 40))) for _ in range(2))
    other = log_likelihoods(0.9 * one + 0.1 * other)
    targets = random.integers(0, 40, 500).astype(np.int32)
    scores = compare(other, one, targets)
    found = Divergence.of(scores, -one[np.arange(500), targets])
    exact = [
        sum(math.exp(p) * (p - q) for p, q in zip(*rows, strict=True) if p > -16)
        for rows in zip(one, other, strict=True)
    ]
    change = np.exp(-scores.nll) - np.exp(one[np.arange(500), targets])

    assert scores.divergence == pytest.approx(exact)
    assert found.mean.value == pytest.approx(np.mean(exact))
    assert (found.minimum, found.maximum) == pytest.approx((min(exact), max(exact)))
    assert found.percentiles[50.0] == pytest.approx(np.median(exact))
    assert found.log_ratio.value == pytest.approx(
        math.log(perplexity(scores.nll).value / perplexity(-one[np.arange(500), targets]).value)
    )
    assert found.change.value == pytest.approx(change.mean())
    assert found.change_rms.value == pytest.approx(math.sqrt((change**2).mean()))
    assert found.same_top.value == (one.argmax(1) == other.argmax(1)).mean()


def test_a_divergence_that_rounds_to_nothing_has_no_sign() -> None:
    nll = np.ones(4)
    scores = TokenScores(nll, np.full(4, -1e-9), np.ones(4, np.bool_))
    divergence = Divergence.of(scores, nll)
    header, row = rows_of([Scored("one", 1, 4, perplexity(nll), divergence)])

    assert row[header.index("KL")] == "0.000000"


def test_a_baseline_on_a_disk_is_what_was_written_but_for_its_steps(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    chunks = chunks_of(random.integers(0, 41, 32).tolist(), 16, begin=None)
    tokens = np.array([chunk.inputs for chunk in chunks])
    baseline = BaselineFile(tmp_path / "baseline", 41, tokens, scored=7)
    rows = [log_likelihoods(random.normal(0, 4, (7, 41))) for _ in chunks]
    baseline.create()
    for index, values in enumerate(rows):
        baseline.append(index, baseline.in_steps(values))
    opened = BaselineFile.open(tmp_path / "baseline", scored=7)

    assert opened.complete == 2
    assert opened.fits(chunks)
    for index, values in enumerate(rows):
        kept = values > values.max(axis=1, keepdims=True) - 16
        assert np.abs(opened.in_numbers(opened.read(index)) - values)[kept].max() < 2.5e-4


@pytest.mark.parametrize(
    ("dtype", "sample", "tolerance"),
    [("float32", "solar-llama", 1e-4), ("bfloat16", "austen-llama", 1e-3)],
)
def test_perplexity_is_that_which_transformers_computes(
    dtype: str, sample: str, tolerance: float, text: Path, command: Command, tmp_path: Path
) -> None:
    # In bf16 a model that is sure of itself, as of a text it knows, has chaotic figures.
    path = text if sample == "solar-llama" else tmp_path / "text.txt"
    if path != text:
        path.write_text(HELD_OUT_TEXT.read_text(encoding="utf-8")[:6000], encoding="utf-8")
    folder = sample_folder(sample)
    options = ("--text", path, "--context", "64", "--dtype", dtype, "--json")
    result = command("eval", "perplexity", folder, *options)
    record = json.loads(result.stdout)["models"][0]
    model = CausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ids = tokenizer.encode(path.read_text().removesuffix("\n")).ids
    nll = []
    for start in range(0, len(ids) // 64 * 64, 64):
        chunk = torch.tensor([[ids[0], *ids[start + 1 : start + 64]]])
        with torch.inference_mode():
            logits = model(chunk).logits[0].double().log_softmax(-1)
        nll += [-float(logits[row, chunk[0, row + 1]]) for row in range(32, 63)]

    assert result.exit_code == 0, result.stderr
    assert record["scored_tokens"] == len(nll)
    assert record["perplexity"]["value"] > 10
    assert record["perplexity"]["value"] == pytest.approx(math.exp(np.mean(nll)), rel=tolerance)


def test_one_newline_at_the_end_is_dropped_and_special_tokens_are_text(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("<s>a</s>\n\n", encoding="utf-8")
    text = read_text(path)
    found = TextTokens.of(text, SAMPLE / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(SAMPLE / "tokenizer.json"))
    special = {token.content: at for at, token in tokenizer.get_added_tokens_decoder().items()}

    assert text == "<s>a</s>\n"
    assert special
    for content in special:
        ids = TextTokens.of(f"a{content}b", SAMPLE / "tokenizer.json").ids
        assert set(ids[1:]).isdisjoint(special.values()), content
    assert found.ids[0] == found.begin


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the sample in three precisions."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for precision in ("bf16", "w8a16", "w4a16"):
        convert(str(SAMPLE), folder / precision, ConvertOptions(precision=precision))
    return folder


def test_several_models_give_a_table_in_which_coarser_ones_are_further_off(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    models = [checkpoints / name for name in ("bf16", "bf16", "w8a16", "w4a16")]
    arguments = ("eval", "perplexity", *models, "--text", text, "--context", "64")
    table = command(*arguments, "--markdown", tmp_path / "table.md", "--chunks", "4")
    results = json.loads(command(*arguments, "--json", "--chunks", "4").stdout)["models"]
    _, same, eight_bits, four_bits = results
    lines = table.stdout.splitlines()

    assert table.exit_code == 0, table.stderr
    assert table.stderr == ""
    assert " ".join(lines[0].split()) == "model size MB PPL ± size % accuracy % KL top-1 %"
    assert [line.split()[0] for line in lines[1:]] == ["bf16", "bf16", "w8a16", "w4a16"]
    assert (tmp_path / "table.md").read_text().count("\n") == 6
    assert same["perplexity"] == results[0]["perplexity"]
    assert same["ln_perplexity_ratio"] == pytest.approx({"value": 0.0, "error": 0.0}, abs=1e-7)
    # The baseline's probabilities are kept in steps.
    assert abs(same["kl"]["value"]) < 1e-5
    assert 1e-5 < eight_bits["kl"]["value"] < four_bits["kl"]["value"]
    assert results[0]["size_bytes"] > eight_bits["size_bytes"] > four_bits["size_bytes"]


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_a_chart_shows_each_model_by_its_name(
    suffix: str, checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib", reason="NOT TESTED, matplotlib is not installed")
    plot = tmp_path / f"plot{suffix}"
    arguments = ("eval", "perplexity", checkpoints / "bf16", checkpoints / "w4a16", "--plot", plot)
    result = command(*arguments, "--text", text, "--context", "64", "--chunks", "2")
    blob = plot.read_bytes()

    assert (result.exit_code, result.stderr) == (0, "")
    if suffix == ".png":
        assert blob.startswith(b"\x89PNG")
    else:
        assert [name in blob.decode() for name in ("bf16", "w4a16", "size, MB")] == [True] * 3


def test_a_chart_of_another_kind_is_refused_before_anything_is_scored(
    text: Path, command: Command
) -> None:
    result = command("eval", "perplexity", SAMPLE, "--text", text, "--plot", "plot.pdf")

    assert (result.exit_code, result.stderr) == (
        2,
        "error: plot.pdf is neither PNG nor SVG; name it with .png or .svg\n",
    )


def test_an_evaluation_goes_on_where_it_ended(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    arguments = ("eval", "perplexity", checkpoints / "bf16", checkpoints / "w4a16", "--json")
    options = ("--text", text, "--context", "64", "--state", tmp_path)
    whole = command(*arguments, *options)
    scores = [path for path in tmp_path.iterdir() if path.suffix == ".scores"]
    kept = {path: path.stat().st_size for path in scores}
    for path in (*scores, tmp_path / "baseline.logits"):
        # As an interruption leaves it: within a chunk.
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size * 2 // 3)
    again = command(*arguments, *options)

    assert whole.exit_code == 0, whole.stderr
    assert again.stdout == whole.stdout
    assert {path: path.stat().st_size for path in scores} == kept


def test_a_tokenizer_changed_in_place_begins_anew(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    models = [shutil.copytree(checkpoints / name, tmp_path / name) for name in ("bf16", "w4a16")]
    options = ("--text", text, "--context", "64", "--chunks", "2", "--json")

    def figures(state: str) -> str:
        result = command("eval", "perplexity", *models, *options, "--state", tmp_path / state)
        assert result.exit_code == 0, result.stderr
        return result.stdout

    before = figures("kept")
    for model in models:
        path = model / "tokenizer.json"
        tokenizer = json.loads(path.read_bytes())
        # Without merges there are other, shorter tokens. Another size would be refused.
        tokenizer["model"]["merges"] = []
        path.write_bytes(json.dumps(tokenizer).encode().ljust(path.stat().st_size))

    assert figures("kept") == figures("fresh") != before


def test_checkpoints_of_one_name_and_size_have_figures_of_their_own(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    model = shutil.copytree(SAMPLE, tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"] *= 2
    save_file(tensors, model / "model.safetensors")
    convert(str(model), tmp_path / "bf16", ConvertOptions())
    models = (checkpoints / "bf16", tmp_path / "bf16")
    options = ("--text", text, "--context", "64", "--chunks", "2", "--json")
    one, other = json.loads(command("eval", "perplexity", *models, *options).stdout)["models"]

    assert (one["model"], one["size_bytes"]) == (other["model"], other["size_bytes"])
    assert one["perplexity"] != other["perplexity"]
    assert other["kl"]["value"] > 1e-5


def test_beside_another_baseline_nothing_is_taken_from_before(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    names = ("bf16", "w4a16", "bf16", "w8a16")
    options = ("--text", text, "--context", "64", "--chunks", "2", "--json")

    def figures(baseline: str, state: Path) -> str:
        models = (checkpoints / baseline, checkpoints / "w8a16", checkpoints / "bf16")
        return command("eval", "perplexity", *models, *options, "--state", state).stdout

    shared = [figures(name, tmp_path / "shared") for name in names]

    assert shared == [figures(name, tmp_path / str(at)) for at, name in enumerate(names)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; expected a text of some thousand words"),
        (b"\xff\xfe", "is not UTF-8 (invalid start byte); convert its encoding"),
        (b"a b c", "tokens; a context of 512 needs at least 1024: take a longer text or a shorter"),
        (None, "is not a file; expected a text"),
    ],
    ids=["empty", "not UTF-8", "short", "absent"],
)
def test_a_text_that_cannot_score_is_refused_in_one_line(
    content: bytes | None, message: str, command: Command, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    result = command("eval", "perplexity", SAMPLE, "--text", path)

    assert (result.exit_code, result.stdout) == (3, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_models_with_two_tokenizers_are_refused(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    other = shutil.copytree(SAMPLE, tmp_path / "other")
    record = json.loads((other / "tokenizer.json").read_text())
    record["model"]["merges"] = record["model"]["merges"][:50]
    (other / "tokenizer.json").write_text(json.dumps(record))
    arguments = ("eval", "perplexity", checkpoints / "bf16", other, "--context", "64")
    result = command(*arguments, "--text", text)

    assert result.exit_code == 3
    assert result.stderr == (
        "error: other has another tokenizer than the baseline: it makes other tokens of the text, "
        "so that their figures do not compare\n"
    )


def test_a_server_is_not_found_in_one_line(text: Path, command: Command) -> None:
    result = command("eval", "perplexity", "grpc://127.0.0.1:1", "--text", text)

    assert (result.exit_code, result.stderr.count("\n")) == (6, 1)
    assert result.stderr.startswith("error: no Triton server answers at grpc://127.0.0.1:1")


def test_logits_that_are_nan_name_the_model_that_gave_them(
    checkpoints: Path, text: Path, command: Command, tmp_path: Path
) -> None:
    damaged = shutil.copytree(checkpoints / "bf16", tmp_path / "damaged")
    norm = read_header(damaged / "rank0.safetensors")["transformer.ln_f.weight"]
    with (damaged / "rank0.safetensors").open("r+b") as file:
        file.seek(norm.offset)
        file.write(b"\xc0\x7f" * (norm.size_bytes // 2))
    options = ("--text", text, "--context", "64", "--chunks", "1")
    result = command("eval", "perplexity", checkpoints / "bf16", damaged, *options)

    assert (result.exit_code, result.stderr.count("\n")) == (3, 1)
    assert result.stderr.startswith("error: damaged: the model's logits are NaN or infinite; its")


def test_a_vocabulary_that_ends_each_text_is_refused(
    text: Path, command: Command, tmp_path: Path
) -> None:
    ending = shutil.copytree(SAMPLE, tmp_path / "ending")
    record = json.loads((ending / "tokenizer.json").read_text())
    template = record["post_processor"]
    while template["type"] != "TemplateProcessing":
        template = template["processors"][-1]
    template["single"] = template["single"][::-1]
    (ending / "tokenizer.json").write_text(json.dumps(record))
    result = command("eval", "perplexity", ending, "--text", text)

    assert result.exit_code == 4
    assert "puts more around a text than one token before it" in result.stderr


def test_a_gpu_that_is_not_there_is_refused(text: Path, command: Command) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has an NVIDIA GPU")

    result = command("eval", "perplexity", SAMPLE, "--text", text, "--device", "cuda")

    assert result.exit_code == 4, result.output
    assert "torch sees no NVIDIA GPU here, so --device cuda" in result.output


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU on this machine")
def test_a_gpu_gives_the_cpus_perplexity(text: Path, command: Command, tmp_path: Path) -> None:
    arguments = ("eval", "perplexity", SAMPLE, "--text", text, "--context", 64, "--chunks", 2)
    on_cpu, on_gpu = (
        json.loads(command(*arguments, "--device", device, "--json").stdout)
        for device in ("cpu", "cuda")
    )

    figures = [result["models"][0]["perplexity"]["value"] for result in (on_cpu, on_gpu)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)
