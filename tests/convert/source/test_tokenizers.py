"""Whatever files a tokenizer has, what is written has the same ids in each transformers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.only_5 import marking_5
from tests.triton_repo.models.tokenizers_of_kinds import byte_level
from tokenizers import Tokenizer
from transformers import AutoTokenizer, LlamaTokenizer

from minitron_trt.convert.source.sentencepiece_model import SentencePieceModel
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer, token_ids
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.samples import sample_folder

CORPUS = sample_folder("solar-llama").with_name("corpus.txt")
TEXTS = (
    "Our solar system is a family of worlds.",
    "x = [1, 2.5]  # two  spaces",
    "Grüße, 世界! 👩‍🚀\n\n\ttab",
    "a planet</s> and a moon",
    "<tool> the sun",
    "",
)
SPACED = (" a space before", "three   spaces ", "\u2460 \ufb01 \u00a0 wide")
LLAMA = {
    "tokenizer_class": "LlamaTokenizer",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "add_bos_token": True,
    "add_eos_token": False,
    "legacy": False,
}
MODEL = Path(__file__).with_name("sentencepiece.model")
"""Made by SentencePiece of the samples' corpus: 500 pieces, BPE, bytes, the prefix of a space."""

# Trains a model in the current folder and prints SentencePiece's own ids of texts.
SENTENCEPIECE = """
import json, sys
import sentencepiece
path, options, texts = json.load(sys.stdin)
if options is not None:
    sentencepiece.SentencePieceTrainer.train(model_prefix="tokenizer", minloglevel=2, **options)
tokenizer = sentencepiece.SentencePieceProcessor(model_file=path)
print(json.dumps([tokenizer.encode(text) for text in texts]))
"""
# Prints the ids of texts and the special tokens of the tokenizers in some folders.
TRANSFORMERS = """
import json, sys
from transformers import AutoTokenizer
folders, texts = json.load(sys.stdin)
tokenizers = [AutoTokenizer.from_pretrained(f, local_files_only=True) for f in folders]
print(json.dumps([
    [[t(text)["input_ids"] for text in texts], t.bos_token_id, t.eos_token_id, t.pad_token_id,
     sorted(t.all_special_ids), t.chat_template]
    for t in tokenizers
]))
"""
Write = Callable[[Path], None]


def ask(program: str, question: Any, cwd: Path) -> Any:
    """Return what a program answers in the environment that PYTHON_457 names.

    SentencePiece cannot be loaded beside the libraries here: it ends the process.
    """
    python = os.environ.get("PYTHON_457")
    if not python:
        pytest.skip("NOT TESTED, PYTHON_457 names no Python that has transformers 4.57")
    result = subprocess.run(
        [python, "-c", program],
        input=json.dumps(question),
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
    )
    if "No module named 'sentencepiece'" in result.stderr:
        pytest.skip("NOT TESTED, the environment of PYTHON_457 lacks sentencepiece")
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def write_config(folder: Path, **config: Any) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def saved_by_5(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(sample_folder("solar-llama"))
    tokenizer.add_special_tokens({"extra_special_tokens": ["<tool>"], "pad_token": "<pad>"})
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "TokenizersBackend"
    assert isinstance(config["extra_special_tokens"], list)


def llama_saved_by_5(folder: Path) -> None:
    model = SentencePieceModel.read(MODEL)
    merges = model.model()["merges"]
    make: Any = LlamaTokenizer
    make(vocab=model.ids, merges=merges, add_bos_token=False, legacy=False).save_pretrained(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    # 4.57 would begin texts with <s>.
    assert config["tokenizer_class"] == "LlamaTokenizer"
    assert "add_bos_token" not in config


def without_class(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(sample_folder("solar-llama") / name, folder / name)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["tokenizer_class"]
    write_config(folder, **config)


def llama(folder: Path, **changes: Any) -> None:
    shutil.copyfile(MODEL, folder / "tokenizer.model")
    write_config(folder, **{**LLAMA, **changes})


def gpt2(folder: Path) -> None:
    record = json.loads(byte_level(spaced=False).backend_tokenizer.to_str())["model"]
    vocab = {**record["vocab"], "<|endoftext|>": len(record["vocab"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    merges = "\n".join(" ".join(pair) for pair in record["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    write_config(folder, tokenizer_class="GPT2Tokenizer")


def with_processors_template(folder: Path) -> None:
    without_class(folder)
    template = {"chat_template": "{{ messages[0]['content'] }}"}
    (folder / "chat_template.json").write_text(json.dumps(template))


KINDS: dict[str, Write] = {
    "saved by transformers 5": saved_by_5,
    "a Llama tokenizer saved by transformers 5": llama_saved_by_5,
    "no class": without_class,
    "tokenizer.model": llama,
    "vocab.json and merges.txt": gpt2,
}


def written(source: Path, folder: Path) -> Path:
    """Write a folder's tokenizer as convert does."""
    folder.mkdir()
    SourceTokenizer.find(source).write(folder)
    return folder


def read_by_5(folder: Path) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return [
        [tokenizer(text)["input_ids"] for text in TEXTS],
        tokenizer.bos_token_id,
        tokenizer.eos_token_id,
        tokenizer.pad_token_id,
        sorted(tokenizer.all_special_ids),
        tokenizer.chat_template,
    ]


@pytest.mark.parametrize(
    "kind",
    marking_5(
        [kind for kind in KINDS if kind != "tokenizer.model"],
        "saved by transformers 5",
        "a Llama tokenizer saved by transformers 5",
        "no class",
    ),
)
def test_what_is_written_reads_as_the_source_does(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    KINDS[kind](source)
    folder = written(source, tmp_path / "written")

    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (folder / "tokenizer.json").is_file()
    assert read_by_5(folder) == read_by_5(source)


@pytest.mark.transformers_5
def test_transformers_4_57_reads_what_is_written_as_5_does(tmp_path: Path) -> None:
    folders = []
    for number, write in enumerate(KINDS.values()):
        source = tmp_path / f"source {number}"
        source.mkdir()
        write(source)
        folders.append(written(source, tmp_path / f"written {number}"))

    theirs = ask(TRANSFORMERS, [[str(folder) for folder in folders], TEXTS], tmp_path)

    assert theirs == [read_by_5(folder) for folder in folders]


@pytest.mark.parametrize(
    ("changes", "tokens"),
    [
        ({}, "<s> ▁ O u r </s> ▁ s u n"),
        ({"legacy": True}, "<s> ▁ O u r </s> ▁ ▁ s u n"),
        ({"add_bos_token": False}, "▁ O u r </s> ▁ s u n"),
        ({"add_eos_token": True}, "<s> ▁ O u r </s> ▁ s u n </s>"),
        ({"add_prefix_space": False}, "<s> O u r </s> ▁ s u n"),
    ],
    ids=str,
)
def test_a_llama_tokenizer_does_what_its_config_says(
    changes: dict[str, Any], tokens: str, tmp_path: Path
) -> None:
    (tmp_path / "source").mkdir()
    llama(tmp_path / "source", **changes)
    folder = written(tmp_path / "source", tmp_path / "written")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    ids = tokenizer("Our</s> sun")["input_ids"]

    assert tokenizer.convert_ids_to_tokens(ids) == tokens.split()
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).split() == ["Our", "sun"]


@pytest.mark.parametrize(
    "options",
    [
        None,
        {},
        {"add_dummy_prefix": False},
        {"remove_extra_whitespaces": True},
        {"normalization_rule_name": "nmt_nfkc"},
        {"normalization_rule_name": "nmt_nfkc_cf", "remove_extra_whitespaces": True},
        {"user_defined_symbols": "<tool>,<turn>", "add_dummy_prefix": False},
        {"model_type": "unigram"},
    ],
    ids=str,
)
def test_a_model_by_itself_has_the_ids_of_sentencepiece(
    options: dict[str, Any] | None, tmp_path: Path
) -> None:
    path = MODEL if options is None else tmp_path / "tokenizer.model"
    usual = {
        "input": str(CORPUS),
        "vocab_size": 500,
        "model_type": "bpe",
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
    }
    texts = (*TEXTS[:3], *TEXTS[4:], *SPACED)
    training = None if options is None else {**usual, **options}
    theirs = ask(SENTENCEPIECE, [str(path), training, texts], tmp_path)
    record = SentencePieceModel.read(path).tokenizer_json()
    tokenizer = Tokenizer.from_str(json.dumps(record))

    assert [tokenizer.encode(text).ids for text in texts] == theirs


def test_a_chat_template_of_a_processor_becomes_the_tokenizers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with_processors_template(source)
    folder = written(source, tmp_path / "written")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)

    assert tokenizer.chat_template == "{{ messages[0]['content'] }}"


def test_files_that_every_transformers_reads_stay_as_they_are(tmp_path: Path) -> None:
    folder = written(sample_folder("solar-llama"), tmp_path / "written")

    for path in folder.iterdir():
        assert path.read_bytes() == (sample_folder("solar-llama") / path.name).read_bytes()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"legacy": None}, "does not state legacy, true to transformers 4.57 and false to 5"),
        ({"legacy": None, "add_bos_token": None}, "does not state add_bos_token and legacy"),
        ({"tokenizer_class": None}, "without tokenizer_class in tokenizer_config.json"),
        ({"tokenizer_class": "T5Tokenizer"}, "of class T5Tokenizer; a tokenizer.json is made of"),
    ],
    ids=str,
)
def test_what_transformers_4_57_and_5_read_in_two_ways_is_refused(
    config: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(b"")
    write_config(tmp_path, **{**LLAMA, **config})

    with pytest.raises(UnsupportedError, match=words):
        SourceTokenizer.find(tmp_path).check()


@pytest.mark.parametrize(
    ("tokenizer", "ids"),
    [
        ({"model": {"vocab": {"a": 0, "b": "1"}}}, {"a": 0}),
        ({"model": {"vocab": [["a", -1.5], [], [["b"], 0], "c", ["d", 0]]}}, {"a": 0, "d": 4}),
        ({"added_tokens": [{"content": ["a"], "id": 1}, {"id": 2}, None]}, {}),
        ({"model": [], "added_tokens": {}}, {}),
    ],
    ids=["BPE", "Unigram", "added", "neither"],
)
def test_tokens_that_are_not_understood_have_no_id(
    tokenizer: dict[str, Any], ids: dict[str, int]
) -> None:
    assert token_ids(tokenizer) == ids


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.model", b""),
        ("tokenizer.model", b"IQ== 0\nIg== 1\n"),
        ("tokenizer.model", b"\x0a\x05\x0a\x03abc\x0a\xff"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b"[]"),
    ],
    ids=["empty", "tiktoken", "cut", "no JSON", "no object"],
)
def test_damaged_files_are_named(name: str, data: bytes, tmp_path: Path) -> None:
    write_config(tmp_path, **LLAMA)
    (tmp_path / name).write_bytes(data)

    with pytest.raises(BadInputError, match=name):
        SourceTokenizer.find(tmp_path).check()


@pytest.mark.parametrize("stated", ["<b>", 1, True])
def test_special_tokens_under_both_names_are_lists(stated: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    both = {"extra_special_tokens": ["<a>"], "additional_special_tokens": stated}
    write_config(tmp_path, tokenizer_class="TokenizersBackend", **both)

    with pytest.raises(BadInputError, match=r"additional_special_tokens is .*; expected a list$"):
        SourceTokenizer.find(tmp_path).check()
