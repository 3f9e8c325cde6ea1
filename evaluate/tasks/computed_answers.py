"""Answers that are computed here, by the reference model."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from minitron_trt.errors import BadInputError
from minitron_trt.evaluate.perplexity import log_likelihoods
from minitron_trt.evaluate.tasks.questions import Continuation, Likelihood, TaskPrompt
from minitron_trt.executor.requests import Event, Request
from minitron_trt.executor.sampling import Sampling
from minitron_trt.executor.scheduler import Executor
from minitron_trt.executor.step import StepBatch, StepModel
from minitron_trt.quantization.number_formats import Array

_CONTEXT_CHUNK: Final = 512  # tokens of a sequence in one step
_SCORED_CHUNK: Final = 64  # the same, where each has logits, of 8 bytes for each token id
_TAIL: Final = 8  # tokens beside a stop text's bytes that may be part of it


class TaskTokenizer(Protocol):
    """What a prompt's tokens are, and what text tokens are."""

    def encode_prompt(self, text: str, room: int) -> list[int]:
        """Return the last `room` tokens of a prompt."""
        ...

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        ...


class _Chunk(NamedTuple):
    """Some tokens of one sequence, from a position on; the logits of the last `wanted` matter."""

    ids: Sequence[int]
    start: int
    wanted: int


_Scoring = Generator[_Chunk, Array, list[Likelihood]]


class ComputedAnswers:
    """Answers by a model with as many sequences at once as it has slots."""

    def __init__(self, model: StepModel, tokenizer: TaskTokenizer, end_ids: Sequence[int]) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._end_ids = tuple(end_ids)

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Yield the likelihoods; what several continuations follow is computed once."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, continuation in enumerate(continuations):
            places.setdefault(continuation.context, []).append(place)
        # The longest first: what does not fit into memory is known at once.
        waiting = iter(sorted(places, key=lambda context: (-len(context), context)))
        running: dict[int, tuple[_Scoring, _Chunk, tuple[int, ...]]] = {}
        while True:
            for slot in range(self._model.slots):
                if slot not in running and (context := next(waiting, None)) is not None:
                    tokens = [continuations[place].tokens for place in places[context]]
                    scoring = _scored(context, tokens)
                    running[slot] = (scoring, next(scoring), context)
            if not running:
                return
            for slot, rows in self._rows({slot: part[1] for slot, part in running.items()}):
                scoring, _, context = running[slot]
                try:
                    running[slot] = (scoring, scoring.send(rows), context)
                except StopIteration as end:
                    del running[slot]
                    yield from zip(places[context], end.value, strict=True)

    def _rows(self, chunks: dict[int, _Chunk]) -> Iterator[tuple[int, Array]]:
        """Compute a chunk of each slot; yield its wanted log-probabilities [wanted, vocab]."""
        lengths = np.array([len(chunk.ids) for chunk in chunks.values()], np.int32)
        ends = np.cumsum(lengths)
        wanted = [
            np.arange(end - chunk.wanted, end, dtype=np.int32)
            for chunk, end in zip(chunks.values(), ends, strict=True)
        ]
        batch = StepBatch(
            input_ids=np.concatenate([np.array(c.ids, np.int32) for c in chunks.values()]),
            positions=np.concatenate(
                [np.arange(c.start, c.start + len(c.ids), dtype=np.int32) for c in chunks.values()]
            ),
            slots=np.array(list(chunks), np.int32),
            lengths=lengths,
            logit_rows=np.concatenate(wanted),
        )
        logits = self._model.step(batch)
        stops = np.cumsum([chunk.wanted for chunk in chunks.values()])
        for slot, rows in zip(chunks, np.split(logits, stops[:-1]), strict=True):
            yield slot, log_likelihoods(rows) if len(rows) else rows

    def generate(self, prompts: Sequence[TaskPrompt]) -> Iterator[tuple[int, str]]:
        """Yield the answers of requests that share steps as they do behind a server."""
        executor = Executor(self._model, max_tokens_per_step=max(512, self._model.slots))
        prompt_ids = [
            self._tokenizer.encode_prompt(prompt.text, self._model.max_seq_len - prompt.max_tokens)
            for prompt in prompts
        ]
        waiting = iter(sorted(range(len(prompts)), key=lambda place: -len(prompt_ids[place])))
        answers: dict[int, _ComputedAnswer] = {}
        while True:
            while len(answers) < self._model.slots:
                if (place := next(waiting, None)) is None:
                    break
                answer = answers[place] = _ComputedAnswer(prompts[place], self._tokenizer)
                request = self._request(place, prompt_ids[place], prompts[place])
                executor.submit(request, answer.take, answer.is_complete)
            if not answers:
                return
            executor.step()
            for place in [place for place, answer in answers.items() if answer.ended]:
                yield place, answers.pop(place).text()

    def _request(self, place: int, ids: Sequence[int], prompt: TaskPrompt) -> Request:
        options: dict[str, Any] = dict(prompt.sampling)
        sampling = Sampling(**options, seed=prompt.seed, end_ids=self._end_ids)
        return Request(str(place), tuple(ids), prompt.max_tokens, sampling)


def _scored(context: tuple[int, ...], continuations: Sequence[tuple[int, ...]]) -> _Scoring:
    """Ask for the chunks of a context and of what follows it; return the likelihoods.

    A sequence is taken back to the end of its context for each further continuation: what its slot
    has of positions behind that is not looked at.
    """
    last: Array = np.empty((0, 0))
    for start in range(0, len(context), _CONTEXT_CHUNK):
        ids = context[start : start + _CONTEXT_CHUNK]
        last = yield _Chunk(ids, start, wanted=int(start + len(ids) == len(context)))
    likelihoods = []
    for tokens in continuations:
        parts = [Likelihood.of(last, tokens[:1])]
        for start in range(0, len(tokens) - 1, _SCORED_CHUNK):
            ids = tokens[start : min(start + _SCORED_CHUNK, len(tokens) - 1)]
            rows = yield _Chunk(ids, len(context) + start, wanted=len(ids))
            parts.append(Likelihood.of(rows, tokens[start + 1 : start + 1 + len(ids)]))
        totals, greedy = zip(*parts, strict=True)
        likelihoods.append(Likelihood(sum(totals), all(greedy)))
    return likelihoods


class _ComputedAnswer:
    """An answer as its tokens come."""

    def __init__(self, prompt: TaskPrompt, tokenizer: TaskTokenizer) -> None:
        self.ended = False
        self._prompt = prompt
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._error: str | None = None
        # A token may be no more than a byte.
        longest = max((len(stop.encode()) for stop in prompt.stops), default=0)
        self._tail = longest + _TAIL

    def take(self, event: Event) -> None:
        self._tokens += event.tokens
        self._error = event.error
        self.ended = event.finish_reason is not None

    def is_complete(self) -> bool:
        """Say whether a stop text is there, after which nothing more is needed."""
        text = self._tokenizer.decode(self._tokens[-self._tail :])
        return any(stop in text for stop in self._prompt.stops if stop)

    def text(self) -> str:
        if self._error is not None:
            raise BadInputError(f"an answer could not be generated: {self._error}")
        return self._prompt.cut(self._tokenizer.decode(self._tokens))
