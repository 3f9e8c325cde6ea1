"""The forecast of memory, against processes that convert models large enough to fill buffers."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.convert.plans import plan_of

from minitron_trt.convert import conversion_memory
from minitron_trt.convert.conversion import ConvertOptions
from minitron_trt.convert.conversion_plan import BLOCK_BYTES
from minitron_trt.tensorfile import lay_out

pytestmark = pytest.mark.slow

Shapes = dict[str, tuple[int, ...]]
MakeFolder = Callable[..., Path]
WIDE: dict[str, Any] = {
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 8192,
}


@pytest.fixture(scope="module")
def wide_model(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Path,
    tiny_nemotron: Path,
    shapes_of: Callable[[dict[str, Any]], Shapes],
) -> MakeFolder:
    """Return a writer of models of some 200 MB, whose every matrix is 0.5 at all places."""
    made: dict[tuple[str, int], Path] = {}

    def make(kind: str, layers: int = WIDE["num_hidden_layers"]) -> Path:
        if (kind, layers) not in made:
            tiny = {"llama": tiny_llama, "nemotron": tiny_nemotron}[kind]
            config = {**json.loads((tiny / "config.json").read_text()), **WIDE}
            config["num_hidden_layers"] = layers
            folder = made[kind, layers] = tmp_path_factory.mktemp(kind)
            path = folder / "model.safetensors"
            header, entries = lay_out(path, ((n, "BF16", s) for n, s in shapes_of(config).items()))
            with path.open("wb") as file:
                file.write(header)
                for entry in entries:
                    file.write(b"\x00\x3f" * (entry.size_bytes // 2))
            (folder / "config.json").write_text(json.dumps(config))
        return made[kind, layers]

    return make


def private_bytes(status: int) -> int:
    """Return a process's anonymous memory now, from its open /proc/PID/status; 0 when it ended."""
    try:
        found = re.search(rb"^RssAnon:\s+(\d+)", os.pread(status, 4096, 0), re.MULTILINE)
    except ProcessLookupError:
        return 0
    return 1024 * int(found[1]) if found else 0


def forecast_and_peak(source: Path, output: Path, *options: str) -> tuple[int, int]:
    """Return what a dry run says, and the most that the conversion itself was seen to hold."""
    argv = [sys.executable, "-m", "minitron_trt", "convert", str(source), *options]
    dry = subprocess.run([*argv, "--dry-run", "--json"], capture_output=True, check=True)
    peak = 0
    with subprocess.Popen(
        [*argv, "-o", str(output), "-q"], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        status = os.open(f"/proc/{process.pid}/status", os.O_RDONLY)
        while process.poll() is None:
            peak = max(peak, private_bytes(status))
            time.sleep(0.002)
        os.close(status)
        assert process.stderr is not None
        assert process.returncode == 0, process.stderr.read()
    return json.loads(dry.stdout)["peak_memory_bytes"], peak


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", ()),
        ("llama", ("--tp", "2")),
        ("nemotron", ("--tp", "4")),
        ("llama", ("--precision", "fp16")),
        ("nemotron", ("--precision", "fp16", "--tp", "2")),
        ("llama", ("--precision", "fp8-rowwise")),
        ("llama", ("--precision", "w8a16")),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value) or "bf16",
)
def test_a_dry_run_forecasts_the_memory_of_a_conversion(
    kind: str, options: tuple[str, ...], wide_model: MakeFolder, tmp_path: Path
) -> None:
    forecast, peak = forecast_and_peak(wide_model(kind), tmp_path / "out", *options)

    assert peak == pytest.approx(forecast, rel=0.2)


@pytest.mark.parametrize("quantized", ["Q8_0", "F16"])
def test_a_dry_run_forecasts_the_memory_of_unpacking_a_gguf_file(
    quantized: str, wide_model: MakeFolder, write_gguf: Callable[..., Path], tmp_path: Path
) -> None:
    folder = wide_model("nemotron")
    (folder / "tokenizer.json").write_text("{}")
    path = write_gguf(folder, tmp_path / "model.gguf", quantized)
    forecast, peak = forecast_and_peak(path, tmp_path / "out")

    assert peak == pytest.approx(forecast, rel=0.2)


@pytest.mark.parametrize("precision", ["fp8", "w4a16-awq"])
def test_a_dry_run_forecasts_the_memory_of_a_calibration(
    precision: str, wide_model: MakeFolder, tmp_path: Path
) -> None:
    pytest.importorskip("modelopt", reason="NOT CHECKED: pip install minitron-trt[quantize]")
    # ModelOpt searches each matrix of each layer for AWQ's factors, for seconds.
    (tmp_path / "ids.jsonl").write_text(json.dumps({"input_ids": list(range(64))}))
    text = ("--calib-data", str(tmp_path / "ids.jsonl"), "--calib-samples", "1")
    options = ("--precision", precision, *text, "--calib-length", "64")
    forecast, peak = forecast_and_peak(wide_model("llama", layers=1), tmp_path / "out", *options)

    assert peak == pytest.approx(forecast, rel=0.2)


def test_workers_are_as_many_as_cores_and_memory_allow(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_llama, ConvertOptions("fp8-rowwise"))
    worker = conversion_memory.worker_bytes(plan)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    found = []
    for free in (0, 2 * worker, 3 * worker - 1, 1 << 40):
        monkeypatch.setattr(conversion_memory, "available_bytes", lambda free=free: free)
        found.append(conversion_memory.workers(plan))

    assert worker >= BLOCK_BYTES
    # Never none: a conversion that may not fit is tried.
    assert found == [1, 2, 2, 4]


def test_copies_take_no_more_than_two_workers(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_llama)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(conversion_memory, "available_bytes", lambda: 1)

    # They pass through memory, where they are looked at.
    assert conversion_memory.worker_bytes(plan) > BLOCK_BYTES
    assert conversion_memory.workers(plan) == 1
    monkeypatch.setattr(conversion_memory, "available_bytes", lambda: 1 << 40)
    assert (
        conversion_memory.workers(plan),
        conversion_memory.workers(replace(plan, ranks=())),
    ) == (2, 2)
