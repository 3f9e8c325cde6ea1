"""The tokenizer of a model folder, and the files that it is written as.

transformers 4.57, which NVIDIA's containers have, does not know every tokenizer that 5 saves. What
is written loads in both and gives a text the same ids.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.source.folder_files import read_json
from minitron_trt.convert.source.slow_tokenizer import SlowTokenizer, read_slow
from minitron_trt.errors import BadInputError
from minitron_trt.folder_links import inside

TOKENIZER_JSON: Final = "tokenizer.json"
TOKENIZER_CONFIG: Final = "tokenizer_config.json"
CHAT_TEMPLATE: Final = "chat_template.jinja"
_PROCESSORS_TEMPLATE: Final = "chat_template.json"
PLAIN_CLASS: Final = "PreTrainedTokenizerFast"
"""The class that takes tokenizer.json as it is, in transformers 4.57 and 5."""
_CLASSES_OF_5: Final = (
    "TokenizersBackend",
    "SentencePieceBackend",
    "PythonBackend",
    "MistralCommonBackend",
)
# What tokenizer.json says already, and what only a class of its own would take.
_SUPERFLUOUS: Final = (
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "backend",
    "is_local",
    "legacy",
    "local_files_only",
    "sp_model_kwargs",
    "spaces_between_special_tokens",
    "use_default_system_prompt",
    "vocab_file",
)
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

    def check(self) -> None:
        """Raise UnsupportedError or BadInputError where it cannot be written, or is damaged."""
        _ = self.written_config
        self.special("eos_token")

    @cached_property
    def texts(self) -> Mapping[str, str]:
        """Return the files that are written in place of, or beside, those of the folder."""
        texts = {}
        if self._slow is not None:
            texts[TOKENIZER_JSON] = _dumped(self._slow.tokenizer_json())
        if self.written_config != self._config:
            texts[TOKENIZER_CONFIG] = _dumped(self.written_config)
        if template := self._processors_template():
            texts[CHAT_TEMPLATE] = template
        return texts

    @property
    def copied(self) -> tuple[Path, ...]:
        """Return the files that are written as they are."""
        return tuple(path for path in self.files if path.name not in self.texts)

    def write(self, folder: Path) -> None:
        """Write the tokenizer's files."""
        for path in self.copied:
            shutil.copyfile(path, folder / path.name)
        for name, text in self.texts.items():
            (folder / name).write_text(text, encoding="utf-8")

    def special(self, name: str) -> SpecialToken | None:
        """Return a special token; BadInputError where the file that names it is damaged.

        One that the vocabulary lacks has the id that transformers gives it: the next one.
        """
        # The map is what transformers before 4.34 wrote, and still read.
        for record in (self.written_config, self._record(_SPECIAL_TOKENS)):
            token = record.get(name)
            text = token.get("content") if isinstance(token, Mapping) else token
            if isinstance(text, str) and text:
                return SpecialToken(name, text, self._id(text))
        return None

    @property
    def longest_token(self) -> int:
        """Return the most characters that a token has, in the way that the vocabulary writes it."""
        return max(map(len, self.ids), default=1)

    @cached_property
    def written_config(self) -> Mapping[str, Any]:
        """Return the tokenizer_config.json that transformers 4.57 and 5 read alike."""
        config = self._config
        name = config.get("tokenizer_class")
        saved_by_5 = name in _CLASSES_OF_5 or "backend" in config
        slow = self._slow
        if slow is None and (TOKENIZER_JSON not in self._names or (name and not saved_by_5)):
            return config
        written = {key: value for key, value in config.items() if key not in _SUPERFLUOUS}
        extra = written.get("extra_special_tokens")
        if isinstance(extra, list):
            # Its name until transformers 5, which reads it still.
            del written["extra_special_tokens"]
            known = written.get("additional_special_tokens") or []
            if not isinstance(known, list):
                raise BadInputError(
                    f"{self._names[TOKENIZER_CONFIG]}: additional_special_tokens is {known!r}; "
                    "expected a list"
                )
            written["additional_special_tokens"] = [*known, *(t for t in extra if t not in known)]
        special = {} if slow is None else slow.special
        return {**written, **special, "tokenizer_class": PLAIN_CLASS}

    @cached_property
    def _slow(self) -> SlowTokenizer | None:
        return None if TOKENIZER_JSON in self._names else read_slow(self._names, self._config)

    @property
    def _names(self) -> Mapping[str, Path]:
        return {path.name: path for path in self.files}

    def _processors_template(self) -> str | None:
        """Return a chat template that lies only where processors of images look for theirs."""
        if CHAT_TEMPLATE in self._names or "chat_template" in self._config:
            return None
        template = self._record(_PROCESSORS_TEMPLATE).get("chat_template")
        if not isinstance(template, str):
            return None
        # JSON can hold what no text file can.
        return template.encode("utf-8", "replace").decode("utf-8")

    @cached_property
    def _config(self) -> Mapping[str, Any]:
        return self._record(TOKENIZER_CONFIG)

    def _record(self, name: str) -> Mapping[str, Any]:
        path = self._names.get(name)
        return {} if path is None else read_json(path.parent, name)

    def _id(self, text: str) -> int | None:
        # It says the ids of special tokens, and the vocabulary is long.
        for token_id, token in _entries(self._config.get("added_tokens_decoder")):
            if isinstance(token, Mapping) and token.get("content") == text and token_id.isdecimal():
                return int(token_id)
        ids = self.ids
        return ids.get(text, max(ids.values()) + 1) if ids else None

    @cached_property
    def ids(self) -> Mapping[str, int]:
        """Return the ids of its tokens, by their text."""
        return token_ids(self._record(TOKENIZER_JSON)) if self._slow is None else self._slow.ids()


def _dumped(record: Mapping[str, Any]) -> str:
    return json.dumps(record) + "\n"


def token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Return the id of every token of a tokenizer.json; none of what is not understood."""
    model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
    known = model.get("vocab") if isinstance(model, Mapping) else None
    pairs = list(_entries(known))
    if isinstance(known, list):
        # Unigram: pairs of token and score, in the order of their ids.
        rows = ((row, index) for index, row in enumerate(known) if isinstance(row, list))
        pairs = [(row[0], index) for row, index in rows if row]
    if isinstance(added, list):
        records = (token for token in added if isinstance(token, Mapping))
        pairs += [(token.get("content"), token.get("id")) for token in records]
    return {
        text: index for text, index in pairs if isinstance(text, str) and isinstance(index, int)
    }


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    return value.items() if isinstance(value, Mapping) else ()
