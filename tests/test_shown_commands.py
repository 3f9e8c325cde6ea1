"""What the pages tell people to type can be typed, as far as this machine goes."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Final

import click
import ml_dtypes
import numpy as np
import pytest
from click.testing import Result
from safetensors.numpy import load_file, save_file
from tests.build.doubles import make_doubles
from tests.shown_commands import (
    ROOT,
    ShownCommand,
    hidden_commands,
    pages,
    shown_commands,
)

from minitron_trt.build.containers import RECOMMENDED, find_container
from minitron_trt.cli import main
from minitron_trt.convert.conversion import ConvertOptions, convert
from minitron_trt.quantization.precisions import PRECISIONS
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

Command = Callable[..., Result]
# Which sample stands for which model of the hub: one of its graph.
STAND_INS: Final = {
    "nvidia/Minitron-4B-Base": "solar-nemotron",
    "nvidia/Minitron-8B-Base": "solar-nemotron",
    "nvidia/Llama-3.1-Minitron-4B-Width-Base": "solar-llama",
}
# They talk to a server, are one, or compute for long: here only what is typed is looked at.
PARSED: Final = frozenset(
    {"bench", "chat", "demo", "dynamo-worker", "gateway", "generate", "pull", "push", "verify"}
)
# They run until they are stopped; a dry run says all that they would start.
DRY: Final = frozenset({"serve"})
OTHERS: Final = frozenset(
    {"docker", "kubectl", "openssl", "python3", "sbatch", "trtllm-serve", "vllm"}
)

each_page = pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))


def stand_in(name: str, folder: Path, *, fp8: bool) -> Path:
    """Write the model that stands for one of the hub, with as many positions as those have.

    In FP8 it is a folder that is quantized already, so that no calibration is run.
    """
    shutil.copytree(sample_folder(STAND_INS[name]), folder)
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), "max_position_embeddings": 4096}
    if fp8:
        config["quantization_config"] = {
            "quant_method": "fp8",
            "activation_scheme": "static",
            "ignored_layers": ["lm_head"],
        }
        quantize(folder / "model.safetensors")
    path.write_text(json.dumps(config))
    return folder


def quantize(path: Path) -> None:
    """Round the linear layers of a file to FP8, as AutoFP8 writes them, every scale one."""
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        tensors[name] = tensors[name].astype(ml_dtypes.float8_e4m3fn)
        for scale in ("weight_scale", "input_scale"):
            tensors[name.replace("weight", scale)] = np.ones(1, np.float32)
    save_file(tensors, path)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to type in, on a machine with an H100 and docker, as far as doubles go."""
    make_doubles(tmp_path, monkeypatch).install("docker", "nvidia-smi", "trtllm-build")
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    corpus = (sample_folder("solar-llama").parent / "corpus.txt").read_text(encoding="utf-8")
    (place / "wiki.test.raw").write_text(corpus[:6000])
    return place


def make_repository(_: ShownCommand) -> None:
    """Write a repository to serve."""
    convert(str(sample_folder("solar-llama")), Path(".converted"), ConvertOptions())
    emit_repository(Path(".converted"), Path("repository"), ServingRecipe())


def finish_job(shown: ShownCommand) -> None:
    """Leave what a job leaves that has ended well: an engine of the double of trtllm-build."""
    output = shown.words[shown.words.index("-o") + 1]
    Path(output).mkdir()
    folders = (f"--checkpoint_dir={shown.words[2]}", f"--output_dir={output}")
    subprocess.run(("trtllm-build", *folders), capture_output=True, check=True)


def give_template(shown: ShownCommand) -> None:
    """Put a chat template into a folder, which base models come without."""
    template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    Path(shown.words[2], "chat_template.jinja").write_text(template)


# What a page takes for granted, by the words in which it says so.
PROVIDED: Final[dict[str, Callable[[ShownCommand], None]]] = {
    "a repository": make_repository,
    "the finished job": finish_job,
    "a chat template": give_template,
}


def typed(shown: ShownCommand, place: Path) -> list[str]:
    """Return the words of a command with what the hub has in its stand-ins' folders."""
    named = "--precision" in shown.words
    precision = shown.words[shown.words.index("--precision") + 1] if named else "bf16"
    fp8 = precision == "fp8" and "--dry-run" not in shown.words
    words = []
    for word in shown.words[1:]:
        if word in STAND_INS:
            folder = place / ".hub" / f"{word}{'-fp8' if fp8 else ''}"
            words.append(str(folder if folder.exists() else stand_in(word, folder, fp8=fp8)))
        else:
            words.append(word)
    if words[0] in DRY or "--verify" in words or (PRECISIONS[precision].calibrated and not fp8):
        words.append("--dry-run")
    return words


def parse(words: list[str]) -> None:
    """Have the command line take words apart as it would to run them; an error is one of usage."""
    command: click.Command = main
    while isinstance(command, click.Group):
        name, *words = words
        found = command.get_command(click.Context(command), name)
        assert found is not None
        command = found
    command.make_context(name, words)


@pytest.mark.slow
@each_page
def test_the_commands_of_a_page_run_one_after_another(
    page: Path, workplace: Path, command: Command
) -> None:
    there: set[str] = set()
    for shown in shown_commands(page):
        if not shown.is_ours:
            continue
        if shown.needs in PROVIDED.keys() - there:
            PROVIDED[shown.needs](shown)
            there.add(shown.needs)
        words = typed(shown, workplace)
        if (
            words[0] in PARSED
            or words[:2] == ["eval", "tasks"]
            or any("://" in word for word in words)
        ):
            parse(words)
            continue
        result = command(*words)
        if shown.output:
            (workplace / shown.output).write_text(result.stdout)

        assert (result.exit_code, str(shown)) == (0, str(shown)), result.output


@each_page
def test_every_command_of_a_page_is_run(page: Path) -> None:
    assert hidden_commands(page) == []


@each_page
def test_what_others_run_is_marked_with_what_it_needs(page: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for shown in shown_commands(page):
        program, *words = shown.words
        if program == "pip":
            named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", words[-1])
            assert named is not None, shown
            assert set((named[1] or "").split(",")) <= {"", *extras}, shown
        elif program == "make":
            assert words[0] in targets, shown
        elif not shown.is_ours:
            assert program in OTHERS, shown
            assert shown.needs, shown
        if program == "docker" and words[:1] == ["pull"]:
            assert find_container(words[1]) == find_container(RECOMMENDED), shown
