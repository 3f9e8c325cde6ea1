"""Measure `verify` of a checkpoint beside transformers' own load and forward pass of its source.

    python benchmarks/bench_verify.py MODEL_DIR

Each is a process of its own, on all cores, and runs as many tokens. verify computes in float32,
each layer twice, and holds one at a time; transformers computes the model once, in bf16, as it
would take twice the memory otherwise.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
from bench_convert import Sample, machine, measure, warm

from minitron_trt.convert.conversion import ConvertOptions, convert

FORWARD = """
import sys, torch
from transformers.models.auto.modeling_auto import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
with torch.inference_mode():
    model(torch.arange(int(sys.argv[2]))[None], use_cache=False)
"""


@click.command()
@click.argument("model", type=click.Path(path_type=Path, exists=True))
@click.option("--tokens", default=64, show_default=True, help="Tokens that each runs")
@click.option("--pairs", default=1, show_default=True, help="Turns of each")
def main(model: Path, tokens: int, pairs: int) -> None:
    """Compare time and private memory."""
    with tempfile.TemporaryDirectory(dir=model.parent) as name:
        checkpoint = Path(name) / "checkpoint"
        convert(str(model), checkpoint, ConvertOptions())
        program = [sys.executable, "-m", "minitron_trt"]
        works = {
            "verify": [*program, "verify", str(checkpoint), str(model), "--tokens", str(tokens)],
            "transformers": [sys.executable, "-c", FORWARD, str(model), str(tokens)],
        }
        samples: dict[str, list[Sample]] = {work: [] for work in works}
        for _ in range(pairs):
            for work, argv in works.items():
                warm(model)
                samples[work].append(measure(argv))
    click.echo(f"{machine(model)}\n{model.name}, {tokens} tokens, least of {pairs}\n")
    click.echo("| | wall time | peak private memory |\n|---|--:|--:|")
    for work, runs in samples.items():
        seconds = min(run.seconds for run in runs)
        memory = max(run.private_bytes for run in runs) / 1e9
        click.echo(f"| {work} | {seconds:.1f} s | {memory:.2f} GB |")


if __name__ == "__main__":
    main()
