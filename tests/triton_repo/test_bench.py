"""`minitron-trt bench` against a real tritonserver, over both of its protocols."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from click.testing import Result
from tests.triton_repo.conftest import Served

pytestmark = [pytest.mark.server, pytest.mark.slow]


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
@pytest.mark.parametrize("scheme", ["grpc", "http"])
def test_a_served_sample_is_measured(
    served: Served, scheme: str, command: Callable[..., Result]
) -> None:
    endpoints = served.endpoints
    url = endpoints.grpc_url if scheme == "grpc" else endpoints.http_url
    load = ["--concurrency", "2", "--request-count", "4", "--isl", "12", "--osl", "6"]
    places = ["--url", url, "--metrics-url", endpoints.metrics_url, "--tokenizer", served.model]
    result = command("bench", *places, *load, "--force-min-tokens", "--json")

    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    grown = {
        (each["name"], each["labels"].get("model")): each.get("delta")
        for each in record["minitron_trt"]["server_metrics"]
    }
    assert record["request_count"]["avg"] == 4
    assert record["total_osl"]["avg"] == 4 * 6
    # The model's own token at the begin comes on top.
    assert record["input_sequence_length"]["min"] == record["input_sequence_length"]["max"] == 13
    assert record["inter_token_latency"]["count"] == 4
    assert grown["nv_inference_request_success", "ensemble"] == 4
