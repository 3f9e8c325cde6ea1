"""Conversions of tiny models, checked from outside: bytes of the ranks, or a refusal."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes  # noqa: F401  # numpy reads bfloat16 once this is imported
import numpy as np
import pytest
from click.testing import Result
from numpy.typing import NDArray
from safetensors.numpy import load_file
from tests.calibrations import calibrate_once as calibrate_once

from minitron_trt.convert.conversion import ConvertOptions, convert

Ranks = list[dict[str, Any]]
PROGRESS = re.compile(
    r"calibrate: \d+ %, [\d,]+ tokens of [\d,]+ tokens in \d+ s"
    r"(, [\d,]+ tokens/s, about (\d+ h )?\d+ (s|min) left)?"
)


@pytest.fixture
def ranks_of(tmp_path: Path) -> Callable[..., Ranks]:
    """Return a conversion whose rank files are read back by safetensors itself."""

    def run(source: Path, **options: Any) -> Ranks:
        plan = convert(str(source), tmp_path / "checkpoint", ConvertOptions(**options))
        return [
            load_file(tmp_path / "checkpoint" / f"rank{rank}.safetensors")
            for rank in range(plan.parallelism.world_size)
        ]

    return run


@pytest.fixture
def refusal(command: Callable[..., Result], tmp_path: Path) -> Callable[..., str]:
    """Return a conversion that must fail with one line and leave nothing; its value is the line."""

    def run(source: Path | str, exit_code: int, *options: object) -> str:
        parent = tmp_path / "outputs"
        parent.mkdir()
        start = time.monotonic()
        result = command("convert", source, "-o", parent / "checkpoint", *options)
        seconds = time.monotonic() - start

        assert (result.exit_code, result.stdout) == (exit_code, "")
        assert list(parent.iterdir()) == []
        before, line = result.stderr.rstrip("\n").split("error: ")
        notes = [text for text in before.splitlines() if not text.startswith("warning: ")]
        assert "\n" not in line
        # A calibration that takes seconds, as on a busy machine, says how far it has come.
        assert not [text for text in notes if not PROGRESS.fullmatch(text)]
        assert len(notes) <= seconds // 5
        return line.replace(str(source), "SOURCE")

    return run


Array = NDArray[Any]


def interleaved(weight: Array, head_size: int) -> Array:
    """Order rows as llama.cpp does: row i of a head's first half, then row i of its second."""
    half = head_size // 2
    order = [
        head * head_size + part * half + index
        for head in range(len(weight) // head_size)
        for index in range(half)
        for part in (0, 1)
    ]
    return weight[order]


def rope_factors(config: dict[str, Any]) -> Array:
    """Return what llama.cpp divides each frequency by, one at a time as its converter does."""
    scaling, size = config["rope_scaling"], config["head_dim"]
    factor, low = scaling["factor"], scaling["low_freq_factor"]
    high, original = scaling["high_freq_factor"], scaling["original_max_position_embeddings"]
    factors = []
    for index in range(size // 2):
        frequency = np.float32(1) / np.float32(config["rope_theta"]) ** np.float32(2 * index / size)
        length = 2 * math.pi / float(frequency)
        if length < original / high:
            factors.append(1.0)
        elif length > original / low:
            factors.append(factor)
        else:
            smooth = (original / length - low) / (high - low)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors, np.float32)


def gguf_tensors(config: dict[str, Any], folder: Path) -> Iterator[tuple[str, Array]]:
    """Yield the tensors of a Hugging Face folder as llama.cpp names and changes them."""
    nemotron = config["model_type"] == "nemotron"
    arch = gguf.MODEL_ARCH.NEMOTRON if nemotron else gguf.MODEL_ARCH.LLAMA
    names = gguf.get_tensor_name_map(arch, config["num_hidden_layers"])
    for path in sorted(folder.glob("*.safetensors")):
        for name, tensor in load_file(path).items():
            values = tensor.astype(np.float32)
            if not nemotron and name.endswith(("q_proj.weight", "k_proj.weight")):
                values = interleaved(values, config["head_dim"])
            if nemotron and name.endswith("norm.weight"):
                values = values + np.float32(1)
            target = names.get_name(name, try_suffixes=(".weight", ".bias"))
            assert target is not None
            yield target, values
    if config.get("rope_scaling"):
        yield "rope_freqs.weight", rope_factors(config)


def gguf_facts(config: dict[str, Any]) -> dict[str, Any]:
    """Return the facts that llama.cpp's converter writes about a config."""
    nemotron = config["model_type"] == "nemotron"
    hidden, heads, head_size = (
        config[key] for key in ("hidden_size", "num_attention_heads", "head_dim")
    )
    turned = int(config["partial_rotary_factor"] * hidden) // heads if nemotron else head_size
    epsilon = "attention.layer_norm_epsilon" if nemotron else "attention.layer_norm_rms_epsilon"
    facts = {
        "vocab_size": config["vocab_size"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": hidden,
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": heads,
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": head_size,
        "attention.value_length": head_size,
        "rope.freq_base": float(config["rope_theta"]),
        "rope.dimension_count": turned,
        epsilon: config["norm_eps"] if nemotron else config["rms_norm_eps"],
        **({"rope.scaling.type": "none"} if nemotron else {}),
    }
    prefix = "nemotron" if nemotron else "llama"
    return {"general.architecture": prefix, **{f"{prefix}.{k}": v for k, v in facts.items()}}


def gguf_tokens(folder: Path) -> dict[str, Any]:
    """Return the facts about a byte-level tokenizer; none where the folder's is a stub."""
    record = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    if "model" not in record:
        return {}
    config = json.loads((folder / "config.json").read_text())
    added = {token["content"]: token["id"] for token in record["added_tokens"]}
    tokens = sorted(
        (index, token) for token, index in {**record["model"]["vocab"], **added}.items()
    )
    facts = {
        "model": "gpt2",
        "pre": "llama-bpe",
        "tokens": [token for _, token in tokens],
        "token_type": [3 if token in added else 1 for _, token in tokens],
        "merges": [" ".join(merge) for merge in record["model"]["merges"]],
        "bos_token_id": config["bos_token_id"],
        "eos_token_id": config["eos_token_id"],
    }
    return {f"tokenizer.ggml.{key}": value for key, value in facts.items()}


def add_fact(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    """Write a fact with the type that llama.cpp's converter gives it."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """Return a writer of GGUF files from Hugging Face folders, as llama.cpp's converter would.

    Matrices are of a type that the `gguf` package can quantize to, or the given blocks; vectors are
    F32. Facts are added or replaced, and left out where the value is None. With a number of tensors
    for each part the package writes several files, of which the first is returned.
    """

    def write(
        folder: Path,
        path: Path,
        kind: str = "Q8_0",
        blocks: dict[str, tuple[str, Array]] | None = None,
        facts: dict[str, Any] | None = None,
        tensors: dict[str, Array] | None = None,
        tensors_in_part: int = 0,
    ) -> Path:
        config = json.loads((folder / "config.json").read_text())
        every = {**gguf_facts(config), **gguf_tokens(folder), **(facts or {})}
        architecture = every.pop("general.architecture")
        writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_in_part)
        for key, value in every.items():
            if value is not None:
                add_fact(writer, key, value)
        quantized = gguf.GGMLQuantizationType[kind]
        for name, values in {**dict(gguf_tensors(config, folder)), **(tensors or {})}.items():
            if blocks and name in blocks:
                own, data = blocks[name]
                writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[own])
            elif values.ndim == 1:
                writer.add_tensor(name, values)
            else:
                data = gguf.quants.quantize(values, quantized)
                writer.add_tensor(name, data, raw_dtype=quantized)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path if path.exists() else min(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))

    return write


@pytest.fixture(scope="session")
def ask_457() -> Iterator[Callable[[Any], Any]]:
    """Return a question to transformers 4.57, in the environment that PYTHON_457 names."""
    python = os.environ.get("PYTHON_457")
    if not python:
        pytest.skip("NOT TESTED, PYTHON_457 names no Python that has transformers 4.57")
    program = Path(__file__).with_name("source") / "transformers_reading.py"
    with subprocess.Popen(
        [python, str(program)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        sent, answers = process.stdin, process.stdout

        def ask(question: Any) -> Any:
            sent.write(json.dumps(question) + "\n")
            sent.flush()
            answer = answers.readline()
            assert answer, f"{python} ended with {process.wait()}"
            return json.loads(answer)

        yield ask
        sent.close()
