"""What the metrics port says of requests, as Prometheus reads it."""

from __future__ import annotations

import re
import shutil
import subprocess
import urllib.request
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served
from tests.triton_repo.text_calls import RefusalError, ask

# One sample: what is looked at here does not depend on the model.
pytestmark = [
    pytest.mark.server,
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]

PROMPT = "Complete the paragraph: our solar system is"
TOKENS = 12
TIMES = (
    "trtllm_time_to_first_token_seconds",
    "trtllm_time_per_output_token_seconds",
    "trtllm_e2e_request_latency_seconds",
)
LENGTHS = ("nv_llm_input_token_len", "nv_llm_output_token_len")

Samples = dict[tuple[str, str], float]
"""Values by the metric's name, and the value of the label that is not the model's."""


def exposition(served: Served) -> str:
    """Return what Prometheus scrapes."""
    url = f"http://127.0.0.1:{served.endpoints.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        text: str = answer.read().decode()
    return text


def samples(served: Served) -> Samples:
    """Return what the model tensorrt_llm has published."""
    found: Samples = {}
    for family in text_string_to_metric_families(exposition(served)):
        for sample in family.samples:
            labels = dict(sample.labels)
            if labels.pop("model", "") == "tensorrt_llm":
                del labels["version"]
                found[sample.name, ",".join(labels.values())] = sample.value
    return found


class Changes:
    """How much each sample has grown since it was looked at first."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self._before = samples(served)

    def of(self, name: str, label: str = "") -> float:
        """Return how much one has grown."""
        return samples(self._served)[name, label] - self._before[name, label]


@pytest.fixture
def changes(served: Served) -> Changes:
    """What a test's own requests add; nothing else asks while a test runs."""
    until(lambda: samples(served)["nv_trt_llm_request_metrics", "active"] == 0)
    return Changes(served)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_an_answer_is_one_observation_in_each_histogram(
    served: Served, changes: Changes, model: str
) -> None:
    text = {"text_input": PROMPT, "max_tokens": TOKENS, "end_id": 0, "stream": True}
    counted = ask(served.endpoints, "grpc", model, **text, return_num_input_tokens=True)
    until(lambda: changes.of("nv_llm_output_token_len_count") == 1)

    for name in (*TIMES, *LENGTHS):
        assert changes.of(f"{name}_count") == changes.of(f"{name}_bucket", "+Inf") == 1
    assert changes.of("nv_llm_output_token_len_sum") == TOKENS
    assert changes.of("nv_llm_input_token_len_sum") == counted.responses[0]["num_input_tokens"]
    first, per_token, whole = (changes.of(f"{name}_sum") for name in TIMES)
    assert 0 < first < whole
    # The first token, and the time between each of the others, make up the whole.
    assert first + per_token * (TOKENS - 1) == pytest.approx(whole, rel=0.2)
    assert changes.of("trtllm_request_success_total", "length") == 1


def test_buckets_of_a_histogram_only_grow(served: Served) -> None:
    found = samples(served)
    for name in (*TIMES, *LENGTHS):
        buckets = {float(le): n for (of, le), n in found.items() if of == f"{name}_bucket"}
        counts = [buckets[limit] for limit in sorted(buckets)]

        assert len(counts) > 5
        assert counts == sorted(counts)
        assert counts[-1] == found[f"{name}_count", ""]


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [({"max_tokens": 10**6}, "invalid_arg"), ({"beam_width": 2}, "unsupported")],
    ids=["invalid_arg", "unsupported"],
)
def test_a_refused_request_is_counted_by_its_reason(
    served: Served, changes: Changes, inputs: dict[str, int], reason: str
) -> None:
    """Also while nothing runs; Triton itself counts it as an answer of a decoupled model."""
    text: dict[str, Any] = {"text_input": PROMPT, "max_tokens": 3}
    with pytest.raises(RefusalError):
        ask(served.endpoints, "grpc", "ensemble", **{**text, **inputs})

    assert changes.of("trtllm_request_error_total", reason) == 1
    assert changes.of("trtllm_request_error_total", "internal") == 0
    assert changes.of("trtllm_time_to_first_token_seconds_count") == 0


def test_promtool_finds_no_fault_in_our_metrics(served: Served) -> None:
    """It does in Triton's own, and in the names of TensorRT-LLM's model."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH; Debian has it in the package prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=exposition(served), capture_output=True, text=True
    )
    linted = {line.partition(" ")[0] for line in done.stderr.splitlines()}

    assert not re.search(r"error while|parse", done.stderr)
    assert {name for name in linted if name.startswith("trtllm_")} == set()
