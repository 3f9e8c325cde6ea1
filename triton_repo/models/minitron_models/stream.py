"""The answers that are under way: per sequence the text so far, per request what it asked for."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minitron_models.decode import Vocabulary
from minitron_models.stop import StopMatcher, StopWords
from numpy.typing import NDArray

STOP = "stop"
LENGTH = "length"
TIMEOUT = "timeout"

MOST_STREAMS = 16384
"""How many names of streams are remembered; a runtime may never say that a stream has ended."""


def id_rows(tokens: NDArray[Any], lengths: NDArray[Any] | None) -> list[list[int]]:
    """Return the ids of each row of one request, whole or as long as `lengths` says.

    ValueError when the shapes are not of one request.
    """
    if tokens.ndim != 3 or len(tokens) != 1:
        raise ValueError(f"tokens are of shape {list(tokens.shape)}; expected [1, rows, tokens]")
    rows: list[list[int]] = tokens[0].tolist()
    if lengths is None:
        return rows
    if lengths.size != len(rows):
        raise ValueError(f"{len(rows)} rows of tokens have lengths of shape {list(lengths.shape)}")
    return [row[:count] for row, count in zip(rows, lengths.reshape(-1).tolist(), strict=True)]


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


class Pushed(NamedTuple):
    """What a response of tensorrt_llm adds to a sequence, by row."""

    texts: list[str]
    reasons: list[str]  # why it ended, "" where nobody knows; none as long as it goes on
    over: bool
    cut: bool  # stop words ended it, which tensorrt_llm does not know


@dataclass
class Stream:
    """What a text request asked for, and its sequences by their index."""

    names: tuple[Hashable, ...]
    max_tokens: int
    streaming: bool
    words: StopWords | None = None
    prompt: Sequence[int] = ()
    answers: dict[int, Answer] = field(default_factory=dict)
    responses: int = 0
    told_to_stop: bool = False
    checked: float = 0.0  # when the client was last looked for, of time.monotonic()

    def push(
        self, rows: Sequence[Sequence[int]], index: int, given: str, vocabulary: Vocabulary
    ) -> Pushed:
        """Take a response: the ids of a sequence's rows, and why it ended where that is known."""
        answers = self._answers_for(rows, index, vocabulary)
        last = bool(given) or self._is_over(answers[0], rows[0])
        texts, stopped = [], True
        for answer, ids in zip(answers, rows, strict=True):
            texts.append(answer.push(ids, last=last))
            stopped = stopped and answer.stopped
        over = last or stopped
        reasons = [self._reason(answer, given, last) for answer in answers] if over else []
        return Pushed(texts, reasons, over, stopped and not last)

    def _answers_for(
        self, rows: Sequence[Sequence[int]], index: int, vocabulary: Vocabulary
    ) -> list[Answer]:
        """Return what a response's rows go into; a sequence begins when it is first met.

        Several rows are beams, which come whole: they may change places between responses.
        """
        if len(rows) > 1:
            return [Answer(vocabulary, self.words, self.prompt) for _ in rows]
        return [self.answers[index] if index in self.answers else self.begin(vocabulary, index)]

    def begin(self, vocabulary: Vocabulary, index: int = 0) -> Answer:
        """Return a sequence's answer, from now on the one that responses go into."""
        self.answers[index] = Answer(vocabulary, self.words, self.prompt)
        return self.answers[index]

    def _is_over(self, answer: Answer, ids: Sequence[int]) -> bool:
        """Return whether these are a sequence's last ids, as far as a runtime lets one know."""
        return not (self.streaming and ids) or answer.tokens + len(ids) >= self.max_tokens

    def _reason(self, answer: Answer, given: str, last: bool) -> str:
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
