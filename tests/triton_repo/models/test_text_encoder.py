"""Prompts and words become ids as the Hugging Face tokenizer has them; what is wrong is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minitron_models.text_encoder import TextEncoder, TextTensors, pack_words
from tests.triton_repo.models.tokenizers_of_kinds import TOKENIZERS

from minitron_trt.samples import sample_folder

TOKENIZER = TOKENIZERS["sample"]
BOS, EOS = 1022, 1023
TEMPLATE = "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}<assistant>"


def encoder(folder: Path, **parameters: str) -> TextEncoder:
    """Return the encoder of a model whose tokenizer lies in a folder."""
    given = {
        "tokenizer_dir": str(folder),
        "end_ids": f"[{EOS}, 7, 8]",
        "vocab_size": "1030",
        "max_prompt_characters": "1000",
        **parameters,
    }
    config = {"parameters": {key: {"string_value": value} for key, value in given.items()}}
    args = {"model_repository": "/", "model_version": "1", "model_name": "preprocessing"}
    return TextEncoder({**args, "model_config": json.dumps(config)})


@pytest.fixture(scope="module")
def plain() -> TextEncoder:
    """The encoder of a repository as it is written."""
    return encoder(sample_folder("solar-llama"))


@pytest.fixture(scope="module")
def chatting(tmp_path_factory: pytest.TempPathFactory) -> TextEncoder:
    """An encoder whose tokenizer has a chat template."""
    folder = tmp_path_factory.mktemp("chat") / "tokenizer"
    shutil.copytree(sample_folder("solar-llama"), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": TEMPLATE}))
    return encoder(folder)


def strings(*texts: str | bytes) -> np.ndarray[Any, Any]:
    """Return a request's tensor of strings."""
    return np.array([[t.encode() if isinstance(t, str) else t for t in texts]], np.object_)


def ids_of(text: str, *, special: bool = False) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=special)["input_ids"])


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("text", ["Mars", " Mars", "<|end_of_text|> x", "火星 e\u0301 \u200d"])
def test_a_prompt_has_the_ids_of_the_tokenizer(special: bool, text: str) -> None:
    made = encoder(sample_folder("solar-llama"), add_special_tokens=json.dumps(special))

    prompt = made.encode(TextTensors(strings(text)))

    assert prompt.ids == TOKENIZER(text, add_special_tokens=special)["input_ids"]
    assert prompt.inputs["input_lengths"].tolist() == [[len(prompt.ids)]]


def test_every_end_id_ends_a_text_and_nothing_else_is_sent(plain: TextEncoder) -> None:
    inputs = plain.encode(TextTensors(strings("x"))).inputs

    assert sorted(inputs) == ["end_id", "input_ids", "input_lengths", "pad_id", "stop_words_list"]
    assert inputs["end_id"].tolist() == inputs["pad_id"].tolist() == [[EOS]]
    assert inputs["stop_words_list"].tolist() == [[[7, 8], [1, 2]]]


def test_a_clients_end_id_replaces_them(plain: TextEncoder) -> None:
    inputs = plain.encode(TextTensors(strings("x"), end_id=5, pad_id=6)).inputs

    assert (inputs["end_id"].item(), inputs["pad_id"].item()) == (5, 6)
    assert "stop_words_list" not in inputs


def test_words_are_spelt_as_at_a_start_and_after_a_space(plain: TextEncoder) -> None:
    given = TextTensors(strings("x"), strings("Mars", ""), strings("star"), end_id=5)
    prompt = plain.encode(given)

    stop, bad = ([ids_of(word), ids_of(f" {word}")] for word in ("Mars", "star"))
    assert prompt.words == ("Mars",)
    assert (prompt.inputs["stop_words_list"] == pack_words(stop)).all()
    assert (prompt.inputs["bad_words_list"] == pack_words(bad)).all()


def test_a_bias_covers_the_models_vocabulary_and_adds_up(plain: TextEncoder) -> None:
    weights = np.array([[1.5, -2.0]], np.float32)
    given = TextTensors(strings("x"), bias_words=strings("ab", "ab"), bias_weights=weights)

    bias = plain.encode(given).inputs["embedding_bias"]

    assert bias.shape == (1, 1030)
    assert {int(i) for i in np.flatnonzero(bias)} == set(ids_of("ab"))
    assert bias.dtype == np.float32
    assert bias[0, ids_of("ab")[0]] == -0.5


def test_virtual_tokens_get_the_tables_id(plain: TextEncoder) -> None:
    prompt = plain.encode(TextTensors(strings("Mars"), table_id=2**63))

    extra = prompt.inputs["prompt_table_extra_ids"]
    assert extra.dtype == np.uint64
    assert extra.tolist() == [[0] * len(prompt.ids)]


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("Why?", "<user>Why?<assistant>"),
        ("[1, 2]", "<user>[1, 2]<assistant>"),
        (
            '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]',
            "<system>Be brief.<user>Why?<assistant>",
        ),
    ],
    ids=["message", "message that is JSON", "messages"],
)
def test_a_chat_goes_through_the_tokenizers_template(
    chatting: TextEncoder, text: str, rendered: str
) -> None:
    assert chatting.encode(TextTensors(strings(text), chat=True)).ids == ids_of(rendered)
    assert chatting.encode(TextTensors(strings(text))).ids == ids_of(text, special=True)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (TextTensors(None), "text_input holds 0 texts"),
        (TextTensors(strings("a", "b")), "text_input holds 2 texts"),
        (TextTensors(strings("")), "text_input is empty"),
        (TextTensors(strings(b"\xff")), "text_input is not UTF-8: invalid start byte at byte 0"),
        (TextTensors(strings("x"), strings(b"a\xe6")), "stop_words is not UTF-8"),
        (TextTensors(strings("x"), None, strings(b"\xe6")), "bad_words is not UTF-8"),
        (TextTensors(strings("x"), strings("a" * 99999)), "stop_words"),
        (TextTensors(strings("x"), bias_words=strings("a")), "1 words but .*weights 0 weights"),
        (TextTensors(strings("x"), chat=True), "no chat template"),
        (TextTensors(strings("a" * 1001)), "text_input has 1001 characters; expected at most 1000"),
        (TextTensors(strings("x"), None, strings("a" * 2**20)), "bad_words are longer than 16384"),
        (TextTensors(strings("x"), None, strings(*"ab" * 513)), "bad_words holds 1026 words"),
        (TextTensors(strings("x"), strings(*"ab" * 513)), "stop_words holds 1026 words"),
        (
            TextTensors(
                strings("x"),
                bias_words=strings("a" * 2**20),
                bias_weights=np.zeros((1, 1), np.float32),
            ),
            "embedding_bias_words are longer than 16384",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_by_the_tensors_name(
    plain: TextEncoder, given: TextTensors, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        plain.encode(given)


@pytest.mark.parametrize("chat", ["{}", '[{{"role": "user", "content": "{}"}}]'], ids=str)
def test_a_chat_is_bounded_by_the_prompt_that_it_becomes(chatting: TextEncoder, chat: str) -> None:
    """The template adds 17 characters; JSON may write each in six, and the template drop any."""
    letter = "a" if chat == "{}" else "\\u0061"
    fits, exceeds = (
        TextTensors(strings(chat.format(letter * count)), chat=True) for count in (983, 984)
    )

    assert chatting.encode(fits).ids == ids_of(f"<user>{'a' * 983}<assistant>")
    with pytest.raises(ValueError, match="text_input has 1001 characters"):
        chatting.encode(exceeds)
    with pytest.raises(ValueError, match="text_input has 8001 characters; expected at most 8000"):
        chatting.encode(TextTensors(strings("[" * 8001), chat=True))


def test_json_too_deep_for_python_is_a_message(chatting: TextEncoder) -> None:
    with pytest.raises(ValueError, match="text_input has 7017 characters"):
        chatting.encode(TextTensors(strings("[" * 7000), chat=True))


def test_a_message_without_a_role_is_refused(chatting: TextEncoder) -> None:
    with pytest.raises(ValueError, match="role or content"):
        chatting.encode(TextTensors(strings('[{"content": "x"}]'), chat=True))


def test_a_message_in_parts_is_their_text(chatting: TextEncoder) -> None:
    parts = [{"type": "text", "text": "Why?"}, "Say it.", {"text": "Now."}]
    chat = json.dumps([{"role": "user", "content": parts}])

    made = chatting.encode(TextTensors(strings(chat), chat=True))

    assert made.ids == ids_of("<user>Why?\nSay it.\nNow.<assistant>")


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, "a part of type 'image_url'"),
        ({"type": "text"}, "a part that lacks its text"),
        ({"type": "text", "text": 7}, "a part that lacks its text"),
        (7, "a part of type 7"),
        (None, "a part of type None"),
    ],
    ids=str,
)
def test_a_part_that_is_no_text_is_refused(chatting: TextEncoder, part: Any, words: str) -> None:
    chat = json.dumps([{"role": "user", "content": [part]}])

    with pytest.raises(ValueError, match=words):
        chatting.encode(TextTensors(strings(chat), chat=True))


def test_a_pad_token_past_the_vocabulary_is_not_sent(tmp_path: Path) -> None:
    folder = shutil.copytree(sample_folder("solar-llama"), tmp_path / "tokenizer")
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": "<pad>"}))

    past, within = (
        encoder(folder, vocab_size=size).encode(TextTensors(strings("x"))).inputs["pad_id"].item()
        for size in ("1024", "1025")
    )

    assert (past, within) == (EOS, 1024)


@pytest.mark.parametrize(
    ("words", "packed"),
    [
        ([[7]], [[[7], [1]]]),
        ([[7, 8], [9]], [[[7, 8, 9], [2, 3, -1]]]),
    ],
    ids=["one", "two"],
)
def test_words_are_packed_as_tensorrt_llm_packs_them(
    words: list[list[int]], packed: list[list[list[int]]]
) -> None:
    made = pack_words(words)

    assert made is not None
    assert made.dtype == np.int32
    assert made.tolist() == packed
    assert pack_words([]) is None
