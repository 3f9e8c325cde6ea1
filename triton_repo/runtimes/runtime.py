"""What every runtime says of itself, and what all of them look up in a model's folder."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG
from minitron_trt.convert.source.special_tokens import choose_end_ids
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.records import read_record
from minitron_trt.spec import SpecialTokens
from minitron_trt.triton_repo.contract.tensors import ElementTypes
from minitron_trt.triton_repo.model_config import ModelConfig
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Runtime:
    """What generates the tokens: the model `tensorrt_llm`, and what the others depend on."""

    name: str
    config: ModelConfig
    texts: Mapping[str, str]  # by their place in the version folder
    links: Mapping[str, Path]
    tokenizer: SourceTokenizer
    end_ids: tuple[int, ...]
    vocab_size: int
    max_seq_len: int  # tokens of a prompt and its answer together
    types: ElementTypes
    reports_streams: bool  # whether it says a stream's id, and when and why an answer ended
    most_text_instances: int  # of a text model, unless told: each is a process
    facts: Mapping[str, Any]  # for whoever serves it


def find_tokenizer(folder: Path) -> SourceTokenizer:
    """Return the tokenizer in a folder, that of --tokenizer or the model's.

    BadInputError when there is none, or one of its files is a link out of its folder;
    UnsupportedError where no tokenizer.json can be made of it.
    """
    tokenizer = SourceTokenizer.find(folder)
    if not tokenizer.files:
        raise BadInputError(
            f"{folder} has no tokenizer, which serving text needs; pass --tokenizer with the "
            "folder of the model's tokenizer.json and tokenizer_config.json"
        )
    tokenizer.check()
    return tokenizer


def find_end_ids(
    told: SpecialTokens, folders: Iterable[Path | None], tokenizer: SourceTokenizer, vocab: int
) -> tuple[int, ...]:
    """Return the ids that end a text: what the artifact was told, else what the folders' files say.

    The tokenizer's is the last resort. What is odd about them is warned of; none where nobody says.
    """
    stated = [("the artifact", told.eos_ids)] if told.eos_ids else []
    stated += [
        (str(folder / name), tokens.eos_ids)
        for folder in folders
        for name in (GENERATION_CONFIG, CONFIG_NAME)
        if folder is not None and (tokens := _tokens(folder / name)).eos_ids
    ]
    ends = choose_end_ids(stated, tokenizer.special("eos_token"), vocab)
    for warning in ends.warnings:
        log.warning("%s", warning)
    return ends.ids


def need_end_ids(ids: tuple[int, ...], *folders: Path | None) -> tuple[int, ...]:
    """Return the ids; BadInputError when there is none, naming where it was looked for."""
    if not ids:
        places = " and ".join(str(folder) for folder in folders if folder is not None)
        raise BadInputError(
            f"nothing in {places} says which ids end a text; put the model's {GENERATION_CONFIG} "
            "(eos_token_id) into the folder of --tokenizer"
        )
    return ids


def _tokens(path: Path) -> SpecialTokens:
    if not path.is_file():
        return SpecialTokens()
    try:
        return SpecialTokens.from_json(read_record(path, dict[str, Any]))
    except ValueError as error:
        raise BadInputError(f"{path} is damaged ({error}); expected a JSON object") from error


def check_max_seq_len(recipe: ServingRecipe, max_positions: int) -> None:
    """Raise UsageError where sequences may be longer than the model has positions."""
    if recipe.max_seq_len is not None and recipe.max_seq_len > max_positions:
        raise UsageError(
            f"max_seq_len {recipe.max_seq_len} exceeds the {max_positions} positions of "
            "the model; lower --max-seq-len"
        )
