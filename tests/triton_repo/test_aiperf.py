"""NVIDIA's load generator aiperf, unchanged, against both text models: `make test-aiperf`.

Its pins are not those of this project, so it has an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.triton_repo.conftest import Served
from tests.triton_repo.text_calls import ask

from minitron_trt.loadtest.aiperf_files import AIPERF_SCHEMA
from minitron_trt.loadtest.load_test import UNITS
from minitron_trt.loadtest.metrics import figures_of
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.significance import Interval, interval
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.serving.server_options import Endpoints

# One sample: what is looked at here does not depend on the model.
pytestmark = [pytest.mark.server, pytest.mark.slow]

log = logging.getLogger(__name__)
REQUESTS = 4
TOKENS = 8
PAYLOAD = """{
  "text_input": {{ text|tojson }}, "max_tokens": %d, "end_id": 0, "stream": {{ stream|tojson }}
}"""


@pytest.fixture(scope="module")
def aiperf() -> str:
    """Return the program."""
    if "AIPERF" not in os.environ:
        pytest.skip("AIPERF names no aiperf; run make test-aiperf")
    return os.environ["AIPERF"]


def profile(aiperf: str, endpoints: Endpoints, model: str, folder: Path, *, stream: bool) -> None:
    """Run a load of a few requests; what comes of it lies in the folder."""
    template = folder / "payload.json"
    template.write_text(PAYLOAD % TOKENS)
    verb = "generate_stream" if stream else "generate"
    options = [
        *("--url", endpoints.http_url),
        *("--endpoint-type", "template", "--endpoint", f"/v2/models/{model}/{verb}"),
        *("--extra-inputs", f"payload_template:{template}"),
        *("--extra-inputs", "response_field:text_output"),
    ]
    run(aiperf, model, options, folder, stream=stream)


def run(aiperf: str, model: str, options: list[str], folder: Path, *, stream: bool) -> None:
    """Have aiperf send a few requests as its options say."""
    command = [
        *(aiperf, "profile", "--model", model, *options),
        *(["--streaming"] if stream else []),
        *("--request-count", str(REQUESTS), "--concurrency", "2"),
        *("--synthetic-input-tokens-mean", "12"),
        *("--tokenizer", str(sample_folder("solar-llama"))),
        *("--artifact-dir", str(folder), "--ui", "none", "--export-outputs-json"),
        *("--export-level", "raw"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def read(path: Path) -> Any:
    """Return what a JSON file holds."""
    return json.loads(path.read_text())


def assert_is_measured(
    aiperf: str, endpoints: Endpoints, model: str, folder: Path, *, stream: bool
) -> None:
    """Compare aiperf's texts with those of a plain request, and look at its figures."""
    profile(aiperf, endpoints, model, folder, stream=stream)
    figures = read(folder / "profile_export_aiperf.json")
    prompts = {
        session["session_id"]: session["payloads"][0]["text_input"]
        for session in read(folder / "inputs.json")["data"]
    }
    answers = read(folder / "outputs.json")["data"]

    assert figures["request_count"]["avg"] == REQUESTS == len(answers)
    assert figures["output_sequence_length"]["min"] > 0
    assert ("inter_token_latency" in figures) is stream
    for answer in answers:
        given = {"text_input": prompts[answer["conversation_id"]], "max_tokens": TOKENS}
        expected = ask(endpoints, "grpc", model, **given, end_id=0).text
        assert answer["response_text"] == expected


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_decoupled_models_are_measured(
    aiperf: str, served: Served, model: str, stream: bool, tmp_path: Path
) -> None:
    assert_is_measured(aiperf, served.endpoints, model, tmp_path, stream=stream)


@pytest.mark.parametrize("model", ["ensemble", "tensorrt_llm_bls"])
def test_models_that_send_one_response_are_measured(
    aiperf: str, one_response: Endpoints, model: str, tmp_path: Path
) -> None:
    assert_is_measured(aiperf, one_response, model, tmp_path, stream=False)


@contextlib.contextmanager
def gateway_of(endpoints: Endpoints) -> Iterator[str]:
    """Run the gateway before a server; yield its URL."""
    argv = [sys.executable, "-m", "minitron_trt", "gateway", "--url", endpoints.grpc_url]
    with subprocess.Popen(
        [*argv, "--port", "0", "--json"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield json.loads(process.stdout.readline())["page"].rstrip("/")
        finally:
            process.terminate()


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_the_gateway_is_measured(aiperf: str, served: Served, stream: bool, tmp_path: Path) -> None:
    options = ["--endpoint-type", "completions", "--output-tokens-mean", str(TOKENS)]
    options += ["--extra-inputs", "temperature:0", "--use-server-token-count"]
    with gateway_of(served.endpoints) as url:
        run(aiperf, "ensemble", ["--url", url, *options], tmp_path, stream=stream)
    figures = read(tmp_path / "profile_export_aiperf.json")
    answers = read(tmp_path / "outputs.json")["data"]

    assert figures["request_count"]["avg"] == REQUESTS == len(answers)
    assert 0 < figures["output_sequence_length"]["max"] <= TOKENS
    assert ("inter_token_latency" in figures) is stream
    assert all(answer["response_text"] for answer in answers)


BENCH = (*("--request-count", str(REQUESTS), "--concurrency", "2"), *("--isl", "12"))
TIMES = ("time_to_first_token", "inter_token_latency", "request_latency")
RATES = ("output_token_throughput", "request_throughput")
RUNS = 3


def bench(endpoints: Endpoints, folder: Path) -> None:
    """Run the same load with the project's own generator."""
    command = [
        *(sys.executable, "-m", "minitron_trt", "bench", "--url", endpoints.http_url),
        *(*BENCH, "--osl", str(TOKENS), "--extra-inputs", "end_id:0"),
        *("--force-min-tokens", "--warmup-request-count", "4"),
        *("--tokenizer", str(sample_folder("solar-llama")), "-o", str(folder)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def beside(
    aiperf: str, served: Served, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Path]]:
    """Return the folders of both generators, which took turns on one server."""
    folders: dict[str, list[Path]] = {"aiperf": [], "bench": []}
    for number in range(RUNS):
        folder = tmp_path_factory.mktemp(f"turn{number}")
        bench(served.endpoints, folder / "bench")
        (folder / "aiperf").mkdir()
        profile(aiperf, served.endpoints, "ensemble", folder / "aiperf", stream=True)
        for name, taken in folders.items():
            taken.append(folder / name)
    return folders


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
def test_bench_and_aiperf_agree_within_their_spread(beside: dict[str, list[Path]]) -> None:
    found = {
        name: [read(folder / "profile_export_aiperf.json") for folder in folders]
        for name, folders in beside.items()
    }

    for records in found.values():
        assert {record["request_count"]["avg"] for record in records} == {REQUESTS}
    assert {record["total_osl"]["avg"] for record in found["bench"]} == {REQUESTS * TOKENS}
    for metric in (*TIMES, *RATES):
        theirs, ours = (
            interval([record[metric]["avg"] for record in found[name]])
            for name in ("aiperf", "bench")
        )
        log.info("%s: aiperf %s, bench %s", metric, span(theirs), span(ours))
        assert ours.ci_low <= theirs.ci_high, metric
        assert theirs.ci_low <= ours.ci_high, metric


def span(found: Interval) -> str:
    """Return a mean and where it may be."""
    return f"{found.mean:.2f} ({found.ci_low:.2f} to {found.ci_high:.2f})"


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
def test_of_the_same_moments_both_make_the_same_figures(beside: dict[str, list[Path]]) -> None:
    folder = beside["aiperf"][0]
    raw, told_each = (
        {
            (line := json.loads(text))["metadata"]["x_request_id"]: line
            for text in (folder / name).read_text().splitlines()
        }
        for name in ("profile_export_raw.jsonl", "profile_export.jsonl")
    )
    # Its tokens are those of a tokenizer of its own over the whole text.
    tokens = {
        key: int(line["metrics"]["output_sequence_length"]["value"])
        for key, line in told_each.items()
    }
    records = [moments(line, tokens[key]) for key, line in raw.items()]
    figures = figures_of([records], limits=None, streams=True)
    told = read(folder / "profile_export_aiperf.json")

    for tag in (*SAME, "request_count", "total_osl"):
        there = {name: value for name, value in told[tag].items() if name in figures[tag]}
        assert figures[tag] == pytest.approx(there), tag


SAME = (
    *(*TIMES, "time_to_second_token", "inter_chunk_latency", "decode_duration"),
    *("output_token_throughput_per_user", "e2e_output_token_throughput"),
    "output_sequence_length",
)


def moments(raw: dict[str, Any], tokens: int) -> RequestRecord:
    """Return what aiperf saw of a request as a record of bench."""
    record = RequestRecord(0, 0, counted_tokens=tokens, start_ns=raw["start_perf_ns"])
    for response in raw["responses"]:
        data = json.loads(response["packets"][0]["value"])
        if data.get("text_output"):
            record.pieces_ns.append(response["perf_ns"])
    record.end_ns = record.pieces_ns[-1]
    return record


@pytest.mark.parametrize("served", ["solar-llama"], indirect=True, scope="session")
def test_aiperfs_own_models_read_what_bench_writes(
    aiperf: str, beside: dict[str, list[Path]]
) -> None:
    program = """
import json, sys
from pathlib import Path
from aiperf.common.models.export_models import JsonExportData, JsonMetricResult
from aiperf.common.models.record_models import MetricRecordInfo
from aiperf.metrics.metric_registry import MetricRegistry
folder = sys.argv[1]
data = JsonExportData.model_validate_json(Path(folder, "profile_export_aiperf.json").read_text())
for line in Path(folder, "profile_export.jsonl").read_text().splitlines():
    MetricRecordInfo.model_validate_json(line)
units = {}
for tag in sys.argv[2:]:
    kind = MetricRegistry.get_class(tag)
    units[tag] = str(kind.display_unit or kind.unit)
print(json.dumps([units, data.request_count.avg, data.schema_version]))
"""
    derived = {"credit_to_start_latency", "effective_latency", "effective_concurrency"}
    tags = sorted(UNITS.keys() - derived)
    python = Path(aiperf).with_name("python")
    command = [str(python), "-c", program, str(beside["bench"][0]), *tags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)

    assert done.returncode == 0, done.stderr
    units, count, schema = json.loads(done.stdout.splitlines()[-1])
    assert units == {tag: UNITS[tag] for tag in tags}
    assert (count, schema) == (REQUESTS, AIPERF_SCHEMA)
