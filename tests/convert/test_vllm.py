"""vLLM itself loads what `--format hf` writes, and continues texts as our reference model does."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

torch = pytest.importorskip("torch", reason="pip install minitron-trt[quantize]")

from safetensors.torch import load_file  # noqa: E402
from tests.convert.vllm_greedy import TOKENS  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402

from minitron_trt.checkpoint import Checkpoint  # noqa: E402
from minitron_trt.convert.calibration.text import CalibrationText  # noqa: E402
from minitron_trt.convert.conversion import ConvertOptions, convert  # noqa: E402
from minitron_trt.executor import Event, Executor, Request  # noqa: E402
from minitron_trt.executor.reference import ReferenceModel  # noqa: E402
from minitron_trt.families import KEY_PROJECTION, VALUE_PROJECTION  # noqa: E402
from minitron_trt.samples import sample_folder  # noqa: E402

pytestmark = pytest.mark.slow

Answers = list[list[int]]
AskVllm = Callable[[Path, Answers], dict[str, Any]]
CALIBRATION: Final = CalibrationText(samples=8, length=128)
PROMPTS: Final = (
    "Complete the paragraph: our solar system is",
    "Question: Why is Mars red? Answer:",
    "The Sun is",
)


@pytest.fixture(scope="module")
def ask_vllm() -> AskVllm:
    """Return a run of vLLM on a folder and prompts, in the environment that VLLM_PYTHON names."""
    python = os.environ.get("VLLM_PYTHON")
    if not python:
        pytest.skip("NOT TESTED, VLLM_PYTHON names no Python that has vLLM: make test-vllm")
    program = Path(__file__).with_name("vllm_greedy.py")

    def ask(folder: Path, prompts: Answers) -> dict[str, Any]:
        run = subprocess.run(
            [python, str(program), str(folder)],
            input=json.dumps(prompts),
            capture_output=True,
            text=True,
            timeout=900,
        )
        assert run.returncode == 0, run.stderr[-4000:]
        reading: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
        return reading

    return ask


def prompts_of(folder: Path) -> Answers:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]


def written(name: str, precision: str, kv_cache: str | None, form: str, output: Path) -> Path:
    options = ConvertOptions(precision, kv_cache, calibration=CALIBRATION, form=form)
    convert(str(sample_folder(name)), output, options)
    return output


def greedy(checkpoint: Checkpoint, prompts: Answers) -> Answers:
    """Return what the reference model generates, all prompts at once."""
    model = ReferenceModel(checkpoint, slots=len(prompts), max_seq_len=256)
    executor = Executor(model)
    heard: list[list[Event]] = [[] for _ in prompts]
    for index, prompt in enumerate(prompts):
        executor.submit(Request(str(index), tuple(prompt), TOKENS), heard[index].append)
    while executor.step():
        pass
    return [[token for event in events for token in event.tokens] for events in heard]


def ended(answers: Answers, end_ids: tuple[int, ...]) -> Answers:
    """Return answers up to the token that ends a text."""
    return [
        list(itertools.takewhile(lambda token: token not in end_ids, answer)) for answer in answers
    ]


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("solar-llama", "bf16"),
        ("solar-llama", "fp8"),
        ("solar-llama", "fp8-rowwise"),
        ("solar-llama", "nvfp4"),
        ("solar-nemotron", "bf16"),
        ("solar-nemotron", "fp8"),
        ("solar-nemotron", "fp8-rowwise"),
    ],
)
def test_vllm_continues_texts_as_the_reference_model_does(
    name: str, precision: str, ask_vllm: AskVllm, tmp_path: Path
) -> None:
    prompts = prompts_of(sample_folder(name))
    folder = written(name, precision, None, "hf", tmp_path / "hf")
    checkpoint = Checkpoint.open(written(name, precision, None, "trtllm", tmp_path / "trtllm"))
    end_ids = checkpoint.tokens.eos_ids
    answers = ended(ask_vllm(folder, prompts)["answers"], end_ids)

    assert answers == ended(greedy(checkpoint, prompts), end_ids)
    assert min(map(len, answers)) > 8


def test_vllm_takes_the_scales_of_the_kv_cache(ask_vllm: AskVllm, tmp_path: Path) -> None:
    folder = written("solar-llama", "fp8", "fp8", "hf", tmp_path / "hf")
    tensors = load_file(folder / "model.safetensors")
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    scales = [
        [
            tensors[f"{KEY_PROJECTION.format(layer)}.k_scale"].item(),
            tensors[f"{VALUE_PROJECTION.format(layer)}.v_scale"].item(),
        ]
        for layer in range(layers)
    ]
    prompts = prompts_of(sample_folder("solar-llama"))
    reading = ask_vllm(folder, prompts)

    # vLLM holds them in the model's dtype.
    assert reading["kv_scales"] == torch.tensor(scales).bfloat16().tolist()
    if "fails" in reading:
        pytest.skip(f"LOADED ONLY, vLLM cannot run it here: {reading['fails']}")
    checkpoint = Checkpoint.open(
        written("solar-llama", "fp8", "fp8", "trtllm", tmp_path / "trtllm")
    )
    end_ids = checkpoint.tokens.eos_ids

    # The engine's one scale for keys and values is another, so that only the text agrees.
    assert [answer[:8] for answer in ended(reading["answers"], end_ids)] == [
        answer[:8] for answer in ended(greedy(checkpoint, prompts), end_ids)
    ]
