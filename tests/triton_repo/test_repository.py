"""A repository is whole, parses back, and refuses what it cannot serve."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from minitron_trt.checkpoint import Checkpoint
from minitron_trt.cli import main
from minitron_trt.errors import BadInputError, UsageError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.contract.ensemble_steps import ensemble_steps
from minitron_trt.triton_repo.contract.model_names import MODELS
from minitron_trt.triton_repo.contract.runtime_tensors import tensorrt_llm
from minitron_trt.triton_repo.contract.tensors import (
    POSTPROCESSING_TENSORS,
    PREPROCESSING_TENSORS,
    ElementTypes,
    text_model,
)
from minitron_trt.triton_repo.model_config import ensemble, from_text, to_text
from minitron_trt.triton_repo.model_repository import ModelRepository
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

GOLDEN = Path(__file__).parent.parent / "golden" / "triton_repo"


@pytest.fixture
def repository(checkpoint: Checkpoint, tmp_path: Path) -> ModelRepository:
    """A repository for the Llama sample."""
    return emit_repository(checkpoint.folder, tmp_path / "repository", ServingRecipe())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_each_config_is_the_reviewed_one(repository: ModelRepository, name: str) -> None:
    """To accept a change: read the new text, then copy it to tests/golden/triton_repo."""
    text = (repository.folder / name / "config.pbtxt").read_text()

    assert text == (GOLDEN / f"{name}.pbtxt").read_text()
    assert from_text(text, name).name == name


@pytest.mark.parametrize("reports_streams", [True, False], ids=["our runtimes", "TensorRT-LLM's"])
def test_every_tensor_of_a_step_exists_on_both_sides_with_one_type(reports_streams: bool) -> None:
    types = ElementTypes(logits="FP16", prompt_table="BF16")
    signatures = {
        "preprocessing": PREPROCESSING_TENSORS,
        "tensorrt_llm": tensorrt_llm(types, reports_streams=reports_streams),
        "postprocessing": POSTPROCESSING_TENSORS,
    }
    known = {tensor.name: tensor.type for tensor in text_model(types).inputs}
    for step in ensemble_steps(types, reports_streams=reports_streams):
        inputs = {tensor.name: tensor for tensor in signatures[step.model].inputs}
        results = {tensor.name: tensor.type for tensor in signatures[step.model].outputs}
        required = {name for name, tensor in inputs.items() if not tensor.optional}

        assert required <= step.inputs.keys()
        assert step.outputs.keys() <= results.keys()
        assert {name: inputs[name].type for name in step.inputs} == {
            name: known[value] for name, value in step.inputs.items()
        }
        known |= {value: results[name] for name, value in step.outputs.items()}

    assert {t.name: t.type for t in text_model(types).outputs}.items() <= known.items()


def test_config_text_parses_back_to_the_same_message() -> None:
    types = ElementTypes()
    config = ensemble(
        text_model(types), ensemble_steps(types, reports_streams=True), max_batch_size=4
    )

    assert from_text(to_text(config), "ensemble") == config


def test_weights_are_linked_not_copied(checkpoint: Checkpoint, repository: ModelRepository) -> None:
    inside = repository.folder / "tensorrt_llm/1/checkpoint/rank0.safetensors"

    assert inside.samefile(checkpoint.folder / "rank0.safetensors")
    assert Checkpoint.open(inside.parent).spec == checkpoint.spec


def test_a_moved_repository_opens(repository: ModelRepository, tmp_path: Path) -> None:
    moved = shutil.copytree(repository.folder, tmp_path / "elsewhere")

    assert ModelRepository.open(moved).configs == repository.configs
    assert str(repository.folder) not in (moved / "tensorrt_llm/config.pbtxt").read_text()


def test_the_manifest_names_runtime_and_recipe(repository: ModelRepository) -> None:
    manifest = json.loads((repository.folder / "minitron.json").read_text())

    assert (manifest["kind"], manifest["runtime"]) == ("repository", "reference")
    assert manifest["recipe"]["max_queue_size"] == 256


def test_more_tokens_than_positions_are_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="max_seq_len 9999 exceeds the 2048 positions"):
        emit_repository(checkpoint.folder, tmp_path / "r", ServingRecipe(max_seq_len=9999))

    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint: Checkpoint, tmp_path: Path) -> None:
    copy = shutil.copytree(checkpoint.folder, tmp_path / "bare")
    manifest = json.loads((copy / "minitron.json").read_text())
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (copy / name).unlink()
        del manifest["files"][name]
    (copy / "minitron.json").write_text(json.dumps(manifest))

    with pytest.raises(BadInputError, match="has no tokenizer"):
        emit_repository(copy, tmp_path / "r", ServingRecipe())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "ends", "words"),
    [
        ({}, "[1023]", "only the tokenizer says what ends a text; its eos_token"),
        ({"eos_token": None}, "[]", "nothing says which id ends a text"),
    ],
    ids=["the tokenizer", "nothing"],
)
def test_a_checkpoint_that_knows_no_end_of_text_says_so(
    checkpoint: Checkpoint,
    config: dict[str, Any],
    ends: str,
    words: str,
    command: Callable[..., Result],
    tmp_path: Path,
) -> None:
    copy = shutil.copytree(checkpoint.folder, tmp_path / "endless")
    tokenizer = shutil.copytree(sample_folder("solar-llama"), tmp_path / "tokenizer")
    (tokenizer / "generation_config.json").unlink()
    (tokenizer / "config.json").unlink()
    change(tokenizer / "tokenizer_config.json", **config)
    manifest = json.loads((copy / "minitron.json").read_text())
    change(copy / "minitron.json", tokens={**manifest["tokens"], "eos_ids": []})

    result = command("triton-repo", copy, "-o", tmp_path / "r", "--tokenizer", tokenizer)

    assert result.exit_code == 0
    assert words in result.stderr
    encoding = ModelRepository.open(tmp_path / "r").configs["preprocessing"].parameters
    assert encoding["end_ids"].string_value == ends


def change(path: Path, **values: Any) -> None:
    """Replace values of an object in a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_a_damaged_config_is_named_with_its_line(repository: ModelRepository) -> None:
    path = repository.folder / "ensemble" / "config.pbtxt"
    text = path.read_text()
    # Of the same size, so that the manifest does not notice first.
    path.write_text(text.replace("max_batch_size: 8", "max_batch_size: $"))

    with pytest.raises(BadInputError, match=r"ensemble/config.pbtxt: 3:17"):
        ModelRepository.open(repository.folder)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["missing", "-o", "r"], 3, "neither an artifact"),
        (["{model}", "-o", "r", "--runtime", "reference"], 4, "run minitron-trt convert"),
        (["{checkpoint}", "-o", "{checkpoint}"], 2, "already exists"),
        (["{checkpoint}", "-o", "r", "--max-batch-size", "0"], 2, "x>=1"),
    ],
    ids=["missing", "model folder", "output exists", "no slots"],
)
def test_the_command_refuses_with_one_line(
    checkpoint: Checkpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    places = {"model": tmp_path / "model", "checkpoint": checkpoint.folder}
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)

    result = CliRunner().invoke(
        main, ["triton-repo", *(argument.format(**places) for argument in arguments)]
    )

    assert (result.exit_code, list(here.iterdir())) == (code, [])
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_command_prints_one_json_object(checkpoint: Checkpoint, tmp_path: Path) -> None:
    output = tmp_path / "r"

    result = CliRunner().invoke(
        main, ["triton-repo", str(checkpoint.folder), "-o", str(output), "--json"]
    )

    assert json.loads(result.stdout) == {
        "repository": str(output),
        "runtime": "reference",
        "models": list(MODELS),
        "bls_instances": 2,
    }
