"""What a GGUF file says: its tokenizer rebuilt, and the text that its model continues with."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import AutoTokenizer

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.executor import Event, Executor, Request
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.samples import NAMES, sample_folder

pytestmark = pytest.mark.slow

MakeModel = Callable[..., Path]
WriteGguf = Callable[..., Path]
Refusal = Callable[..., str]
CORPUS = (sample_folder(NAMES[0]).parent / "corpus.txt").read_text(encoding="utf-8")
DOCUMENTS = CORPUS.strip().split("\n\n")
UNUSUAL = "  two  spaces\tand\n\nlines, l'été, 太陽系, ½ 1234567 <|end_of_text|> <0x41> ▁ \u200b🪐"
KEY = "tokenizer.ggml"


def continuations(checkpoint: Path, prompts: list[str]) -> list[str]:
    """Return the greedy text of each prompt."""
    opened = Checkpoint.open(checkpoint)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    executor = Executor(ReferenceModel(opened, slots=4, max_seq_len=160))
    events: list[list[Event]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        ids = tuple(tokenizer.encode(prompt).ids)
        executor.submit(Request(str(index), ids, 60), events[index].append)
    while executor.step():
        pass
    return [tokenizer.decode([t for event in news for t in event.tokens]) for news in events]


@pytest.mark.parametrize("name", NAMES)
def test_a_q8_0_file_continues_texts_as_its_source_model_does(
    name: str, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    path = write_gguf(sample_folder(name), tmp_path / "model.gguf", "Q8_0")
    convert(str(path), tmp_path / "quantized", ConvertOptions())
    convert(str(sample_folder(name)), tmp_path / "source", ConvertOptions())
    # Where a prompt ends within a word the next token is a guess, and rounding may decide it.
    prompts = [" ".join(document.split()[:8]) for document in DOCUMENTS[:8]]
    expected = continuations(tmp_path / "source", prompts)

    assert continuations(tmp_path / "quantized", prompts) == expected
    assert expected[0].startswith(" family of worlds held together by the gravity of one")


@pytest.fixture(scope="module")
def rebuilt(write_gguf: WriteGguf, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the checkpoint of a sample that went through a GGUF file."""
    folder = tmp_path_factory.mktemp("rebuilt")
    path = write_gguf(sample_folder(NAMES[0]), folder / "model.gguf")
    convert(str(path), folder / "checkpoint", ConvertOptions())
    return folder / "checkpoint"


def test_the_rebuilt_tokenizer_encodes_and_decodes_as_the_original(rebuilt: Path) -> None:
    original = Tokenizer.from_file(str(sample_folder(NAMES[0]) / "tokenizer.json"))
    ours = Tokenizer.from_file(str(rebuilt / "tokenizer.json"))
    for text in (*DOCUMENTS, CORPUS, UNUSUAL, ""):
        ids = original.encode(text).ids

        assert ours.encode(text).ids == ids
        assert ours.decode(ids) == original.decode(ids)
        assert ours.decode(ids, skip_special_tokens=False) == original.decode(
            ids, skip_special_tokens=False
        )
    assert ours.encode("a", "b").ids == original.encode("a", "b").ids
    assert ours.get_vocab() == original.get_vocab()


@given(text=st.text())
def test_the_rebuilt_tokenizer_encodes_any_text_as_the_original(text: str, rebuilt: Path) -> None:
    original = Tokenizer.from_file(str(sample_folder(NAMES[0]) / "tokenizer.json"))
    ours = Tokenizer.from_file(str(rebuilt / "tokenizer.json"))

    assert ours.encode(text).ids == original.encode(text).ids


def test_transformers_loads_the_rebuilt_tokenizer_with_its_special_tokens(rebuilt: Path) -> None:
    ours: Any = AutoTokenizer.from_pretrained(rebuilt)
    original: Any = AutoTokenizer.from_pretrained(sample_folder(NAMES[0]))

    assert ours(CORPUS)["input_ids"] == original(CORPUS)["input_ids"]
    assert (ours.bos_token, ours.eos_token) == (original.bos_token, original.eos_token)
    assert ours.model_max_length == original.model_max_length


def pieces_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return a trained SentencePiece-like tokenizer's facts as its GGUF file has them."""
    record = json.loads(tokenizer.to_str())["model"]
    ranks = {left + right: rank for rank, (left, right) in enumerate(record["merges"])}
    tokens = [token for token, _ in sorted(record["vocab"].items(), key=lambda item: item[1])]
    # The scores say what goes first, not the ids.
    random.Random(3).shuffle(tokens)
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, **{f"<0x{byte:02X}>": 6 for byte in range(256)}}
    return {
        f"{KEY}.model": "llama",
        f"{KEY}.pre": "default",
        f"{KEY}.tokens": [*tokens, "[PAD1]", "[PAD2]", "[TOOL]"],
        f"{KEY}.token_type": [*(kinds.get(token, 1) for token in tokens), 5, 5, 4],
        # Pieces that no merge makes, the single characters, come last.
        f"{KEY}.scores": [*(-float(ranks.get(token, 1e6)) for token in tokens), -1e4, -1e4, 0.0],
        f"{KEY}.merges": None,
        f"{KEY}.bos_token_id": tokens.index("<s>"),
        f"{KEY}.eos_token_id": tokens.index("</s>"),
        f"{KEY}.unknown_token_id": tokens.index("<unk>"),
        f"{KEY}.padding_token_id": tokens.index("<unk>"),
    }


@pytest.fixture(scope="module")
def pieces() -> dict[str, Any]:
    """Return the facts of a small SentencePiece vocabulary of the corpus."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=special, show_progress=False, max_token_length=12
    )
    tokenizer.train_from_iterator([t.replace("太", "") for t in DOCUMENTS], trainer)
    return pieces_of(tokenizer)


def joined(text: str, facts: dict[str, Any]) -> list[str]:
    """Tokenize as SentencePiece defines it: join the best-scored neighbours, leftmost first."""
    scores = {
        token: score
        for token, score, kind in zip(
            *(facts[f"{KEY}.{key}"] for key in ("tokens", "scores", "token_type")), strict=True
        )
        if kind == 1
    }
    parts = list("▁" + text.replace(" ", "▁"))
    while True:
        pairs = [
            (-scores[left + right], at)
            for at, (left, right) in enumerate(pairwise(parts))
            if left + right in scores
        ]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    unknown = [
        [part] if part in scores else [f"<0x{byte:02X}>" for byte in part.encode()]
        for part in parts
    ]
    return [part for group in unknown for part in group]


@pytest.fixture(scope="module")
def sentencepiece(
    pieces: dict[str, Any],
    write_gguf: WriteGguf,
    make_model: MakeModel,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """Return the checkpoint of a GGUF file with a SentencePiece vocabulary."""
    folder = tmp_path_factory.mktemp("pieces")
    source = make_model("nemotron", vocab_size=len(pieces[f"{KEY}.tokens"]), hidden_size=64)
    path = write_gguf(source, folder / "model.gguf", "F16", facts=pieces)
    convert(str(path), folder / "checkpoint", ConvertOptions())
    return folder / "checkpoint"


def test_a_sentencepiece_vocabulary_joins_pieces_by_their_scores(
    sentencepiece: Path, pieces: dict[str, Any]
) -> None:
    tokenizer = Tokenizer.from_file(str(sentencepiece / "tokenizer.json"))
    for text in [*DOCUMENTS[:12], "naïve 太陽 🪐 l'été", "  spaces  inside  ", "x"]:
        encoded = tokenizer.encode(text)

        assert encoded.tokens == ["<s>", *joined(text, pieces)]
        assert tokenizer.decode(encoded.ids) == text


def test_a_sentencepiece_vocabulary_keeps_its_special_tokens(sentencepiece: Path) -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(sentencepiece)
    ids = tokenizer("a</s>[TOOL]b[PAD1]")["input_ids"]
    tokens = tokenizer.convert_ids_to_tokens(ids)

    assert tokens[0] == "<s>"
    assert "</s>" in tokens
    assert "[TOOL]" in tokens
    assert "[PAD1]" not in tokenizer.get_vocab()
    assert (tokenizer.unk_token, tokenizer.pad_token) == ("<unk>", "<unk>")
    assert tokenizer.decode(ids, skip_special_tokens=True) == "a[TOOL] b[PAD1]"


@pytest.mark.parametrize(
    ("facts", "first", "last"),
    [
        ({}, 1022, None),
        ({f"{KEY}.add_bos_token": False}, None, None),
        ({f"{KEY}.add_bos_token": True, f"{KEY}.add_eos_token": True}, 1022, 1023),
        ({f"{KEY}.bos_token_id": None}, None, None),
        ({f"{KEY}.pre": "gpt-2"}, None, None),
    ],
    ids=["as llama does", "neither", "both", "no token", "as GPT-2 does"],
)
def test_the_file_says_what_goes_around_a_text(
    facts: dict[str, Any],
    first: int | None,
    last: int | None,
    write_gguf: WriteGguf,
    tmp_path: Path,
) -> None:
    path = write_gguf(sample_folder(NAMES[0]), tmp_path / "model.gguf", facts=facts)
    convert(str(path), tmp_path / "out", ConvertOptions())
    tokenizer = Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
    bare = tokenizer.encode("the Sun", add_special_tokens=False).ids
    around = [[token] if token is not None else [] for token in (first, last)]

    assert tokenizer.encode("the Sun").ids == [*around[0], *bare, *around[1]]
    assert tokenizer.decode(bare) == "the Sun"


def test_a_text_ends_at_the_end_of_a_turn_as_well(write_gguf: WriteGguf, tmp_path: Path) -> None:
    facts = {f"{KEY}.eot_token_id": 7, "tokenizer.chat_template": "{{ messages }}"}
    path = write_gguf(sample_folder(NAMES[0]), tmp_path / "model.gguf", facts=facts)
    convert(str(path), tmp_path / "out", ConvertOptions())
    tokens = Checkpoint.open(tmp_path / "out").tokens

    assert (tokens.bos_id, tokens.eos_ids) == (1022, (1023, 7))
    loaded: Any = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert loaded.chat_template == "{{ messages }}"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (
            {f"{KEY}.pre": "viking"},
            "SOURCE splits text as 'viking' does; known are llama-bpe, llama3, llama-v3, "
            "smaug-bpe, tekken, gpt-2: put the model's tokenizer.json beside the file",
        ),
        (
            {f"{KEY}.model": "rwkv"},
            "SOURCE has a tokenizer of type 'rwkv'; read are 'gpt2' and 'llama': put the model's "
            "tokenizer.json beside the file",
        ),
        (
            {f"{KEY}.pre": None},
            "SOURCE does not say how it splits text (no tokenizer.ggml.pre, as before May 2024); "
            "put the model's tokenizer.json beside the file",
        ),
    ],
    ids=["unknown splitting", "unknown kind", "before splittings had names"],
)
def test_a_tokenizer_that_cannot_be_rebuilt_is_named_unless_its_own_file_lies_beside(
    facts: dict[str, Any],
    message: str,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tmp_path: Path,
) -> None:
    source = sample_folder(NAMES[0])
    path = write_gguf(source, tmp_path / "model.gguf", facts=facts)

    assert refusal(path, 4) == message
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    convert(str(path), tmp_path / "out", ConvertOptions())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()


def test_a_files_neighbour_is_not_followed_out_of_the_folder(
    write_gguf: WriteGguf, refusal: Refusal, tmp_path: Path
) -> None:
    (tmp_path / "model").mkdir()
    facts = {"tokenizer.ggml.model": "rwkv"}
    path = write_gguf(sample_folder(NAMES[0]), tmp_path / "model" / "model.gguf", facts=facts)
    (tmp_path / "secret").write_text("secret")
    link = path.parent / "tokenizer.json"
    link.symlink_to(tmp_path / "secret")

    assert refusal(path, 3) == (
        f"{link} leads to {tmp_path}/secret, outside the model folder; copy the file in"
    )


def test_a_file_without_a_tokenizer_is_converted_without_one(
    tiny_llama: Path,
    write_gguf: WriteGguf,
    command: Callable[..., Any],
    tmp_path: Path,
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "model.gguf", "BF16")
    result = command("convert", path, "-o", tmp_path / "out")

    assert result.exit_code == 0
    assert result.stderr == (f"warning: {path} has no tokenizer; serving text will need one\n")
    assert not (tmp_path / "out" / "tokenizer.json").exists()
