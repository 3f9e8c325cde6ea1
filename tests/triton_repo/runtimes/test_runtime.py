"""tensorrt_llm, called directly on a real tritonserver, computes what transformers computes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tests.triton_repo.conftest import Served
from tests.triton_repo.runtimes.runtime_calls import Runtime
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessorList

pytestmark = pytest.mark.server

PROMPT = "Complete the paragraph: our solar system is"
# With these and their penalties the best token leads by 0.75 or more everywhere: rounding, which
# differs between processors, changes no answer.
COUNT = 18
REPETITION = 2.4
PENALTIES = [
    (16.0, 0.0, 1.0),
    (0.0, 16.0, 1.0),
    (6.0, 2.0, 2.0),
]  # presence, frequency, temperature
# The sample's bf16 logits reach 30, where neighbouring numbers are 1/8 apart, and each layer rounds
# about fifteen times.
TOLERANCE = 0.5


@pytest.fixture(scope="module")
def runtime(served: Served) -> Runtime:
    """The model tensorrt_llm of each sample's server."""
    return Runtime.of(served.endpoints, served.model, served.pid)


@pytest.fixture(scope="module")
def model(runtime: Runtime) -> Any:
    """The same model in transformers."""
    return AutoModelForCausalLM.from_pretrained(runtime.model, dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def ids(runtime: Runtime) -> list[int]:
    """The prompt's token ids."""
    found: list[int] = AutoTokenizer.from_pretrained(runtime.model)(PROMPT)["input_ids"]
    return found


def logits_of(model: Any, ids: list[int]) -> NDArray[np.float32]:
    """Return transformers' logits after every token."""
    with torch.inference_mode():
        found: NDArray[np.float32] = model(torch.tensor([ids])).logits[0].float().numpy()
    return found


def hf_ids(model: Any, ids: list[int], **options: Any) -> list[int]:
    """Return transformers' greedy answer, which only an end id of the options ends."""
    defaults = {"max_new_tokens": COUNT, "do_sample": False, "pad_token_id": 0}
    options = {**defaults, "eos_token_id": model.config.vocab_size, **options}
    with torch.inference_mode():
        found: list[int] = model.generate(torch.tensor([ids]), **options)[0, len(ids) :].tolist()
    return found


def greedy(
    model: Any, ids: list[int], change: Callable[[NDArray[Any], list[int]], NDArray[Any]]
) -> list[int]:
    """Continue a prompt by the best token once the logits were changed."""
    whole = list(ids)
    for _ in range(COUNT):
        whole.append(int(change(logits_of(model, whole)[-1].astype(np.float64), whole).argmax()))
    return whole[len(ids) :]


def answer(runtime: Runtime, ids: list[int], count: int = COUNT, **inputs: Any) -> list[int]:
    """Return the answer's token ids."""
    (only,) = runtime.ask(ids, count, exclude_input_in_output=True, **inputs)
    found: list[int] = only["output_ids"][0, 0].tolist()
    assert only["sequence_length"].tolist() == [[len(found)]]
    return found


def test_a_greedy_answer_is_transformers(runtime: Runtime, model: Any, ids: list[int]) -> None:
    assert answer(runtime, ids) == hf_ids(model, ids)


def test_the_prompt_comes_before_the_answer_unless_excluded(
    runtime: Runtime, model: Any, ids: list[int]
) -> None:
    (only,) = runtime.ask(ids, COUNT)

    assert only.keys() == {"output_ids", "sequence_length", "finish_reason"}
    assert only["output_ids"].tolist() == [[ids + hf_ids(model, ids)]]
    assert only["sequence_length"].tolist() == [[len(ids) + COUNT]]


def test_log_probs_are_those_of_the_models_own_distribution(
    runtime: Runtime, model: Any, ids: list[int]
) -> None:
    responses = runtime.ask(ids, COUNT, streaming=True, return_log_probs=True)
    chosen = [int(token) for r in responses for token in r["output_ids"][0, 0]]
    found = np.concatenate([r["output_log_probs"][0, 0] for r in responses])
    cumulated = np.array([r["cum_log_probs"][0, 0] for r in responses])
    logits = torch.from_numpy(logits_of(model, ids + chosen)[len(ids) - 1 : -1])
    expected = logits.log_softmax(-1)[range(COUNT), chosen].numpy()

    assert chosen == hf_ids(model, ids)
    assert found.dtype == cumulated.dtype == np.float32
    assert np.abs(found - expected).max() < TOLERANCE
    assert np.allclose(cumulated, np.cumsum(found), atol=1e-5)


def test_without_streaming_probabilities_and_logits_are_those_of_the_whole_answer(
    runtime: Runtime, ids: list[int]
) -> None:
    (only,) = runtime.ask(ids, 5, return_log_probs=True, return_generation_logits=True)
    logits = torch.from_numpy(only["generation_logits"][0, 0].copy())
    chosen = only["output_ids"][0, 0, len(ids) :].tolist()

    assert only["output_log_probs"].shape == (1, 1, 5)
    assert only["cum_log_probs"].shape == (1, 1)
    assert np.allclose(
        only["output_log_probs"][0, 0], logits.log_softmax(-1)[range(5), chosen].numpy(), atol=1e-4
    )
    assert np.allclose(only["cum_log_probs"], only["output_log_probs"].sum(), atol=1e-4)


@pytest.mark.parametrize("streaming", [False, True])
def test_logits_of_prompt_and_answer_are_transformers(
    runtime: Runtime, model: Any, ids: list[int], streaming: bool
) -> None:
    wishes = {"return_context_logits": True, "return_generation_logits": True}
    responses = runtime.ask(ids, COUNT, streaming=streaming, exclude_input_in_output=True, **wishes)
    first, *later = responses
    chosen = [int(token) for r in responses for token in r["output_ids"][0, 0]]
    generated = np.concatenate([r["generation_logits"][0, 0] for r in responses])
    expected = logits_of(model, ids + chosen)

    assert first["context_logits"].shape == (1, len(ids), expected.shape[1])
    assert all(np.array_equal(r["context_logits"], first["context_logits"]) for r in later)
    assert generated.shape == (COUNT, expected.shape[1])
    assert np.abs(first["context_logits"][0] - expected[: len(ids)]).max() < TOLERANCE
    assert np.abs(generated - expected[len(ids) - 1 : -1]).max() < TOLERANCE


def test_an_embedding_bias_is_added_to_the_logits(
    runtime: Runtime, model: Any, ids: list[int]
) -> None:
    bias = np.zeros(model.config.vocab_size, np.float32)
    bias[hf_ids(model, ids)[:9]] = -100.0

    def add(_: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + torch.from_numpy(bias)

    expected = hf_ids(model, ids, logits_processor=LogitsProcessorList([add]))

    assert answer(runtime, ids, embedding_bias=bias[None]) == expected
    assert expected != hf_ids(model, ids)


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_bias_of_another_size_is_refused_with_both_sizes(
    runtime: Runtime, model: Any, ids: list[int], size: int
) -> None:
    vocab = model.config.vocab_size
    with pytest.raises(Exception, match=rf"embedding_bias has {size} values; .* {vocab} token ids"):
        runtime.ask(ids, 1, embedding_bias=np.zeros((1, size), np.float32))


def test_repetition_penalty_is_transformers(runtime: Runtime, model: Any, ids: list[int]) -> None:
    expected = hf_ids(model, ids, repetition_penalty=REPETITION)

    assert answer(runtime, ids, repetition_penalty=REPETITION) == expected
    assert expected != hf_ids(model, ids)


@pytest.mark.parametrize(("presence", "frequency", "temperature"), PENALTIES)
def test_presence_and_frequency_penalties_count_prompt_and_answer(
    runtime: Runtime,
    model: Any,
    ids: list[int],
    presence: float,
    frequency: float,
    temperature: float,
) -> None:
    def penalize(scores: NDArray[Any], whole: list[int]) -> NDArray[Any]:
        counts = np.bincount(whole, minlength=len(scores))
        scores = scores / temperature - presence * (counts > 0) - frequency * counts
        return scores

    penalties: dict[str, Any] = {"presence_penalty": presence, "frequency_penalty": frequency}
    found = answer(runtime, ids, temperature=temperature, **penalties)

    assert found == greedy(model, ids, penalize)
    assert found != hf_ids(model, ids)


def test_min_tokens_keeps_the_end_id_away(runtime: Runtime, model: Any, ids: list[int]) -> None:
    end = hf_ids(model, ids)[3]

    assert answer(runtime, ids, end_id=end) == hf_ids(model, ids)[:3]
    expected = hf_ids(model, ids, min_new_tokens=9, eos_token_id=end)
    # transformers leaves the end id in the answer.
    expected = expected[:-1] if expected[-1] == end else expected
    assert len(expected) >= 9
    assert answer(runtime, ids, end_id=end, min_tokens=9) == expected


def test_words_as_ids_stop_or_ban(runtime: Runtime, model: Any, ids: list[int]) -> None:
    plain = hf_ids(model, ids)
    stop = np.array([[[*plain[5:7], 0], [2, -1, -1]]], np.int32)
    bad = np.array([[[plain[0], *plain[5:7]], [1, 3, -1]]], np.int32)
    banned = answer(runtime, ids, bad_words_list=bad)
    whole = ids[-1:] + banned

    assert answer(runtime, ids, stop_words_list=stop) == plain[:7]
    assert plain[0] not in banned
    assert tuple(plain[5:7]) not in list(itertools.pairwise(whole))


def test_sequences_are_drawn_with_seeds_that_follow_each_other(
    runtime: Runtime, ids: list[int]
) -> None:
    options = {"runtime_top_k": 20, "temperature": 30.0, "exclude_input_in_output": True}

    def sequences(**inputs: Any) -> list[list[int]]:
        responses = runtime.ask(ids, 8, **options, **inputs)
        found = {int(r["sequence_index"][0, 0]): r["output_ids"][0, 0].tolist() for r in responses}
        assert {int(r["batch_index"][0, 0]) for r in responses} == {0}
        assert all(r["finish_reason"].tolist() == [[b"length"]] for r in responses)
        return [found[n] for n in range(len(responses))]

    drawn = sequences(num_return_sequences=6, seed=11)
    alone = [answer(runtime, ids, 8, seed=11 + n, **_without_exclusion(options)) for n in range(6)]

    assert drawn == alone
    assert len({tuple(sequence) for sequence in drawn}) > 3
    assert sequences(num_return_sequences=2) == sequences(num_return_sequences=2, seed=0)


def _without_exclusion(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "exclude_input_in_output"}


def test_a_batch_answers_by_row(runtime: Runtime, model: Any, ids: list[int]) -> None:
    rows = np.array([[*ids, 0], [9, *ids]], np.int32)
    lengths = np.array([[len(ids)], [len(ids) + 1]], np.int32)
    responses = runtime.ask_inputs(
        input_ids=rows,
        input_lengths=lengths,
        request_output_len=np.array([[6], [4]], np.int32),
        exclude_input_in_output=np.ones((2, 1), np.bool_),
    )
    found = {int(r["batch_index"][0, 0]): r["output_ids"][0, 0].tolist() for r in responses}

    assert found == {
        0: hf_ids(model, ids, max_new_tokens=6),
        1: hf_ids(model, [9, *ids], max_new_tokens=4),
    }


CACHE_AND_DRAFTS = (
    "kv_cache_alloc_new_blocks",
    "kv_cache_reused_blocks",
    "kv_cache_alloc_total_blocks",
    "acceptance_rate",
    "total_accepted_draft_tokens",
    "total_draft_tokens",
)


def test_counts_and_times_come_when_asked_for(runtime: Runtime, ids: list[int]) -> None:
    before = time.monotonic_ns()
    wishes = ("return_num_input_tokens", "return_num_output_tokens", "return_perf_metrics")
    *early, last = runtime.ask(ids, 3, streaming=True, **dict.fromkeys(wishes, True))
    names = ("arrival", "first_scheduled", "first_token", "last_token")
    times = [int(last[f"{name}_time_ns"][0, 0]) for name in names]

    assert [int(r["num_input_tokens"][0, 0]) for r in (*early, last)] == [len(ids)] * 3
    assert [int(r["num_output_tokens"][0, 0]) for r in (*early, last)] == [1] * 3
    order = [before, *times, time.monotonic_ns()]
    assert order == sorted(order)
    assert times[2] < times[3]
    assert [int(r["first_token_time_ns"][0, 0]) for r in early] == [times[2]] * 2
    for response in (*early, last):
        assert [response[name].item() for name in CACHE_AND_DRAFTS] == [1, 0, 1, 0, 0, 0]
