"""SIGTERM and Ctrl-C while tasks run side by side."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tests.patience import PATIENCE_S

PROGRAM = """
import asyncio, os, signal
from minitron_trt.host.async_termination import run_terminable
from minitron_trt.host.termination import Terminated, terminable

ended = []

async def other():
    # The signal comes while this task runs, and not the one that was started with.
    try:
        await asyncio.sleep(0)
        os.kill(os.getpid(), signal.{name})
        await asyncio.Event().wait()
    finally:
        await asyncio.sleep(0)
        ended.append("other")

async def work():
    task = asyncio.create_task(other())
    try:
        await asyncio.Event().wait()
    finally:
        ended.append("work")

with terminable():
    before = signal.getsignal(signal.SIGTERM)
    try:
        run_terminable(work())
    except KeyboardInterrupt as error:
        print(type(error).__name__, *sorted(ended))
    assert signal.getsignal(signal.SIGTERM) is before
"""


@pytest.mark.parametrize(
    ("name", "error"), [("SIGTERM", "Terminated"), ("SIGINT", "KeyboardInterrupt")]
)
def test_every_task_ends_before_the_error_is_raised(name: str, error: str) -> None:
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(name=name)],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )

    assert (result.stderr, result.stdout) == ("", f"{error} other work\n")
