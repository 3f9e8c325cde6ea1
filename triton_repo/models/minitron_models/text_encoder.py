"""From a client's text and words to the ids and weights that tensorrt_llm takes."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from minitron_models.config_parameters import flag, parameter
from minitron_models.stop_words import MOST_CHARACTERS, StopWords
from minitron_models.text_tokenizer import load_tokenizer
from numpy.typing import NDArray

MOST_WORDS = 1024
"""How many stop words, bad words or words with a bias a request may have."""

# A chat is JSON, which writes a character in up to 6, and its messages have fields around them.
_JSON_CHARACTERS = 8


@dataclass(frozen=True)
class TextTensors:
    """The tensors of a text request that become ids; None where the client sent none.

    Each has the batch axis of one request: text is [1, 1], words and weights are [1, n].
    """

    text: NDArray[Any] | None
    stop_words: NDArray[Any] | None = None
    bad_words: NDArray[Any] | None = None
    bias_words: NDArray[Any] | None = None
    bias_weights: NDArray[Any] | None = None
    end_id: int | None = None
    pad_id: int | None = None
    table_id: int | None = None  # prompt_table_extra_id
    chat: bool | None = None


@dataclass(frozen=True)
class Prompt:
    """A text request as inputs of tensorrt_llm, [1, …] each, without those that say nothing."""

    inputs: dict[str, NDArray[Any]]
    words: tuple[str, ...]  # the stop words as the client wrote them
    stop_words: StopWords | None

    @property
    def ids(self) -> list[int]:
        """Return the ids of the prompt."""
        ids: list[int] = self.inputs["input_ids"][0].tolist()
        return ids


class TextEncoder:
    """Turns prompts and words into ids as transformers does with the model's tokenizer."""

    def __init__(self, args: Mapping[str, str]) -> None:
        self.tokenizer = load_tokenizer(args)
        self._special = flag(args, "add_special_tokens", True)
        self._chat = flag(args, "apply_chat_template", False)
        self._end_ids: list[int] = json.loads(parameter(args, "end_ids"))
        # The engine's, which is what an embedding bias must cover; a tokenizer may have fewer.
        self._vocab_size = int(parameter(args, "vocab_size", "0"))
        self._most_characters = int(parameter(args, "max_prompt_characters"))

    def encode(self, request: TextTensors) -> Prompt:
        """Encode one request; ValueError names the tensor that is wrong."""
        text = _texts("text_input", request.text)
        if len(text) != 1:
            raise ValueError(f"text_input holds {len(text)} texts; send one per request")
        if not text[0]:
            raise ValueError("text_input is empty; expected some text")
        chat = self._chat if request.chat is None else request.chat
        ids = self._chat_ids(text[0]) if chat else self._prompt_ids(text[0], self._special)
        if not ids:
            raise ValueError("text_input has no tokens; expected some text")
        # Any id of generation_config ends a text; the contract has one end_id and many stop words.
        ends = self._end_ids if request.end_id is None else [request.end_id]
        # Of an empty word the spelling after a space would be that space alone.
        words = tuple(filter(None, _words("stop_words", request.stop_words)))
        bad_words = list(filter(None, _words("bad_words", request.bad_words)))
        stop_ids = [*self._spellings(words), *([end] for end in ends[1:])]
        inputs: dict[str, NDArray[Any] | None] = {
            "input_ids": np.array([ids], np.int32),
            "input_lengths": np.array([[len(ids)]], np.int32),
            "stop_words_list": pack_words(stop_ids),
            "bad_words_list": pack_words(self._spellings(bad_words)),
            "embedding_bias": self._bias(request.bias_words, request.bias_weights),
            "end_id": _id(ends[0] if ends else None),
            "pad_id": _id(self._pad_id(request.pad_id, ends)),
            "prompt_table_extra_ids": self._table_ids(ids, request.table_id),
        }
        present = {name: value for name, value in inputs.items() if value is not None}
        return Prompt(present, words, StopWords(words) if words else None)

    def _chat_ids(self, text: str) -> list[int]:
        """Return the ids of a message, or of a JSON list of messages, in the chat template."""
        template = self.tokenizer.chat_template
        if template is None:
            raise ValueError("apply_chat_template is true, but the tokenizer has no chat template")
        _check_prompt(text, self._most_characters * _JSON_CHARACTERS)
        messages = _messages(text)
        try:
            prompt = template.render(messages)
        except Exception as error:  # whatever the model's own template raises
            raise ValueError(f"text_input does not fit the chat template: {error}") from error
        # The template writes the special tokens itself.
        return self._prompt_ids(prompt, special=False)

    def _prompt_ids(self, text: str, special: bool) -> list[int]:
        """Return the ids of a prompt, which are looked up only where they can be few enough."""
        _check_prompt(text, self._most_characters)
        return self.tokenizer.ids(text, special=special)

    def _spellings(self, words: Sequence[str]) -> list[list[int]]:
        """Return the ids under which each word can appear: at a start, and after a space."""
        spellings = (spelling for word in words for spelling in (word, f" {word}"))
        ids = (tuple(self.tokenizer.ids(spelling, special=False)) for spelling in spellings)
        return [list(word) for word in dict.fromkeys(ids) if word]

    def _bias(
        self, words: NDArray[Any] | None, weights: NDArray[Any] | None
    ) -> NDArray[np.float32] | None:
        """Return [1, vocabulary] with the weights of words added to their tokens."""
        texts = _words("embedding_bias_words", words)
        values = [] if weights is None else weights.reshape(-1).tolist()
        if len(texts) != len(values):
            raise ValueError(
                f"embedding_bias_words holds {len(texts)} words but embedding_bias_weights "
                f"{len(values)} weights; expected one weight per word"
            )
        if not texts:
            return None
        if not self._vocab_size:
            raise ValueError("embedding_bias_words needs the parameter vocab_size in config.pbtxt")
        bias = np.zeros((1, self._vocab_size), np.float32)
        for text, weight in zip(texts, values, strict=True):
            ids = self.tokenizer.ids(text, special=False)
            if any(token_id >= self._vocab_size for token_id in ids):
                raise ValueError(
                    f"embedding_bias_words has {text!r}, which the model has no id for"
                )
            # Not `bias[0, ids] += weight`, which counts a token once that a word has twice.
            np.add.at(bias[0], ids, weight)
        return bias

    def _pad_id(self, requested: int | None, ends: Sequence[int]) -> int | None:
        if requested is not None:
            return requested
        own = self.tokenizer.pad_id
        # Tokenizers that were given a pad token later have it one past the model's vocabulary.
        known = own is not None and (not self._vocab_size or own < self._vocab_size)
        return own if known else next(iter(ends), None)

    def _table_ids(self, ids: Sequence[int], table_id: int | None) -> NDArray[np.uint64] | None:
        """Return the table's id for each virtual token and 0 for the others."""
        if table_id is None:
            return None
        if not self._vocab_size:
            raise ValueError("prompt_table_extra_id needs the parameter vocab_size in config.pbtxt")
        virtual = np.array([ids]) >= self._vocab_size
        return np.where(virtual, np.uint64(table_id), np.uint64(0))


def pack_words(words: Sequence[Sequence[int]]) -> NDArray[np.int32] | None:
    """Return [1, 2, n]: ids one after another, and the end offset of each word, padded with -1."""
    if not words:
        return None
    ids = [token_id for word in words for token_id in word]
    ends = list(itertools.accumulate(len(word) for word in words))
    return np.array([[ids, ends + [-1] * (len(ids) - len(ends))]], np.int32)


def _id(value: int | None) -> NDArray[np.int32] | None:
    return None if value is None else np.array([[value]], np.int32)


def _texts(name: str, values: NDArray[Any] | None) -> list[str]:
    """Return the texts of a tensor of strings; ValueError when one is not UTF-8."""
    try:
        return [] if values is None else [value.decode("utf-8") for value in values.reshape(-1)]
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not UTF-8: {error.reason} at byte {error.start}") from error


def _words(name: str, values: NDArray[Any] | None) -> list[str]:
    """Return the words of a tensor; ValueError when tokenizing them would hold up the others."""
    if values is not None and values.size > MOST_WORDS:
        raise ValueError(f"{name} holds {values.size} words; expected at most {MOST_WORDS}")
    words = _texts(name, values)
    if sum(map(len, words)) > MOST_CHARACTERS:
        raise ValueError(f"{name} are longer than {MOST_CHARACTERS} characters together")
    return words


def _check_prompt(text: str, most: int) -> None:
    if len(text) > most:
        raise ValueError(
            f"text_input has {len(text)} characters; expected at most {most}, which is more than "
            "max_seq_len tokens can hold: shorten the prompt"
        )


def _messages(text: str) -> list[dict[str, Any]]:
    """Return a chat: the messages of a JSON list of objects, else the text as a user's message."""
    messages: Any = None
    # Objects too deep for Python are no chat either.
    with contextlib.suppress(ValueError, RecursionError):
        messages = json.loads(text)
    is_list = isinstance(messages, list) and bool(messages)
    if not (is_list and all(isinstance(message, dict) for message in messages)):
        return [{"role": "user", "content": text}]
    return [{**message, "content": _content(message)} for message in messages]


def _content(message: Mapping[str, Any]) -> str:
    """Return a message's text; templates of text models take a string, not a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        content = "\n".join(_part(part) for part in content)
    if not (isinstance(message.get("role"), str) and isinstance(content, str)):
        raise ValueError("text_input is a chat with a message that lacks its role or content")
    return content


def _part(part: Any) -> str:
    """Return the text of a part: the object {"type": "text", "text": ...}, or the text itself."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, dict) else part
    if kind != "text":
        raise ValueError(f"text_input is a chat with a part of type {kind!r}; the model takes text")
    if not isinstance(part.get("text"), str):
        raise ValueError("text_input is a chat with a part that lacks its text")
    return str(part["text"])
