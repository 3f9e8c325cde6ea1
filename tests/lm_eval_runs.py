"""lm-evaluation-harness in an environment of its own, which `LM_EVAL_PYTHON` names."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from tests.patience import PATIENCE_S

PYTHON: Final = os.environ.get("LM_EVAL_PYTHON", "")
DEFINITIONS: Final = Path(__file__).parent / "evaluate" / "tasks" / "definitions"
NEEDED: Final = pytest.mark.skipif(
    not PYTHON, reason="NOT TESTED, LM_EVAL_PYTHON names no Python with lm-eval"
)
LOCAL: Final = ("--tasks", "persuasion_next,persuasion_bytes,solar_rest")


def run_module(
    module: str, *arguments: object, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run a module with arguments where the local tasks lie, offline."""
    return subprocess.run(
        [PYTHON, "-m", module, *map(str, arguments)],
        cwd=DEFINITIONS,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2", **environment},
        capture_output=True,
        text=True,
        timeout=10 * PATIENCE_S,
        check=False,
    )


def eval_tasks(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `minitron-trt eval tasks` with the local tasks within reach."""
    shared = ("--include-path", ".", "--max-length", "512", "--quiet")
    return run_module("minitron_trt", "eval", "tasks", *arguments, *shared, **environment)


def values_of(model: dict[str, Any]) -> dict[tuple[str, str], float]:
    """Return the figures of one model of a record, by task and metric."""
    return {(score["task"], score["metric"]): score["value"] for score in model["tasks"]}
