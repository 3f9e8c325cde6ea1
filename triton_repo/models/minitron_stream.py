"""The answers that are under way: per sequence the text so far, per request what it asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from minitron_decode import Vocabulary
from minitron_stop import StopMatcher, StopWords
from numpy.typing import NDArray

STOP = "stop"
LENGTH = "length"

MOST_STREAMS = 16384
"""How many names of streams are remembered; a runtime may never say that a stream has ended."""


def id_rows(tokens: NDArray[Any], lengths: NDArray[Any]) -> list[list[int]]:
    """Return the ids of each row of one request; ValueError when the shapes are not of one."""
    if tokens.ndim != 3 or len(tokens) != 1 or lengths.size != tokens.shape[1]:
        raise ValueError(
            f"tokens are of shape {list(tokens.shape)} and their lengths of "
            f"{list(lengths.shape)}; expected [1, rows, tokens] and [1, rows]"
        )
    counts = lengths.reshape(-1).tolist()
    return [row[:count] for row, count in zip(tokens[0].tolist(), counts, strict=True)]


class Answer:
    """One sequence: from ids to the text that the client gets, cut before a stop word."""

    def __init__(
        self, vocabulary: Vocabulary, words: StopWords | None, prompt: Sequence[int] = ()
    ) -> None:
        self._text = vocabulary.detokenizer()
        self._matcher = None if words is None else StopMatcher(words)
        # Goes before the answer, and stop words in it are the client's own.
        self._prompt = self._text.push(prompt) + self._text.finish()
        self.tokens = 0

    @property
    def stopped(self) -> bool:
        """Return whether a stop word has ended the text."""
        return self._matcher is not None and self._matcher.stopped

    def push(self, ids: Sequence[int], *, last: bool) -> str:
        """Return the text that more ids add; with the last ones, all that was held back."""
        self.tokens += len(ids)
        matcher = self._matcher
        if matcher is not None and matcher.stopped:
            return ""
        text: str = self._text.push(ids)
        if last:
            text += self._text.finish()
        if matcher is not None:
            text = matcher.push(text)
            if last and not matcher.stopped:
                text += matcher.finish()
        if self._prompt:
            text, self._prompt = self._prompt + text, ""
        return text


@dataclass
class Stream:
    """What a text request asked for, and its sequences by their index."""

    names: tuple[Hashable, ...]
    max_tokens: int
    streaming: bool
    words: StopWords | None = None
    prompt: Sequence[int] = ()
    answers: dict[int, Answer] = field(default_factory=dict)
    told_to_stop: bool = False
    checked: float = 0.0  # when the client was last looked for, of time.monotonic()

    def answers_for(
        self, rows: Sequence[Sequence[int]], index: int, vocabulary: Vocabulary
    ) -> list[Answer]:
        """Return what a response's rows go into; a sequence begins when it is first met.

        Several rows are beams, which come whole: they may change places between responses.
        """
        if len(rows) > 1:
            return [Answer(vocabulary, self.words, self.prompt) for _ in rows]
        if index not in self.answers:
            self.answers[index] = Answer(vocabulary, self.words, self.prompt)
        return [self.answers[index]]

    def is_over(self, answer: Answer, ids: Sequence[int]) -> bool:
        """Return whether these are a sequence's last ids, as far as a runtime lets one know."""
        return not (self.streaming and ids) or answer.tokens + len(ids) >= self.max_tokens

    def reason(self, answer: Answer, given: str, *, last: bool) -> str:
        """Return why a sequence ended: at a stop word, as the runtime says, or as can be told.

        Empty while it goes on, and where nobody knows.
        """
        if answer.stopped:
            return STOP
        if given or not last:
            return given
        if answer.tokens >= self.max_tokens:
            return LENGTH
        return "" if self.streaming else STOP


class Streams:
    """The streams by their names, of which each may have some; the least recently used go."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._by_name: OrderedDict[Hashable, Stream] = OrderedDict()

    def open(self, stream: Stream) -> None:
        """Remember a stream; a name that is taken goes over to it."""
        for name in stream.names:
            self._by_name[name] = stream
            self._by_name.move_to_end(name)
        while len(self._by_name) > self._most:
            self._by_name.popitem(last=False)

    def find(self, name: Hashable) -> Stream | None:
        """Return the stream of a name, None when it is not known or no longer."""
        stream = self._by_name.get(name)
        if stream is not None:
            self._by_name.move_to_end(name)
        return stream

    def close(self, stream: Stream) -> None:
        """Forget a stream."""
        for name in stream.names:
            if self._by_name.get(name) is stream:
                del self._by_name[name]
