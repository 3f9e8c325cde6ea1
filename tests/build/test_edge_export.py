"""TensorRT Edge-LLM's own exporter on a CPU: what it takes, refuses, and writes without a word."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
from tests.patience import PATIENCE_S

from minitron_trt.build.edge_runtime import PAYLOADS, check_edge
from minitron_trt.convert.calibration.text import CalibrationText
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# Run with the exporter's Python: the graph's operators, by how often they occur.
_OPERATORS: Final = """
import collections, json, sys, onnx
graph = onnx.load(sys.argv[1], load_external_data=False).graph
print(json.dumps(collections.Counter(node.op_type for node in graph.node)))
"""
# The shapes of the first quantized weight and of its scale, and the attributes of what joins them.
_SCALES: Final = """
import json, sys, onnx
graph = onnx.load(sys.argv[1], load_external_data=False).graph
shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
node = next(
    n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0].endswith("proj.weight")
)
print(json.dumps([[shapes[name] for name in node.input[:2]], [a.name for a in node.attribute]]))
"""
_SMS: Final = """
import json, pathlib, tensorrt_edgellm
path = pathlib.Path(tensorrt_edgellm.__file__).parent / "_native/variants.json"
variants = json.loads(path.read_text())["variants"]
print(json.dumps([variants[0]["cpu_arch"], sorted({v["gpu_sm"] for v in variants})]))
"""


@pytest.fixture(scope="module")
def python() -> str:
    """Return the Python of an environment with the exporter."""
    named = os.environ.get("EDGE_PYTHON")
    if not named:
        pytest.skip("NOT TESTED, EDGE_PYTHON names no Python that has Edge-LLM: make test-edge")
    return named


def asked(python: str, program: str, *words: object) -> Any:
    """Return what a program prints as JSON."""
    command = [python, "-c", program, *map(str, words)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture
def export(python: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a run of the exporter over a folder, to tmp_path/onnx."""
    program = Path(python).with_name("tensorrt-edgellm-export")

    def run(folder: Path) -> subprocess.CompletedProcess[str]:
        command = [str(program), str(folder), str(tmp_path / "onnx")]
        return subprocess.run(command, capture_output=True, text=True, timeout=800)

    return run


def written(folder: Path, sample: str, *, template: bool = True, **options: Any) -> Path:
    """Return a folder of `--format hf`."""
    calibration = CalibrationText(samples=2, length=16)
    how = ConvertOptions(form="hf", calibration=calibration, **options)
    convert(str(sample_folder(sample)), folder, how)
    if template:
        (folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return folder


def said_of(folder: Path) -> dict[str, bool | None]:
    """Return what our check says of each point."""
    return {finding.name: finding.fits for finding in check_edge(folder, None, 1024).findings}


@pytest.mark.parametrize("precision", ["bf16", "fp8", "nvfp4"])
def test_what_is_said_to_work_is_exported(
    export: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path, precision: str
) -> None:
    folder = written(tmp_path / "model", "solar-llama", precision=precision)

    run = export(folder)

    assert False not in said_of(folder).values()
    assert run.returncode == 0, run.stderr[-2000:]
    assert (tmp_path / "onnx/llm/model.onnx").is_file()


def test_a_folder_without_a_chat_template_fails(
    export: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    folder = written(tmp_path / "model", "solar-llama", template=False)

    run = export(folder)

    assert said_of(folder)["chat template"] is False
    assert run.returncode != 0
    assert "does not provide a chat template" in run.stderr


def test_nemotron_becomes_the_llamas_graph(
    export: Callable[..., subprocess.CompletedProcess[str]], python: str, tmp_path: Path
) -> None:
    """The exporter is content, with SiLU and without a LayerNorm: this is why it is refused."""
    folder = written(tmp_path / "model", "solar-nemotron")

    run = export(folder)

    operators = asked(python, _OPERATORS, tmp_path / "onnx/llm/model.onnx")
    assert run.returncode == 0
    assert (operators.get("Sigmoid"), operators.get("Relu")) == (4, None)
    assert not {"LayerNormalization", "Sub"} & operators.keys()
    assert said_of(folder)["architecture"] is False


def test_rowwise_scales_are_written_along_the_wrong_axis(
    export: Callable[..., subprocess.CompletedProcess[str]], python: str, tmp_path: Path
) -> None:
    """Without an axis ONNX takes the second, of which the weights have fewer than scales."""
    folder = written(tmp_path / "model", "solar-llama", precision="fp8-rowwise")

    run = export(folder)

    (weight, scale), attributes = asked(python, _SCALES, tmp_path / "onnx/llm/model.onnx")
    assert run.returncode == 0
    assert (weight[0], weight[1] == scale[0], attributes) == (scale[0], False, [])
    assert said_of(folder)["precision"] is False


def test_the_gpus_are_those_of_the_wheel(python: str) -> None:
    host, sms = asked(python, _SMS)

    assert tuple(sms) == PAYLOADS[host]
