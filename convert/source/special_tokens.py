"""The ids that begin, end and fill up a text.

transformers takes those of generation_config.json, else of config.json. What neither says, the
tokenizer does: TensorRT-LLM's preprocessing takes its eos_token. What is odd is warned of.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.tokenizer_folder import SourceTokenizer, SpecialToken
from minitron_trt.spec import SpecialTokens

NO_END: Final = (
    "nothing says which id ends a text, so that answers go on until their token limit; put the "
    "model's eos_token_id into generation_config.json"
)


@dataclass(frozen=True, slots=True)
class FolderTokens:
    """The special tokens of a model folder, and what to warn of."""

    tokens: SpecialTokens
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EndIds:
    """The ids that end a text, none where nothing says one, and what to warn of."""

    ids: tuple[int, ...]
    warnings: tuple[str, ...] = ()


def read_special_tokens(
    folder: Path, config: Mapping[str, Any], tokenizer: SourceTokenizer, vocab: int
) -> FolderTokens:
    """Return the special tokens of a model with `vocab` tokens.

    BadInputError where an id is no number, or a file of the tokenizer is damaged.
    """
    records = {CONFIG_NAME: config}
    if (folder / GENERATION_CONFIG).is_file():
        records = {GENERATION_CONFIG: read_json(folder, GENERATION_CONFIG), **records}
    stated = {name: SpecialTokens.from_json(record) for name, record in records.items()}
    ends = choose_end_ids(
        (
            (name, stated[name].eos_ids)
            for name, record in records.items()
            if record.get("eos_token_id") is not None
        ),
        tokenizer.special("eos_token"),
        vocab,
    )
    tokens = SpecialTokens(
        bos_id=_first((record.bos_id for record in stated.values()), vocab),
        eos_ids=ends.ids,
        pad_id=_first((record.pad_id for record in stated.values()), vocab),
    )
    # A tokenizer that comes later, with --tokenizer, may say what ends a text.
    later = () if tokenizer.files else (NO_END,)
    warnings = (warning for warning in ends.warnings if warning not in later)
    return FolderTokens(tokens, (*warnings, *_pad_warnings(tokenizer, vocab)))


def choose_end_ids(
    stated: Iterable[tuple[str, Sequence[int]]], token: SpecialToken | None, vocab: int
) -> EndIds:
    """Choose among what files say, by their names, and the tokenizer's eos_token.

    The first that names a usable id is taken; `vocab` is how many tokens the model has, and others
    cannot come from it.
    """
    warnings: list[str] = []
    for name, ids in stated:
        usable = tuple(dict.fromkeys(end for end in ids if 0 <= end < vocab))
        unusable = [end for end in ids if not 0 <= end < vocab]
        if unusable:
            left_out = ", ".join(map(str, unusable))
            warnings.append(
                f"{name}: eos_token_id {left_out} is left out; the model has ids up to {vocab - 1}"
            )
        elif not ids:
            warnings.append(f"{name}: eos_token_id is an empty list, which ends nothing")
        if usable:
            return EndIds(usable, (*warnings, *_difference(name, usable, token)))
    if token is None or token.id is None:
        return EndIds((), (*warnings, NO_END))
    if token.id >= vocab:
        past = f"the tokenizer's {token} is left out; the model has ids up to {vocab - 1}"
        return EndIds((), (*warnings, past, NO_END))
    only = f"only the tokenizer says what ends a text; its {token} is taken"
    return EndIds((token.id,), (*warnings, only))


def _difference(name: str, ids: Sequence[int], token: SpecialToken | None) -> Iterator[str]:
    if token is not None and token.id is not None and token.id not in ids:
        yield (
            f"{name} ends a text with {', '.join(map(str, ids))}, as transformers does, and not "
            f"with the tokenizer's {token}; if that ends one too, add it to eos_token_id"
        )


def _pad_warnings(tokenizer: SourceTokenizer, vocab: int) -> Iterator[str]:
    pad = tokenizer.special("pad_token")
    if pad is not None and pad.id is not None and pad.id >= vocab:
        yield (
            f"the tokenizer's {pad} is past the model's {vocab} tokens; an end id fills up instead"
        )


def _first(ids: Iterable[int | None], vocab: int) -> int | None:
    """Return the first id that the model has: Llama's first configs say -1 for none."""
    return next((token for token in ids if token is not None and 0 <= token < vocab), None)
