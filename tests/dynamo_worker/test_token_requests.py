"""What Dynamo asks in its words, as the request to Triton; what cannot be followed is named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from minitron_trt.clients.messages import Chunk
from minitron_trt.dynamo_worker.model_card import ModelCard
from minitron_trt.dynamo_worker.token_answers import TokenAnswer
from minitron_trt.dynamo_worker.token_requests import AskedTokens, asked_tokens
from minitron_trt.errors import RefusedError

CARD = ModelCard(
    name="llama",
    generator="tensorrt_llm",
    architecture="LlamaForCausalLM",
    tokenizer=Path("tokenizer"),
    context_length=20,
    batch=4,
    vocab=100,
    start_ids=(1,),
    end_ids=(2,),
    template=None,
)
GREEDY = {"sampling_options": {"temperature": 0.0}}


def asked(**groups: Any) -> AskedTokens:
    """Return the request that Dynamo's fields mean, with a prompt of three tokens."""
    return asked_tokens({"token_ids": [1, 5, 6], **groups}, CARD)


def inputs(**groups: Any) -> dict[str, Any]:
    """Return what is sent to Triton beside the prompt."""
    sent = asked(**groups).request.inputs()
    return {name: value for name, value in sent.items() if name not in ("text_input", "stream")}


DRAWN = {"max_tokens": 17, "end_id": 2, "temperature": 1.0, "top_p": 1.0}


@pytest.mark.parametrize(
    ("groups", "sent"),
    [
        ({}, DRAWN),
        (GREEDY, {"max_tokens": 17, "end_id": 2, "top_k": 1}),
        (
            {"sampling_options": {"temperature": 0.5, "top_k": 40}},
            DRAWN | {"temperature": 0.5, "top_k": 40},
        ),
        ({"sampling_options": {"top_k": -1, "min_p": 0.0, "n": 1, "best_of": 1}}, DRAWN),
        ({"sampling_options": {"seed": -1}}, DRAWN | {"seed": 2**64 - 1}),
        ({"sampling_options": {"n": 2}}, DRAWN | {"num_return_sequences": 2}),
        ({"sampling_options": {"presence_penalty": 0.5}}, DRAWN | {"presence_penalty": 0.5}),
        (
            {"stop_conditions": {"max_tokens": 4, "min_tokens": 3}},
            DRAWN | {"max_tokens": 4, "min_tokens": 3},
        ),
        ({"stop_conditions": {"max_tokens": 400}}, DRAWN),
        (
            {"stop_conditions": {"ignore_eos": True}},
            {k: v for k, v in DRAWN.items() if k != "end_id"},
        ),
        ({"output_options": {"logprobs": 0}}, DRAWN | {"return_log_probs": True}),
        (
            {"sampling_options": {"guided_decoding": {"choice": ["a+", "b"]}}},
            DRAWN | {"guided_decoding_guide_type": "regex", "guided_decoding_guide": r"(a\+|b)"},
        ),
        (
            {"sampling_options": {"guided_decoding": {"json": {"type": "object"}, "regex": None}}},
            DRAWN
            | {
                "guided_decoding_guide_type": "json_schema",
                "guided_decoding_guide": '{"type": "object"}',
            },
        ),
    ],
)
def test_dynamos_options_become_tritons(groups: Mapping[str, Any], sent: dict[str, Any]) -> None:
    assert inputs(**groups) == sent


@pytest.mark.parametrize(
    ("groups", "said"),
    [
        ({"sampling_options": {"min_p": 0.1}}, "min_p is 0.1, which is not supported"),
        ({"sampling_options": {"use_beam_search": True}}, "use_beam_search is true"),
        ({"sampling_options": {"n": 1, "best_of": 2}}, "best_of is 2"),
        ({"stop_conditions": {"max_thinking_tokens": 5}}, "max_thinking_tokens is 5"),
        ({"output_options": {"logprobs": 1}}, "logprobs is 1"),
        ({"output_options": {"logprobs": 5}, **GREEDY}, "logprobs is 5"),
        ({"output_options": {"prompt_logprobs": 0}}, "prompt_logprobs is 0"),
        ({"routing": {"lora_name": "mine"}}, 'lora_name is "mine"'),
        ({"prompt_embeds": "AAAA"}, "prompt_embeds is not supported"),
        ({"token_ids": [3] * 20}, "the prompt has 21 tokens, and llama holds 20 with the answer"),
    ],
)
def test_what_triton_cannot_follow_is_refused_by_its_name(
    groups: dict[str, Any], said: str
) -> None:
    with pytest.raises(RefusedError, match=said) as caught:
        asked(**groups)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ids", [[5, 6], [1, 5, 6]], ids=["completion", "template"])
def test_a_prompt_begins_as_the_models_own_tokenizer_has_it(ids: list[int]) -> None:
    assert asked(token_ids=ids).request.input_ids == (1, 5, 6)


def told(answer: TokenAnswer, *chunks: Chunk) -> list[dict[str, Any]]:
    """Return what Dynamo is told of the chunks, to their end."""
    records = [record for chunk in chunks for record in answer.add(chunk)]
    return [*records, *answer.end()]


def usage(completion: int) -> dict[str, Any]:
    """Return the tokens of a whole answer to a prompt of three."""
    counts = {"prompt_tokens": 3, "completion_tokens": completion, "total_tokens": 3 + completion}
    return {"completion_usage": counts}


def test_tokens_are_told_as_they_come_and_the_end_with_its_reason() -> None:
    chunks = [Chunk(token_ids=[7]), Chunk(token_ids=[8], finish_reason="length"), Chunk(final=True)]

    assert told(TokenAnswer(asked()), *chunks) == [
        {"token_ids": [7], "index": 0},
        {"token_ids": [8], "index": 0, "finish_reason": "length", **usage(2)},
    ]


def test_an_id_that_ends_a_text_ends_it_before_triton_does() -> None:
    """Triton's model takes one such id; a model may have several."""
    answer = TokenAnswer(asked(eos_token_ids=[2, 9]))
    records = told(answer, Chunk(token_ids=[7, 9, 8]), Chunk(token_ids=[8]))

    assert records == [{"token_ids": [7, 9], "index": 0, "finish_reason": "stop", **usage(2)}]
    assert answer.is_complete


def test_before_the_least_number_of_tokens_nothing_ends_an_answer() -> None:
    answer = TokenAnswer(asked(stop_conditions={"min_tokens": 2}, eos_token_ids=[9]))

    assert [record["token_ids"] for record in told(answer, Chunk(token_ids=[9, 9, 9]))] == [
        [9, 9, 9]
    ]
    assert answer.is_complete


@pytest.mark.parametrize(("count", "reason"), [(1, "stop"), (17, "length")])
def test_a_reason_that_triton_leaves_out_is_found(count: int, reason: str) -> None:
    *_, last = told(TokenAnswer(asked()), *(Chunk(token_ids=[7]) for _ in range(count)))

    assert last == {"token_ids": [], "index": 0, "finish_reason": reason, **usage(count)}


def test_sequences_end_one_by_one() -> None:
    answer = TokenAnswer(asked(sampling_options={"n": 2}))
    records = told(
        answer,
        Chunk(token_ids=[7], sequence=1, finish_reason="stop"),
        Chunk(token_ids=[8, 8], sequence=0, finish_reason="length"),
    )

    assert records == [
        {"token_ids": [7], "index": 1, "finish_reason": "stop"},
        {"token_ids": [8, 8], "index": 0, "finish_reason": "length", **usage(3)},
    ]


def test_log_probs_are_those_of_the_tokens() -> None:
    answer = TokenAnswer(asked(**GREEDY, output_options={"logprobs": 1}))
    chunk = Chunk(token_ids=[7, 2], outputs={"output_log_probs": [-0.5, -0.25]})
    (record,) = told(answer, chunk)

    assert record["log_probs"] == [-0.5, -0.25]
    assert record["top_logprobs"] == [
        [{"rank": 1, "token_id": 7, "logprob": -0.5}],
        [{"rank": 1, "token_id": 2, "logprob": -0.25}],
    ]
