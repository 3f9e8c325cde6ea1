"""Measure serving on the real tritonserver, everything in one run.

    python benchmarks/bench_serve.py --runs 3

(a) The text pipeline over a stub engine that emits tokens at once, against two yardsticks: the
    least a streaming Python model can be, and the least relay above it. Then the time that a token
    is under way when each of 16 streams is paced.
(b) The reference runtime on a sample model, against transformers' generate with the same batch.
(c) The executor's overhead per step is what bench_executor.py measures.

Works take turns, so that a slow minute of the machine strikes all of them.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
from bench_convert import machine, spread
from load import Load, Outcome, put

from minitron_trt.artifacts import MANIFEST_NAME
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.model_config import from_text, to_text
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving.runners import running_server
from minitron_trt.triton_repo.serving.server_options import ServerOptions, free_endpoints
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

SAMPLE: Final = "solar-llama"
MODELS: Final = Path(__file__).with_name("serve_models")
STREAMS: Final = (1, 16, 64)
TOKENS: Final = 128
INSTANCES: Final = 16  # of the relays: what triton-repo emits for engines of this batch size
PACE: Final = 40.0  # tokens per second of a paced stream: 640 in all, far below what goes through
PROMPT: Final = "Complete the paragraph: our solar system is"
YARDSTICK: Final = """
name: "{name}" backend: "python" max_batch_size: 8
input [{{name: "count" data_type: TYPE_INT32 dims: [1]}}]
output [{{name: "id" data_type: TYPE_INT64 dims: [1]}}]
instance_group [{{count: {instances} kind: KIND_CPU}}]
model_transaction_policy {{decoupled: true}}
parameters: {{key: "tokens_per_second" value: {{string_value: "{pace}"}}}}
"""


def make_stub_repository(folder: Path, checkpoint: Path, interval: int, pace: float) -> Path:
    """Emit a repository, put the stub in the engine's place and the yardsticks beside it."""
    from transformers import AutoTokenizer

    repository = folder / f"stub-{interval}-{pace:g}"
    emit_repository(
        checkpoint, repository, ServingRecipe(max_batch_size=64, bls_instances=INSTANCES)
    )
    tokenizer: Any = AutoTokenizer.from_pretrained(sample_folder(SAMPLE))
    # Letters of one, two and three bytes, so that text is held back until a letter is whole.
    text = "The planets have many names. Mars is also Marte, 火星 and Планета Марс. "
    model = repository / "tensorrt_llm"
    (model / "1" / "model.py").write_text((MODELS / "stub_engine.py").read_text())
    path = model / "config.pbtxt"
    config = from_text(path.read_text(), str(path))
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for key, value in {
        "ids": json.dumps(ids),
        "stream_interval": str(interval),
        "tokens_per_second": str(pace),
    }.items():
        config.parameters[key].string_value = value
    path.write_text(to_text(config))
    for name, instances in (("minimal", 1), ("relay", INSTANCES)):
        version = repository / name / "1"
        version.mkdir(parents=True)
        (version / "model.py").write_text((MODELS / f"{name}.py").read_text())
        text = YARDSTICK.format(name=name, pace=pace, instances=instances)
        (repository / name / "config.pbtxt").write_text(text)
    (repository / MANIFEST_NAME).unlink()  # it is no longer what was emitted
    return repository


@contextlib.contextmanager
def address_of(repository: Path) -> Iterator[str]:
    """Run tritonserver on a repository; yield the gRPC address."""
    with running_server(repository, ServerOptions(free_endpoints()), "embedded") as server:
        yield server.endpoints.grpc_url.removeprefix("grpc://")


def loads(address: str, streams: int, requests: int, time_output: bool = False) -> dict[str, Load]:
    """Return the load of each work; the yardsticks first."""
    texts = {"time_output": "last_token_time_ns"} if time_output else {}
    ids = {"time_output": "id"} if time_output else {}
    return {
        **{
            name: Load(address, name, streams, requests, TOKENS, **ids)
            for name in ("minimal", "relay")
        },
        **{
            name: Load(address, name, streams, requests, TOKENS, PROMPT, **texts)
            for name in ("ensemble", "tensorrt_llm_bls")
        },
    }


def pipeline(folder: Path, checkpoint: Path, runs: int) -> Iterator[str]:
    """Yield the lines about the text pipeline."""
    rates: dict[tuple[str, int], list[float]] = defaultdict(list)
    with (
        address_of(make_stub_repository(folder, checkpoint, 1, 0)) as each,
        address_of(make_stub_repository(folder, checkpoint, 8, 0)) as eighth,
    ):
        for turn in range(runs):
            for streams in STREAMS:
                requests = max(16, 2 * streams)
                works = loads(each, streams, requests)
                works |= {
                    f"{name}, k = 8": load
                    for name, load in loads(eighth, streams, requests).items()
                    if load.prompt is not None
                }
                for name, load in works.items():
                    outcome = put(load)
                    rates[name, streams].append(requests * TOKENS / outcome.seconds)
                    click.echo(f"{turn + 1}/{runs} {name} x {streams}: {outcome}", err=True)
    yield "| tokens/s | " + " | ".join(f"{n} streams | of the relay" for n in STREAMS) + " |"
    yield "|---|" + "--:|--:|" * len(STREAMS)
    for name in dict.fromkeys(name for name, _ in rates):
        cells = []
        for streams in STREAMS:
            mine, relay = rates[name, streams], rates["relay", streams]
            ratios = [a / b for a, b in zip(mine, relay, strict=True)]
            cells += [f"{statistics.median(mine):,.0f}", spread(ratios, 2)]
        yield f"| {name} | " + " | ".join(cells) + " |"


def delays(folder: Path, checkpoint: Path, runs: int) -> Iterator[str]:
    """Yield the lines about the time under way at a steady pace."""
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    with address_of(make_stub_repository(folder, checkpoint, 1, PACE)) as address:
        for _ in range(runs):
            for name, load in loads(address, 16, 16, time_output=True).items():
                outcomes[name].append(put(load))
    yield f"| under way, 16 streams at {PACE:g} tokens/s each | median | p99 |"
    yield "|---|--:|--:|"
    for name, found in outcomes.items():
        middle, late = [o.delay_ms for o in found], [o.slow_ms for o in found]
        yield f"| {name} | {spread(middle, 2, ' ms')} | {spread(late, 2, ' ms')} |"


def transformers_rate(batch: int, count: int) -> float:
    """Return the tokens per second of transformers' generate for a batch of one prompt."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = sample_folder(SAMPLE)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    inputs = tokenizer([PROMPT] * batch, return_tensors="pt")
    options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
    with torch.inference_mode():
        # The first is not timed: it allocates, and loads what it needs.
        model.generate(**inputs, **options, pad_token_id=0)
        start = time.monotonic()
        model.generate(**inputs, **options, pad_token_id=0)
    return batch * count / (time.monotonic() - start)


def reference(folder: Path, checkpoint: Path, runs: int) -> Iterator[str]:
    """Yield the lines about the reference runtime."""
    repository = folder / "reference"
    emit_repository(checkpoint, repository, ServingRecipe(max_batch_size=64))
    ours: dict[int, list[float]] = defaultdict(list)
    theirs: dict[int, list[float]] = defaultdict(list)
    with address_of(repository) as address:
        for _ in range(runs):
            for streams in STREAMS:
                load = Load(address, "ensemble", streams, 2 * streams, 64, PROMPT)
                outcome = put(load)
                ours[streams].append(outcome.responses / outcome.seconds)
                theirs[streams].append(transformers_rate(streams, 64))
    yield "| reference runtime | tokens/s | of 1 stream | of transformers, same batch |"
    yield "|---|--:|--:|--:|"
    for streams in STREAMS:
        alone = [a / b for a, b in zip(ours[streams], ours[1], strict=True)]
        beside = [a / b for a, b in zip(ours[streams], theirs[streams], strict=True)]
        yield (
            f"| {streams} streams | {statistics.median(ours[streams]):,.0f} | {spread(alone, 1)} "
            f"| {spread(beside, 2)} |"
        )


@click.command()
@click.option("--runs", type=click.IntRange(1), default=3, show_default=True, help="Rounds")
def main(runs: int) -> None:
    """Measure the text pipeline and the reference runtime."""
    with tempfile.TemporaryDirectory(prefix="bench-serve-") as name:
        folder = Path(name)
        convert(str(sample_folder(SAMPLE)), folder / "checkpoint", ConvertOptions())
        click.echo(f"{runs} rounds, median (range); {machine(folder)},")
        click.echo(f"load average {os.getloadavg()[0]:.1f}; the client takes its share\n")
        for part in (pipeline, delays, reference):
            click.echo("\n".join(part(folder, folder / "checkpoint", runs)) + "\n")


if __name__ == "__main__":
    main()
