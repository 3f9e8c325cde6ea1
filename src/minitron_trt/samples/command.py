"""`minitron-trt sample`."""

from __future__ import annotations

from pathlib import Path

import click
import cloup

from minitron_trt.console import PATH, Console, console_options, size_text
from minitron_trt.outputs import check_output, copy_tree, staged
from minitron_trt.samples import SAMPLES, sample_folder


def write_sample(name: str, output: Path) -> None:
    """Write a sample model as an ordinary Hugging Face folder."""
    check_output(output, overwrite=False)
    with staged(output) as scratch:
        copy_tree(sample_folder(name), scratch)


@cloup.command()
@click.argument("name", type=click.Choice(list(SAMPLES)))
@click.option(
    "-o",
    "--output",
    type=PATH,
    required=True,
    help="Folder to write the model to",
)
@console_options
def sample(console: Console, name: str, output: Path) -> None:
    """Write a small trained sample model.

    It is an ordinary Hugging Face folder that runs on any machine. The solar models know a little
    about the solar system by heart; the austen models have read novels, and tell precisions apart.

    Example: minitron-trt sample solar-llama -o model
    """
    write_sample(name, output)
    size = sum(path.stat().st_size for path in output.iterdir())
    console.result(
        {"model": str(output), "sample": name, "bytes": size},
        f"{output}: {name}, {size_text(size)}",
    )
