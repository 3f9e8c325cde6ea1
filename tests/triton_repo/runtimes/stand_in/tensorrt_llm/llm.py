"""The stand-in's LLM: a transformers model, one thread for each request."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from tensorrt_llm.choosing import chosen, search, shaped
from tensorrt_llm.metrics import metrics
from tensorrt_llm.sampling_params import SamplingParams

KNOWN = {
    *("backend", "pipeline_parallel_size", "max_batch_size", "max_seq_len", "stream_interval"),
    *("kv_cache_config", "guided_decoding_backend", "sampler_type", "max_num_tokens"),
    *("max_beam_width", "enable_chunked_prefill", "scheduler_config"),
}
FAULT_ID = 7
"""A prompt of this id alone makes the stand-in fail, as a broken GPU would."""


@dataclass(slots=True)
class Logprob:
    """A token's log probability."""

    logprob: float
    rank: int | None = None


@dataclass(slots=True)
class CompletionOutput:
    """One continuation, which grows in place."""

    index: int
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    generation_logits: torch.Tensor | None = None
    request_perf_metrics: Any = None


class RequestOutput:
    """A request under way: iterate for its steps; each gives this same object."""

    def __init__(
        self,
        prompt_token_ids: list[int],
        sequences: int,
        streaming: bool,
        cache_salt: str | None = None,
    ) -> None:
        self.cache_salt = cache_salt
        self.prompt_token_ids = prompt_token_ids
        self.outputs = [CompletionOutput(index) for index in range(sequences)]
        self.context_logits: torch.Tensor | None = None
        self.finished = False
        self.aborted = threading.Event()
        self.streaming = streaming
        self._loop = asyncio.get_running_loop()
        self._steps: asyncio.Queue[Any] = asyncio.Queue()

    def abort(self) -> None:
        """End it at the next step."""
        self.aborted.set()

    def step(self, change: Any) -> None:
        """Hand a change over, from another thread."""
        self._loop.call_soon_threadsafe(self._steps.put_nowait, change)

    def __aiter__(self) -> RequestOutput:
        return self

    async def __anext__(self) -> RequestOutput:
        while not self.finished:
            change = await self._steps.get()
            if isinstance(change, Exception):
                raise change
            self.finished = change()
            if self.streaming or self.finished:
                return self
        raise StopAsyncIteration


class LLM:
    """Loads a folder; generate_async begins a request."""

    def __init__(
        self,
        model: str,
        tokenizer: str | None = None,
        skip_tokenizer_init: bool = False,
        trust_remote_code: bool = False,
        tensor_parallel_size: int = 1,
        dtype: str = "auto",
        **kwargs: Any,
    ) -> None:
        if unknown := kwargs.keys() - KNOWN:
            raise ValueError(f"extra arguments are not permitted: {', '.join(sorted(unknown))}")
        # Steps of a tiny model are shorter than what several threads have to say to each other.
        torch.set_num_threads(1)
        loader: Any = AutoModelForCausalLM
        self._model = loader.from_pretrained(model, dtype=torch.bfloat16)
        self._penalizes = kwargs.get("sampler_type") == "TRTLLMSampler"
        self._beams = kwargs.get("max_beam_width", 1)
        self._reuses = kwargs.get("kv_cache_config", {}).get("enable_block_reuse", True)
        self._seen: set[tuple[str | int | None, ...]] = set()
        self._lock = threading.Lock()

    def generate_async(
        self,
        inputs: list[int],
        sampling_params: SamplingParams | None = None,
        streaming: bool = False,
        cache_salt: str | None = None,
    ) -> RequestOutput:
        """Begin to continue a prompt."""
        asked = sampling_params or SamplingParams()
        if asked.guided_decoding is not None:
            raise ValueError(f"the stand-in does not guide: {asked.guided_decoding}")
        output = RequestOutput(inputs, asked.n, streaming, cache_salt)
        threading.Thread(target=self._run, args=(output, asked), daemon=True).start()
        return output

    def shutdown(self) -> None:
        """Do nothing: the threads end with their requests."""

    def _run(self, output: RequestOutput, asked: SamplingParams) -> None:
        try:
            if output.prompt_token_ids == [FAULT_ID]:
                raise RuntimeError("the stand-in was asked to fail")
            if asked.beams != self._beams:
                raise RuntimeError(f"width {asked.beams} is not the only one, {self._beams}")
            (self._search if asked.use_beam_search else self._generate)(output, asked)
        except Exception as error:
            output.step(error)

    def _generate(self, output: RequestOutput, asked: SamplingParams) -> None:
        arrival = time.monotonic()
        for index in range(asked.n):
            draw = torch.Generator().manual_seed((asked.seed or 0) + index)
            cache, ids, answer = None, output.prompt_token_ids, list[int]()
            reason = None
            while reason is None:
                with self._lock, torch.inference_mode():
                    step = self._model(torch.tensor([ids]), past_key_values=cache, use_cache=True)
                cache, logits = step.past_key_values, step.logits[0, -1].float()
                if not answer and index == 0:
                    self._keep_context(output, asked, step.logits[0])
                history = Counter([*output.prompt_token_ids, *answer])
                logits = shaped(logits, asked, answer, history if self._penalizes else {})
                token = chosen(logits, asked, draw)
                answer.append(token)
                ids = [token]
                reason = _reason(output, asked, answer)
                last = reason is not None and index == asked.n - 1
                entry = {token: Logprob(float(logits.log_softmax(-1)[token]))}
                output.step(_change(output, index, asked, entry, logits, reason, last, arrival))

    def _search(self, output: RequestOutput, asked: SamplingParams) -> None:
        arrival, prompt = time.monotonic(), output.prompt_token_ids

        def look(ids: list[int]) -> torch.Tensor:
            with self._lock, torch.inference_mode():
                rows = self._model(torch.tensor([prompt + ids])).logits[0].float()
            if not ids:
                self._keep_context(output, asked, rows)
            last: torch.Tensor = shaped(rows[-1], asked, ids, {})
            return last

        best = search(look, asked, lambda ids: _reason(output, asked, ids))

        def change() -> bool:
            for found, beam in zip(output.outputs, best, strict=False):
                found.finish_reason = beam.reason
                stop = beam.reason == "stop" and beam.ids[-1] in (asked.stop_token_ids or ())
                found.token_ids = beam.ids[:-1] if stop else beam.ids
                if asked.logprobs:
                    pairs = zip(found.token_ids, beam.log_probs, strict=False)
                    found.logprobs = [{token: Logprob(value)} for token, value in pairs]
                if asked.return_generation_logits:
                    found.generation_logits = torch.stack(beam.logits)
                if asked.return_perf_metrics:
                    found.request_perf_metrics = metrics(arrival)
            return True

        output.step(change)

    def _keep_context(
        self, output: RequestOutput, asked: SamplingParams, logits: torch.Tensor
    ) -> None:
        """Give the prompt's logits but for tokens that the KV cache has, as the real one does."""
        prompt = (output.cache_salt, *output.prompt_token_ids)
        if asked.return_context_logits:
            rows = logits[-1:] if self._reuses and prompt in self._seen else logits
            output.context_logits = rows.float()
        self._seen.add(prompt)


def _reason(output: RequestOutput, asked: SamplingParams, answer: list[int]) -> str | None:
    if output.aborted.is_set():
        return "cancelled"
    if not asked.ignore_eos and answer[-1] == asked.end_id:
        return "stop"
    if answer[-1] in (asked.stop_token_ids or ()):
        return "stop"
    return "length" if len(answer) == asked.max_tokens else None


def _change(
    output: RequestOutput,
    index: int,
    asked: SamplingParams,
    entry: dict[int, Logprob],
    logits: torch.Tensor,
    reason: str | None,
    last: bool,
    arrival: float,
) -> Any:
    """Return what makes one token known, to be called where the request is read."""
    found, (token,) = output.outputs[index], entry

    def change() -> bool:
        found.finish_reason = reason
        if reason != "stop" or token not in (asked.stop_token_ids or ()):
            found.token_ids.append(token)
            if asked.logprobs:
                found.logprobs.append(entry)
        if asked.return_generation_logits:
            before = None if output.streaming else found.generation_logits
            # Of a stream each step has its own alone.
            rows = logits[None]
            found.generation_logits = rows if before is None else torch.cat((before, rows))
        if reason and asked.return_perf_metrics:
            found.request_perf_metrics = metrics(arrival)
        return last

    return change
