"""Time the executor: what a step costs beside the model, and what batching gains with one.

    python benchmarks/bench_executor.py

The first table runs a model that costs nothing, so every microsecond is the executor's, or the
search for the largest of a vocabulary's logits, which is timed apart. It counts the time of all
threads, and the clock, which is less where sequences are divided among idle cores. The second runs
the reference model on a sample, one request at a time and more at once, with the same prompts and
one thread.
"""

from __future__ import annotations

import logging
import tempfile
import time
from pathlib import Path

import click
import numpy as np
import torch

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.executor import Event, Executor, Request, Sampling, StepBatch, StepModel
from minitron_trt.executor.reference import ReferenceModel
from minitron_trt.executor.step import Floats
from minitron_trt.host.machine import usable_cores
from minitron_trt.samples import sample_folder

SLOTS, STEPS, PROMPT, ANSWER = 64, 100, 16, 32
SAMPLINGS = {
    "greedy": Sampling(),
    "top-k 50": Sampling(top_k=50, seed=1),
    "top-p 0.9": Sampling(top_p=0.9, seed=1),
    "top-p 0.99": Sampling(top_p=0.99, seed=1),
    "log-probs": Sampling(log_probs=True),
    "penalties": Sampling(repetition_penalty=1.1, frequency_penalty=0.1),
}


class FreeModel:
    """A StepModel whose logits lie ready."""

    slots = SLOTS
    max_seq_len = 10**6

    def __init__(self, vocab: int) -> None:
        """Draw the logits of every slot once."""
        self.vocab = vocab
        # As peaked as a language model's: the best token has about half of the chance.
        normal = np.random.default_rng(0).normal(scale=4, size=(SLOTS, vocab))
        self.logits = normal.astype(np.float32)

    def step(self, batch: StepBatch) -> Floats:
        """Return the same logits as ever."""
        return self.logits[: len(batch.slots)]


def count(_: Event) -> None:
    """Take an event, as a caller must."""


def step_us(model: FreeModel, sampling: Sampling, steps: int) -> tuple[float, float]:
    """Return the median times of a step in which every slot generates: processors', the clock's."""
    executor = Executor(model)
    for n in range(SLOTS):
        executor.submit(Request(str(n), (1, 2, 3), 10**5, sampling), count)
    # The first makes threads and loads torch.
    executor.step()
    times = []
    for _ in range(steps):
        processors, clock = time.process_time(), time.perf_counter()
        executor.step()
        times.append((time.process_time() - processors, time.perf_counter() - clock))
    executor.close()
    processors, clock = np.median(times, axis=0).tolist()
    return processors * 1e6, clock * 1e6


def search_us(model: FreeModel) -> float:
    """Return the median time of the search for the largest logits."""
    times = []
    for _ in range(20):
        started = time.thread_time()
        model.logits.argmax(axis=1)
        times.append(time.thread_time() - started)
    return float(np.median(times)) * 1e6


def tokens_per_s(model: StepModel, at_once: int, requests: int) -> float:
    """Return the speed of a number of requests, some of them at once."""
    executor = Executor(model)
    ids = np.random.default_rng(1).integers(5, model.vocab, (requests, PROMPT))
    started = time.perf_counter()
    for first in range(0, requests, at_once):
        for n in range(first, first + at_once):
            executor.submit(Request(str(n), tuple(ids[n].tolist()), ANSWER), count)
        while executor.step():
            pass
    return requests * ANSWER / (time.perf_counter() - started)


@click.command()
@click.option("--steps", type=click.IntRange(20), default=STEPS, show_default=True, help="Timed")
def main(steps: int) -> None:
    """Print both tables."""
    logging.disable()
    torch.set_num_threads(1)
    click.echo(f"{SLOTS} sequences, {usable_cores()} cores, µs a step")
    click.echo(f"{'':12}{'vocab':>8}{'processors':>12}{'clock':>10}{'of it argmax':>14}")
    for vocab in (512, 128256):
        model = FreeModel(vocab)
        for name, sampling in SAMPLINGS.items():
            # What draws, sorts or penalizes takes many times as long as greedy: fewer steps do.
            count_ = steps if sampling == Sampling() else steps // 20
            processors, clock = step_us(model, sampling, count_)
            click.echo(f"{name:12}{vocab:8}{processors:12.0f}{clock:10.0f}{search_us(model):14.0f}")
    with tempfile.TemporaryDirectory() as folder:
        convert(str(sample_folder("solar-llama")), Path(folder, "c"), ConvertOptions())
        reference = ReferenceModel(Checkpoint.open(Path(folder, "c")), slots=16, max_seq_len=256)
        click.echo(
            f"\nreference model, {PROMPT} + {ANSWER} tokens each\n{'at once':>10}{'tokens/s':>10}"
        )
        for at_once in (1, 4, 16):
            click.echo(f"{at_once:10}{tokens_per_s(reference, at_once, 16):10.0f}")


if __name__ == "__main__":
    main()
