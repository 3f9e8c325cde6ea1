"""The tokens of a GGUF file: what each is for, and which end an answer, as llama.cpp takes them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_trt.convert.gguf.file import GgufFile
from minitron_trt.convert.gguf.tensor_origins import GgufModel
from minitron_trt.convert.gguf.vocabulary import Vocabulary

WriteGguf = Callable[..., Path]
Refusal = Callable[..., str]
Read = Callable[..., Vocabulary]
KEY = "tokenizer.ggml"
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)


def facts_of(tokens: list[Any], **facts: Any) -> dict[str, Any]:
    """Return the facts of a byte-level vocabulary, with others added or replaced."""
    plain = {"model": "gpt2", "pre": "gpt-2", "tokens": tokens}
    return {f"{KEY}.{key}": value for key, value in {**plain, **facts}.items()}


@pytest.fixture
def read(write_gguf: WriteGguf, tiny_llama: Path, tmp_path: Path) -> Read:
    """Return a reader of the vocabulary with some facts in a file."""

    def run(tokens: list[str], **facts: Any) -> Vocabulary:
        path = write_gguf(tiny_llama, tmp_path / "m.gguf", "BF16", facts=facts_of(tokens, **facts))
        vocabulary = GgufModel.read(GgufFile.open(path)).vocabulary
        assert vocabulary is not None
        return vocabulary

    return run


def test_without_types_what_is_named_or_looks_special_is(read: Read) -> None:
    tokens = ["[B]", "[E]", "a", "<|tool|>", "[U]", "<|b", "[T]", "[P]"]
    ids = {"bos": 0, "eos": 1, "unknown": 4, "eot": 6, "padding": 7}
    vocabulary = read(tokens, **{f"{name}_token_id": index for name, index in ids.items()})

    assert vocabulary.types == [
        *(CONTROL, CONTROL, NORMAL, CONTROL, UNKNOWN, NORMAL, CONTROL, CONTROL)
    ]


def test_sentencepiece_without_types_and_ids_has_those_of_llama(read: Read) -> None:
    tokens = ["<unk>", "<s>", "</s>", "<0x0A>", "a"]
    vocabulary = read(tokens, model="llama", pre=None, scores=[0.0] * 5)

    assert vocabulary.types == [UNKNOWN, CONTROL, CONTROL, BYTE, NORMAL]
    assert vocabulary.special == {"unknown": 0, "bos": 1, "eos": 2}
    assert vocabulary.ends() == [2]


@pytest.mark.parametrize(
    ("tokens", "ids", "ends"),
    [
        (["a", "b", "c"], {}, []),
        (["a", "b", "c"], {"eos": 1}, [1]),
        (["a", "b", "c"], {"eos": 2, "eot": 0, "eom": 1}, [2, 0, 1]),
        (["a", "<|eot_id|>", "b", "<|eom_id|>"], {"eos": 2}, [2, 1, 3]),
        (["<|im_end|>", "a", "<|endoftext|>"], {"eos": 2}, [2, 0]),
        (["a", "<|fim_pad|>", "b"], {"eos": 2}, [2, 1]),
        # The one by id is meant, and not what has such a name.
        (["a", "<|fim_pad|>", "b"], {"eos": 2, "fim_pad": 0}, [2, 0]),
    ],
)
def test_an_answer_ends_by_id_and_by_name(
    tokens: list[str], ids: dict[str, int], ends: list[int], read: Read
) -> None:
    facts = {f"{name}_token_id": index for name, index in ids.items()}

    assert read(tokens, token_type=[NORMAL] * len(tokens), **facts).ends() == ends


def test_what_ends_an_answer_by_name_is_special_whatever_its_type(read: Read) -> None:
    vocabulary = read(["a", "<|im_end|>", "b"], token_type=[NORMAL, USER_DEFINED, UNUSED])

    assert vocabulary.types == [NORMAL, CONTROL, UNUSED]
    assert vocabulary.known() == {"a": 0, "<|im_end|>": 1}


def test_tokens_without_text_get_a_name(read: Read) -> None:
    assert read(["a", "", ""]).tokens == ["a", "[EMPTY_1]", "[EMPTY_2]"]


def test_an_id_past_the_tokens_is_left_out_with_a_warning(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        vocabulary = read(["a", "b"], padding_token_id=2, eos_token_id=1)

    assert vocabulary.special == {"eos": 1}
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
        "tokenizer.ggml.padding_token_id is 2 of 2 tokens; it is left out"
    ]


@pytest.mark.parametrize(
    ("tokens", "facts", "message"),
    [
        (
            [f"t{index}" for index in range(132)],
            {},
            "SOURCE has 132 tokens but its embedding 131 rows; llama.cpp does not load it either: "
            "convert the model again",
        ),
        (["a", "b", "a"], {}, "SOURCE has token 'a' twice; download it again"),
        ([1, 2], {}, f"SOURCE: {KEY}.tokens has what is no text; download it again"),
        (["a"], {"token_type": [1, 1]}, "SOURCE has 1 tokens but 2 types of tokens"),
        (
            ["a"],
            {"model": "llama", "scores": ["b"]},
            "SOURCE has scores that are no numbers",
        ),
    ],
    ids=["more than rows", "twice", "numbers", "types", "scores"],
)
def test_tokens_that_do_not_fit_are_refused(
    tokens: list[Any],
    facts: dict[str, Any],
    message: str,
    write_gguf: WriteGguf,
    refusal: Refusal,
    tiny_llama: Path,
    tmp_path: Path,
) -> None:
    path = write_gguf(tiny_llama, tmp_path / "m.gguf", "BF16", facts=facts_of(tokens, **facts))

    assert refusal(path, 3) == message
