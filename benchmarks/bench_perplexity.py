"""Measure the forward pass of `eval perplexity` against transformers', chunk by chunk in turns.

    python benchmarks/bench_perplexity.py MODEL_DIR --context 256 --pairs 5

Both models are in one process, in one dtype, and give the logits of the tokens that are scored, of
no others. The tokens are random, which changes no time. Processor time tells more than the clock
where the machine has other work, and the least of several more than their median.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from bench_convert import machine
from transformers.models.auto.modeling_auto import AutoModelForCausalLM

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.evaluate.evaluated_model import ComputedLogits
from minitron_trt.evaluate.perplexity import TextChunk, chunks_of
from minitron_trt.executor.reference import ReferenceModel

CausalLM: Any = AutoModelForCausalLM  # its methods have no types


@dataclass(frozen=True, slots=True)
class Turn:
    """Seconds of one chunk, of processors and of the clock."""

    processor_s: float
    clock_s: float


def measured(forward: Callable[[], object]) -> Turn:
    """Run a forward pass."""
    processor, clock = time.process_time(), time.perf_counter()
    forward()
    return Turn(time.process_time() - processor, time.perf_counter() - clock)


def their_logits(model: Any, chunk: TextChunk) -> torch.Tensor:
    """Return transformers' logits of a chunk's scored rows."""
    rows = torch.arange(chunk.first_row, len(chunk.inputs) - 1)
    ids = torch.from_numpy(chunk.inputs).long()[None]
    with torch.inference_mode():
        logits: torch.Tensor = model(ids, use_cache=False, logits_to_keep=rows).logits[0]
    return logits.float()


def report(name: str, *, theirs: list[float], ours: list[float]) -> str:
    """Return a row: how many of our tokens there are for one of transformers'."""
    pairs = [their / our for their, our in zip(theirs, ours, strict=True)]
    least = min(theirs) / min(ours)
    spread = f"{statistics.median(pairs):.2f} ({min(pairs):.2f}–{max(pairs):.2f})"
    return f"| {name} | {min(theirs):.2f} s | {min(ours):.2f} s | {least:.2f} | {spread} |"


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--context", default=256, show_default=True, help="Tokens of a chunk")
@click.option("--pairs", default=5, show_default=True, help="Chunks that each computes")
@click.option("--dtype", default="bfloat16", show_default=True, help="Both compute in it")
@click.option("--threads", type=int, help="Of torch; the default is its own")
def main(model: Path, context: int, pairs: int, dtype: str, threads: int | None) -> None:
    """Compare tokens per second."""
    if threads:
        torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    with tempfile.TemporaryDirectory(dir=model.parent) as name:
        convert(str(model), Path(name) / "checkpoint", ConvertOptions())
        checkpoint = Checkpoint.open(Path(name) / "checkpoint")
        reference = ReferenceModel(checkpoint, slots=1, max_seq_len=context, dtype=kind)
        theirs = CausalLM.from_pretrained(model, dtype=kind)
        vocab = checkpoint.spec.vocab
        tokens = np.random.default_rng(1).integers(0, vocab, (pairs + 1) * context).tolist()
        chunks = chunks_of(tokens, context, begin=None)
        ours = ComputedLogits(reference)
        turns = [
            (
                measured(partial(their_logits, theirs, chunk)),
                measured(partial(ours, chunk.inputs, range(chunk.first_row, context - 1))),
            )
            for chunk in chunks
        ]
    # The first of each reads its weights from the disk.
    their_turns, our_turns = zip(*turns[1:], strict=True)
    click.echo(f"{machine(model)}, {torch.get_num_threads()} threads")
    click.echo(f"{model.name}, {pairs} pairs of {context} tokens, {dtype}\n")
    click.echo(
        "| | transformers, least | ours, least | tokens/s of theirs, by the least | by pairs |"
    )
    click.echo("|---|--:|--:|--:|--:|")
    for name, field in (("processor time", "processor_s"), ("clock", "clock_s")):
        their_s, our_s = (
            [getattr(turn, field) for turn in side] for side in (their_turns, our_turns)
        )
        click.echo(report(name, theirs=their_s, ours=our_s))


if __name__ == "__main__":
    main()
