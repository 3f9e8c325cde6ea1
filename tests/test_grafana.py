"""The dashboard asks for metrics that the runtimes publish."""

from __future__ import annotations

import json
import os
import re
import runpy
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Final

import pytest

from minitron_trt.deploy.dashboard import ROWS, dashboard

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
    *("trtllm_time_to_first_token_seconds_bucket", "trtllm_time_per_output_token_seconds_bucket"),
    *(
        "trtllm_e2e_request_latency_seconds_bucket",
        "nv_inference_first_response_histogram_ms_bucket",
    ),
    *("trtllm_request_success_total", "trtllm_request_error_total"),
    *("nv_inference_request_success", "nv_inference_request_failure"),
    "nv_inference_queue_duration_us",
    *("nv_gpu_memory_used_bytes", "nv_gpu_utilization"),
}


@pytest.fixture(scope="module")
def script() -> SimpleNamespace:
    """What the script that makes the dashboard defines."""
    return SimpleNamespace(**runpy.run_path(str(SCRIPT)))


def test_the_file_is_what_the_script_writes(script: SimpleNamespace) -> None:
    assert json.loads(script.TARGET.read_text()) == script.dashboard()


def test_every_query_names_a_metric_and_a_label_that_exist() -> None:
    queries = [query for row in ROWS.values() for p in row for query in p.queries.values()]
    assert len(queries) > 30

    for query in queries:
        metrics = re.findall(r"((?:nv|trtllm)_\w+)(?:\{([^}]*)\})?", query)
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


def test_panels_lie_side_by_side() -> None:
    panels = dashboard()["panels"]
    cells = [
        (p["gridPos"]["x"] + dx, p["gridPos"]["y"] + dy)
        for p in panels
        for dx in range(p["gridPos"]["w"])
        for dy in range(p["gridPos"]["h"])
    ]

    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert len({p["id"] for p in panels}) == len(panels)


def test_prometheus_can_parse_every_query(tmp_path: Path) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not on PATH; Debian has it in the package prometheus")
    queries = [query for row in ROWS.values() for p in row for query in p.queries.values()]
    rules = [
        {"record": f"panel:{n}", "expr": query.replace("$__rate_interval", "1m")}
        for n, query in enumerate(queries)
    ]
    path = tmp_path / "rules.json"  # YAML has JSON in it
    path.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))
    done = subprocess.run([promtool, "check", "rules", path], capture_output=True, text=True)

    assert f"{len(queries)} rules found" in done.stdout, done.stderr


CHECK: Final = """
import type { Dashboard, Panel, RowPanel } from "@grafana/schema";
import type { Options } from
  "@grafana/schema/dist/esm/raw/composable/timeseries/panelcfg/x/TimeSeriesPanelCfg_types.gen";
type Json<T> = T extends string ? `${T}` : T extends object ? { [K in keyof T]: Json<T[K]> } : T;
type Graph = Omit<Panel, "options"> & { type: "timeseries"; options: Options };
type Board = Omit<Dashboard, "panels"> & { panels: (Graph | (RowPanel & { type: "row" }))[] };
export const dashboard: Json<Board> = %s;
"""


def test_the_dashboard_has_the_types_of_grafanas_schema(
    script: SimpleNamespace, tmp_path: Path
) -> None:
    """Those of Grafana's own package @grafana/schema: `make test-grafana` installs it."""
    if "GRAFANA_MODULES" not in os.environ:
        pytest.skip("GRAFANA_MODULES names no node_modules; run make test-grafana")
    modules = Path(os.environ["GRAFANA_MODULES"]).resolve()
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "check.ts").write_text(CHECK % json.dumps(script.dashboard()))
    compiler = (modules / ".bin" / "tsc", "--noEmit", "--strict", "--skipLibCheck")
    resolution = ("--module", "nodenext", "--moduleResolution", "nodenext")
    done = subprocess.run(
        [*compiler, *resolution, "--preserveSymlinks", "check.ts"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )

    assert done.stdout == ""
    assert done.returncode == 0
