"""Debian's Prometheus scrapes a served sample, and answers what an autoscaler asks of it."""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import socket
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import yaml
from tests.deploy.repositories import planned
from tests.patience import PATIENCE_S, until
from tests.triton_repo.conftest import Served

from minitron_trt.clients.client import Client
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.deploy.pods import INSTANCE
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

PROGRAM: Final = shutil.which("prometheus")
pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(
        PROGRAM is None, reason="NOT TESTED, no prometheus on PATH: Debian has it in prometheus"
    ),
    pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session"),
]
PROMPT: Final = "Complete the paragraph: our solar system is"
CALLERS: Final = 12
BATCH: Final = 4  # of the server


@dataclass(frozen=True)
class Autoscaler:
    """What a ScaledObject has KEDA ask, and how it counts replicas from that."""

    queries: dict[str, str]
    threshold: float
    least: int
    most: int

    @classmethod
    def read(cls, text: str) -> Autoscaler:
        """Read the emitted file."""
        spec = yaml.safe_load(text)["spec"]
        triggers = {trigger["name"]: trigger["metadata"] for trigger in spec["triggers"]}
        return cls(
            queries={name: metadata["query"] for name, metadata in triggers.items()},
            threshold=float(triggers["waiting"]["threshold"]),
            least=spec["minReplicaCount"],
            most=spec["maxReplicaCount"],
        )

    def replicas(self, waiting: float) -> int:
        """Return how many replicas it wants: an AverageValue is the sum by the threshold."""
        return min(max(math.ceil(waiting / self.threshold), self.least), self.most)


class Prometheus:
    """A Prometheus that runs, asked over HTTP."""

    def __init__(self, port: int) -> None:
        self._address = f"http://127.0.0.1:{port}"

    def get(self, path: str, **query: str) -> Any:
        """Return the JSON of an answer, None while there is none."""
        url = f"{self._address}{path}?{urllib.parse.urlencode(query)}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=10) as answer:
            return json.loads(answer.read())
        return None

    def value(self, query: str) -> float | None:
        """Return what an instant query comes to; None while there are no series."""
        answer = self.get("/api/v1/query", query=query)
        result = answer["data"]["result"] if answer else []
        return float(result[0]["value"][1]) if result else None

    @property
    def is_ready(self) -> bool:
        """Say whether it answers."""
        return self.get("/api/v1/status/buildinfo") is not None


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the files of a deployment of the repository that is served."""
    folder = tmp_path_factory.mktemp("deployment")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    recipe = ServingRecipe(max_batch_size=BATCH)
    emit_repository(folder / "checkpoint", folder / "repository", recipe)
    return dict(planned(folder / "repository", image="registry.example/triton:1").texts)


@pytest.fixture
def prometheus(served: Served, files: dict[str, str], tmp_path: Path) -> Iterator[Prometheus]:
    """Return a Prometheus that scrapes the server as the PodMonitor has it, with the alerts."""
    documents = list(yaml.safe_load_all(files["base/monitoring.yaml"]))
    rules = next(d for d in documents if d["kind"] == "PrometheusRule")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules["spec"]))
    label = INSTANCE.replace(".", "_").replace("/", "_")
    target = f"127.0.0.1:{served.endpoints.metrics_port}"
    config = {
        "global": {"scrape_interval": "250ms", "evaluation_interval": "1s"},
        "rule_files": [str(tmp_path / "rules.yaml")],
        "scrape_configs": [
            {
                "job_name": "servers",
                "scrape_timeout": "250ms",
                "static_configs": [{"targets": [target], "labels": {label: "llama", "pod": "a"}}],
            }
        ],
    }
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(PROGRAM),
        f"--config.file={tmp_path / 'prometheus.yaml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            asked = Prometheus(port)
            until(lambda: asked.is_ready)
            yield asked
        finally:
            process.terminate()


@contextlib.contextmanager
def load(served: Served) -> Iterator[None]:
    """Keep more requests running than the server answers at once."""
    stop = threading.Event()

    def call(client: Client) -> None:
        while not stop.is_set():
            client.generate(PROMPT, max_tokens=64)

    with (
        Client.connect(served.endpoints.grpc_url, timeout_s=PATIENCE_S) as client,
        ThreadPoolExecutor(CALLERS) as callers,
    ):
        calls = [callers.submit(call, client) for _ in range(CALLERS)]
        try:
            yield
        finally:
            stop.set()
    for each in calls:
        each.result()


def test_replicas_rise_with_the_load_and_fall_after_it(
    served: Served, prometheus: Prometheus, files: dict[str, str]
) -> None:
    autoscaler = Autoscaler.read(files["base/autoscaling.yaml"])
    waiting, cache = autoscaler.queries["waiting"], autoscaler.queries["kv-cache"]
    until(lambda: prometheus.value(waiting) == 0)
    idle = prometheus.value(cache)

    with load(served):
        # As many as do not find a place, less those that are on their way.
        until(lambda: (prometheus.value(waiting) or 0) >= (CALLERS - BATCH) / 2)
        wanted = autoscaler.replicas(prometheus.value(waiting) or 0)
        until(lambda: (prometheus.value(cache) or 0) > (idle or 0))

    assert wanted > autoscaler.least
    until(lambda: prometheus.value(waiting) == 0)
    assert autoscaler.replicas(prometheus.value(waiting) or 0) == autoscaler.least
    until(lambda: prometheus.value(cache) == idle)


def test_the_emitted_alerts_are_evaluated_and_none_fires_for_a_server_that_is_well(
    served: Served, prometheus: Prometheus
) -> None:
    def alerts() -> list[dict[str, Any]]:
        answer = prometheus.get("/api/v1/rules")
        groups = answer["data"]["groups"] if answer else []
        return [rule for group in groups for rule in group["rules"]]

    def is_well(alert: dict[str, Any]) -> bool:
        return (alert["health"], alert["state"]) == ("ok", "inactive")

    # Before the first scrape there is no server yet.
    until(lambda: alerts() and all(is_well(alert) for alert in alerts()))

    assert len(alerts()) > 3
