"""A compiler's log, followed: the stages that the real trtllm-build names, and its last words."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest

from minitron_trt.build.trtllm.compiler_process import STAGES, run_compiler
from minitron_trt.errors import ProcessError

# Lines in the form that TensorRT-LLM's builder and TensorRT print them, of a build that went well.
LOG = Path(__file__).with_name("trtllm_build.log")


@pytest.mark.slow
def test_the_stages_are_those_of_a_real_log_in_their_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minitron_trt")

    argv = ("cat", str(LOG))
    outcome = run_compiler(argv, log_file=tmp_path / "build.log", memory_forecast="")

    assert outcome.reported_bytes == int(20120.95 * 1024 * 1024)
    assert caplog.messages == list(STAGES)
    assert (tmp_path / "build.log").read_text() == LOG.read_text()


def test_every_rank_goes_through_its_stages(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "minitron_trt")
    start, *rest = STAGES

    run_compiler(("cat", str(LOG), str(LOG)), log_file=tmp_path / "log", memory_forecast="")

    assert caplog.messages == [start, *rest, start, *rest]


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [
                "[TRT] [E] [resizingAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)",
                "[TRT] [E] IBuilder::buildSerializedNetwork: Error Code 2: Internal Error",
                "AssertionError: Engine building failed, please check the error log.",
            ],
            "[TRT] [E] [resizingAllocator.cpp] Error Code 1: Cuda Runtime (out of memory)",
        ),
        (
            [
                "Traceback (most recent call last):",
                '  File "builder.py", line 1, in build',
                "ValueError: gemm_swiglu_plugin is not supported",
                "bye",
            ],
            "ValueError: gemm_swiglu_plugin is not supported",
        ),
        (["Segmentation something", ""], "Segmentation something"),
    ],
    ids=["tensorrt", "python", "other"],
)
def test_a_failure_quotes_the_line_that_tells_most(
    lines: list[str], said: str, tmp_path: Path
) -> None:
    script = f"print({chr(10).join(lines)!r}); raise SystemExit(1)"
    argv = (sys.executable, "-c", script)

    with pytest.raises(ProcessError) as caught:
        run_compiler(argv, log_file=tmp_path / "build.log", memory_forecast="")

    assert str(caught.value).endswith(f"failed with status 1; it said: {said}")
