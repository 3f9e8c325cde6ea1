"""What tensorrt_llm's inputs mean to the executor, and what is refused by which name."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from minitron_models.reference.runtime_call import (
    MAX_WORD_IDS,
    RuntimeCall,
    RuntimeOffer,
    read_runtime_call,
    split_rows,
)

from minitron_trt.errors import BadInputError, MinitronError, UnsupportedError
from minitron_trt.executor import Sampling
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import ElementTypes

VOCAB = 1000
OFFER = RuntimeOffer(vocab=VOCAB, max_seq_len=64, decoupled=True, exclude_input=False)
DTYPES = {
    **{"INT32": np.int32, "FP32": np.float32, "FP16": np.float16, "UINT64": np.uint64},
    **{"BOOL": np.bool_, "UINT8": np.uint8, "STRING": np.object_},
}
INPUTS = {
    tensor.name: tensor for tensor in tensorrt_llm(ElementTypes(), reports_streams=True).inputs
}
ALLOWED_ALWAYS = {"pad_id", "len_penalty", "early_stopping", "beam_search_diversity_rate"}


def arrays(**values: Any) -> dict[str, Any]:
    """Return the inputs of one row as the model sees them, with those that are required."""
    given = {"input_ids": [[5, 6, 7]], "input_lengths": 3, "request_output_len": 9, **values}
    return {
        name: np.array(value if isinstance(value, list) else [value], DTYPES[INPUTS[name].type])
        for name, value in given.items()
        if value is not None
    }


def ask(offer: RuntimeOffer = OFFER, timeout_us: int = 0, **values: Any) -> RuntimeCall:
    """Return what a request of one row asks for."""
    (row,) = split_rows(arrays(**values))
    return read_runtime_call(row, "7", timeout_us, offer)


def test_what_is_not_given_is_as_tensorrt_llm_has_it() -> None:
    call = ask()

    assert call.request.sampling == Sampling(seed=0)
    assert (call.request.request_id, call.request.prompt) == ("7", (5, 6, 7))
    assert (call.request.max_tokens, call.request.sequences) == (9, 1)
    assert call.request.timeout_s is None
    assert (call.streaming, call.prepend_prompt) == (False, True)


def test_every_sampling_input_arrives() -> None:
    call = ask(
        temperature=0.5,
        runtime_top_k=4,
        runtime_top_p=0.75,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        min_tokens=3,
        seed=2**63,
        end_id=2,
        return_log_probs=True,
        stop_words_list=[[[8, 9, 10, 0], [2, 3, -1, -1]]],
        bad_words_list=[[[4, 5], [1, 2]]],
    )

    assert call.request.sampling == Sampling(
        temperature=0.5,
        top_k=4,
        top_p=0.75,
        repetition_penalty=1.5,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        seed=2**63,
        min_tokens=3,
        end_ids=(2,),
        stop_words=((8, 9), (10,)),
        bad_words=((4,), (5,)),
        log_probs=True,
    )


def test_a_timeout_in_microseconds_arrives_in_seconds() -> None:
    assert ask(timeout_us=2_500_000).request.timeout_s == 2.5


def test_padding_after_input_lengths_is_no_prompt() -> None:
    assert ask(input_ids=[[5, 6, 0, 0]], input_lengths=2).request.prompt == (5, 6)


@pytest.mark.parametrize(
    ("parameter", "given", "prepended"),
    [(False, None, True), (True, None, False), (False, True, False), (True, False, True)],
)
def test_a_request_decides_about_its_prompt_before_the_parameter(
    parameter: bool, given: bool | None, prepended: bool
) -> None:
    offer = RuntimeOffer(VOCAB, 64, decoupled=True, exclude_input=parameter)

    assert ask(offer, exclude_input_in_output=given).prepend_prompt is prepended


def test_a_batch_is_split_into_its_rows() -> None:
    found = split_rows(
        arrays(input_ids=[[1, 2], [3, 4]], input_lengths=[2, 1], request_output_len=[5, 6])
    )
    first, second = (read_runtime_call(row, "", 0, OFFER).request for row in found)

    assert (first.prompt, first.max_tokens) == ((1, 2), 5)
    assert (second.prompt, second.max_tokens) == ((3,), 6)


def test_a_batch_whose_tensors_disagree_is_refused_by_name() -> None:
    given = arrays(input_ids=[[1], [2]], input_lengths=[1, 1])

    with pytest.raises(BadInputError, match="request_output_len has 1 rows but input_lengths has"):
        split_rows(given)


WORDS = "expected where each word ends among 3 ids, rising, then only -1"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"input_ids": None}, "input_ids is missing"),
        ({"input_lengths": -1}, "input_lengths is -1 but input_ids holds 3 ids"),
        ({"input_lengths": 4}, "input_lengths is 4 but input_ids holds 3 ids"),
        ({"input_ids": [[1] * 65], "input_lengths": 65}, "input_ids has 65 tokens; this model"),
        ({"request_output_len": 0}, "request_output_len / max_tokens is 0; expected at least 1"),
        ({"request_output_len": -5}, "request_output_len / max_tokens is -5"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"runtime_top_p": -0.5}, "top_p is -0.5"),
        ({"runtime_top_k": -1}, "top_k is -1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.0"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"embedding_bias": [[0.0, math.nan]]}, r"embedding_bias\[1\] is nan"),
        ({"stop_words_list": [[[1, 2, 3], [5, -1, -1]]]}, WORDS),
        ({"stop_words_list": [[[1, 2, 3], [2, 1, -1]]]}, WORDS),
        ({"stop_words_list": [[[1, 2, 3], [0, 2, -1]]]}, WORDS),
        ({"stop_words_list": [[[1, 2, 3], [2, -1, 3]]]}, WORDS),
        ({"bad_words_list": [[[1, 2, 3], [-7, -1, -1]]]}, f"bad_words_list .*{WORDS}"),
        ({"bad_words_list": [[[1, -2, 3], [2, -1, -1]]]}, r"bad_words\[0\] is \[1, -2\]"),
        (
            {"stop_words_list": [np.zeros((2, MAX_WORD_IDS + 1)).tolist()]},
            "stop_words_list has 65537 ids; expected at most 65536",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_tensor_that_is_wrong_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        ask(**values)


def test_words_without_any_are_none() -> None:
    empty: Any
    for empty in ([[[], []]], [[[0, 0], [-1, -1]]]):
        assert ask(stop_words_list=empty).request.sampling.stop_words == ()


@pytest.mark.parametrize(
    ("values", "neutral"),
    [
        ({"beam_width": 2}, {"beam_width": 1}),
        ({"runtime_top_p_min": 0.1}, {"runtime_top_p_min": 1e-6}),
        ({"runtime_top_p_decay": 0.9}, {"runtime_top_p_decay": 1.0}),
        ({"runtime_top_p_reset_ids": 3}, {"runtime_top_p_reset_ids": -1}),
    ],
    ids=str,
)
def test_what_needs_a_feature_that_is_absent_is_refused_unless_it_changes_nothing(
    values: dict[str, Any], neutral: dict[str, Any]
) -> None:
    (name,) = values
    with pytest.raises(UnsupportedError, match=rf"{name} is .*the reference runtime lacks it"):
        ask(**values)

    assert ask(**neutral) == ask()


@pytest.mark.parametrize("name", sorted(INPUTS))
def test_every_input_of_the_contract_means_something_or_is_refused_by_name(name: str) -> None:
    """Whatever is neither refused nor read would be ignored, and only a few inputs may be."""
    value: Any = {"BOOL": True, "STRING": b"json", "FP32": 0.5, "FP16": 0.5}.get(
        INPUTS[name].type, 3
    )
    if not INPUTS[name].scalar:
        value = [[value]]
    if name in ("stop_words_list", "bad_words_list"):
        value = [[[8], [1]]]
    plain = ask(input_ids=[[5, 6, 7, 8]])
    try:
        changed = ask(**{"input_ids": [[5, 6, 7, 8]], name: value})
    except MinitronError as error:
        refusal = str(error)
    else:
        refusal = ""
        ignored = changed == plain and changed.request.sampling.embedding_bias is None

    # Three are read before a request is made, or carry the default's value here. Text models have
    # no decoder of its own, whose tensors other clients send all the same.
    decoders = {"decoder_input_ids", "decoder_input_lengths"}
    known = {*ALLOWED_ALWAYS, *decoders, "stop", "stream_id", "input_lengths"}
    assert name in refusal if refusal else ignored is (name in known)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"streaming": True}, "streaming is true, which needs a model with decoupled responses"),
        ({"num_return_sequences": 2}, "num_return_sequences is 2; more than one needs a model"),
    ],
    ids=str,
)
def test_one_response_has_room_for_one_answer(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        ask(RuntimeOffer(VOCAB, 64, decoupled=False, exclude_input=False), **values)


def test_logits_that_one_response_cannot_carry_are_refused_by_size() -> None:
    offer = RuntimeOffer(vocab=128256, max_seq_len=8192, decoupled=True, exclude_input=False)
    most = 2**30 // (4 * 128256)
    long: dict[str, Any] = {"input_ids": [[1] * 4000], "input_lengths": 4000}

    assert ask(offer, return_generation_logits=True, request_output_len=most)
    assert ask(offer, return_generation_logits=True, request_output_len=4000, streaming=True)
    with pytest.raises(BadInputError, match="return_generation_logits would send 4000 × 128256"):
        ask(offer, return_generation_logits=True, request_output_len=4000)
    with pytest.raises(BadInputError, match=r"return_context_logits would send .* 2.05 GB, in one"):
        ask(offer, return_context_logits=True, **long)


def test_a_draft_that_takes_much_memory_to_check_is_refused_by_size() -> None:
    offer = RuntimeOffer(vocab=128256, max_seq_len=8192, decoupled=True, exclude_input=False)
    most = 2**30 // (4 * 128256)
    draft: dict[str, Any] = {"draft_input_ids": [[1] * (most - 1)], "request_output_len": 4000}

    assert ask(offer, **draft)
    assert ask(offer, streaming=True, return_generation_logits=True, **draft)
    with pytest.raises(BadInputError, match=r"draft_input_ids has 2092 ids, .* 1.07 GB at once"):
        ask(offer, request_output_len=4000, draft_input_ids=[[1] * most])
