"""Which ids end a text, wherever a folder says it, and what is odd about them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.conftest import MakeModel

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.source.model_folder import ModelSource

NO_END = (
    "nothing says which id ends a text, so that answers go on until their token limit; put the "
    "model's eos_token_id into generation_config.json"
)
ADDED = [{"id": 130, "content": "<end>"}, {"id": 4, "content": "<turn>"}]


def folder_with(
    make_model: MakeModel,
    config: dict[str, Any],
    generation: dict[str, Any] | None,
    tokenizer: dict[str, Any],
    added: list[dict[str, Any]] | None = None,
) -> Path:
    """Return a model of 131 tokens whose files say these things of the ends of texts."""
    folder = make_model("llama", **{"eos_token_id": None, **config})
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    record = {"model": {"vocab": {"<s>": 1, "a": 3}}, "added_tokens": ADDED + (added or [])}
    (folder / "tokenizer.json").write_text(json.dumps(record))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.parametrize(
    ("config", "generation", "tokenizer", "ends", "warnings"),
    [
        (
            {},
            None,
            {"eos_token": "<end>"},
            (130,),
            ["only the tokenizer says what ends a text; its eos_token '<end>' (130) is taken"],
        ),
        (
            {},
            None,
            {
                "eos_token": {"content": "<x>"},
                "added_tokens_decoder": {"9": {"content": "<x>"}, "10": {"content": "<y>"}},
            },
            (9,),
            ["only the tokenizer says what ends a text; its eos_token '<x>' (9) is taken"],
        ),
        (
            {"eos_token_id": 2},
            {"eos_token_id": []},
            {},
            (2,),
            ["generation_config.json: eos_token_id is an empty list, which ends nothing"],
        ),
        (
            {},
            {"eos_token_id": []},
            {"eos_token": "<end>"},
            (130,),
            [
                "generation_config.json: eos_token_id is an empty list, which ends nothing",
                "only the tokenizer says what ends a text; its eos_token '<end>' (130) is taken",
            ],
        ),
        (
            {"eos_token_id": 7},
            {"eos_token_id": [2, 3]},
            {"eos_token": "<turn>"},
            (2, 3),
            [
                "generation_config.json ends a text with 2, 3, as transformers does, and not with "
                "the tokenizer's eos_token '<turn>' (4); if that ends one too, add it to "
                "eos_token_id"
            ],
        ),
        ({}, {"eos_token_id": [2, 4, 2]}, {"eos_token": "<turn>"}, (2, 4), []),
        (
            {"eos_token_id": -1},
            {"eos_token_id": [131, 5]},
            {},
            (5,),
            ["generation_config.json: eos_token_id 131 is left out; the model has ids up to 130"],
        ),
        (
            {"eos_token_id": -1},
            None,
            {"eos_token": "<end>"},
            (130,),
            [
                "config.json: eos_token_id -1 is left out; the model has ids up to 130",
                "only the tokenizer says what ends a text; its eos_token '<end>' (130) is taken",
            ],
        ),
        (
            {},
            None,
            {"eos_token": "<elsewhere>"},
            (),
            [
                "the tokenizer's eos_token '<elsewhere>' (131) is left out; the model has ids up "
                "to 130",
                NO_END,
            ],
        ),
        ({}, None, {}, (), [NO_END]),
        (
            {"eos_token_id": 2},
            None,
            {"pad_token": "<pad>"},
            (2,),
            [
                "the tokenizer's pad_token '<pad>' (131) is past the model's 131 tokens; an end "
                "id fills up instead"
            ],
        ),
        ({"eos_token_id": 2}, None, {"pad_token": "<end>"}, (2,), []),
    ],
    ids=[
        "the tokenizer only",
        "the tokenizer's config only",
        "an empty list, and the config",
        "an empty list, and the tokenizer",
        "two that differ",
        "one of several is the tokenizer's",
        "beyond the vocabulary",
        "minus one",
        "a token that the model lacks",
        "nowhere",
        "a pad token past the vocabulary",
        "a pad token of the vocabulary",
    ],
)
def test_what_ends_a_text_is_looked_up_as_transformers_and_then_triton_do(
    make_model: MakeModel,
    config: dict[str, Any],
    generation: dict[str, Any] | None,
    tokenizer: dict[str, Any],
    ends: tuple[int, ...],
    warnings: list[str],
) -> None:
    source = ModelSource.open(folder_with(make_model, config, generation, tokenizer))

    assert source.tokens.eos_ids == ends
    assert list(source.warnings) == warnings


def test_an_eos_token_that_only_the_old_map_names_is_found(make_model: MakeModel) -> None:
    folder = folder_with(make_model, {}, None, {})
    (folder / "special_tokens_map.json").write_text('{"eos_token": "<turn>"}')

    assert ModelSource.open(folder).tokens.eos_ids == (4,)


def test_ids_of_minus_one_begin_and_fill_up_nothing(make_model: MakeModel) -> None:
    config = {"bos_token_id": -1, "pad_token_id": -1, "eos_token_id": 2}
    source = ModelSource.open(folder_with(make_model, config, None, {}))

    assert (source.tokens.bos_id, source.tokens.pad_id) == (None, None)


def test_a_conversion_warns_once_and_goes_on(
    make_model: MakeModel, command: Callable[..., Result], tmp_path: Path
) -> None:
    folder = folder_with(make_model, {}, None, {"eos_token": "<end>", "pad_token": "<pad>"})
    result = command("convert", folder, "-o", tmp_path / "checkpoint")

    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "warning: only the tokenizer says what ends a text; its eos_token '<end>' (130) is taken",
        "warning: the tokenizer's pad_token '<pad>' (131) is past the model's 131 tokens; an end "
        "id fills up instead",
    ]
    assert Checkpoint.open(tmp_path / "checkpoint").tokens.eos_ids == (130,)
