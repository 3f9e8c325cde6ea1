"""langchain-openai, unchanged, asks the gateway: `make test-langchain`.

It brings an `openai` and a `pydantic` of its own choice, so it has an environment of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
from tests.gateway.conftest import Running
from tests.patience import PATIENCE_S

WORDS = "our solar system is large"


def said(*messages: tuple[str, str]) -> str:
    """Return what the double answers to messages: their JSON."""
    return json.dumps([{"role": role, "content": content} for role, content in messages])


def test_langchain_asks_in_every_way(gateway: Running) -> None:
    if "LANGCHAIN_PYTHON" not in os.environ:
        pytest.skip("NOT TESTED, LANGCHAIN_PYTHON names no Python; run make test-langchain")
    asker = Path(__file__).with_name("langchain_asks.py")
    argv = (os.environ["LANGCHAIN_PYTHON"], str(asker), gateway.url)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    alone = said(("user", WORDS))

    assert told["invoke"] == said(("system", "Be brief."), ("user", WORDS))
    assert told["usage"] == 2 * len(told["invoke"].split(" "))
    assert told["reason"] == "stop"
    assert "".join(told["stream"]) == "".join(told["astream"]) == told["ainvoke"] == alone
    assert len([piece for piece in told["stream"] if piece]) == len(alone.split(" "))
    assert told["stream usage"] == [len(alone.split(" "))]
    assert told["completion"] == "".join(told["completion stream"]) == "our solar system"
    assert told["abatch"] == [said(("user", "one")), said(("user", "two"))]
    # Which it makes of the code `model_not_found`.
    assert told["refused"] == "OpenAIModelNotFoundError"
