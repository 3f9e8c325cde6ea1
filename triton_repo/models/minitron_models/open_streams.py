"""The texts that are under way: each sequence's so far, and what its request said of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from minitron_models.stop_words import StopMatcher, StopWords
from minitron_models.token_texts import TokenTexts
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


class SequenceText:
    """One sequence: from ids to the text that the client gets, cut before a stop word."""

    def __init__(
        self, token_texts: TokenTexts, words: StopWords | None, prompt: Sequence[int] = ()
    ) -> None:
        self._text = token_texts.detokenizer()
        self._matcher = None if words is None else StopMatcher(words)
        # Goes before the answer past the matcher: stop words in it are the client's own.
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


class TextUpdate(NamedTuple):
    """What a response of tensorrt_llm adds to a sequence; a text and a reason for each row."""

    texts: list[str]
    reasons: list[str]  # why it ended, "" where that is unknown; [] as long as it goes on
    over: bool
    cut: bool  # stop words ended the text; tensorrt_llm may still be generating


@dataclass
class OpenStream:
    """A text request under way: what it said of its texts, and its sequences by their index."""

    names: tuple[Hashable, ...]
    max_tokens: int
    streaming: bool
    words: StopWords | None = None
    prompt: Sequence[int] = ()  # goes before the text
    echo: Sequence[int] = ()  # the prompt, too, where tensorrt_llm may repeat it
    sequences: dict[int, SequenceText] = field(default_factory=dict)
    responses: int = 0
    told_to_stop: bool = False
    checked: float = 0.0  # when its client was last asked after, of time.monotonic()

    def push(
        self, rows: Sequence[Sequence[int]], index: int, reason: str, token_texts: TokenTexts
    ) -> TextUpdate:
        """Take a response: the ids of a sequence's rows, and why it ended, "" if it is not said."""
        if self.echo:
            rows = [self._without_echo(ids) for ids in rows]
        sequences = self._continue_sequences(rows, index, token_texts)
        last = bool(reason) or self._is_over(sequences[0], rows[0])
        texts, stopped = [], True
        for sequence, ids in zip(sequences, rows, strict=True):
            texts.append(sequence.push(ids, last=last))
            stopped = stopped and sequence.stopped
        over = last or stopped
        reasons = [self._reason(each, reason, last) for each in sequences] if over else []
        return TextUpdate(texts, reasons, over, stopped and not last)

    def _without_echo(self, ids: Sequence[int]) -> Sequence[int]:
        count = len(self.echo)
        return ids[count:] if ids[:count] == self.echo else ids

    def _continue_sequences(
        self, rows: Sequence[Sequence[int]], index: int, token_texts: TokenTexts
    ) -> list[SequenceText]:
        """Return what a response's rows go into; a sequence begins when it is first met.

        Several rows are beams, which come whole: they may change places between responses.
        """
        if len(rows) > 1:
            return [SequenceText(token_texts, self.words, self.prompt) for _ in rows]
        known = self.sequences.get(index)
        return [self.begin(token_texts, index) if known is None else known]

    def begin(self, token_texts: TokenTexts, index: int = 0) -> SequenceText:
        """Begin the sequence that responses of an index go into from now on, and return it."""
        self.sequences[index] = SequenceText(token_texts, self.words, self.prompt)
        return self.sequences[index]

    def _is_over(self, sequence: SequenceText, ids: Sequence[int]) -> bool:
        """Return whether these are a sequence's last ids, as far as a runtime lets one know."""
        # Without streaming the first response is the last; in a stream an empty one may be it.
        return not (self.streaming and ids) or sequence.tokens + len(ids) >= self.max_tokens

    def _reason(self, sequence: SequenceText, reason: str, last: bool) -> str:
        """Return why a sequence ended: at a stop word, as the runtime says, or as can be told.

        "" while it goes on, and where that is unknown.
        """
        if sequence.stopped:
            return STOP
        if reason or not last:
            return reason
        if sequence.tokens >= self.max_tokens:
            return LENGTH
        return "" if self.streaming else STOP


class OpenStreams:
    """The streams by their names, of which each may have several; the least recently used go."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self._by_name: OrderedDict[Hashable, OpenStream] = OrderedDict()

    def open(self, stream: OpenStream) -> None:
        """Remember a stream; a name that is taken goes over to it."""
        for name in stream.names:
            self._by_name[name] = stream
            self._by_name.move_to_end(name)
        while len(self._by_name) > self._most:
            self._by_name.popitem(last=False)

    def find(self, name: Hashable) -> OpenStream | None:
        """Return the stream of a name, None when it is not known or no longer."""
        stream = self._by_name.get(name)
        if stream is not None:
            self._by_name.move_to_end(name)
        return stream

    def close(self, stream: OpenStream) -> None:
        """Forget a stream."""
        for name in stream.names:
            if self._by_name.get(name) is stream:
                del self._by_name[name]
