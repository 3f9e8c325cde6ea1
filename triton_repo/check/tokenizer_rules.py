"""The tokenizers: where they are, that they agree, and that their ids fit the model."""

from __future__ import annotations

import filecmp
import importlib.util
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from minitron_trt.artifacts import GENERATION_CONFIG
from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.errors import BadInputError
from minitron_trt.records import read_text
from minitron_trt.triton_repo.check.model_on_disk import ModelFolder, RepositoryFolder
from minitron_trt.triton_repo.check.report import Finding
from minitron_trt.triton_repo.contract.model_names import (
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM_BLS,
)
from minitron_trt.triton_repo.parameters import parse_end_ids

_KEY: Final = "tokenizer_dir"
_PATH: Final = f'parameters["{_KEY}"]'
_END_IDS: Final = 'parameters["end_ids"]'
# Finetunes add some tokens to a tokenizer without making the model's embedding larger.
_MOST_ADDED: Final = 16
_FAST: Final = "tokenizer.json"
_CONFIG: Final = "tokenizer_config.json"
_VOCABULARIES: Final = (_FAST, "tokenizer.model", "vocab.json", "vocab.txt")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
# Words, code with a run of spaces, and characters of several bytes or code points: of a tokenizer
# with another's vocabulary or decoder one of them comes back as another text.
_TEXTS: Final = (
    "Our solar system is a family of worlds.",
    "x = [1, 2.5]  # two  spaces",
    "Grüße, 世界! 👩‍🚀",
)


@dataclass(frozen=True, slots=True)
class _TokenizerFolder:
    model: ModelFolder
    folder: Path


def check_tokenizers(repository: RepositoryFolder, vocab: int | None) -> Iterator[Finding]:
    """Check the tokenizers of every text model; `vocab` is the model's, if it is known."""
    places: list[_TokenizerFolder] = []
    for model in repository.of_role(PREPROCESSING, POSTPROCESSING, TENSORRT_LLM_BLS):
        value = model.parameters.get(_KEY)
        if value:
            located = _locate(model, repository, value)
            if isinstance(located, Finding):
                yield located
            else:
                places.append(_TokenizerFolder(model, located))
        elif value == "":
            yield model.error(
                _PATH,
                found="is empty",
                expected="the folder of the tokenizer",
            )
        yield from _check_end_ids(model, vocab)
    # preprocessing's is compared with the rest; if it has none, whichever there is.
    places.sort(key=lambda place: place.model.role != PREPROCESSING)
    # The others are compared with it byte for byte, so that one is enough to look into.
    for place in places[:1]:
        yield from _check_one(place, repository, vocab)
    for other in places[1:]:
        yield from _compare(places[0], other)


def _locate(model: ModelFolder, repository: RepositoryFolder, value: str) -> Path | Finding:
    place = repository.locate(model, value)
    if place is None:
        if _HUB_ID.fullmatch(value):
            return model.note(_PATH, found=f"not checked: {value} is a model of the hub")
        return model.unlocated(_PATH, value)
    if not place.is_dir():
        return model.error(
            _PATH,
            found=f"there is no folder {place}",
            expected="the folder of the tokenizer",
            remedy="correct the path",
        )
    if not any((place / name).is_file() for name in _VOCABULARIES):
        return model.error(
            _PATH,
            found=f"{place} holds no tokenizer",
            expected=f"one of {', '.join(_VOCABULARIES)}",
            remedy="copy the tokenizer of the model there",
        )
    return place


def _compare(one: _TokenizerFolder, other: _TokenizerFolder) -> Iterator[Finding]:
    if one.folder.resolve() == other.folder.resolve():
        return
    for name in TOKENIZER_FILES:
        pair = (one.folder / name, other.folder / name)
        present = [path.is_file() for path in pair]
        if any(present) and not (all(present) and filecmp.cmp(*pair, shallow=False)):
            yield other.model.error(
                _PATH,
                found=f"its {name} is not the one of {one.model.name}",
                expected="the same tokenizer in both",
                remedy=f"copy {one.folder} over it",
            )
            return


def _check_end_ids(model: ModelFolder, vocab: int | None) -> Iterator[Finding]:
    text = model.parameters.get("end_ids")
    if not text:
        return
    try:
        ids = parse_end_ids(text)
    except ValueError:
        yield model.error(_END_IDS, found=f"is {text!r}", expected="a list of ids like [2, 3]")
        return
    if wrong := [each for each in ids if not 0 <= each < (vocab or each + 1)]:
        yield model.error(
            _END_IDS,
            found=f"{wrong[0]} is no id of the model",
            expected=f"0 to {vocab - 1}" if vocab else "0 or more",
            remedy=f"take those of {GENERATION_CONFIG}",
        )
    if not ids:
        yield model.warning(
            _END_IDS,
            found="is empty: an answer goes on until its token limit",
            expected="the ids that end a text",
            remedy="write them here, or send end_id with each request",
        )


def _check_one(
    place: _TokenizerFolder, repository: RepositoryFolder, vocab: int | None
) -> Iterator[Finding]:
    model, file = place.model, place.folder / _FAST
    if not file.is_file():
        if repository.is_ours:
            yield model.error(
                _PATH,
                found=f"{place.folder} has no {_FAST}",
                expected="one: the text models read it",
                remedy="make the repository again",
            )
            return
        yield model.note(_PATH, found=f"not checked: {place.folder} has no {_FAST}")
        return
    if importlib.util.find_spec("tokenizers") is None:
        yield model.note(_PATH, found="not checked: the package tokenizers is not installed")
        return
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing more precise
        yield model.error(
            _PATH,
            found=f"{file} is no tokenizer ({error})",
            remedy="copy it again",
        )
        return
    yield from _check_vocabulary(model, tokenizer, vocab)
    returned = {text: _round_trip(tokenizer, text) for text in _TEXTS}
    changed = [text for text in _TEXTS if returned[text] != text]
    if changed:
        yield model.warning(
            _PATH,
            found=f"{changed[0]!r} comes back from it as {returned[changed[0]]!r}",
            expected="the same text",
            remedy="make sure that it is the model's tokenizer",
        )
    yield from _check_special(place, tokenizer, repository, vocab)


def _check_vocabulary(model: ModelFolder, tokenizer: Any, vocab: int | None) -> Iterator[Finding]:
    """Check that the model has the ids; some lack a few that were added to the tokenizer later."""
    if vocab is None:
        return
    largest = max(tokenizer.get_vocab(with_added_tokens=False).values(), default=0)
    added = tokenizer.get_added_tokens_decoder().items()
    past = {index: token.content for index, token in added if index >= vocab}
    # Of the vocabulary itself, or more than people add.
    if largest >= vocab or len(past) > _MOST_ADDED:
        yield model.error(
            _PATH,
            found=f"the tokenizer has ids up to {max(largest, *past)}, the model {vocab} tokens",
            expected=f"ids up to {vocab - 1}",
            remedy="use the tokenizer of this model",
        )
    elif past:
        tokens = ", ".join(f"{token!r} ({index})" for index, token in sorted(past.items()))
        yield model.warning(
            _PATH,
            found=f"{tokens} of the tokenizer is past the model's {vocab} tokens",
            expected=f"ids up to {vocab - 1}",
            remedy="leave it out of prompts",
        )


def _round_trip(tokenizer: Any, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _check_special(
    place: _TokenizerFolder, tokenizer: Any, repository: RepositoryFolder, vocab: int | None
) -> Iterator[Finding]:
    """Check that the end and padding tokens are in the vocabulary, and that the first one ends."""
    config = _special_tokens(place.folder)
    if config is None:
        return
    eos, pad = (_token(config, name) for name in ("eos_token", "pad_token"))
    if eos:
        yield from _check_eos(place.model, eos, tokenizer, vocab)
    elif not repository.is_ours:
        yield place.model.warning(
            _PATH,
            found=f"{_CONFIG} names no eos_token",
            expected="one: requests without end_id need it",
        )
    if pad and tokenizer.token_to_id(pad) is None:
        # transformers adds it when it loads the tokenizer.
        yield place.model.warning(
            _PATH,
            found=f"pad_token {pad!r} is not in the vocabulary and becomes id "
            f"{tokenizer.get_vocab_size()}",
            expected="a token of the tokenizer",
            remedy=f"correct {_CONFIG}",
        )


def _check_eos(
    model: ModelFolder, eos: str, tokenizer: Any, vocab: int | None
) -> Iterator[Finding]:
    index = tokenizer.token_to_id(eos)
    if index is None:
        yield model.error(
            _PATH,
            found=f"eos_token {eos!r} is not in the vocabulary",
            expected="a token of the tokenizer",
            remedy=f"correct {_CONFIG}",
        )
        return
    ends = _end_ids(model)
    usable = vocab is None or all(end < vocab for end in (index, *ends))
    if ends and usable and index not in ends:
        yield model.warning(
            _END_IDS,
            found=f"{', '.join(map(str, ends))} is not the tokenizer's eos_token {eos!r} ({index})",
            expected="every id that ends a text",
            remedy=f"add {index} if it ends one too",
        )


def _end_ids(model: ModelFolder) -> tuple[int, ...]:
    """Return what a model is told that ends a text; none where that is no list of ids."""
    try:
        return parse_end_ids(model.parameters.get("end_ids") or "[]")
    except ValueError:
        return ()


def _token(config: Mapping[str, Any], name: str) -> str | None:
    token = config.get(name)
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _special_tokens(folder: Path) -> Mapping[str, Any] | None:
    try:
        config = json.loads(read_text(folder / _CONFIG))
    except (BadInputError, ValueError, RecursionError):
        return None
    return config if isinstance(config, dict) else None
