"""What `check --runtime edge` says of folders and GPUs, beside the exporter itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from minitron_trt.build.edge_runtime import check_edge
from minitron_trt.build.engine_model import PRESETS
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.convert.hf_output import HfModel
from minitron_trt.convert.source.hf_config import config_record
from minitron_trt.gpus import find_target
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.samples import sample_folder

LENGTH = 4096


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder of the Llama sample with a chat template."""
    copy = tmp_path / "llama"
    shutil.copytree(sample_folder("solar-llama"), copy)
    (copy / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    return copy


def fits(folder: Path, gpu: str | None = None) -> dict[str, bool | None]:
    """Return what is said of each point."""
    report = check_edge(folder, find_target(gpu) if gpu else None, LENGTH)
    return {finding.name: finding.fits for finding in report.findings}


def test_a_llama_with_a_chat_template_works_on_a_gpu_of_the_wheels(folder: Path) -> None:
    assert fits(folder, "A100") == {
        "architecture": True,
        "chat template": True,
        "precision": True,
        # The sample's 32 is no size that the runtime names.
        "head size": None,
        "payload": True,
        "memory": True,
    }


@pytest.mark.parametrize(
    ("gpu", "has_payload"),
    [
        ("A10", True),
        ("B200", True),
        ("RTX-5090", True),
        ("L40", False),
        ("H100", False),
        ("B300", False),
        # The code for SM100 is for x86-64, and this GPU sits beside an Arm processor.
        ("GB200", False),
    ],
)
def test_the_wheels_have_code_for_some_gpus_only(folder: Path, gpu: str, has_payload: bool) -> None:
    assert fits(folder, gpu)["payload"] is has_payload


def test_nemotron_is_refused(command: Callable[..., Result]) -> None:
    result = command("check", sample_folder("solar-nemotron"), "--runtime", "edge")

    assert result.exit_code == 4
    assert "exported as a Llama graph without a word" in result.stderr


@pytest.mark.parametrize("place", ["file", "tokenizer", "none", "empty"])
def test_a_chat_template_is_a_must(folder: Path, place: str) -> None:
    template = folder / "chat_template.jinja"
    if place == "empty":
        template.write_text("\n")
    elif place != "file":
        template.unlink()
    if place == "tokenizer":
        path = folder / "tokenizer_config.json"
        record = json.loads(path.read_text()) | {"chat_template": "{{ messages }}"}
        path.write_text(json.dumps(record))

    assert fits(folder)["chat template"] is (place in ("file", "tokenizer"))


@pytest.mark.parametrize(("algorithm", "fits_there"), [("NVFP4", True), ("W4A16_AWQ", False)])
def test_formats_are_read_that_convert_does_not(
    folder: Path, algorithm: str, fits_there: bool
) -> None:
    record = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": algorithm}}
    (folder / "hf_quant_config.json").write_text(json.dumps(record))

    assert fits(folder)["precision"] is fits_there


def test_rowwise_scales_are_refused(tmp_path: Path) -> None:
    options = ConvertOptions(precision="fp8-rowwise", form="hf")
    convert(str(sample_folder("solar-llama")), tmp_path / "rowwise", options)

    assert fits(tmp_path / "rowwise")["precision"] is False


def test_weights_and_one_sequence_must_fit(tmp_path: Path) -> None:
    large = PRESETS["llama-3.1-minitron-4b-width"]
    (tmp_path / "config.json").write_text(json.dumps(config_record(large)))
    header, entries = HfModel(large, PRECISIONS["bf16"]).lay_out(tmp_path)
    path = entries[-1].path
    path.write_bytes(header)
    # The weights themselves are a hole.
    os.truncate(path, entries[-1].offset + entries[-1].size_bytes)

    short, longest = (
        check_edge(tmp_path, find_target("A10"), length).findings[-1]
        for length in (LENGTH, large.max_positions)
    )

    assert (short.name, short.fits, longest.fits) == ("memory", True, False)
    assert "weights 9.03 GB, a sequence of 4096 tokens 537 MB" in short.found


def test_options_of_other_checks_do_not_go_with_it(
    command: Callable[..., Result], folder: Path
) -> None:
    for words in (
        ("--runtime", "edge", "--image", "26.07"),
        ("--runtime", "edge", "--gpus", 2),
        ("--length", 100),
    ):
        result = command("check", folder, *words)

        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)


def test_the_report_is_one_object_and_a_table(command: Callable[..., Result], folder: Path) -> None:
    as_json = command("check", folder, "--runtime", "edge", "--gpu", "A100", "--json")
    as_text = command("check", folder, "--runtime", "edge", "--gpu", "L40")

    assert (as_json.exit_code, json.loads(as_json.stdout)["works"]) == (0, None)
    assert as_text.exit_code == 4
    assert "no  payload: L40 (SM89)" in as_text.stdout
