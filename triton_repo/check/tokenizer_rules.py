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
from minitron_trt.triton_repo.check.model_on_disk import ModelFolder, RepositoryFolder
from minitron_trt.triton_repo.check.report import Finding
from minitron_trt.triton_repo.contract.model_names import (
    POSTPROCESSING,
    PREPROCESSING,
    TENSORRT_LLM_BLS,
)

_KEY: Final = "tokenizer_dir"
_PATH: Final = f'parameters["{_KEY}"]'
_FAST: Final = "tokenizer.json"
_CONFIG: Final = "tokenizer_config.json"
_VOCABULARIES: Final = (_FAST, "tokenizer.model", "vocab.json", "vocab.txt")
_HUB_ID: Final = re.compile(r"[\w.-]+/[\w.-]+")
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
    path = 'parameters["end_ids"]'
    try:
        ids = json.loads(text)
        wrong = [i for i in ids if i != int(i) or not 0 <= i < (vocab or i + 1)]
    except (ValueError, TypeError):
        yield model.error(path, found=f"is {text!r}", expected="a list of ids like [2, 3]")
        return
    if wrong:
        yield model.error(
            path,
            found=f"{wrong[0]} is no id of the model",
            expected=f"0 to {vocab - 1}" if vocab else "0 or more",
            remedy=f"take those of {GENERATION_CONFIG}",
        )


def _check_one(
    place: _TokenizerFolder, repository: RepositoryFolder, vocab: int | None
) -> Iterator[Finding]:
    model, file = place.model, place.folder / _FAST
    if not file.is_file():
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
    largest = max(tokenizer.get_vocab().values(), default=0)
    if vocab is not None and largest >= vocab:
        yield model.error(
            _PATH,
            found=f"the tokenizer has ids up to {largest}, the model {vocab} tokens",
            expected=f"ids up to {vocab - 1}",
            remedy="use the tokenizer of this model",
        )
    returned = {text: _round_trip(tokenizer, text) for text in _TEXTS}
    changed = [text for text in _TEXTS if returned[text] != text]
    if changed:
        yield model.warning(
            _PATH,
            found=f"{changed[0]!r} comes back from it as {returned[changed[0]]!r}",
            expected="the same text",
            remedy="make sure that it is the model's tokenizer",
        )
    yield from _check_special(place, tokenizer, repository)


def _round_trip(tokenizer: Any, text: str) -> str:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return str(tokenizer.decode(ids, skip_special_tokens=False))


def _check_special(
    place: _TokenizerFolder, tokenizer: Any, repository: RepositoryFolder
) -> Iterator[Finding]:
    """Check that the end and padding tokens are in the vocabulary."""
    config = _special_tokens(place.folder)
    if config is None:
        return
    for name in ("eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, Mapping) else token
        if token and tokenizer.token_to_id(token) is None:
            yield place.model.error(
                _PATH,
                found=f"{name} {token!r} is not in the vocabulary",
                expected="a token of the tokenizer",
                remedy=f"correct {_CONFIG}",
            )
        if not token and name == "eos_token" and not repository.is_ours:
            yield place.model.warning(
                _PATH,
                found=f"{_CONFIG} names no eos_token",
                expected="one: requests without end_id need it",
            )


def _special_tokens(folder: Path) -> Mapping[str, Any] | None:
    try:
        config = json.loads((folder / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) else None
