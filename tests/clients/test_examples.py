"""The examples of the pages are run, against doubles of Triton."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.clients.conftest import serve_grpc, serve_http
from tests.patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = {
    "docs/clients.md": BLOCK.findall((ROOT / "docs/clients.md").read_text(encoding="utf-8")),
    "README.md": BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8"))[:1],
}
EXAMPLES = [
    pytest.param(code, id=f"{page}-{index}")
    for page, blocks in PAGES.items()
    for index, code in enumerate(blocks)
]


@pytest.mark.slow
@pytest.mark.parametrize("code", EXAMPLES)
def test_an_example_runs(code: str) -> None:
    with serve_grpc() as grpc, serve_http() as http:
        code = code.replace("grpc://127.0.0.1:8001", grpc.url)
        code = code.replace("http://127.0.0.1:8000", http.url)
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code],
            capture_output=True,
            timeout=PATIENCE_S,
            text=True,
            check=False,
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout or not (grpc.requests or http.requests)


def test_every_example_is_found() -> None:
    assert {page: len(blocks) for page, blocks in PAGES.items()} == {
        "docs/clients.md": 8,
        "README.md": 1,
    }
