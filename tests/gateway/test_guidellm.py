"""vLLM's load generator guidellm, unchanged, measures the gateway: `make test-guidellm`.

It brings transformers and datasets of its own choice, so it has an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.gateway.conftest import Running
from tests.patience import PATIENCE_S

from minitron_trt.samples import sample_folder

REQUESTS = 4
TOKENS = 8


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_guidellm_measures_the_gateway(gateway: Running, path: str, tmp_path: Path) -> None:
    if "GUIDELLM" not in os.environ:
        pytest.skip("NOT TESTED, GUIDELLM names no guidellm; run make test-guidellm")
    written = tmp_path / "benchmarks.json"
    options = {
        "backend": f"kind=openai_http,target={gateway.url},model=ensemble,request_format={path}",
        "profile": "kind=concurrent,streams=2",
        "constraint": f"kind=max_requests,count={REQUESTS}",
        "tokenizer": f"kind=hf_auto,model={sample_folder('solar-llama')}",
        "data": f"kind=synthetic_text,prompt_tokens=12,output_tokens={TOKENS}",
        "output": f"kind=json,path={written}",
    }
    argv = [os.environ["GUIDELLM"], "run", "--disable-console"]
    done = subprocess.run(
        argv + [word for name, value in options.items() for word in (f"--{name}", value)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (benchmark,) = json.loads(written.read_text())["benchmarks"]
    requests = gateway.triton.requests

    assert benchmark["metrics"]["request_totals"] == {
        "successful": REQUESTS,
        "errored": 0,
        "incomplete": 0,
        "total": REQUESTS,
    }
    # The double says each prompt back, a word a token.
    said = sorted(len(request.text_input.split(" ")[:TOKENS]) for request in requests)
    measured = benchmark["requests"]["successful"]
    assert sorted(each["output_metrics"]["text_tokens"] for each in measured) == said
    assert all(each["info"]["timings"]["first_token_iteration"] for each in measured)
    # What it asks for by `ignore_eos`.
    assert {(each.min_tokens, each.max_tokens) for each in requests} == {(TOKENS, TOKENS)}
