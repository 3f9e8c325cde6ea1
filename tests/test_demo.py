"""`minitron-trt demo`: the walk that README shows to whoever has no GPU."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from minitron_trt.demo import PROMPT
from minitron_trt.samples import sample_folder


def run_demo(*options: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end, as a person would."""
    words = [sys.executable, "-m", "minitron_trt", "demo", *options]
    return subprocess.run(words, capture_output=True, text=True, check=False)


@pytest.mark.server
def test_it_walks_to_the_text_that_the_sample_has_learnt(tmp_path: Path) -> None:
    corpus = (sample_folder("solar-llama").parent / "corpus.txt").read_text(encoding="utf-8")
    result = run_demo("--max-tokens", "24", "--keep", str(tmp_path / "kept"), "--json")

    assert result.returncode == 0, result.stderr
    record = json.loads(result.stdout)
    answers = record["answers"]
    assert answers["grpc"] == answers["http"] != ""
    assert " ".join((PROMPT + answers["grpc"]).split()) in " ".join(corpus.split())
    assert {"convert", "triton-repo", "serve", "shut down"} <= record["seconds"].keys()
    kept = {path.name for path in (tmp_path / "kept").iterdir()}
    assert {"model", "checkpoint", "repository"} <= kept


@pytest.mark.slow
def test_a_step_that_fails_ends_it_with_its_own_words(tmp_path: Path) -> None:
    result = run_demo("--model", str(tmp_path), "-q")

    assert result.returncode == 3
    assert result.stderr.startswith(f"error: {tmp_path} is empty; expected a Hugging Face")
    assert "Traceback" not in result.stderr
