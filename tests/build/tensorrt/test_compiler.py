"""TensorRT-RTX itself compiles the network, on a machine without a GPU."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.patience import until

from minitron_trt.artifacts import Manifest
from minitron_trt.build.tensorrt import worker
from minitron_trt.build.tensorrt.engine_compiler import compile_engine, default_limits
from minitron_trt.build.tensorrt.mapped_weights import map_weights
from minitron_trt.build.tensorrt.network_definition import NetworkLimits
from minitron_trt.build.tensorrt.worker import CompileRequest
from minitron_trt.checkpoint import Checkpoint
from minitron_trt.console import BYTES, Advance
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import ProcessError, UnsupportedError, UsageError
from minitron_trt.samples import NAMES, sample_folder

pytestmark = pytest.mark.slow

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
    assert (facts["cuda"], facts["peak_memory_bytes"]) == ("13", engine.peak_private_bytes)
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


@pytest.mark.parametrize("sm", [90, 100, 103])
def test_an_architecture_that_needs_its_gpu_is_refused(
    sm: int, sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    said = f"tensorrt-rtx compiles for SM80, SM86, SM89, SM120; SM{sm} needs a GPU of "

    with pytest.raises(UnsupportedError, match=said):
        compile_engine(sample(), tmp_path / "engine", sm=sm, limits=LIMITS)


def test_its_progress_is_the_memory_it_fills_and_the_engine_it_writes(
    sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    shown: list[tuple[str, int, int]] = []

    @contextlib.contextmanager
    def progress(label: str, total: int, unit: str = BYTES) -> Iterator[Advance]:
        done = [0]
        yield lambda more: done.append(more)
        shown.append((label, total, sum(done)))

    compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS, progress=progress)
    weights = sum(tensor.nbytes for tensor in map_weights(sample()).values())

    assert [label for label, _, _ in shown][:1] == ["compile"]
    assert {total for _, total, _ in shown} == {weights}
    assert all(0 < done <= weights for _, _, done in shown)


def test_a_failure_carries_the_builders_own_line(
    sample: Callable[..., Checkpoint], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Turing has no bfloat16; our table never asks for it.
    monkeypatch.setattr(worker, "TARGETS", {75: "SM75"})

    with pytest.raises(ProcessError, match=r"Cannot compile for target\(s\) sm75"):
        worker.build(CompileRequest(sample().folder, 75, LIMITS, tmp_path / "engine.plan"))


def test_a_build_that_takes_too_long_is_ended(
    sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    with pytest.raises(ProcessError, match=r"did not finish within 0.2 s; raise --timeout"):
        compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS, timeout_s=0.2)

    assert _children(os.getpid()) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (signal.SIGKILL, r"tensorrt-rtx was killed when it held .* GB, most likely .* memory"),
        (signal.SIGSEGV, "tensorrt-rtx crashed with SIGSEGV"),
    ],
)
def test_a_builder_that_ends_early_is_explained(
    number: signal.Signals, said: str, sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    def end() -> None:
        while not (children := _children(os.getpid())):
            time.sleep(0.01)
        os.kill(children[0], number)

    killer = threading.Thread(target=end)
    killer.start()
    with pytest.raises(ProcessError, match=said):
        compile_engine(sample(), tmp_path / "engine", sm=89, limits=LIMITS)
    killer.join()

    assert list(tmp_path.iterdir()) == []


def test_the_worker_ends_with_the_process_that_asked(
    sample: Callable[..., Checkpoint], tmp_path: Path
) -> None:
    script = (
        "from pathlib import Path; from minitron_trt.checkpoint import Checkpoint;"
        "from minitron_trt.build.tensorrt.engine_compiler import compile_engine, default_limits;"
        f"checkpoint = Checkpoint.open(Path({str(sample().folder)!r}));"
        "limits = default_limits(checkpoint, max_batch_size=1, max_seq_len=64);"
        f"compile_engine(checkpoint, Path({str(tmp_path / 'engine')!r}), sm=89, limits=limits)"
    )
    with subprocess.Popen([sys.executable, "-c", script]) as parent:
        while not (tmp_path / ".engine.partial" / "engine.plan").exists():
            time.sleep(0.01)
        workers = _children(parent.pid)
        parent.kill()

    assert len(workers) == 1
    until(lambda: not Path(f"/proc/{workers[0]}").exists())


def _children(parent: int) -> list[int]:
    """Return this process's workers."""
    tasks = Path(f"/proc/{parent}/task").iterdir()
    found = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return [child for child in found if "build.tensorrt.worker" in _command_line(child)]


def _command_line(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        # It is gone; this process has other children than the worker.
        return ""


def test_an_output_that_exists_is_kept(sample: Callable[..., Checkpoint], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="already exists"):
        compile_engine(sample(), tmp_path, sm=89, limits=LIMITS)


def test_positions_beyond_the_training_are_warned_about(
    sample: Callable[..., Checkpoint], caplog: pytest.LogCaptureFixture
) -> None:
    limits = default_limits(sample(), max_batch_size=1, max_seq_len=4096)

    assert limits == NetworkLimits(max_batch_size=1, max_seq_len=4096, max_input_len=1024)
    assert "max_seq_len 4096 is beyond the 2048 positions" in caplog.text
