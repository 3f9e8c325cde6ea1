"""Links in folders that others made do not carry files of this machine into an output."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from tests.build.engines import add_manifest, write_engine

from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.samples import sample_folder

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of a sample."""
    output = tmp_path_factory.mktemp("links") / "checkpoint"
    convert(str(sample_folder("solar-llama")), output, ConvertOptions())
    return output


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """Return a file that no output may hold."""
    path = tmp_path / "secret"
    path.write_text("secret")
    return path


def refused(result: Result, link: Path, target: Path) -> None:
    """Assert that a command refused a link, in one line."""
    assert (result.exit_code, result.stderr) == (
        3,
        f"error: {link} leads to {target}, outside the model folder; copy the file in\n",
    )


@pytest.mark.parametrize("name", ["tokenizer.json", "generation_config.json", "rank0.safetensors"])
def test_a_checkpoints_link_out_of_it_does_not_reach_a_repository(
    name: str, whole: Path, tmp_path: Path, command: Command
) -> None:
    folder = shutil.copytree(whole, tmp_path / "checkpoint")
    outside = (folder / name).rename(tmp_path / "outside")
    (folder / name).symlink_to(outside)
    result = command("triton-repo", folder, "-o", tmp_path / "repository")

    refused(result, folder / name, outside)
    assert not (tmp_path / "repository").exists()


@pytest.mark.slow
def test_what_the_manifest_does_not_list_does_not_reach_a_repository(
    whole: Path, secret: Path, tmp_path: Path, command: Command
) -> None:
    folder = shutil.copytree(whole, tmp_path / "checkpoint")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "more.txt").write_text("more")
    result = command("triton-repo", folder, "-o", tmp_path / "repository")
    inner = tmp_path / "repository" / "tensorrt_llm" / "1" / "checkpoint"

    assert (result.exit_code, result.stderr) == (0, "")
    assert sorted(path.name for path in inner.iterdir()) == sorted(
        [*json.loads((folder / "minitron.json").read_text())["files"], "minitron.json"]
    )


@pytest.mark.parametrize("ours", [True, False], ids=["ours", "of others"])
def test_an_engines_link_out_of_it_does_not_reach_a_repository(
    *, ours: bool, tmp_path: Path, command: Command
) -> None:
    folder = write_engine(tmp_path / "engine", size_bytes=1000)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(sample_folder("solar-llama") / name, folder / name)
    if ours:
        add_manifest(folder)
    outside = (folder / "rank0.engine").rename(tmp_path / "outside")
    (folder / "rank0.engine").symlink_to(outside)
    result = command("triton-repo", folder, "-o", tmp_path / "repository")

    refused(result, folder / "rank0.engine", outside)
    assert not (tmp_path / "repository").exists()


def test_a_tokenizers_link_out_of_its_folder_is_not_followed(
    whole: Path, secret: Path, tmp_path: Path, command: Command
) -> None:
    tokenizer = shutil.copytree(sample_folder("solar-llama"), tmp_path / "tokenizer")
    (tokenizer / "chat_template.jinja").unlink(missing_ok=True)
    (tokenizer / "chat_template.jinja").symlink_to(secret)
    result = command("triton-repo", whole, "-o", tmp_path / "o", "--tokenizer", tokenizer)

    refused(result, tokenizer / "chat_template.jinja", secret)


def test_a_checkpoint_behind_a_link_and_in_a_hub_cache_is_served(
    whole: Path, tmp_path: Path, command: Command
) -> None:
    cache = tmp_path / "models--ours--checkpoint"
    snapshot = cache / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in whole.iterdir():
        shutil.copy(path, cache / "blobs" / path.name)
        (snapshot / path.name).symlink_to(Path("../../blobs") / path.name)
    (tmp_path / "link").symlink_to(snapshot)
    result = command("triton-repo", tmp_path / "link", "-o", tmp_path / "repository")

    assert (result.exit_code, result.stderr) == (0, "")
