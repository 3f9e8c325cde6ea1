"""Export a model with ModelOpt's own exporter; print the seconds of each step as JSON.

    python benchmarks/modelopt_export.py MODEL_DIR OUTPUT_DIR fp8 IDS.jsonl

bench_quantize.py runs it beside our conversion; the calibration is the same and not compared.
"""

from __future__ import annotations

import contextlib
import copy
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Final

import click

# ModelOpt's names of graphs: Nemotron's is GPT's.
DECODERS: Final = {"LlamaForCausalLM": "llama", "NemotronForCausalLM": "gpt"}
PRESETS: Final = {"fp8": "FP8_DEFAULT_CFG", "nvfp4": "NVFP4_DEFAULT_CFG"}


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.argument("precision", type=click.Choice(list(PRESETS)))
@click.argument("ids", type=click.Path(path_type=Path))
def main(model: Path, output: Path, precision: str, ids: Path) -> None:
    """Calibrate MODEL on one row of token ids and export it for one rank."""
    warnings.simplefilter("ignore")
    # Its remarks go to stdout, where the result goes.
    with contextlib.redirect_stdout(sys.stderr):
        import modelopt.torch.quantization as mtq
        import torch
        from modelopt.torch.export import export_tensorrt_llm_checkpoint
        from transformers import AutoModelForCausalLM

        loader: Any = AutoModelForCausalLM
        start = time.monotonic()
        network = loader.from_pretrained(model, dtype=torch.bfloat16)
        row = json.loads(ids.read_text().splitlines()[0])["input_ids"]
        preset = copy.deepcopy(getattr(mtq, PRESETS[precision]))
        with torch.inference_mode():
            mtq.quantize(network, preset, lambda network: network.model(torch.tensor([row])))
        ready = time.monotonic()
        decoder = DECODERS[type(network).__name__]
        export_tensorrt_llm_checkpoint(network, decoder, torch.bfloat16, output, 1)
        done = time.monotonic()
    click.echo(json.dumps({"calibrate": ready - start, "export": done - ready}))


if __name__ == "__main__":
    main()
