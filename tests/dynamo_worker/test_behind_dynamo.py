"""NVIDIA Dynamo's own frontend and router before our workers: `make test-dynamo`.

Its listeners may take every address of the machine, so all of it runs in a network of its own.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

PYTHON: Final = os.environ.get("DYNAMO_PYTHON", "")
PROGRAM: Final = Path(__file__).with_name("dynamo_network.py")
# Of Dynamo's environment, what ours lacks; a worker needs what serves, too.
PACKAGES: Final = ("dynamo", "uvloop")
log = logging.getLogger(__name__)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.server,
    pytest.mark.skipif(not PYTHON, reason="DYNAMO_PYTHON names no Python with ai-dynamo"),
]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Llama sample; four requests at a time."""
    folder = tmp_path_factory.mktemp("dynamo")
    convert(str(sample_folder("solar-llama")), folder / "checkpoint", ConvertOptions())
    emit_repository(folder / "checkpoint", folder / "solar", ServingRecipe(max_batch_size=4))
    return folder / "solar"


def found_in(scenario: str, repository: Path, folder: Path) -> dict[str, Any]:
    """Return what a scenario of `dynamo_network` found."""
    where = subprocess.run(
        (PYTHON, "-c", "import dynamo._core as c; print(c.__file__)"),
        capture_output=True,
        text=True,
        check=True,
    )
    packages = Path(where.stdout.strip()).parents[1]
    (folder / "packages").mkdir()
    for name in PACKAGES:
        (folder / "packages" / name).symlink_to(packages / name)
    (folder / "solar").symlink_to(repository)
    settings = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(folder / "store"),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "HF_HUB_OFFLINE": "1",
        # Workers are healthy when Dynamo's own requests to try them are answered.
        "DYN_HEALTH_CHECK_ENABLED": "true",
        "DYN_CANARY_WAIT_TIME": "1",
        "PYTHONPATH": str(folder / "packages"),
    }
    # Whatever ends the program, nothing that it started outlives it.
    alone = ("unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc")
    done = subprocess.run(
        (*alone, "--map-root-user", sys.executable, PROGRAM, scenario, folder),
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=1500,
    )
    logs = {path.name: path.read_text(errors="replace")[-2000:] for path in folder.glob("*.log")}
    assert done.returncode == 0, (done.stderr, logs)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def text(answer: tuple[int, dict[str, Any]]) -> str:
    """Return the text of a whole answer."""
    said: str = answer[1]["choices"][0]["text"]
    return said


def test_requests_are_answered_refused_and_cancelled(repository: Path, tmp_path: Path) -> None:
    found = found_in("requests", repository, tmp_path)

    assert found["streamed"] == found["of_triton"] != ""
    assert found["pieces"] >= 10
    assert found["stopped"][1]["choices"][0]["finish_reason"] == "stop"
    assert "part" not in text(found["stopped"])
    assert found["ended"][1]["choices"][0]["finish_reason"] == "stop"
    assert found["ended"][1]["usage"]["prompt_tokens"] == 6
    assert len(found["likeliest"][1]["choices"][0]["logprobs"]["token_logprobs"]) == 3
    assert sorted(each["index"] for each in found["two"][1]["choices"]) == [0, 1]
    assert found["chat"][1]["choices"][0]["message"]["content"]
    assert found["min_p"][0] == found["guided"][0] == found["too_long"][0] == 400
    assert "min_p is 0.5, which is not supported" in found["min_p"][1]["message"]
    assert "guided decoding" in found["guided"][1]["message"]
    assert found["left"] == "cancelled"
    assert (found["drained"], found["worker"]) == (True, 0)
    assert "solar" not in found["gone"]
    assert (found["lost"], len(found["said"])) == (6, 1)
    assert "error: Dynamo cannot be joined: " in found["said"][0]


def test_requests_go_on_when_a_worker_or_its_triton_is_killed(
    repository: Path, tmp_path: Path
) -> None:
    found = found_in("killed", repository, tmp_path)

    assert found["worker_killed"] == [found["whole"]] * 4
    assert found["triton_killed"] == [found["whole"]] * 4
    assert found["worker"] == 6
    assert len(found["said"]) == 1
    assert "no Triton server answers" in found["said"][0]


def test_a_load_loses_no_request_with_a_worker(repository: Path, tmp_path: Path) -> None:
    found = found_in("load", repository, tmp_path)
    killed = found["killed_at_ns"]
    spans = [
        (each["metadata"]["request_start_ns"], each["metadata"]["request_end_ns"])
        for each in found["records"]
    ]
    failed = [each["error"] for each in found["records"] if each.get("error")]
    before = [(start, end) for start, end in spans if end < killed]
    during = [(start, end) for start, end in spans if start < killed <= end]
    after = [(start, end) for start, end in spans if start >= killed]
    log.info(
        "sent %d, failed %d, under way when it was killed %d", len(spans), len(failed), len(during)
    )
    for word, part in (("before", before), ("after", after)):
        seconds = (max(end for _, end in part) - min(start for start, _ in part)) / 1e9
        log.info("%s: %d requests, %.2f requests/s", word, len(part), len(part) / seconds)
    log.info("%s", "\n".join(found["moved"]))

    assert found["code"] == 0
    assert failed == []
    assert during
    assert any(float(line.split()[-1]) for line in found["moved"])


def test_one_command_serves_and_joins_dynamo(repository: Path, tmp_path: Path) -> None:
    found = found_in("in_one", repository, tmp_path)

    assert found["answered"][0] == 200
    assert "Dynamo   dynamo.backend.generate" in found["said"]
    assert found["code"] == 0
