"""Conversions that are killed, interrupted or doubled, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.patience import PATIENCE_S

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.tensorfile import lay_out

pytestmark = pytest.mark.slow

Shapes = dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def slow_model(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_llama: Path,
    shapes_of: Callable[[dict[str, Any]], Shapes],
) -> Path:
    """Return a model of 300 MB, all holes: changing its number format takes about a second."""
    folder = tmp_path_factory.mktemp("slow")
    config = json.loads((tiny_llama / "config.json").read_text())
    config |= {"vocab_size": 150_000, "hidden_size": 500}
    path = folder / "model.safetensors"
    header, entries = lay_out(path, ((n, "BF16", s) for n, s in shapes_of(config).items()))
    path.write_bytes(header)
    os.truncate(path, entries[-1].offset + entries[-1].size_bytes)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    return folder


@contextmanager
def stopped_midway(source: Path, output: Path) -> Iterator[subprocess.Popen[str]]:
    """Yield a conversion that is frozen while it writes its rank file."""
    rank_file = output.parent / f".{output.name}.partial" / "rank0.safetensors"
    command = [sys.executable, "-m", "minitron_trt", "convert", str(source), "-o", str(output)]
    process = subprocess.Popen(
        [*command, "--precision", "fp16"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + PATIENCE_S
        while not (rank_file.exists() and rank_file.stat().st_size > 1 << 20):
            assert process.poll() is None, "the conversion ended before it was caught"
            assert time.monotonic() < deadline, "the conversion did not begin to write"
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_killed_conversion_leaves_no_output_and_the_next_one_sweeps_it(
    slow_model: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    output = tmp_path / "checkpoint"
    with stopped_midway(slow_model, output) as process:
        process.kill()
        process.wait()
    left = [path.name for path in tmp_path.iterdir()]
    (tmp_path / ".checkpoint.partial" / "rank7.safetensors").write_text("of another run")
    result = command("convert", slow_model, "-o", output)

    assert left == [".checkpoint.partial"]
    assert (result.exit_code, result.stderr) == (0, "")
    assert list(tmp_path.iterdir()) == [output]
    assert sorted(path.name for path in output.iterdir()) == [
        "config.json",
        "minitron.json",
        "rank0.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert Checkpoint.open(output).spec.vocab == 150_000


def test_ctrl_c_ends_with_one_word_and_leaves_nothing(slow_model: Path, tmp_path: Path) -> None:
    with stopped_midway(slow_model, tmp_path / "checkpoint") as process:
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGCONT)
        printed = process.communicate(timeout=PATIENCE_S)

    assert (process.returncode, printed) == (130, ("", "interrupted\n"))
    assert list(tmp_path.iterdir()) == []


def test_a_second_conversion_to_the_same_output_is_refused_and_harms_nothing(
    slow_model: Path, tiny_llama: Path, tmp_path: Path, command: Callable[..., Result]
) -> None:
    output = tmp_path / "checkpoint"
    with stopped_midway(slow_model, output) as process:
        second = command("convert", tiny_llama, "-o", output)
        process.send_signal(signal.SIGCONT)
        _, stderr = process.communicate(timeout=PATIENCE_S)

    assert (second.exit_code, second.stderr) == (
        2,
        f"error: another minitron-trt is writing {output}; wait for it\n",
    )
    assert (process.returncode, stderr) == (0, "")
    assert list(tmp_path.iterdir()) == [output]
    assert Checkpoint.open(output).spec.vocab == 150_000


def test_a_folder_made_meanwhile_is_not_replaced(slow_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "checkpoint"
    with stopped_midway(slow_model, output) as process:
        output.mkdir()
        (output / "thesis.txt").write_text("precious")
        process.send_signal(signal.SIGCONT)
        process.communicate(timeout=PATIENCE_S)

    assert process.returncode == 2
    assert [path.name for path in tmp_path.rglob("*")] == ["checkpoint", "thesis.txt"]


@contextmanager
def stopped_while_unpacking(source: Path, output: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a conversion that is frozen while it writes a GGUF file's weights."""
    command = [sys.executable, "-m", "minitron_trt", "convert", str(source), "-o", str(output)]
    scratch = output.parent / f".{output.name}.partial"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + PATIENCE_S
            # The file is a hole until the weights come.
            while not any(
                p.stat().st_blocks > 512 for p in scratch.glob(".source-*/*.safetensors")
            ):
                assert process.poll() is None, "the conversion ended before it was caught"
                assert time.monotonic() < deadline, "the conversion did not begin to unpack"
                time.sleep(0.001)
            process.send_signal(signal.SIGSTOP)
            yield process
        finally:
            process.kill()


def test_a_conversion_killed_while_it_unpacks_leaves_nothing_to_the_next_one(
    make_model: Callable[..., Path],
    write_gguf: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., Result],
) -> None:
    temporary, outputs = tmp_path / "temporary", tmp_path / "outputs"
    temporary.mkdir()
    outputs.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    folder = make_model("nemotron", vocab_size=60_000, hidden_size=512, intermediate_size=64)
    source = write_gguf(folder, tmp_path / "model.gguf", "Q8_0")
    output = outputs / "checkpoint"
    with stopped_while_unpacking(source, output) as process:
        process.kill()
        process.wait()
    left = [path.name for path in outputs.iterdir()]
    result = command("convert", source, "-o", output)

    assert left == [".checkpoint.partial"]
    assert (result.exit_code, list(outputs.iterdir())) == (0, [output])
    assert not list(output.glob(".source-*"))
    assert list(temporary.iterdir()) == []
    assert Checkpoint.open(output).spec.vocab == 60_000
