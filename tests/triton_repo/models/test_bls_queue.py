"""tensorrt_llm_bls with fewer processes than requests: they wait their turn, or are refused."""

from __future__ import annotations

import queue
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from tests.patience import PATIENCE_S
from tests.triton_repo.runtimes.runtime_calls import inputs_of
from tests.triton_repo.text_calls import RefusalError, ask, tensors

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.clients.client import Client
from minitron_trt.clients.faults import refusal
from minitron_trt.clients.messages import GenerateRequest
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import Endpoints, ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.server

BLS = "tensorrt_llm_bls"
PROMPT = "Complete the paragraph: our solar system is"


@pytest.fixture(scope="module")
def endpoints(
    checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Endpoints]:
    """A server with one process of the model, and room for two requests to wait."""
    folder = tmp_path_factory.mktemp("bls") / "repository"
    recipe = ServingRecipe(max_batch_size=4, max_queue_size=2, bls_instances=1)
    emit_repository(checkpoint.folder, folder, recipe)
    with running_server(
        folder, ServerOptions(free_endpoints(), drain_s=3), timeout_s=600
    ) as server:
        yield server.endpoints


def test_requests_take_turns(endpoints: Endpoints) -> None:
    alone = short(endpoints)
    # As many at once as may wait: the first may still be in the queue.
    with ThreadPoolExecutor(2) as threads:
        texts = list(threads.map(short, [endpoints] * 3))

    assert texts == [alone] * 3


def test_a_batch_of_prompts_is_answered_and_the_next_request_too(endpoints: Endpoints) -> None:
    """The queue hands single rows on; a request of two must not be stuck in it."""
    answers: queue.Queue[Any] = queue.Queue()
    rows = {"text_input": [[PROMPT], [PROMPT]], "max_tokens": [[20], [20]], "stream": [[False]] * 2}
    types = {"text_input": np.object_, "max_tokens": np.int32, "stream": np.bool_}
    inputs = inputs_of({name: np.array(value, types[name]) for name, value in rows.items()})
    with grpc.InferenceServerClient(grpc_address(endpoints)) as client:
        client.start_stream(lambda result, error: answers.put(error or result))
        client.async_stream_infer(BLS, inputs)
        texts = [answers.get(timeout=PATIENCE_S).as_numpy("text_output")[0] for _ in range(2)]

    assert [text.decode() for text in texts] == [short(endpoints)] * 2


def test_a_full_queue_is_said_to_be_so_and_leaving_makes_room(endpoints: Endpoints) -> None:
    with (
        Client.connect(
            endpoints.grpc_url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
        ) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        running = client.stream(GenerateRequest(PROMPT, max_tokens=1000, model=BLS))
        next(running)
        waiting = [pool.submit(short, endpoints) for _ in range(2)]
        while waiting_requests(endpoints) < 2:
            time.sleep(0.02)
        with pytest.raises(RefusalError, match="Exceeds maximum queue size") as raised:
            short(endpoints)
        assert refusal(str(raised.value)).is_passing
        running.close()

        assert all(answer.result() for answer in waiting)
    assert short(endpoints)


def test_overload_is_said_by_every_model(endpoints: Endpoints) -> None:
    """With its code over the ensemble; a model that calls another is not told the other's."""
    with ThreadPoolExecutor(6) as pool:
        given = {"text_input": PROMPT, "end_id": 0, "stream": True}
        running = []
        for line in ((1, 0), (2, 0), (3, 0), (4, 0), (4, 1), (4, 2)):
            running.append(pool.submit(ask, endpoints, "grpc", "ensemble", max_tokens=600, **given))
            while (in_line(endpoints, "active"), in_line(endpoints, "waiting")) != line:
                time.sleep(0.02)
        for protocol in ("grpc", "http"):
            for model in ("ensemble", BLS):
                with pytest.raises(RefusalError, match="2 requests are waiting") as raised:
                    ask(endpoints, protocol, model, max_tokens=3, text_input=PROMPT)
                assert refusal(str(raised.value)).is_passing
        assert status_of(endpoints, "ensemble", **given, max_tokens=3) == "StatusCode.UNAVAILABLE"
        assert not any(request.done() for request in running)
        assert all(request.result().text for request in running)


def status_of(endpoints: Endpoints, model: str, **inputs: Any) -> str:
    """Return the gRPC status that a refused stream ends with, where the client asks for one."""
    answers: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(grpc_address(endpoints)) as client:
        client.start_stream(
            lambda result, error: answers.put(error or result),
            headers={"triton_grpc_error": "true"},
        )
        client.async_stream_infer(model, tensors(inputs))
        return str(answers.get(timeout=PATIENCE_S).status())


def test_a_request_whose_time_is_up_waits_no_longer(endpoints: Endpoints) -> None:
    with (
        Client.connect(
            endpoints.grpc_url, timeout_s=PATIENCE_S, connect_timeout_s=PATIENCE_S
        ) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        running = client.stream(GenerateRequest(PROMPT, max_tokens=1000, model=BLS, end_id=0))
        next(running)
        # Triton keeps the next in turn ready beside the queue, where no time runs.
        turn = pool.submit(short, endpoints)
        while waiting_requests(endpoints) < 1:
            time.sleep(0.02)
        with pytest.raises(RefusalError, match="timeout expired"):
            short(endpoints, timeout_us=200_000)
        assert not turn.done()
        running.close()

        assert turn.result()


def short(endpoints: Endpoints, **options: Any) -> str:
    """Return a short text."""
    return ask(endpoints, "grpc", BLS, text_input=PROMPT, max_tokens=20, **options).text


def waiting_requests(endpoints: Endpoints) -> int:
    """Return how many requests wait for a process of tensorrt_llm_bls."""
    return metric(endpoints, "nv_inference_pending_request_count", BLS)


def in_line(endpoints: Endpoints, kind: str) -> int:
    """Return how many requests have a slot of tensorrt_llm (active), or wait for one (waiting)."""
    return metric(endpoints, "nv_trt_llm_request_metrics", f'"{kind}"')


def grpc_address(endpoints: Endpoints) -> str:
    """Return where the server listens for gRPC."""
    return endpoints.grpc_url.removeprefix("grpc://")


def metric(endpoints: Endpoints, name: str, label: str) -> int:
    """Return the sum of what Triton's metrics say."""
    url = f"http://127.0.0.1:{endpoints.metrics_port}/metrics"
    with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
        lines = answer.read().decode().splitlines()
    found = [line for line in lines if line.startswith(name) and label in line]
    return sum(round(float(line.split()[-1])) for line in found)
