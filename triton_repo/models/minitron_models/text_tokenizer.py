"""The model's tokenizer, read from its folder as transformers reads it, with `tokenizers` alone.

Importing transformers takes a second and 70 MB, in each of the many processes that turn text into
ids, and what it makes of a folder differs between its versions. Of a tokenizer.json it uses all but
truncation and padding, and it adds the tokens that the files beside it name; that is done here.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from minitron_models.config_parameters import parameter
from minitron_models.template_source import template_source
from tokenizers import AddedToken, Tokenizer

if TYPE_CHECKING:
    from minitron_models.chat_template import ChatTemplate

TOKENIZER = "tokenizer.json"
_CONFIG = "tokenizer_config.json"
_SPECIAL_TOKENS = "special_tokens_map.json"
_ADDED_TOKENS = "added_tokens.json"
_LISTED = "added_tokens_decoder"
_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))
# A list of special tokens without names: as transformers 5 calls it, and as 4 did.
_EXTRA = ("extra_special_tokens", "additional_special_tokens")
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized")


def load_tokenizer(args: Mapping[str, str]) -> TextTokenizer:
    """Return the tokenizer that lies beside the model; no code of it is run."""
    folder = Path(args["model_repository"], args["model_version"], parameter(args, "tokenizer_dir"))
    return TextTokenizer(folder)


class TextTokenizer:
    """A tokenizer with the special tokens of its folder: ids of text, and a chat's text.

    ValueError names the file that is absent or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.backend = _read_backend(folder / TOKENIZER)
        self._folder = folder
        self._config = _read_config(folder)
        # As transformers does: what fills up batches is the pad token where no file names one.
        if padding := self.backend.padding:
            self._config.setdefault("pad_token", padding["pad_token"])
        # They are for batches of training texts; a prompt is served as it is.
        self.backend.no_truncation()
        self.backend.no_padding()
        # Under transformers' name: a special token that somebody writes is text like any other.
        self.backend.encode_special_tokens = self._config.get("split_special_tokens") is True
        listed = _listed_tokens(folder, self._config, self.backend)
        named = {
            name: _special(self._config[name], listed)
            for name in dict.fromkeys((*_NAMES, *self._config))
            if name.endswith("_token") and _text(self._config.get(name))
        }
        extra = [_special(value, listed) for value in _extra_tokens(self._config)]
        _add_tokens(self.backend, listed, [*named.values(), *extra])
        self.special_tokens = {name: token.content for name, token in named.items()}

    def ids(self, text: str, *, special: bool) -> list[int]:
        """Return a text's ids; `special` puts the tokens around it that the model expects."""
        return list(self.backend.encode(text, add_special_tokens=special).ids)

    @property
    def pad_id(self) -> int | None:
        """Return the id that fills up a batch; None when the tokenizer names none."""
        token = self.special_tokens.get("pad_token")
        return None if token is None else self.backend.token_to_id(token)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """Return the chat template; None without one, ValueError when it is not read."""
        source = template_source(self._folder, self._config)
        if not source:
            return None
        # Where nobody chats, jinja2 stays out of the process.
        from minitron_models.chat_template import ChatTemplate

        return ChatTemplate(source, self.special_tokens)


def _read_backend(path: Path) -> Tokenizer:
    if not path.is_file():
        raise ValueError(f"{path} is not there; text is served with it")
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing more precise
        raise ValueError(f"{path} is not read by tokenizers: {error}") from error


def _read_record(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} is damaged: expected an object")
    return record


def _read_config(folder: Path) -> dict[str, Any]:
    """Return tokenizer_config.json, with what older versions of transformers wrote beside it."""
    config = _read_record(folder / _CONFIG)
    if _LISTED not in config:
        config |= _read_record(folder / _SPECIAL_TOKENS)
    return config


def _text(token: Any) -> str:
    """Return the text of a token, written as such or as an object; "" of what is none."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else ""


def _extra_tokens(config: Mapping[str, Any]) -> Iterator[Any]:
    tokens = next((config[name] for name in _EXTRA if config.get(name)), ())
    for token in tokens.values() if isinstance(tokens, dict) else tokens:
        if _text(token):
            yield token


def _listed_tokens(
    folder: Path, config: Mapping[str, Any], backend: Tokenizer
) -> dict[str, AddedToken]:
    """Return, by their text and in the order of their ids, the tokens that files list with ids."""
    if _LISTED in config:
        by_id = {int(index): token for index, token in config[_LISTED].items()}
        tokens = [by_id[index] for index in sorted(by_id)]
        return {_text(token): _token(token, special=_is_special(token)) for token in tokens}
    # This file has ids and texts alone: how a token is found in a text, tokenizer.json says.
    older = sorted((index, text) for text, index in _read_record(folder / _ADDED_TOKENS).items())
    special = {_text(config.get(name)) for name in _NAMES}
    special |= {_text(token) for token in _extra_tokens(config)}
    own = {token.content: token for _, token in sorted(backend.get_added_tokens_decoder().items())}
    return {text: AddedToken(text, special=text in special) for _, text in older} | own


def _is_special(token: Any) -> bool:
    return isinstance(token, dict) and bool(token.get("special"))


def _token(token: Any, *, special: bool) -> AddedToken:
    flags = token if isinstance(token, dict) else {}
    kept = {name: bool(flags[name]) for name in _FLAGS if name in flags}
    return AddedToken(_text(token), special=special, **kept)


def _special(token: Any, listed: Mapping[str, AddedToken]) -> AddedToken:
    """Return a special token, with the flags (lstrip, normalized …) that the list has for it."""
    told = listed.get(_text(token))
    if told is None:
        return _token(token, special=True)
    flags = {name: getattr(told, name) for name in _FLAGS}
    return AddedToken(told.content, special=True, **flags)


def _add_tokens(
    backend: Tokenizer, listed: Mapping[str, AddedToken], special: Iterable[AddedToken]
) -> None:
    """Add tokens to a tokenizer; those that it has keep their ids."""
    by_text = {**listed, **{token.content: token for token in special}}
    backend.add_tokens(list(by_text.values()))
