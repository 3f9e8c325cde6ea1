"""What Triton answers, as OpenAI's objects: whole ones, and the chunks of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.clients.messages import Chunk
from minitron_trt.gateway.openai_requests import AskedText

_LENGTH: Final = "length"
# OpenAI knows a limit as the only reason why an answer is shorter than the model had it.
_REASONS: Final[Mapping[str, str]] = MappingProxyType(
    {"stop": "stop", "length": _LENGTH, "timeout": _LENGTH, "cancelled": _LENGTH}
)


@dataclass(frozen=True, slots=True)
class TokenLogProb:
    """A token's text and log-prob."""

    text: str
    log_prob: float


@dataclass(slots=True)
class Choice:
    """One sequence of an answer, as far as it has come."""

    max_tokens: int
    text: str = ""
    tokens: list[TokenLogProb] = field(default_factory=list)
    count: int = 0
    reason: str | None = None

    def add(self, chunk: Chunk) -> list[TokenLogProb]:
        """Take a piece; return the tokens whose log-probs came with it.

        Triton tells no token's text. Of several tokens in one response the last has all of it, so
        that the texts still join to the answer's.
        """
        self.text += chunk
        self.count += sum(chunk.outputs.get("num_output_tokens", ()))
        self.reason = chunk.finish_reason or self.reason
        log_probs = [float(value) for value in chunk.outputs.get("output_log_probs", ())]
        tokens = [TokenLogProb("", value) for value in log_probs[:-1]]
        tokens += [TokenLogProb(chunk.text, value) for value in log_probs[-1:]]
        if chunk and not tokens and self.tokens:
            # Text that was held back until it was whole belongs to a token that has been told.
            last = self.tokens.pop()
            self.tokens.append(TokenLogProb(last.text + chunk, last.log_prob))
        self.tokens += tokens
        return tokens

    @property
    def finish_reason(self) -> str:
        """Return why the sequence ended, which upstream's models leave to be found out."""
        if self.reason is not None:
            return _REASONS.get(self.reason, "stop")
        return _LENGTH if self.count >= self.max_tokens else "stop"


class Answer:
    """The answer to one request of a client: takes Triton's chunks, gives OpenAI's objects."""

    def __init__(self, asked: AskedText) -> None:
        self._asked = asked
        prefix = "chatcmpl-" if asked.is_chat else "cmpl-"
        kind = "chat.completion" if asked.is_chat else "text_completion"
        self._head = {
            "id": prefix + uuid.uuid4().hex,
            "object": kind + (".chunk" if asked.is_chat and asked.streams else ""),
            "created": int(time.time()),
            "model": asked.model,
        }
        self._per_prompt = [request.sequences for request in asked.requests]
        self._choices = [
            Choice(request.max_tokens or 0, request.text_input if asked.echoes else "")
            for request in asked.requests
            for _ in range(request.sequences)
        ]
        self._prompt_tokens: dict[int, int] = {}
        self._begun: set[int] = set()

    @property
    def prompt_tokens(self) -> int | None:
        """Return how many tokens the prompts have, None where the model does not say."""
        return sum(self._prompt_tokens.values()) if self._prompt_tokens else None

    @property
    def completion_tokens(self) -> int:
        """Return how many tokens were made."""
        return sum(choice.count for choice in self._choices)

    def take(self, prompt: int, chunk: Chunk) -> Sequence[dict[str, Any]]:
        """Take a chunk of the answer to one of the prompts; return what a stream says of it."""
        if counts := chunk.outputs.get("num_input_tokens"):
            self._prompt_tokens[prompt] = int(counts[-1])
        # OpenAI numbers choices through: n of the first prompt, then n of the second.
        index = sum(self._per_prompt[:prompt]) + chunk.sequence
        told = self._choices[index].add(chunk)
        if not self._asked.streams:
            return ()
        return list(self._events(prompt, index, chunk, told))

    def whole(self) -> dict[str, Any]:
        """Return the whole answer."""
        choices = []
        for index, choice in enumerate(self._choices):
            message = {"role": "assistant", "content": choice.text, "refusal": None}
            said: dict[str, Any] = (
                {"message": message} if self._asked.is_chat else {"text": choice.text}
            )
            choices.append(
                {
                    "index": index,
                    **said,
                    "logprobs": self._log_probs(choice.tokens, 0),
                    "finish_reason": choice.finish_reason,
                }
            )
        return {
            **self._head,
            "choices": choices,
            "usage": self.usage(),
            "system_fingerprint": None,
        }

    def usage(self) -> dict[str, int] | None:
        """Return the counts of tokens, None where the model does not say."""
        if self.prompt_tokens is None:
            return None
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
        }

    def usage_chunk(self) -> dict[str, Any]:
        """Return the last chunk of a stream for which `include_usage` was asked."""
        return {**self._head, "choices": [], "usage": self.usage(), "system_fingerprint": None}

    def _events(
        self, prompt: int, index: int, chunk: Chunk, told: list[TokenLogProb]
    ) -> Iterator[dict[str, Any]]:
        """Yield the chunks for a piece: a role or an echo comes first, a reason last and alone."""
        choice = self._choices[index]
        if index not in self._begun:
            self._begun.add(index)
            if self._asked.is_chat:
                yield self._chunk(index, {"delta": {"role": "assistant", "content": ""}})
            elif self._asked.echoes:
                yield self._chunk(index, {"text": self._asked.requests[prompt].text_input})
        if chunk or told:
            said: dict[str, Any] = (
                {"delta": {"content": chunk.text}} if self._asked.is_chat else {"text": chunk.text}
            )
            offset = len(choice.text) - len(chunk)
            yield self._chunk(index, said, log_probs=self._log_probs(told, offset))
        if chunk.final:
            for each in range(index, index + self._per_prompt[prompt]):
                nothing: dict[str, Any] = {"delta": {}} if self._asked.is_chat else {"text": ""}
                yield self._chunk(each, nothing, reason=self._choices[each].finish_reason)

    def _chunk(
        self,
        index: int,
        said: dict[str, Any],
        *,
        log_probs: dict[str, Any] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {"index": index, **said, "logprobs": log_probs, "finish_reason": reason}
        # With include_usage OpenAI's chunks all have the field, and the last alone a value.
        told: dict[str, Any] = {"usage": None} if self._asked.include_usage else {}
        if self._asked.tells_usage_always:
            told["usage"] = self.usage()
        return {**self._head, "choices": [choice], "system_fingerprint": None, **told}

    def _log_probs(self, tokens: Sequence[TokenLogProb], offset: int) -> dict[str, Any] | None:
        """Return log-probs in the form of the API that was called."""
        if not self._asked.log_probs:
            return None
        if self._asked.is_chat:
            return {"content": [self._chat_log_prob(token) for token in tokens], "refusal": None}
        offsets = []
        for token in tokens:
            offsets.append(offset)
            offset += len(token.text)
        likeliest = [{token.text: token.log_prob} for token in tokens]
        return {
            "tokens": [token.text for token in tokens],
            "token_logprobs": [token.log_prob for token in tokens],
            "top_logprobs": likeliest if self._asked.tells_likeliest else None,
            "text_offset": offsets,
        }

    def _chat_log_prob(self, token: TokenLogProb) -> dict[str, Any]:
        told = {
            "token": token.text,
            "logprob": token.log_prob,
            "bytes": list(token.text.encode()),
        }
        return {**told, "top_logprobs": [told] if self._asked.tells_likeliest else []}
