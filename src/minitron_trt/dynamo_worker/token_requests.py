"""Dynamo's requests for tokens, as the requests to Triton's `tensorrt_llm` that they mean.

What a request says follows Dynamo's PreprocessedRequest. Stop strings are its frontend's business,
which has the text; ids that end a text are looked at here, so that Triton's slot is free at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.clients.openai_terms import DRAWN, choice_pattern
from minitron_trt.dynamo_worker.model_card import ModelCard
from minitron_trt.errors import RefusedError

_SAME_NAME: Final = ("repetition_penalty", "presence_penalty", "frequency_penalty")
_REFUSED: Final[Mapping[str, Mapping[str, tuple[Any, ...]]]] = {
    "sampling_options": {"min_p": (0,), "use_beam_search": (False,)},
    "stop_conditions": {"max_thinking_tokens": ()},
    "output_options": {"prompt_logprobs": ()},
    "routing": {"lora_name": ()},
}
"""Options that Triton's model lacks, and their values, beside null, that ask for nothing."""
# What a prompt has beside its ids, and what another worker has computed of it.
_REFUSED_PARTS: Final = ("prompt_embeds", "multi_modal_data", "encoder_result", "prefill_result")
_GUIDES: Final[Mapping[str, str]] = {
    "json": "json_schema",
    "regex": "regex",
    "choice": "regex",
    "grammar": "ebnf_grammar",
    "structural_tag": "structural_tag",
}
"""TensorRT-LLM's kinds of guide by Dynamo's."""
_SEEDS: Final = 2**64


@dataclass(frozen=True, slots=True)
class AskedTokens:
    """What is asked of Triton, and what ends each sequence of the answer before its limit.

    Before `min_tokens` no id ends it. With `tells_likeliest` the taken token is named as the
    likeliest one, which it is where nothing is drawn by chance.
    """

    request: GenerateRequest
    prompt_tokens: int
    max_tokens: int
    stop_ids: frozenset[int]
    min_tokens: int = 0
    log_probs: bool = False
    tells_likeliest: bool = False


def asked_tokens(asked: Mapping[str, Any], card: ModelCard) -> AskedTokens:
    """Return the request to Triton; RefusedError names the option that it cannot follow."""
    _refuse(asked)
    sampling, stop, output = (
        asked.get(group) or {}
        for group in ("sampling_options", "stop_conditions", "output_options")
    )
    prompt = _prompt(asked["token_ids"], card.start_ids)
    room = card.context_length - len(prompt)
    if room < 1:
        raise RefusedError(
            f"the prompt has {len(prompt)} tokens, and {card.name} holds {card.context_length} "
            "with the answer; shorten it"
        )
    # As Dynamo has it (apply_ignore_eos), with that set no other id ends a text, either.
    stop_ids = () if stop.get("ignore_eos") else _stop_ids(asked, stop, card)
    drawn = _drawn(sampling)
    wanted = output.get("logprobs")
    max_tokens = min(stop.get("max_tokens") or room, room)
    request = GenerateRequest(
        model=card.generator,
        input_ids=prompt,
        max_tokens=max_tokens,
        # Triton's model takes one id; the others are looked for in what it sends.
        end_id=next(iter(stop_ids), None),
        min_tokens=stop.get("min_tokens") or None,
        # Asked for with 0, too: no alternatives, but the taken token's own.
        return_log_probs=True if wanted is not None else None,
        **drawn,
        **{name: value for name in _SAME_NAME if (value := sampling.get(name))},
        **_several(sampling),
        **_guide(sampling.get("guided_decoding") or {}),
    )
    return AskedTokens(
        request=request,
        prompt_tokens=len(prompt),
        max_tokens=max_tokens,
        stop_ids=frozenset(stop_ids),
        min_tokens=request.min_tokens or 0,
        log_probs=wanted is not None,
        tells_likeliest=_tells_likeliest(wanted or 0, drawn),
    )


def _prompt(ids: Sequence[int], start_ids: Sequence[int]) -> tuple[int, ...]:
    """Return a prompt that begins as the model's own tokenizer has it; a template's does."""
    starts = tuple(ids[: len(start_ids)]) == tuple(start_ids)
    return (*(() if starts else start_ids), *ids)


def _refuse(asked: Mapping[str, Any]) -> None:
    for part in _REFUSED_PARTS:
        if asked.get(part):
            raise _unsupported(part)
    for group, names in _REFUSED.items():
        for name, harmless in names.items():
            value = (asked.get(group) or {}).get(name)
            if value is not None and value not in harmless:
                raise _unsupported(name, value)


def _unsupported(
    name: str, value: Any = None, *, why: str = "", remedy: str = "leave it out"
) -> RefusedError:
    told = "" if value is None else f" is {json.dumps(value)}, which"
    reason = f": {why}" if why else ""
    return RefusedError(
        f"{name}{told} is not supported by the model behind this worker{reason}; {remedy}",
        field=name,
    )


def _stop_ids(
    asked: Mapping[str, Any], stop: Mapping[str, Any], card: ModelCard
) -> tuple[int, ...]:
    """Return the ids that end a sequence, the model's own first."""
    named = (
        stop.get(name) or ()
        for name in ("stop_token_ids", "stop_token_ids_visible", "stop_token_ids_hidden")
    )
    ends = asked.get("eos_token_ids") or card.end_ids
    return tuple(dict.fromkeys((*ends, *(each for ids in named for each in ids))))


def _drawn(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a token is chosen: at temperature 0 the likeliest, else drawn as OpenAI's are."""
    chosen = {name: sampling.get(name) for name in ("temperature", "top_p", "top_k")}
    if chosen["temperature"] == 0:
        drawn: dict[str, Any] = {"top_k": 1}
    else:
        drawn = {**DRAWN, **{name: value for name, value in chosen.items() if value is not None}}
        if drawn.get("top_k", 0) < 1:
            # 0 and -1 mean all tokens.
            drawn.pop("top_k", None)
    if (seed := sampling.get("seed")) is not None:
        # Triton's are unsigned; OpenAI's may be negative.
        drawn["seed"] = seed % _SEEDS
    return drawn


def _several(sampling: Mapping[str, Any]) -> dict[str, Any]:
    count = sampling.get("n") or 1
    best = sampling.get("best_of") or count
    if best != count:
        raise _unsupported("best_of", best, why="no more answers are made than are returned")
    return {"num_return_sequences": count} if count > 1 else {}


def _guide(guided: Mapping[str, Any]) -> dict[str, Any]:
    for name, kind in _GUIDES.items():
        guide = guided.get(name)
        if guide is None:
            continue
        if name == "choice":
            guide = choice_pattern(guide)
        text = guide if isinstance(guide, str) else json.dumps(guide)
        return {"guided_decoding_guide_type": kind, "guided_decoding_guide": text}
    return {}


def _tells_likeliest(count: int, drawn: Mapping[str, Any]) -> bool:
    is_greedy = drawn.get("top_k") == 1
    if count > 1 or (count == 1 and not is_greedy):
        raise _unsupported(
            "logprobs",
            count,
            why="it tells the log-prob of the token that it takes and of no other",
            remedy="ask for 0, or for 1 with a temperature of 0",
        )
    return count == 1
