"""TensorRT-RTX itself compiles the network, on a machine without a GPU."""

from __future__ import annotations

import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minitron_trt.artifacts import Manifest
from minitron_trt.build import tensorrt_worker
from minitron_trt.build.network import NetworkLimits
from minitron_trt.build.tensorrt_compiler import compile_engine, default_limits
from minitron_trt.build.tensorrt_worker import Request
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.run import ConvertOptions, convert
from minitron_trt.errors import MissingExtraError, ProcessError, UnsupportedError, UsageError
from minitron_trt.samples import NAMES, sample_folder

pytest.importorskip("tensorrt_rtx", reason="building needs: pip install 'minitron-trt[rtx]'")

LIMITS = NetworkLimits(max_batch_size=4, max_seq_len=256, max_input_len=128)


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Checkpoint]:
    """Return the checkpoint of a sample, converted once."""

    @functools.cache
    def make(name: str = "solar-llama", **options: Any) -> Checkpoint:
        output = tmp_path_factory.mktemp("samples") / name
        convert(str(sample_folder(name)), output, ConvertOptions(**options))
        return Checkpoint.open(output)

    return make


@pytest.mark.parametrize("sm", [80, 86, 89, 120])
@pytest.mark.parametrize("name", NAMES)
def test_a_sample_compiles_for_every_target(
    name: str, sm: int, sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    checkpoint = sample(name)

    engine = compile_engine(
        checkpoint, tmp_path / "engine", sm=sm, limits=LIMITS, facts={"gpu": "any"}
    )

    manifest = Manifest.read(engine.folder, "engine")
    weights = (checkpoint.folder / "rank0.safetensors").stat().st_size
    assert weights < engine.plan_bytes == manifest.files["engine.plan"]
    assert engine.peak_private_bytes > engine.plan_bytes
    assert {"config.json", "engine.plan", "tokenizer.json"} <= manifest.files.keys()
    facts = manifest.facts
    assert (facts["sm"], facts["gpu"], facts["precision"]) == (sm, "any", "bf16")
    assert facts["compiler"] == {"name": "tensorrt-rtx", "version": engine.compiler_version}
    assert facts["limits"]["max_seq_len"] == 256
    assert manifest.source["checkpoint"] == str(checkpoint.folder)


def test_fp16_and_pipeline_ranks_compile(sample: Callable[..., Checkpoint], tmp_path: Path) -> None:
    checkpoint = sample(precision="fp16", pp=3)

    engine = compile_engine(checkpoint, tmp_path / "engine", sm=89, limits=LIMITS)

    assert Manifest.read(engine.folder, "engine").facts["precision"] == "fp16"


def test_the_builders_log_has_no_error_on_a_machine_without_a_driver(
    sample: Callable[..., Checkpoint], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "minitron_trt")

    compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS)

    assert "Engine generation completed" in caplog.text
    assert [r.getMessage() for r in caplog.records if r.levelno > logging.INFO] == []


@pytest.mark.parametrize("sm", [75, 90, 100])
def test_an_architecture_that_needs_its_gpu_is_refused(
    sm: int, sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    said = f"not for SM{sm}: that needs a GPU of the same architecture.*--compiler trtllm"

    with pytest.raises(UnsupportedError, match=said):
        compile_engine(sample(), tmp_path / "engine", sm=sm, limits=LIMITS)


def test_a_missing_package_is_named_with_its_extra(
    sample: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)

    with pytest.raises(MissingExtraError, match=r"pip install 'minitron-trt\[rtx\]'"):
        compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS)


def test_a_failure_carries_the_builders_own_line(
    sample: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Turing has no bfloat16; our table never asks for it.
    monkeypatch.setattr(tensorrt_worker, "TARGETS", {75: "SM75"})

    with pytest.raises(ProcessError, match=r"Cannot compile for target\(s\) sm75"):
        tensorrt_worker.build(Request(sample().folder, 75, LIMITS, tmp_path / "engine.plan"))


def test_a_build_that_takes_too_long_is_ended(
    sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    start = time.monotonic()

    with pytest.raises(ProcessError, match=r"did not finish within 0.2 s; raise --timeout"):
        compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS, timeout_s=0.2)

    assert time.monotonic() - start < 10
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_is_explained(sample: Callable[..., Checkpoint], tmp_path: Path) -> None:
    def kill() -> None:
        while not (children := _children(os.getpid())):
            time.sleep(0.01)
        os.kill(children[0], signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ProcessError, match=r"killed when it held .* GB, most likely .* memory"):
        compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS)
    killer.join()

    assert list(tmp_path.iterdir()) == []


def test_the_worker_ends_with_the_process_that_asked(
    sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    script = (
        "from pathlib import Path; from minitron_trt.checkpoint import Checkpoint;"
        "from minitron_trt.build.tensorrt_compiler import compile_engine, default_limits;"
        f"checkpoint = Checkpoint.open(Path({str(sample().folder)!r}));"
        "limits = default_limits(checkpoint, max_batch_size=1, max_seq_len=64);"
        f"compile_engine(checkpoint, Path({str(tmp_path / 'engine')!r}), sm=89, limits=limits)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        while not (tmp_path / ".engine.partial" / "engine.plan").exists():
            time.sleep(0.01)
        workers = _children(parent.pid)
        parent.kill()

    deadline = time.monotonic() + 5
    while Path(f"/proc/{workers[0]}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(workers) == 1
    assert not Path(f"/proc/{workers[0]}").exists()


def _children(parent: int) -> list[int]:
    """Return this process's workers."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [c for c in found if "tensorrt_worker" in Path(f"/proc/{c}/cmdline").read_text()]


def test_an_output_that_exists_is_kept(sample: Callable[..., Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        compile_engine(sample(), tmp_path, sm=89, limits=LIMITS)


def test_positions_beyond_the_training_are_warned_about(
    sample: Callable[..., Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    limits = default_limits(sample(), max_batch_size=1, max_seq_len=4096)

    assert limits == NetworkLimits(max_batch_size=1, max_seq_len=4096, max_input_len=1024)
    assert "max_seq_len 4096 is beyond the 2048 positions" in caplog.text
