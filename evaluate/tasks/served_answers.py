"""Answers of a model behind Triton: text by its text model, likelihoods by its logits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.evaluate.served_model import Probe, ServedLogits, probe
from minitron_trt.evaluate.tasks.questions import Continuation, Likelihood, TaskPrompt


class ServedAnswers:
    """Answers of a server, so many questions at a time."""

    def __init__(
        self,
        logits: ServedLogits,
        *,
        text_model: str,
        tokenizer_json: Path | None,
        concurrency: int,
    ) -> None:
        self._client: Client = logits.client
        self._logits = logits
        self._text_model = text_model
        self._tokenizer_json = tokenizer_json
        self._concurrency = concurrency

    @cached_property
    def probe(self) -> Probe:
        """Return what the server's logits show; RefusedError without them."""
        return probe(self._logits, self._tokenizer_json)

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Yield the likelihoods; continuations are one request if only their last token differs."""
        self.probe  # noqa: B018 - what is wrong with the server, before many requests
        places: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for place, (context, tokens) in enumerate(continuations):
            places.setdefault((context + tokens[:-1], len(tokens)), []).append(place)
        with ThreadPoolExecutor(self._concurrency) as pool:
            futures = {}
            # The longest first: what is too long for an engine is refused at once.
            for (ids, _), alike in sorted(places.items(), key=lambda item: -len(item[0][0])):
                endings = [continuations[place].tokens for place in alike]
                futures[pool.submit(self._likelihoods, ids, endings)] = alike
            # Whoever stops asking does not wait for what is not sent yet.
            try:
                for future in as_completed(futures):
                    yield from zip(futures[future], future.result(), strict=True)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _likelihoods(
        self, ids: tuple[int, ...], endings: Sequence[tuple[int, ...]]
    ) -> list[Likelihood]:
        """Return the likelihoods of continuations, of which `ids` has all but the last token.

        The logits end here: those of all requests would not fit into memory.
        """
        rows = range(len(ids) - len(endings[0]), len(ids))
        logits = self._logits(np.array(ids, np.int32), rows)
        return [Likelihood.of_logits(logits, tokens) for tokens in endings]

    def generate(self, prompts: Sequence[TaskPrompt]) -> Iterator[tuple[int, str]]:
        """Yield the answers; the server stops at the stop texts, and what is behind them is cut."""
        requests = [self._request(prompt) for prompt in prompts]
        places = {request.request_id: place for place, request in enumerate(requests)}
        answers = self._client.generate_many(
            requests, concurrency=self._concurrency, ordered=False, count_tokens=False
        )
        for answer in answers:
            place = places[answer.request.request_id]
            yield place, prompts[place].cut(answer.text)

    def _request(self, prompt: TaskPrompt) -> GenerateRequest:
        sampling: dict[str, Any] = dict(prompt.sampling)
        return GenerateRequest(
            prompt.text,
            model=self._text_model,
            max_tokens=prompt.max_tokens,
            stop_words=[stop for stop in prompt.stops if stop],
            seed=prompt.seed if sampling else None,
            apply_chat_template=prompt.messages or None,
            **sampling,
        )
