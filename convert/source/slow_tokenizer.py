"""Tokenizers without a tokenizer.json: what transformers would make of their files.

TensorRT-LLM's containers and our text models read tokenizer.json, and making one there would need
sentencepiece, which goes with few versions of protobuf. So it is written here.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from minitron_trt.convert.source.sentencepiece_model import SentencePieceModel
from minitron_trt.convert.tokenizer_json import (
    Token,
    added_token,
    bpe,
    byte_level,
    spaced,
    tokenizer,
)
from minitron_trt.errors import BadInputError, UnsupportedError
from minitron_trt.records import read_text

SENTENCEPIECE: Final = "tokenizer.model"
VOCABULARY, MERGES = "vocab.json", "merges.txt"
_LLAMA: Final = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
_GPT2: Final = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
# True to transformers 4.57 where they are not stated, and false to 5.
_UNDECIDED: Final = ("add_bos_token", "legacy")


class SlowTokenizer(Protocol):
    """A tokenizer whose tokenizer.json is yet to be made."""

    @property
    def special(self) -> Mapping[str, Any]:
        """Return its special tokens: the class's, where its config does not name them."""
        ...

    def ids(self) -> Mapping[str, int]:
        """Return the id of each token."""
        ...

    def tokenizer_json(self) -> dict[str, Any]:
        """Return the tokenizer.json."""
        ...


def read_slow(files: Mapping[str, Path], config: Mapping[str, Any]) -> SlowTokenizer | None:
    """Return the tokenizer of files by their names; None where there is none to be made.

    UnsupportedError where it is not certain what transformers would make of them.
    """
    name = str(config.get("tokenizer_class") or "")
    if SENTENCEPIECE in files:
        path = files[SENTENCEPIECE]
        _check_class(path, name, "LlamaTokenizer")
        _check_decided(path, config)
        return _Llama(SentencePieceModel.read(path), config, {**_LLAMA, **_named(config)})
    if VOCABULARY in files and MERGES in files:
        _check_class(files[VOCABULARY], name, "GPT2Tokenizer")
        return _Gpt2(files[VOCABULARY], files[MERGES], config, {**_GPT2, **_named(config)})
    return None


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: config[name] for name in _LLAMA if name in config}


def _check_class(path: Path, name: str, expected: str) -> None:
    if name.removesuffix("Fast") != expected:
        said = f"of class {name}" if name else "without tokenizer_class in tokenizer_config.json"
        raise UnsupportedError(
            f"{path} is a tokenizer {said}; a tokenizer.json is made of those of {expected}: state "
            "it, or put the model's tokenizer.json beside it"
        )


def _check_decided(path: Path, config: Mapping[str, Any]) -> None:
    undecided = [key for key in _UNDECIDED if not isinstance(config.get(key), bool)]
    if undecided:
        raise UnsupportedError(
            f"{path}: tokenizer_config.json does not state {' and '.join(undecided)}, true to "
            "transformers 4.57 and false to 5; state it"
        )


def _text(token: Any) -> str | None:
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) and text else None


@dataclass(frozen=True, slots=True)
class _Llama:
    model: SentencePieceModel
    config: Mapping[str, Any]
    special: Mapping[str, Any]

    def ids(self) -> Mapping[str, int]:
        """Return the id of each token."""
        return self.model.ids

    def tokenizer_json(self) -> dict[str, Any]:
        """Return the tokenizer.json."""
        prefixed = self.config.get("add_prefix_space") is not False
        legacy = self.config["legacy"]
        return tokenizer(
            {**spaced(prefixed=prefixed, legacy=legacy), "model": self.model.model()},
            self.model.added(),
            first=self._around("bos_token", self.config["add_bos_token"]),
            last=self._around("eos_token", self.config.get("add_eos_token") is True),
        )

    def _around(self, name: str, wanted: bool) -> Token | None:
        text = _text(self.special.get(name)) if wanted else None
        return None if text is None else self.model.token(text)


@dataclass(frozen=True, slots=True)
class _Gpt2:
    vocabulary: Path
    merges: Path
    config: Mapping[str, Any]
    special: Mapping[str, Any]

    def ids(self) -> Mapping[str, int]:
        """Return the id of each token; BadInputError where vocab.json has none."""
        try:
            record = json.loads(read_text(self.vocabulary))
            if not all(isinstance(index, int) for index in record.values()):
                raise ValueError("an id is no whole number")
        except (ValueError, AttributeError, RecursionError) as error:
            raise BadInputError(
                f"{self.vocabulary} is damaged ({error}); expected an object of ids"
            ) from error
        return dict(record)

    def tokenizer_json(self) -> dict[str, Any]:
        """Return the tokenizer.json."""
        ids = self.ids()
        texts = dict.fromkeys(filter(None, map(_text, self.special.values())))
        prefixed = self.config.get("add_prefix_space") is True
        first = _text(self.special.get("bos_token"))
        begins = self.config.get("add_bos_token") is True and first in ids
        return tokenizer(
            {**byte_level(add_prefix_space=prefixed), "model": bpe(ids, self._merges(ids))},
            [added_token((text, ids[text]), special=True) for text in texts if text in ids],
            first=(str(first), ids[str(first)]) if begins else None,
        )

    def _merges(self, ids: Mapping[str, int]) -> list[tuple[str, str]]:
        lines = read_text(self.merges).split("\n")
        merges = []
        for line in lines:
            if not line or line.startswith("#version:"):
                continue
            left, _, right = line.partition(" ")
            if not {left, right, left + right} <= ids.keys():
                raise BadInputError(f"{self.merges} merges {line!r}, which are not tokens")
            merges.append((left, right))
        return merges
