"""How tensorrt_llm streams, stops, refuses and reports, called directly on a real tritonserver."""

from __future__ import annotations

import contextlib
import queue
import re
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S, until
from tests.triton_repo.runtimes.conftest import RECIPE
from tests.triton_repo.runtimes.runtime_calls import (
    MODEL,
    Runtime,
    inputs_of,
    outputs,
    prompt,
    serve,
)

from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

IDS = [5, 6, 7]
# Nothing ends such a request but its length.
ENDLESS: dict[str, Any] = {**prompt(IDS, 1000), "streaming": True}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """A server that may answer many times."""
    with serve(tmp_path_factory.mktemp("runtime"), ServingRecipe(**RECIPE)) as served:
        yield served


@pytest.fixture(params=["runtime", "single"])
def any_runtime(request: pytest.FixtureRequest) -> Runtime:
    """A server of each transaction policy."""
    found: Runtime = request.getfixturevalue(request.param)
    return found


def metrics(runtime: Runtime) -> dict[str, float]:
    """Return the figures under TensorRT-LLM's names, by the label that tells them apart."""
    with urllib.request.urlopen(runtime.metrics_url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    found = {}
    for line in lines:
        if line.startswith(("nv_trt_llm_", "nv_llm_")):
            name, value = line.rsplit(" ", 1)
            labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
            kind = [labels[key] for key in labels if key not in ("model", "version")]
            found[".".join([name.partition("{")[0], *kind])] = float(value)
    return found


def assert_idle(runtime: Runtime) -> None:
    """Wait until every slot is free."""
    until(lambda: metrics(runtime)["nv_trt_llm_request_metrics.active"] == 0)


def long_answers(runtime: Runtime) -> float:
    """Return how many answers have had more than 500 tokens."""
    found, name = metrics(runtime), "nv_llm_output_token_len"
    return found[f"{name}_count"] - found[f"{name}_bucket.500"]


def first(answers: queue.Queue[Any]) -> dict[str, Any]:
    """Wait for a request's first response."""
    return next(outputs(answers))


def test_a_stream_sends_the_first_token_at_once_then_every_third_and_the_end(
    runtime: Runtime,
) -> None:
    responses = runtime.ask(IDS, 9, streaming=True, stream_id=2**64 - 1)
    lengths = [len(response["output_ids"][0, 0]) for response in responses]

    assert lengths == [1, 3, 3, 2]
    assert [r["sequence_length"].tolist() for r in responses] == [[[n]] for n in lengths]
    assert {int(r["stream_id"][0, 0]) for r in responses} == {2**64 - 1}
    assert ["finish_reason" in response for response in responses] == [False] * 3 + [True]
    assert responses[-1]["finish_reason"].tolist() == [[b"length"]]


def test_a_response_has_only_what_was_asked_for(any_runtime: Runtime) -> None:
    (only,) = any_runtime.ask(IDS, 2, return_log_probs=False, return_perf_metrics=False)

    assert only.keys() == {"output_ids", "sequence_length", "finish_reason"}


@pytest.mark.parametrize("name", ["request_id", "stream_id"])
def test_a_stop_ends_every_request_of_that_name(runtime: Runtime, name: str) -> None:
    named = {name: "7" if name == "request_id" else 7}
    with contextlib.ExitStack() as stack:
        victims = [stack.enter_context(runtime.open(**ENDLESS, **named)) for _ in range(2)]
        for victim in victims:
            first(victim)

        assert runtime.ask(IDS, 1, stop=True, **named) == []
        ends = [list(outputs(victim))[-1] for victim in victims]

    assert [end["finish_reason"].tolist() for end in ends] == [[[b"cancelled"]]] * 2
    assert_idle(runtime)


def test_stopping_what_does_not_run_is_no_error_but_a_name_is_needed(any_runtime: Runtime) -> None:
    assert any_runtime.ask(IDS, 1, stop=True, request_id="never seen") == []
    with pytest.raises(grpc.InferenceServerException, match="stop needs the request id, or stream"):
        any_runtime.ask(IDS, 1, stop=True)


def test_a_request_out_of_time_ends_with_what_it_has(any_runtime: Runtime) -> None:
    (only,) = any_runtime.ask(IDS, 1000, timeout_us=60_000, exclude_input_in_output=True)

    assert only["finish_reason"].tolist() == [[b"timeout"]]
    assert only["output_ids"].size < 1000
    assert_idle(any_runtime)


@pytest.mark.parametrize("count", [1, 3])
def test_leaving_frees_every_slot(runtime: Runtime, count: int) -> None:
    before = long_answers(runtime)
    with runtime.open(**ENDLESS, num_return_sequences=count) as answers:
        first(answers)

    assert_idle(runtime)
    assert long_answers(runtime) == before


def test_a_full_queue_is_said_to_be_unavailable(runtime: Runtime) -> None:
    with contextlib.ExitStack() as stack:
        for place in range(7):
            answers = stack.enter_context(runtime.open(**ENDLESS))
            if place < 4:
                first(answers)
            # One after another, or the eighth might be served and the seventh refused.
            while metrics(runtime)["nv_trt_llm_request_metrics.waiting"] < place - 3:
                time.sleep(0.02)
        refused = stack.enter_context(runtime.open(**ENDLESS))
        error = refused.get(timeout=PATIENCE_S)

    assert "3 requests are waiting, as many as max_queue_size allows" in str(error)
    assert_idle(runtime)


POISON: dict[str, dict[str, Any]] = {
    "input_ids is empty": {"input_ids": np.zeros((1, 0), np.int32), "input_lengths": 0},
    "input_lengths is -4": {"input_lengths": -4},
    r"input_ids\[1\] is -1": {"input_ids": [[5, -1, 7]]},
    r"input_ids\[0\] is 2147483647": {"input_ids": [[2**31 - 1, 6, 7]]},
    "input_ids has 1000000 tokens": {
        "input_ids": np.ones((1, 10**6), np.int32),
        "input_lengths": 10**6,
    },
    "request_output_len .* is 0": {"request_output_len": 0},
    "request_output_len .* is -2147483648": {"request_output_len": -(2**31)},
    "together 2147483650; this model holds max_seq_len 1024": {"request_output_len": 2**31 - 1},
    "temperature is nan": {"temperature": float("nan")},
    "temperature is -inf": {"temperature": float("-inf")},
    "top_p is 1.5": {"runtime_top_p": 1.5},
    "num_return_sequences is -1": {"num_return_sequences": -1},
    "num_return_sequences is 2147483647": {"num_return_sequences": 2**31 - 1},
    "stop_words_list has the offsets": {
        "stop_words_list": np.array([[[1, 2], [2147483647, -5]]], np.int32)
    },
    r"bad_words_list has 5000000 ids": {"bad_words_list": np.ones((1, 2, 5_000_000), np.int32)},
    "embedding_bias has 5000000 values": {"embedding_bias": np.ones((1, 5_000_000), np.float32)},
    "beam_width is 4": {"beam_width": 4},
    "lora_task_id needs LoRA adapters": {"lora_task_id": 0},
    "guided_decoding_guide_type needs guided": {"guided_decoding_guide_type": "json"},
    "batch size": {"input_lengths": np.array([[1], [1]], np.int32)},
    "input_ids": {"input_ids": np.ones((1, 3), np.float32)},
    "seed": {"seed": np.ones((1, 1), np.int32)},
}
"""What the error says, and inputs that are wrong."""


@pytest.mark.parametrize("words", POISON)
def test_a_poisoned_request_is_refused_by_name_and_the_model_lives(
    any_runtime: Runtime, words: str
) -> None:
    with pytest.raises(grpc.InferenceServerException, match=words):
        any_runtime.ask_inputs(**{**prompt(IDS, 4), **POISON[words]})

    assert len(any_runtime.ask(IDS, 2)) == 1


@pytest.mark.parametrize(
    ("values", "code"),
    [
        ({"temperature": float("nan")}, "INVALID_ARGUMENT"),
        ({"beam_width": 4}, "UNIMPLEMENTED"),
        ({"streaming": True}, "INVALID_ARGUMENT"),
        ({"num_return_sequences": 2}, "INVALID_ARGUMENT"),
    ],
    ids=str,
)
def test_a_refusal_has_the_code_of_its_kind(
    single: Runtime, values: dict[str, Any], code: str
) -> None:
    with (
        grpc.InferenceServerClient(single.url) as client,
        pytest.raises(grpc.InferenceServerException) as caught,
    ):
        client.infer(MODEL, inputs_of({**prompt(IDS, 4), **values}))

    assert caught.value.status() == f"StatusCode.{code}"


def test_requests_share_steps_where_each_gets_one_response(single: Runtime) -> None:
    """The model answers after execute has returned, so a later request joins the running batch."""
    before = metrics(single)["nv_trt_llm_general_metrics.iteration_counter"]
    with contextlib.ExitStack() as stack:
        queues = [stack.enter_context(single.open(**prompt([5, 6, n], 200))) for n in range(4)]
        answers = [list(outputs(answers)) for answers in queues]
    assert_idle(single)
    steps = metrics(single)["nv_trt_llm_general_metrics.iteration_counter"] - before

    assert [len(found) for found in answers] == [1] * 4
    assert steps < 4 * 150


def test_metrics_follow_the_requests(runtime: Runtime) -> None:
    before = metrics(runtime)
    with contextlib.ExitStack() as stack:
        for place in range(6):
            answers = stack.enter_context(runtime.open(**ENDLESS))
            if place < 4:
                first(answers)
        time.sleep(0.3)  # stats_check_period_ms is 100
        busy = metrics(runtime)
    assert_idle(runtime)
    after = metrics(runtime)
    requests = {
        name.rpartition(".")[2]: value
        for name, value in busy.items()
        if name.startswith("nv_trt_llm_request_metrics")
    }
    blocks = {
        name.rpartition(".")[2]: value
        for name, value in busy.items()
        if name.startswith("nv_trt_llm_kv_cache_block_metrics")
    }

    assert requests == {"active": 4, "max": 4, "scheduled": 4, "context": 0, "waiting": 2}
    assert blocks == {"max": 4, "free": 0, "used": 4, "tokens_per": 1024, "fraction": 1.0}
    assert busy["nv_trt_llm_inflight_batcher_metrics.generation_requests"] == 4
    counter = "nv_trt_llm_general_metrics.iteration_counter"
    assert before[counter] < busy[counter] <= after[counter]
    assert after["nv_llm_input_token_len_count"] - before["nv_llm_input_token_len_count"] == 6
    assert after["nv_llm_input_token_len_sum"] - before["nv_llm_input_token_len_sum"] == 18
    assert after["nv_llm_output_token_len_count"] == after["nv_llm_input_token_len_count"]
