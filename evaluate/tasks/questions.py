"""What a task asks of a model, in tokens and text: to score a continuation, to answer a prompt.

Neither lm-eval nor a server is known here, so that whatever answers can stand behind both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from minitron_trt.errors import UsageError
from minitron_trt.evaluate.perplexity import log_likelihoods
from minitron_trt.quantization.number_formats import Array

# Options of sampling by their names in lm-eval, GenerateRequest and Sampling, and their types.
_SAMPLING: Final[Mapping[str, type[float] | type[int]]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "repetition_penalty": float,
}


class Continuation(NamedTuple):
    """Tokens, of which a model is asked how likely they are to follow a context; neither empty."""

    context: tuple[int, ...]
    tokens: tuple[int, ...]


class Likelihood(NamedTuple):
    """The log-likelihood of a continuation, and whether each of its tokens is the likeliest."""

    total: float
    is_greedy: bool

    @classmethod
    def of(cls, log_probabilities: Array, tokens: Sequence[int]) -> Likelihood:
        """Return what rows of log-probabilities [tokens, vocab] say of the tokens."""
        total = log_probabilities[np.arange(len(tokens)), tokens].sum()
        return cls(float(total), bool((log_probabilities.argmax(axis=1) == tokens).all()))

    @classmethod
    def of_logits(cls, logits: NDArray[np.float32], tokens: Sequence[int]) -> Likelihood:
        """Return what rows of logits say; BadInputError where they are NaN."""
        return cls.of(log_likelihoods(logits), tokens)


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A prompt and how to answer it; the answer ends before the first stop text.

    `messages` is a conversation as JSON in place of a text, for a server that has the template.
    """

    text: str
    max_tokens: int
    stops: tuple[str, ...]
    sampling: Mapping[str, float | int]  # options by name; none is greedy
    seed: int
    messages: bool = False

    def cut(self, text: str) -> str:
        """Return an answer up to the first stop text."""
        for stop in filter(None, self.stops):
            text = text.partition(stop)[0]
        return text


def sampling_of(options: Mapping[str, object]) -> dict[str, float | int]:
    """Return how tokens are chosen, of the options of lm-eval's generation_kwargs.

    UsageError names an option that is not known here, or whose value is no number.
    """
    # do_sample is heeded below; use_cache changes no answer, and here there is always a cache.
    unknown = set(options) - set(_SAMPLING) - {"do_sample", "use_cache"}
    if unknown:
        raise UsageError(
            f"{min(unknown)!r} is no option of generation here; expected until, max_gen_toks, "
            f"do_sample, {', '.join(_SAMPLING)}"
        )
    chosen = {
        name: _number(name, value)
        for name, value in options.items()
        if name in _SAMPLING and value is not None
    }
    if not options.get("do_sample") or chosen.get("temperature") == 0:
        return {name: chosen[name] for name in ("repetition_penalty",) if name in chosen}
    # Without either TensorRT-LLM takes the likeliest; all tokens are what is meant.
    return {"top_p": 1.0, **chosen}


def _number(name: str, value: object) -> float | int:
    kind = _SAMPLING[name]
    try:
        return kind(str(value))
    except ValueError:
        raise UsageError(f"{name} is {value!r}; expected a number ({kind.__name__})") from None


class Answers(Protocol):
    """Something that answers questions; each answer comes with the place of its question."""

    def score(self, continuations: Sequence[Continuation]) -> Iterator[tuple[int, Likelihood]]:
        """Yield the likelihoods as they are known; BadInputError where logits are NaN."""
        ...

    def generate(self, prompts: Sequence[TaskPrompt]) -> Iterator[tuple[int, str]]:
        """Yield the answers as they end, without what stopped them."""
        ...
