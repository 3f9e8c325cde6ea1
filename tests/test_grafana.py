"""The dashboard asks for metrics that the runtimes publish."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

SCRIPT = Path(__file__).parents[1] / "docs" / "grafana.py"
# TensorRT-LLM's custom_metrics_reporter: the label of each family, and what it can be.
FAMILIES: Final[dict[str, tuple[str, set[str]]]] = {
    "nv_trt_llm_request_metrics": (
        "request_type",
        {"active", "max", "scheduled", "context", "waiting"},
    ),
    "nv_trt_llm_runtime_memory_metrics": ("memory_type", {"cpu", "gpu", "pinned"}),
    "nv_trt_llm_kv_cache_block_metrics": (
        "kv_cache_block_type",
        {"max", "free", "used", "tokens_per", "reused", "fraction"},
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "inflight_batcher_specific_metric",
        {"total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"},
    ),
    "nv_trt_llm_general_metrics": ("general_type", {"timestamp", "iteration_counter"}),
}
OTHERS: Final = {
    *("nv_llm_input_token_len_sum", "nv_llm_output_token_len_sum"),
    *("nv_llm_input_token_len_bucket", "nv_llm_output_token_len_bucket"),
    *("nv_inference_request_success", "nv_inference_request_failure"),
    *("nv_inference_request_duration_us", "nv_inference_queue_duration_us"),
    *("nv_gpu_memory_used_bytes", "nv_gpu_utilization"),
}


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    """What the script that makes the dashboard defines."""
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_file_is_what_the_script_writes(script: SimpleNamespace) -> None:
    assert json.loads(script.TARGET.read_text()) == script.dashboard()


def test_every_query_names_a_metric_and_a_label_that_exist(script: SimpleNamespace) -> None:
    queries = [query for row in script.ROWS.values() for p in row for query in p.queries.values()]
    assert len(queries) > 30

    for query in queries:
        metrics = re.findall(r"(nv_\w+)(?:\{([^}]*)\})?", query)
        assert metrics
        for name, labels in metrics:
            found = dict(re.findall(r'(\w+)=~?"([^"]*)"', labels))
            assert found.pop("instance") == "$instance"
            found.pop("model", None)
            if name in FAMILIES:
                label, kinds = FAMILIES[name]
                assert set(found) == {label}
                assert found[label] in kinds
            else:
                assert name in OTHERS
                assert not found


def test_panels_lie_side_by_side(script: SimpleNamespace) -> None:
    panels = script.dashboard()["panels"]
    cells = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in panels
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({p["id"] for p in panels}) == len(panels)
