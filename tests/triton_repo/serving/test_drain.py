"""A stop waits for what is under way, and for nothing that only Triton believes in."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.patience import PATIENCE_S

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.clients.client import Client
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.runtime_load import RuntimeLoad, read_load
from minitron_trt.triton_repo.serving.server_log import ServerLog
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

METRICS = """# HELP nv_trt_llm_request_metrics TRT LLM request metrics
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="max",version="1"} 8
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="active",version="1"} 2
nv_trt_llm_request_metrics{model="tensorrt_llm",request_type="waiting",version="1"} 1.000000
nv_inference_pending_request_count{model="tensorrt_llm_bls",version="1"} 3
nv_inference_pending_request_count{model="preprocessing",version="1"} 0
"""


def test_the_load_is_read_from_the_metrics() -> None:
    load = RuntimeLoad.parse(METRICS)

    assert load == RuntimeLoad(active=2, waiting=1, queued=3)
    assert not load.is_idle
    assert str(load) == "2 running, 4 waiting"
    assert RuntimeLoad(0, 0, 0).is_idle


def test_metrics_without_both_numbers_say_nothing_about_the_load() -> None:
    without = METRICS.replace("waiting", "paused")

    assert RuntimeLoad.parse(without) is None
    assert RuntimeLoad.parse("") is None


def test_the_log_says_what_triton_waits_for() -> None:
    log = ServerLog(None, ranks=1)

    assert log.draining == ""
    for line in (
        'I1126 http_server.cc:248] "Timeout 6: Found 2 HTTP service connections"',
        "I1126 server.cc:325] \"Model 'ensemble' (version 1) has 20 in-flight inferences\"",
        "I1126 server.cc:325] \"Model 'ensemble' (version 1) has 19 in-flight inferences\"",
    ):
        log.add(line)
    assert log.draining == "2 over HTTP, 19 in ensemble"


@pytest.mark.server
def test_clients_that_left_the_ensemble_do_not_hold_up_the_end(
    checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """Triton never gives such requests back; waiting for them would take the whole drain time."""
    emit_repository(checkpoint.folder, tmp_path / "repository", ServingRecipe(max_batch_size=4))
    options = ServerOptions(free_endpoints(), drain_s=3600)
    with running_server(tmp_path / "repository", options, timeout_s=PATIENCE_S) as server:
        url = server.endpoints.grpc_url
        for seed in range(8):
            endless = GenerateRequest("The", max_tokens=900, end_id=0, temperature=1.0, seed=seed)
            with (
                Client.connect(url, timeout_s=PATIENCE_S) as client,
                client.stream(endless) as pieces,
            ):
                next(iter(pieces))
        assert read_load(server.endpoints.metrics_url, PATIENCE_S) is not None

        assert server.stop()
