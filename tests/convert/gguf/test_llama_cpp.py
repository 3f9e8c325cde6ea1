"""llama.cpp itself: its converter and tools make the files, its own library says what they hold.

`make test-llama-cpp` builds it into a folder that LLAMA_CPP names, and a probe beside it (see
llama_cpp_probe.cpp), which prints its tokens, logits and dequantized weights.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.gguf.file import GGUF_TYPES, GgufFile
from minitron_trt.convert.gguf.tensor_origins import GgufModel
from minitron_trt.convert.gguf.unpack import GgufFolder
from minitron_trt.executor import StepBatch
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.samples import sample_folder

LLAMA_CPP = Path(os.environ.get("LLAMA_CPP", "/nowhere"))
TOOLS = LLAMA_CPP / "build" / "bin"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (TOOLS / "probe").exists(),
        reason="NOT TESTED, LLAMA_CPP names no folder with llama.cpp: make test-llama-cpp",
    ),
]

MakeModel = Callable[..., Path]
WriteGguf = Callable[..., Path]
Command = Callable[..., Any]
Array = NDArray[Any]
Quantized = Callable[[str, str], Path]
# Rows of 256 and 512 values hold blocks of every type. llama.cpp's nemotron graph wants heads that
# make up the hidden size; its llama graph does not.
SHAPES: dict[str, dict[str, Any]] = {
    kind: {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": 1,
        "head_dim": 128,
        "vocab_size": vocab,
    }
    for kind, heads, vocab in (("llama", 4, 1024), ("nemotron", 2, 512))
}
# The files in which the 4B model is published.
FILE_TYPES = (
    *("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1"),
    *("Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS"),
    *("IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)
CORPUS = (sample_folder("solar-llama").parent / "corpus.txt").read_text(encoding="utf-8")
RANK = "rank0.safetensors"
# It knows tokenizers by what they make of a text, and neither of these.
CONVERTER = """
import sys
sys.path[:0] = sys.argv.pop(1).split(":")
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def tool(name: str, *arguments: object, text: bytes = b"") -> bytes:
    """Run one of llama.cpp's tools and return what it prints."""
    command = [str(TOOLS / name), *map(str, arguments)]
    result = subprocess.run(command, input=text, capture_output=True, timeout=600)
    assert result.returncode == 0, result.stderr.decode(errors="replace")
    return result.stdout


def probe(*arguments: object, text: bytes = b"") -> bytes:
    """Return what llama.cpp's library makes of a file."""
    return tool("probe", *arguments, text=text)


def model_folder(kind: str, make_model: MakeModel) -> Path:
    """Return a random model with a real tokenizer, whose weights bf16 holds exactly."""
    ids = {"bos_token_id": 1022, "eos_token_id": 1023} if kind == "llama" else {}
    folder = make_model(kind, **SHAPES[kind], **ids)
    weights = load_file(folder / "model.safetensors")
    for name, values in weights.items():
        if kind == "nemotron" and "norm" in name and name.endswith("weight"):
            # One added to them must not be rounded away.
            rounded = np.round(values.astype(np.float32) * 128) / 128
            weights[name] = rounded.astype(ml_dtypes.bfloat16)
    # Logits as wide as a trained model's: narrow ones hide an error, wild ones show every rounding.
    factor = {"llama": 8, "nemotron": 0.5}[kind]
    weights["lm_head.weight"] = (weights["lm_head.weight"] * factor).astype(ml_dtypes.bfloat16)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
        if kind == "llama":
            shutil.copyfile(sample_folder("solar-llama") / name, folder / name)
    if kind == "nemotron":
        pieces = Path(__file__).parents[1] / "source" / "sentencepiece.model"
        shutil.copyfile(pieces, folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="module")
def whole(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a file in F32 of each graph, made by llama.cpp's converter."""
    modules = f"{LLAMA_CPP}/source/llama.cpp:{LLAMA_CPP}/packages"
    files = {}
    for kind in SHAPES:
        path = tmp_path_factory.mktemp(kind) / "f32.gguf"
        arguments = (modules, str(model_folder(kind, make_model)), "--outtype", "f32")
        subprocess.run(
            (sys.executable, "-c", CONVERTER, *arguments, "--outfile", str(path)),
            check=True,
            capture_output=True,
            timeout=600,
        )
        files[kind] = path
    return files


@pytest.fixture(scope="module")
def matrices(whole: dict[str, Path]) -> dict[str, Path]:
    """Return the importance matrix of each, which nine types need."""
    matrices = {kind: path.with_name("imatrix.gguf") for kind, path in whole.items()}
    for kind, path in whole.items():
        text = path.with_name("text.txt")
        text.write_text(CORPUS, encoding="utf-8")
        tool("llama-imatrix", "-m", path, "-f", text, "-o", matrices[kind], "-c", 64, "--chunks", 8)
    return matrices


@pytest.fixture(scope="module")
def quantized(whole: dict[str, Path], matrices: dict[str, Path]) -> Quantized:
    """Return what llama-quantize makes of the files."""

    def make(kind: str, file_type: str) -> Path:
        path = whole[kind].with_name(f"{file_type}.gguf")
        if not path.exists():
            tool("llama-quantize", "--imatrix", matrices[kind], whole[kind], path, file_type, 1)
        return path

    return make


def unpacked(path: Path, folder: Path) -> dict[str, Array]:
    """Return the tensors of the folder that a file is unpacked to, in float32."""
    folder.mkdir()
    GgufFolder.lay_out(GgufModel.read(GgufFile.open(path)), folder, "F32").fill()
    tensors = load_file(folder / "model.safetensors")
    return {name: values.astype(np.float32) for name, values in tensors.items()}


def as_transformers_has_it(kind: str, name: str, values: Array) -> Array:
    """Undo llama.cpp's order of rows, one row at a time, and its addition."""
    if kind == "nemotron" and "norm" in name and name.endswith("weight"):
        return np.asarray(values - np.float32(1))
    if kind == "nemotron" or not name.endswith(("q_proj.weight", "k_proj.weight")):
        return values
    rows = np.empty_like(values)
    for index, row in enumerate(values):
        head, place = divmod(index, 128)
        rows[head * 128 + place // 2 + (place % 2) * 64] = row
    return rows


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_weights_are_ggmls_own_dequantization_bit_for_bit(
    file_type: str, kind: str, quantized: Quantized, tmp_path: Path
) -> None:
    path = quantized(kind, file_type)
    ours = unpacked(path, tmp_path / "folder")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[kind.upper()], 2)
    for name, values in ours.items():
        blob = probe("values", path, names.get_name(name, try_suffixes=(".weight", ".bias")))
        theirs = np.frombuffer(blob, np.float32).reshape(values.shape)

        assert values.tobytes() == as_transformers_has_it(kind, name, theirs).tobytes(), name


def test_the_files_have_every_type_of_tensor_that_is_read(quantized: Quantized) -> None:
    files = [GgufFile.open(quantized("llama", file_type)) for file_type in FILE_TYPES]

    assert len(FILE_TYPES) == 28
    assert {tensor.kind for file in files for tensor in file.tensors.values()} == {
        kind for kind in GGUF_TYPES if kind != "BF16"
    }


def logits_of(path: Path, ids: list[int]) -> Array:
    """Return llama.cpp's logits of every position."""
    blob = probe("logits", path, *ids)
    return np.frombuffer(blob, np.float32).reshape(len(ids), -1).astype(np.float64)


def our_logits(path: Path, folder: Path, ids: list[int]) -> Array:
    """Return the reference model's, of the checkpoint that a file is converted to."""
    convert(str(path), folder, ConvertOptions())
    model = ReferenceModel(
        Checkpoint.open(folder), slots=1, max_seq_len=len(ids), dtype=torch.float32
    )
    parts = (ids, range(len(ids)), [0], [len(ids)])
    batch = StepBatch(*(np.array(part, dtype=np.int32) for part in parts))
    return np.asarray(model.forward(batch, all_logits=True).double())


def divergences(one: Array, other: Array) -> Array:
    """Return the Kullback-Leibler divergence of each position's next token."""
    p, q = (values - values.max(axis=1, keepdims=True) for values in (one, other))
    p, q = (values - np.log(np.exp(values).sum(axis=1, keepdims=True)) for values in (p, q))
    return np.asarray((np.exp(p) * (p - q)).sum(axis=1))


@pytest.mark.parametrize("kind", SHAPES)
def test_the_reference_model_computes_llama_cpps_logits(
    kind: str, whole: dict[str, Path], tmp_path: Path
) -> None:
    ids = np.random.default_rng(3).integers(3, 300, 200).tolist()
    theirs = logits_of(whole[kind], ids)
    ours = our_logits(whole[kind], tmp_path / "checkpoint", ids)

    assert theirs.std() > 0.7
    assert divergences(theirs, ours).max() <= 1e-8


def texts() -> list[str]:
    """Return 200 strings: words, spaces, scripts, signs and what looks like tokens."""
    random = np.random.default_rng(4)
    alphabet = list("aB 1\n\t.é太🪐½ß'\"-_<|>/s ")
    drawn = ["".join(random.choice(alphabet, length)) for length in random.integers(1, 40, 110)]
    documents = CORPUS.split("\n\n")[:70]
    odd = [
        *(" ", "  ", "\n", "\n\n", " \n ", "a  b   c", "l'été d'ÉTÉ", "12345678", "3.14", "x=1;"),
        *(
            "Don't",
            "DON'T",
            "we'll've",
            "\r\n",
            "a\u200bb",
            "naïve",
            "ﬁn",
            "𝔘𝔫𝔦",
            "👨‍👩‍👧",
            "<|x|>",
        ),
    ]
    return [*drawn, *documents, *odd]


@pytest.mark.parametrize("kind", SHAPES)
def test_texts_have_the_same_tokens(kind: str, whole: dict[str, Path], tmp_path: Path) -> None:
    convert(str(whole[kind]), tmp_path / "checkpoint", ConvertOptions())
    tokenizer = Tokenizer.from_file(str(tmp_path / "checkpoint" / "tokenizer.json"))
    blob = b"".join(text.encode() + b"\0" for text in texts())
    lines = probe("tokens", whole[kind], text=blob).decode().splitlines()
    theirs = [[int(index) for index in line.split()] for line in lines]

    assert len(texts()) == 200
    assert dict(zip(texts(), theirs, strict=True)) == {
        text: tokenizer.encode(text).ids for text in texts()
    }


def test_parts_and_what_is_merged_of_them_are_the_whole_file(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    split = ("--split", "--split-max-tensors", 8)
    tool("llama-gguf-split", *split, whole["llama"], tmp_path / "part")
    parts = sorted(tmp_path.glob("part-*.gguf"))
    tool("llama-gguf-split", "--merge", parts[0], tmp_path / "merged.gguf")
    for name, path in (("a", whole["llama"]), ("b", parts[0]), ("c", tmp_path / "merged.gguf")):
        convert(str(path), tmp_path / name, ConvertOptions())

    assert len(parts) == 3
    assert gguf.GGUFReader(tmp_path / "merged.gguf").fields["split.count"].contents() == 0
    assert {(tmp_path / name / RANK).read_bytes() for name in "abc"} == {
        (tmp_path / "a" / RANK).read_bytes()
    }


def refused(path: Path) -> bool:
    """Return whether llama.cpp refuses to load a file."""
    result = subprocess.run([TOOLS / "probe", "logits", path, "1"], capture_output=True)
    return result.returncode != 0


def test_a_part_after_the_first_and_an_importance_matrix_are_models_to_neither(
    whole: dict[str, Path], matrices: dict[str, Path], command: Command, tmp_path: Path
) -> None:
    split = ("--split", "--split-max-tensors", 12)
    tool("llama-gguf-split", *split, whole["llama"], tmp_path / "part")
    later = max(tmp_path.glob("part-*.gguf"))
    results = [
        command("convert", path, "-o", tmp_path / "out") for path in (later, matrices["llama"])
    ]

    assert [result.exit_code for result in results] == [3, 3]
    assert "pass the first, part-00001-of-0000" in results[0].stderr
    assert "holds an importance matrix, which only llama-quantize reads" in results[1].stderr
    assert refused(later)
    assert refused(matrices["llama"])


@pytest.fixture(scope="module")
def written(
    make_model: MakeModel, write_gguf: WriteGguf, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Return a writer of files of the llama model with facts that its converter does not write."""
    folder = model_folder("llama", make_model)
    place = tmp_path_factory.mktemp("facts")

    def write(**options: Any) -> Path:
        number = len(list(place.iterdir()))
        return write_gguf(folder, place / f"{number}.gguf", "F32", **options)

    return write


@pytest.mark.parametrize(
    ("facts", "same"),
    [
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 8.0}, True),
        ({"llama.rope.scaling.type": "linear"}, True),
        ({"llama.rope.scaling.factor": 0.0, "llama.rope.scale_linear": 4.0}, True),
        ({"llama.rope.scaling.original_context_length": 32}, True),
        ({"llama.rope.scaling.yarn_attn_factor": 2.0, "llama.rope.scaling.alpha": 2.0}, True),
        ({"llama.attention.head_count": [4, 4], "llama.feed_forward_length": [512, 512]}, True),
        ({"llama.rope.scaling.factor": 4.0}, False),
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, False),
        ({"llama.rope.scale_linear": 4.0}, False),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.attn_factor": 1.5}, False),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else str(value),
)
def test_facts_change_nothing_in_llama_cpp_or_are_refused_here(
    facts: dict[str, Any],
    same: bool,
    written: Callable[..., Path],
    command: Command,
    tmp_path: Path,
) -> None:
    ids = list(range(40, 90))
    path = written(facts=facts)
    changed = np.abs(logits_of(path, ids) - logits_of(written(), ids)).max() > 0
    result = command("convert", path, "-o", tmp_path / "out")

    assert changed is not same
    assert result.exit_code == (0 if same else 4), result.stderr


def renamed(facts: dict[int, str]) -> dict[str, Any]:
    """Return the sample's tokens with other texts."""
    record = json.loads((sample_folder("solar-llama") / "tokenizer.json").read_text())
    ids = {**record["model"]["vocab"], **{t["content"]: t["id"] for t in record["added_tokens"]}}
    tokens = sorted(ids, key=lambda token: ids[token])
    for index, text in facts.items():
        tokens[index] = text
    return {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [1] * len(tokens)}


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"eot_token_id": 900, "eom_token_id": 901, "fim_pad_token_id": 902},
        {"fim_rep_token_id": 903, "fim_sep_token_id": 904},
        {900: "<|eot_id|>", 901: "<|eom_id|>", 902: "<|im_end|>", 903: "</s>", 904: "<EOT>"},
        {900: "<|fim_pad|>", 901: "<|repo_name|>", 902: "<|file_sep|>", 903: "<|fim_prefix|>"},
        {900: "[EOS]", 901: "<end_of_turn>", 902: "<|endoftext|>", "eos_token_id": 905},
    ],
    ids=["as it is", "by id", "of code, by id", "by text", "of code, by text", "others"],
)
def test_answers_end_at_the_tokens_at_which_llama_cpp_ends_them(
    facts: dict[Any, Any], written: Callable[..., Path]
) -> None:
    texts = {key: text for key, text in facts.items() if isinstance(key, int)}
    ids = {f"tokenizer.ggml.{key}": value for key, value in facts.items() if key not in texts}
    # Merges would name tokens that are gone; a vocabulary is all that is asked for.
    path = written(facts={**(renamed(texts) if texts else {}), **ids})
    vocabulary = GgufModel.read(GgufFile.open(path)).vocabulary
    theirs = [int(index) for index in probe("ends", path).split()]

    assert vocabulary is not None
    assert sorted(vocabulary.ends()) == theirs


def with_record(path: Path, name: str, *, code: int | None = None, moved: int = 0) -> Path:
    """Write another type or offset into the header's record of a matrix."""
    blob = bytearray(path.read_bytes())
    at = blob.index(len(name).to_bytes(8, "little") + name.encode()) + 8 + len(name) + 4 + 16
    if code is not None:
        blob[at : at + 4] = code.to_bytes(4, "little")
    offset = int.from_bytes(blob[at + 4 : at + 12], "little") + moved
    blob[at + 4 : at + 12] = offset.to_bytes(8, "little")
    path.write_bytes(blob)
    return path


def test_damaged_files_are_refused_by_both(
    written: Callable[..., Path], command: Command, tmp_path: Path
) -> None:
    query = "blk.0.attn_q.weight"
    more = {"tokenizer.ggml.tokens": [f"t{index}" for index in range(1030)]}
    types = {"tokenizer.ggml.token_type": [1] * 1030}
    damaged = {
        "overlap": with_record(written(), query, moved=-32),
        "misaligned": with_record(written(), query, moved=1),
        "removed type": with_record(written(), query, code=31),
        "alignment": written(facts={"general.alignment": 48}),
        "more tokens than rows": written(facts={**more, **types}),
        "a token twice": written(facts=renamed({900: "a"})),
        "layers that differ": written(facts={"llama.attention.head_count_kv": [1, 2]}),
    }
    for name, path in damaged.items():
        result = command("convert", path, "-o", tmp_path / "out")

        assert result.exit_code in (3, 4), name
        assert refused(path), name


PLAIN = ("-fa", "off", "-ctk", "f32", "-ctv", "f32", "-t", 1, "-b", 128, "-c", 128)


def llama_perplexity(*arguments: object) -> str:
    """Return what llama-perplexity prints, of a cache and attention in float32."""
    command = [str(TOOLS / "llama-perplexity"), *map(str, (*PLAIN, *arguments))]
    for _ in range(10):
        result = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert result.returncode == 0, result.stderr
        printed = result.stdout + result.stderr
        # Its log has a thread of its own, of which the end of the program may cut the last lines.
        if any(end in printed for end in ("Final estimate", "Same top p:", "Calculation chunk")):
            break
    return printed


def figure(name: str, printed: str) -> float:
    """Return the number that follows a name in what was printed."""
    match = re.search(rf"{re.escape(name)}\s*[:=]\s*(-?[\d.]+)", printed)
    assert match is not None, printed
    return float(match[1])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a text of some chunks."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(CORPUS[:6000] + "\n", encoding="utf-8")
    return path


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("file_type", "tolerance"), [("F32", 1e-6), ("F16", 1e-4), ("Q8_0", 1e-3), ("Q4_K_M", 1e-3)]
)
def test_perplexity_is_llama_cpps_own(
    kind: str,
    file_type: str,
    tolerance: float,
    whole: dict[str, Path],
    quantized: Quantized,
    text: Path,
    command: Command,
) -> None:
    path = whole[kind] if file_type == "F32" else quantized(kind, file_type)
    printed = llama_perplexity("-m", path, "-f", text)
    result = command("eval", "perplexity", path, "--text", text, "--context", "128", "--json")
    found = json.loads(result.stdout)["models"][0]["perplexity"]

    # llama.cpp rounds the activations that meet weights of 16 bits or fewer, to 8 bits those that
    # meet quantized ones; squared, as in nemotron, they have outliers that cost the others bits.
    tolerance *= 3 if kind == "nemotron" else 1
    assert found["value"] == pytest.approx(figure("PPL", printed), rel=tolerance)
    assert found["error"] == pytest.approx(figure("+/-", printed.replace("+/-", "+/- =")), rel=0.01)


def test_perplexity_of_chunks_that_overlap_is_llama_cpps_own(
    whole: dict[str, Path], text: Path, command: Command
) -> None:
    printed = llama_perplexity("-m", whole["llama"], "-f", text, "--ppl-stride", 48)
    count, value = re.findall(r"\[(\d+)\](\d+\.\d{4}),", printed)[-1]
    # It adds half a stride to the context.
    context = int(figure("Calculation chunk", printed))
    options = ("--context", context, "--stride", 48, "--chunks", count, "--json")
    result = command("eval", "perplexity", whole["llama"], "--text", text, *options)
    found = json.loads(result.stdout)["models"][0]

    assert found["scored_tokens"] == 48 * int(count)
    assert found["perplexity"]["value"] == pytest.approx(float(value), rel=1e-6)


def test_llama_cpp_reads_our_baseline_and_finds_the_same_divergence(
    whole: dict[str, Path], quantized: Quantized, text: Path, command: Command, tmp_path: Path
) -> None:
    paths = (whole["llama"], quantized("llama", "Q4_K_M"))
    options = ("--text", text, "--context", "128", "--state", tmp_path, "--json")
    ours = json.loads(command("eval", "perplexity", *paths, *options).stdout)["models"][1]
    base = ("--kl-divergence", "--kl-divergence-base", tmp_path / "baseline.logits")
    printed = llama_perplexity("-m", paths[1], *base)
    kl, change = ours["kl"], ours["delta_p"]

    assert kl["value"] == pytest.approx(figure("Mean    KLD", printed), rel=0.02)
    assert kl["percentiles"]["99.0"] == pytest.approx(figure("99.0%   KLD", printed), rel=0.05)
    assert 100 * ours["same_top"]["value"] == pytest.approx(figure("Same top p", printed), abs=1)
    assert 100 * change["rms"]["value"] == pytest.approx(figure("RMS \u0394p", printed), abs=0.01)
    assert ours["ln_perplexity_ratio"]["value"] == pytest.approx(
        figure("Mean ln(PPL(Q)/PPL(base))", printed), abs=1e-3
    )
