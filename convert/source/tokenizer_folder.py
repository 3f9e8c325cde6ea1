"""The tokenizer of a model folder: its files, and what its special tokens are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.folder_links import inside

TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
_SPECIAL_TOKENS: Final = "special_tokens_map.json"


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A special token by its name, like `eos_token`; its id is None where it cannot be told."""

    name: str
    text: str
    id: int | None

    def __str__(self) -> str:
        return f"{self.name} {self.text!r}" + ("" if self.id is None else f" ({self.id})")


# No slots: what is read is kept.
@dataclass(frozen=True)
class SourceTokenizer:
    """The tokenizer's files of a folder; none where it has no tokenizer."""

    files: tuple[Path, ...]

    @classmethod
    def find(cls, folder: Path) -> SourceTokenizer:
        """Return the tokenizer of a folder; BadInputError where a file leads out of it."""
        return cls(tuple(inside(folder, n) for n in TOKENIZER_FILES if (folder / n).is_file()))

    def special(self, name: str) -> SpecialToken | None:
        """Return a special token; BadInputError where the file that names it is damaged.

        One that the vocabulary lacks has the id that transformers gives it: the next one.
        """
        # The map is what transformers before 4.34 wrote, and still read.
        for record in (self._config, self._record(_SPECIAL_TOKENS)):
            token = record.get(name)
            text = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(text, str) and text:
                return SpecialToken(name, text, self._id(text))
        return None

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return self._record(TOKENIZER_CONFIG)

    def _record(self, name: str) -> Mapping[str, Any]:
        path = next((path for path in self.files if path.name == name), None)
        return {} if path is None else read_json(path.parent, name)

    def _id(self, text: str) -> int | None:
        # It says the ids of special tokens, and the vocabulary is long.
        for token_id, token in _entries(self._config.get("added_tokens_decoder")):
            if isinstance(token, Mapping) and token.get("content") == text and token_id.isdecimal():
                return int(token_id)
        ids = self._ids
        return ids.get(text, max(ids.values()) + 1) if ids else None

    @cached_property
    def _ids(self) -> Mapping[str, int]:
        return token_ids(self._record(TOKENIZER_JSON))


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token of a tokenizer.json; none of what is not understood."""
    model = tokenizer.get("model")
    known = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(known, list):
        # Unigram: pairs of token and score, in the order of their ids.
        known = {pair[0]: index for index, pair in enumerate(known) if isinstance(pair, list)}
    added = tokenizer.get("added_tokens")
    pairs = [
        *_entries(known),
        *(
            (token.get("content"), token.get("id"))
            for token in (added if isinstance(added, list) else ())
            if isinstance(token, Mapping)
        ),
    ]
    return {text: index for text, index in pairs if isinstance(index, int)}


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else ()
