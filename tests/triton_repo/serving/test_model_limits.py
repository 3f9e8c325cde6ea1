"""What bounds a served model, also where people have edited what says so."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from minitron_trt.artifacts import MANIFEST_NAME
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.errors import BadInputError
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.runtimes.runtime_names import LLMAPI
from minitron_trt.triton_repo.serving.model_limits import read_limits
from minitron_trt.triton_repo.serving.served_repository import ServedRepository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

SAMPLE = sample_folder("solar-llama")


@pytest.fixture(scope="module")
def llmapi(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample for the runtime llmapi."""
    folder = tmp_path_factory.mktemp("llmapi") / "repository"
    emit_repository(SAMPLE, folder, ServingRecipe(max_batch_size=8))
    return folder


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample for the reference runtime."""
    folder = tmp_path_factory.mktemp("reference")
    convert(str(SAMPLE), folder / "checkpoint", ConvertOptions())
    emit_repository(folder / "checkpoint", folder / "repository", ServingRecipe())
    return folder / "repository"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[", "expected the node content"),
        ("", "Expected `object`, got `null`"),
        ("model: model", "missing required field `max_batch_size`"),
        ("model: model\nmax_batch_size: many", "Expected `int`, got `str`"),
        ("model: &a [*a]", "an alias *a; write out what it stands for"),
        ("[" * 5000, "values within values, more than 200 deep"),
    ],
)
def test_a_model_yaml_without_arguments_is_refused(
    llmapi: Path, tmp_path: Path, text: str, said: str
) -> None:
    repository = shutil.copytree(llmapi, tmp_path / "repository")
    (repository / "tensorrt_llm/1/model.yaml").write_text(text)

    with pytest.raises(BadInputError, match=re.escape(said)) as refused:
        read_limits(ServedRepository.open(repository))

    assert "\n" not in str(refused.value)


def test_a_model_yaml_may_have_comments(llmapi: Path, tmp_path: Path) -> None:
    repository = shutil.copytree(llmapi, tmp_path / "repository")
    (repository / "tensorrt_llm/1/model.yaml").write_text(
        "model: 'model'  # ours\nmax_batch_size: 3\nmax_seq_len: 100\n"
    )

    limits = read_limits(ServedRepository.open(repository))

    assert (limits.batch, limits.max_seq_len) == (3, 100)


@pytest.mark.parametrize("value", ["", "many", "0", "9" * 5000])
def test_a_parameter_that_is_no_count_is_refused(
    reference: Path, tmp_path: Path, value: str
) -> None:
    repository = shutil.copytree(reference, tmp_path / "repository")
    config = repository / "tensorrt_llm/config.pbtxt"
    pattern = r'(key: "max_seq_len"\s+value \{\s+string_value: )"[^"]*"'
    text, count = re.subn(pattern, rf'\1"{value}"', config.read_text())
    assert count == 1
    config.write_text(text)

    with pytest.raises(BadInputError, match=r"max_seq_len is .*; expected a whole number"):
        read_limits(ServedRepository.open(repository))


def test_a_manifest_without_the_model_that_generates_is_refused(
    llmapi: Path, tmp_path: Path
) -> None:
    repository = shutil.copytree(llmapi, tmp_path / "repository")
    manifest = json.loads((repository / MANIFEST_NAME).read_text())
    manifest["models"].remove("tensorrt_llm")
    (repository / MANIFEST_NAME).write_text(json.dumps(manifest))

    with pytest.raises(BadInputError, match="lists no model 'tensorrt_llm'"):
        ServedRepository.open(repository)


def upstreams(folder: Path, model_yaml: str) -> Path:
    """Write a repository of others with the runtime llmapi."""
    version = folder / "repository/llm/1"
    version.mkdir(parents=True)
    (version.parent / "config.pbtxt").write_text('backend: "python"')
    (version / "model.yaml").write_text(model_yaml)
    return folder / "repository"


@pytest.mark.parametrize("form", ["{}", "{}  # where it lies", '"{}"', "'{}' # there"])
def test_a_model_outside_is_found_however_it_is_written(tmp_path: Path, form: str) -> None:
    """A container gets it mounted."""
    model = tmp_path / "model"
    model.mkdir()
    repository = upstreams(tmp_path, f"model: {form.format(model)}\nbackend: pytorch\n")

    assert ServedRepository.open(repository).outside == (model,)


@pytest.mark.parametrize(
    "text",
    [
        "model: owner/name\ntensor_parallel_size: 2 # GPUs\npipeline_parallel_size: 3\n",
        "{model: owner/name, tensor_parallel_size: 2, 'pipeline_parallel_size': 3}",
    ],
)
def test_the_ranks_of_others_are_read_however_they_are_written(tmp_path: Path, text: str) -> None:
    served = ServedRepository.open(upstreams(tmp_path, text))

    assert (served.runtime, served.world_size, served.outside) == (LLMAPI, 6, ())


@pytest.mark.parametrize("ranks", ["9" * 5000, "0", "two", "[2"])
def test_ranks_that_are_no_count_are_refused(tmp_path: Path, ranks: str) -> None:
    repository = upstreams(tmp_path, f"model: owner/name\ntensor_parallel_size: {ranks}\n")

    with pytest.raises(BadInputError, match="is not the arguments of TensorRT-LLM's LLM class"):
        ServedRepository.open(repository)
