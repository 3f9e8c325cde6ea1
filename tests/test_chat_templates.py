"""Chat templates by name, of a file and of a tokenizer's folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_trt.chat_templates import PLAIN, read_template
from minitron_trt.errors import MissingExtraError, UsageError
from minitron_trt.families import FAMILIES

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "What is a planet?"},
    {"role": "assistant", "content": "A world."},
    {"role": "user", "content": "And a moon?"},
]
LLAMA = (
    "<|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nWhat is a planet?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA world.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nAnd a moon?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n"
)
NEMOTRON = (
    "<extra_id_0>System\nBe brief.\n\n"
    "<extra_id_1>User\nWhat is a planet?\n<extra_id_1>Assistant\nA world.\n"
    "<extra_id_1>User\nAnd a moon?\n<extra_id_1>Assistant\n"
)
MISTRAL = "[INST]What is a planet?[/INST]A world.</s>[INST]Be brief.\n\nAnd a moon?[/INST]"


def test_every_family_has_a_plain_template() -> None:
    assert {f"{name.title()}ForCausalLM" for name in PLAIN} == set(FAMILIES)


@pytest.mark.parametrize(
    ("name", "prompt"), [("llama", LLAMA), ("nemotron", NEMOTRON), ("mistral", MISTRAL)]
)
def test_a_plain_template_has_the_turns_of_its_familys_instruct_models(
    name: str, prompt: str
) -> None:
    assert read_template(name).render(TALK) == prompt


@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("nemotron", "<extra_id_0>System\n\n<extra_id_1>User\nHi\n<extra_id_1>Assistant\n"),
        ("mistral", "[INST]Hi[/INST]"),
    ],
)
def test_a_conversation_needs_no_system(name: str, prompt: str) -> None:
    assert read_template(name).render([{"role": "user", "content": "Hi"}]) == prompt


def folder_of(tmp_path: Path, **config: Any) -> Path:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    return tmp_path


def test_a_tokenizers_template_has_its_special_tokens_but_the_one_at_the_begin(
    tmp_path: Path,
) -> None:
    folder = folder_of(
        tmp_path,
        bos_token="<s>",
        eos_token={"content": "</s>"},
        chat_template="{{ bos_token }}{{ messages[0].content }}{{ eos_token }}",
    )

    assert read_template(str(folder)).render([{"role": "user", "content": "Hi"}]) == "Hi</s>"


def damaged(folder: Path) -> Path:
    (folder / "tokenizer_config.json").write_text("{")
    return folder


def deep(folder: Path) -> Path:
    (folder / "tokenizer_config.json").write_text("[" * 5000)
    return folder


def faulty(folder: Path) -> Path:
    path = folder / "chat.jinja"
    path.write_text("{{ 1 / 0 }}")
    return path


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda folder: folder / "none.jinja", "no such file; expected a jinja file, a tokenizer"),
        (lambda folder: folder_of(folder), "the tokenizer has none"),
        (damaged, "{path}/tokenizer_config.json is damaged (Input data was truncated)"),
        (deep, "{path}/tokenizer_config.json is damaged (Expected `object`, got `array`)"),
        (
            lambda folder: folder_of(folder, chat_template=[1]),
            "{path} has a list of chat templates",
        ),
        (faulty, "division by zero"),
    ],
    ids=["absent", "folder without", "damaged", "deep", "nameless", "faulty"],
)
def test_what_is_no_template_is_refused_in_a_line(
    make: Callable[[Path], Path], reason: str, tmp_path: Path
) -> None:
    path = make(tmp_path)
    with pytest.raises(UsageError) as caught:
        read_template(str(path))

    assert f"{path} cannot be used: {reason.format(path=path)}" in str(caught.value)


def test_without_jinja2_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    module = "minitron_trt.triton_repo.models.minitron_models.chat_template"
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'minitron-trt\[chat\]'"):
        read_template("llama")
