"""The alerts and the autoscaler's questions, answered by Prometheus itself."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import settings_of

from minitron_trt.deploy.deployment import Deployment
from minitron_trt.deploy.monitoring import kv_query, prometheus_rule, waiting_query
from minitron_trt.deploy.scaling import adapter_values
from minitron_trt.deploy.served_facts import ServedFacts, read_facts
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI
from minitron_trt.yaml_text import yaml_text

PROMTOOL = shutil.which("promtool")
pytestmark = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not on PATH; Debian has it in the package prometheus"
)
POD = 'app_kubernetes_io_instance="llama",model="tensorrt_llm",namespace="llama",pod="{pod}"'
ENSEMBLE = 'app_kubernetes_io_instance="llama",model="ensemble",pod="a"'
FIRST = "nv_inference_first_response_histogram_ms_bucket"


@pytest.fixture(scope="module")
def facts(repository_of: RepositoryOf) -> ServedFacts:
    """What is read of a repository for an H100."""
    return read_facts(repository_of("H100"), image=None, gpu=None, drain_s=20)


def gauge(metric: str, label: str, kind: str, *pods: str) -> list[dict[str, str]]:
    """Return a gauge of TensorRT-LLM's, of one kind, as each Pod publishes it."""
    return [
        {"series": f'{metric}{{{POD.format(pod=pod)},{label}="{kind}"}}', "values": values}
        for pod, values in zip("ab", pods, strict=False)
    ]


def requests(kind: str, *pods: str) -> list[dict[str, str]]:
    """Return the requests of a kind."""
    return gauge("nv_trt_llm_request_metrics", "request_type", kind, *pods)


def blocks(kind: str, *pods: str) -> list[dict[str, str]]:
    """Return the KV cache blocks of a kind."""
    return gauge("nv_trt_llm_kv_cache_block_metrics", "kv_cache_block_type", kind, *pods)


def counter(name: str, labels: str, values: str) -> dict[str, str]:
    """Return a series of any other metric."""
    return {"series": f"{name}{{{labels}}}", "values": values}


CALM = [*requests("waiting", "0x60", "0x60"), *blocks("used", "10x60"), *blocks("max", "100x60")]
# What is published, and the alerts that burn half an hour later.
CASES: dict[str, tuple[list[dict[str, str]], set[str]]] = {
    "calm": (CALM, set()),
    "nothing": ([], {"MinitronNoServer"}),
    "one-replica-waits": ([*requests("waiting", "8x60", "0x60")], set()),
    "both-wait": ([*requests("waiting", "9x60", "9x60")], {"MinitronRequestsWait"}),
    "cache-full": (
        [*requests("waiting", "0x60"), *blocks("used", "98x60"), *blocks("max", "100x60")],
        {"MinitronKvCacheFull"},
    ),
    "errors": (
        [
            *CALM,
            counter("nv_inference_request_success", ENSEMBLE, "0+97x60"),
            counter("nv_inference_request_failure", ENSEMBLE, "0+3x60"),
        ],
        {"MinitronErrors"},
    ),
    "few-errors": (
        [
            *CALM,
            counter("nv_inference_request_success", ENSEMBLE, "0+997x60"),
            counter("nv_inference_request_failure", ENSEMBLE, "0+3x60"),
        ],
        set(),
    ),
    "late": (
        [
            *CALM,
            counter(FIRST, f'{ENSEMBLE},le="2000"', "0+90x60"),
            counter(FIRST, f'{ENSEMBLE},le="5000"', "0+100x60"),
            counter(FIRST, f'{ENSEMBLE},le="+Inf"', "0+100x60"),
        ],
        {"MinitronFirstTokenLate"},
    ),
}
# Of the runtimes that publish what TensorRT-LLM's own server does.
OWN = 'app_kubernetes_io_instance="llama",model="tensorrt_llm",pod="a"'
LLMAPI_CASES: dict[str, tuple[list[dict[str, str]], set[str]]] = {
    "errors": (
        [
            *CALM,
            counter("trtllm_request_success_total", OWN, "0+9x60"),
            counter("trtllm_request_error_total", f'{OWN},reason="internal"', "0+1x60"),
        ],
        {"MinitronErrors"},
    ),
    "slow": (
        [
            *CALM,
            counter("trtllm_time_per_output_token_seconds_bucket", f'{OWN},le="0.1"', "0+9x60"),
            counter("trtllm_time_per_output_token_seconds_bucket", f'{OWN},le="0.5"', "0+99x60"),
            counter("trtllm_time_per_output_token_seconds_bucket", f'{OWN},le="+Inf"', "0+99x60"),
        ],
        {"MinitronTokensSlow"},
    ),
}


def told(folder: Path, deployment: Deployment, tests: list[dict[str, Any]]) -> str:
    """Return what promtool says of tests of a deployment's rules; "" when they hold."""
    rules = yaml.safe_load(yaml_text([prometheus_rule(deployment)]))["spec"]
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    file = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": tests}
    (folder / "tests.yaml").write_text(json.dumps(file))
    done = subprocess.run(
        [str(PROMTOOL), "test", "rules", "tests.yaml"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return "" if done.returncode == 0 else done.stdout + done.stderr


def burning(deployment: Deployment, series: list[dict[str, str]], names: set[str]) -> Any:
    """Return a test that these alerts burn after half an hour, and no other."""
    rules = yaml.safe_load(yaml_text([prometheus_rule(deployment)]))["spec"]["groups"][0]["rules"]
    expressions = []
    for rule in rules:
        samples = []
        if rule["alert"] in names:
            labels = f'ALERTS{{alertname="{rule["alert"]}",alertstate="firing",severity="warning"'
            if rule["alert"] == "MinitronNoServer":
                labels += ',app_kubernetes_io_instance="llama"'
            samples = [{"labels": labels + "}", "value": 1}]
        query = f'ALERTS{{alertname="{rule["alert"]}",alertstate="firing"}}'
        expressions.append({"expr": query, "eval_time": "30m", "exp_samples": samples})
    return {"interval": "1m", "input_series": series, "promql_expr_test": expressions}


@pytest.mark.slow
def test_alerts_burn_for_what_they_are_about_and_for_nothing_else(
    facts: ServedFacts, tmp_path: Path
) -> None:
    facts = dataclasses.replace(facts, batch=64)
    deployment = Deployment(facts, settings_of())
    llmapi = Deployment(dataclasses.replace(facts, runtime=LLMAPI), settings_of())

    tests = [burning(deployment, series, names) for series, names in CASES.values()]
    assert told(tmp_path, deployment, tests) == ""
    tests = [burning(llmapi, series, names) for series, names in LLMAPI_CASES.values()]
    assert told(tmp_path, llmapi, tests) == ""


@pytest.mark.slow
def test_what_the_autoscaler_asks_rises_and_falls_with_the_load(
    facts: ServedFacts, tmp_path: Path
) -> None:
    """KEDA divides the first by the replicas; the second is a share of all caches together.

    prometheus-adapter asks the same of one namespace, of which it must know the label.
    """
    deployment = Deployment(facts, settings_of(autoscaler="hpa"))
    series = [
        *requests("waiting", "0+2x10 20-2x10", "0x20"),
        *blocks("used", "0+10x10 100-10x10", "0x20"),
        *blocks("max", "100x20", "100x20"),
        # Another deployment's.
        counter("nv_trt_llm_request_metrics", 'app_kubernetes_io_instance="other"', "999x20"),
    ]
    expected = {"1m": (2, 5), "5m": (10, 25), "10m": (20, 50), "20m": (2, 5)}
    external = adapter_values(deployment)["rules"]["external"]
    queries = [waiting_query(deployment), f"100 * {kv_query(deployment)}"]
    of_namespace = [
        rule["metricsQuery"].replace("<<.LabelMatchers>>", 'namespace="llama"') for rule in external
    ]
    # Of somebody else, who has a deployment of this name.
    elsewhere = [
        {**each, "series": each["series"].replace('namespace="llama"', 'namespace="other"')}
        for each in series
    ]

    assert [rule["resources"]["overrides"] for rule in external] == [
        {"namespace": {"resource": "namespace"}}
    ] * 2
    assert all(rule["seriesQuery"] in query for rule, query in zip(external, queries, strict=True))
    tests = []
    for asked, there in ((queries, series), (of_namespace, [*series, *elsewhere])):
        expressions = [
            {"expr": query, "eval_time": at, "exp_samples": [{"labels": "{}", "value": value}]}
            for at, values in expected.items()
            for query, value in zip(asked, values, strict=True)
        ]
        tests.append({"interval": "1m", "input_series": there, "promql_expr_test": expressions})
    assert told(tmp_path, deployment, tests) == ""
