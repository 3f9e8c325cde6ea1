"""NVIDIA Dynamo's own KServe frontend, where `DYNAMO_PYTHON` names a Python that has it.

Its listener takes every address of the machine, so all of it runs in a network of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
from tests.patience import PATIENCE_S

from minitron_trt.samples import sample_folder

PYTHON: Final = os.environ.get("DYNAMO_PYTHON", "")
WORKER: Final = Path(__file__).with_name("dynamo_worker.py")
PROMPT: Final = "Our solar system is"
# Each line of output is one answer's exit code and what was printed.
SCRIPT: Final = """
ip link set lo up
"$PYTHON" "$WORKER" "$MODEL" >"$LOGS/worker" 2>&1 & worker=$!
"$PYTHON" -m dynamo.frontend --kserve-grpc-server --http-host 127.0.0.1 --http-port 8787 \
    >"$LOGS/frontend" 2>&1 & frontend=$!
ask() {
    "$OURS" -m minitron_trt generate "$PROMPT" --model sample --url grpc://127.0.0.1:8787 "$@"
}
for try in $(seq 60); do ask >/dev/null 2>&1 && break; sleep 1; done
for options in --json "--json --no-stream" "--max-tokens 3"; do
    ask $options 2>&1 | head -1
done
kill $frontend $worker
wait
"""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON, reason="DYNAMO_PYTHON names no Python with ai-dynamo"),
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The sample with a chat template, without which Dynamo does not serve a model."""
    folder = tmp_path / "model"
    shutil.copytree(sample_folder("solar-llama"), folder)
    config = folder / "tokenizer_config.json"
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    config.write_text(json.dumps({**json.loads(config.read_text()), "chat_template": template}))
    return folder


def test_dynamos_frontend_streams_and_answers_whole(model: Path, tmp_path: Path) -> None:
    settings = {
        "DYN_DISCOVERY_BACKEND": "file",
        "DYN_FILE_KV": str(tmp_path),
        "DYN_REQUEST_PLANE": "tcp",
        "DYN_EVENT_PLANE": "zmq",
        "HF_HUB_OFFLINE": "1",
        "PYTHON": PYTHON,
        "OURS": sys.executable,
        "WORKER": str(WORKER),
        "MODEL": str(model),
        "LOGS": str(tmp_path),
        "PROMPT": PROMPT,
    }

    done = subprocess.run(
        ["unshare", "--net", "--map-root-user", "bash", "-c", SCRIPT],
        env={**os.environ, **settings},
        capture_output=True,
        timeout=PATIENCE_S,
        text=True,
        check=True,
    )

    streamed, whole, refused = done.stdout.splitlines()
    assert facts(streamed) == (PROMPT, "stop", 5)
    assert facts(whole) == (PROMPT, "stop", 1)
    assert refused == (
        "error: the model 'sample' has no input max_tokens; leave it out, or ask another model "
        "(this one takes streaming, text_input)"
    )


def facts(line: str) -> tuple[Any, ...]:
    """Return the text of an answer, why it ended, and how many pieces it had."""
    record = json.loads(line)
    return record["text"], record["finish_reason"], record["chunks"]
