"""What is asked in a load test: prompts from a file, or made by a distribution of lengths."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import cycle, islice
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
from msgspec import Meta

from minitron_trt.errors import BadInputError, UsageError

BLOCK_TOKENS: Final = 512
"""The tokens that one of a trace's `hash_ids` stands for, as Mooncake cuts prompts."""
_DEFAULT_TOKENS: Final = 64
_Length = Annotated[int, Meta(ge=1, le=10_000_000)]
_Milliseconds = Annotated[float, Meta(ge=0, le=1e12)]


@dataclass(frozen=True, slots=True)
class Question:
    """One request of a load test: a text or messages, the tokens to make, when a trace sent it."""

    prompt: str | Sequence[Mapping[str, str]]
    output_tokens: int
    at_s: float | None = None


class TokenCounter(Protocol):
    """Cuts and counts text by a model's tokens; without a tokenizer a word is taken for one."""

    def count(self, text: str) -> int:
        """Return how many tokens a text has."""
        ...

    def cut(self, words: Sequence[str], tokens: int) -> str:
        """Return a text of so many tokens, of words that are at least as many."""
        ...


class WordCounter:
    """Takes a word for a token."""

    def count(self, text: str) -> int:
        """Return how many words a text has."""
        return len(text.split())

    def cut(self, words: Sequence[str], tokens: int) -> str:
        """Return the first words."""
        return " ".join(words[:tokens])


class TokenizerCounter:
    """Counts as a tokenizer.json does."""

    def __init__(self, path: Path) -> None:
        # Only who names a tokenizer needs the library.
        from tokenizers import Tokenizer

        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise BadInputError(f"{file} is not a file; expected a tokenizer.json, or its folder")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise BadInputError(f"{file} is no tokenizer ({error})") from error

    def count(self, text: str) -> int:
        """Return how many tokens a text has, without those that a model puts around it."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def cut(self, words: Sequence[str], tokens: int) -> str:
        """Return the text of the first tokens."""
        encoded = self._tokenizer.encode(" ".join(words), add_special_tokens=False)
        text: str = self._tokenizer.decode(encoded.ids[:tokens])
        return text


@dataclass(frozen=True, slots=True)
class Lengths:
    """How long prompts and answers are in tokens: normally distributed, at least one."""

    isl: int = 128
    isl_stddev: float = 0.0
    osl: int = _DEFAULT_TOKENS
    osl_stddev: float = 0.0

    def draw(self, chance: random.Random) -> tuple[int, int]:
        """Return the length of a prompt and of its answer."""
        isl = chance.gauss(self.isl, self.isl_stddev) if self.isl_stddev else self.isl
        osl = chance.gauss(self.osl, self.osl_stddev) if self.osl_stddev else self.osl
        return max(1, round(isl)), max(1, round(osl))


def synthetic_questions(
    lengths: Lengths, questions: int, seed: int, counter: TokenCounter, run: int = 0
) -> Sequence[Question]:
    """Return questions of words in random order, so that no two share a beginning to cache.

    Each run has questions of its own, of the same lengths.
    """
    of_lengths, of_words = random.Random(seed), random.Random(f"{seed} {run}")
    drawn = [lengths.draw(of_lengths) for _ in range(questions)]
    return [Question(_words_text(of_words, isl, counter), osl) for isl, osl in drawn]


def _words_text(chance: random.Random, tokens: int, counter: TokenCounter) -> str:
    # As many words as tokens are enough: none has less than one.
    return counter.cut(chance.choices(_corpus_words(), k=tokens), tokens)


@cache
def _corpus_words() -> Sequence[str]:
    """Return the words of the text that the sample models were trained on."""
    text = resources.files("minitron_trt.samples").joinpath("corpus.txt").read_text("utf-8")
    # Sorted: a set of texts has another order at every start, and a seed would name no prompts.
    return sorted(set(re.findall(r"[A-Za-z]+", text)))


class _Turn(msgspec.Struct):
    from_: str = msgspec.field(name="from")
    value: str


class _Line(msgspec.Struct):
    """An entry of ShareGPT, of a Mooncake trace, or of a plain list of prompts."""

    conversations: list[_Turn] | None = None
    input_length: _Length | None = None
    hash_ids: list[int] | None = None
    text_input: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    output_length: _Length | None = None
    max_tokens: _Length | None = None
    timestamp: _Milliseconds | None = None


def file_questions(
    path: Path, *, output_tokens: int | None, seed: int, counter: TokenCounter
) -> Sequence[Question]:
    """Read questions from a file of JSON lines, or one JSON list; BadInputError says which is none.

    Known are ShareGPT's conversations, of which the first exchange is taken, Mooncake's traces
    (`input_length`, `hash_ids`, `text_input`, `messages`, `output_length`, `timestamp`), and
    `prompt` with `max_tokens`. `output_tokens` replaces the lengths of the file.
    """
    questions = []
    for place, line in _lines(path):
        _check_blocks(line, f"{path} at {place}")
        # Without ids of its blocks a prompt of a trace shares nothing with the others.
        prompt = _prompt(line, f"{seed} {place}", f"{seed}", counter)
        question = _question(line, prompt, output_tokens, counter)
        if question is not None:
            questions.append(question)
        elif line.conversations is None:
            raise BadInputError(
                f"{path} has no prompt at {place}; expected one of text_input, prompt, messages, "
                "input_length or conversations"
            )
    if not questions:
        raise BadInputError(f"{path} has no question; expected lines with a prompt each")
    return questions


def _lines(path: Path) -> Iterator[tuple[str, _Line]]:
    blob = path.read_bytes()
    place = "its begin"
    try:
        if blob.lstrip().startswith(b"["):
            for index, line in enumerate(msgspec.json.decode(blob, type=list[_Line])):
                yield f"entry {index + 1}", line
            return
        decoder = msgspec.json.Decoder(_Line)
        for number, text in enumerate(blob.splitlines(), 1):
            place = f"line {number}"
            if text.strip():
                yield place, decoder.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"{path} cannot be read at {place}: {error}") from error


def _question(
    line: _Line,
    prompt: str | Sequence[Mapping[str, str]] | None,
    output_tokens: int | None,
    counter: TokenCounter,
) -> Question | None:
    """Return the question of an entry; None when it has none."""
    answer = None
    if prompt is None and line.conversations is not None:
        # ShareGPT has conversations that begin with an answer; they are left out, as by others.
        first = [turn.value for turn in line.conversations[:2]]
        asks = bool(line.conversations) and line.conversations[0].from_ in ("human", "user")
        if len(first) < 2 or not asks or not all(first):
            return None
        prompt, answer = first
    if not prompt:
        return None
    tokens = output_tokens or line.output_length or line.max_tokens
    if tokens is None:
        tokens = _DEFAULT_TOKENS if answer is None else max(1, counter.count(answer))
    at_s = None if line.timestamp is None else line.timestamp / 1000
    return Question(prompt, tokens, at_s)


def _prompt(
    line: _Line, own_seed: str, seed: str, counter: TokenCounter
) -> str | Sequence[Mapping[str, str]] | None:
    if line.messages is not None:
        return line.messages
    if line.input_length is None:
        return line.text_input if line.text_input is not None else line.prompt
    if not line.hash_ids:
        return _words_text(random.Random(own_seed), line.input_length, counter)
    blocks, left = [], line.input_length
    for block in line.hash_ids:
        # Equal ids are equal texts, so that a server's cache meets what the trace's had.
        tokens = min(left, BLOCK_TOKENS)
        blocks.append(_words_text(random.Random(f"{seed} {block}"), tokens, counter))
        left -= tokens
    return " ".join(blocks)


def _check_blocks(line: _Line, where: str) -> None:
    """BadInputError unless blocks are as many as a prompt's tokens fill, as aiperf wants them."""
    if line.messages is not None or line.input_length is None or not line.hash_ids:
        return
    filled = -(-line.input_length // BLOCK_TOKENS)
    if len(line.hash_ids) != filled:
        raise BadInputError(
            f"{where}: {line.input_length} tokens have {len(line.hash_ids)} hash_ids; expected "
            f"{filled}, one for each block of {BLOCK_TOKENS}"
        )


def scheduled(questions: Sequence[Question]) -> Sequence[Question]:
    """Return the questions of a trace by their times, the first at 0; UsageError without times."""
    if any(question.at_s is None for question in questions):
        raise UsageError("--fixed-schedule needs a timestamp in every line of --input-file")
    ordered = sorted(questions, key=lambda question: question.at_s or 0.0)
    start = ordered[0].at_s or 0.0
    return [
        Question(each.prompt, each.output_tokens, (each.at_s or 0.0) - start) for each in ordered
    ]


def repeated(questions: Sequence[Question], count: int | None) -> Iterator[Question]:
    """Yield so many questions, from the first again when there are fewer; endlessly for None."""
    return islice(cycle(questions), count)
