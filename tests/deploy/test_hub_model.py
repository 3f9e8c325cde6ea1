"""`deploy --model`: files for a model that Pods fetch and convert at their start."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from tests.convert.source import test_hub_source
from tests.convert.source.test_hub_source import COMMIT, REPO
from tests.deploy.repositories import planned
from tests.deploy.test_golden import check

from minitron_trt.cli import main
from minitron_trt.console import size_text
from minitron_trt.deploy.check.deployment_check import check_deployment, read_deployment
from minitron_trt.deploy.settings import LEADERWORKERSET, ON_KUBERNETES
from minitron_trt.deploy.writing import write_files
from minitron_trt.samples import sample_folder
from minitron_trt.triton_repo.repository import emit_repository
from minitron_trt.triton_repo.serving_recipe import ServingRecipe

pytestmark = pytest.mark.slow

hub = test_hub_source.hub
SERVER = "base/server.yaml"


def deploy(hub: tuple[Any, str], folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: the hub's library reads its environment once."""
    state, address = hub
    shutil.copytree(sample_folder("solar-llama"), state.folder, dirs_exist_ok=True)
    environment = os.environ | {
        "HF_HOME": str(folder / "cache"),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        "HF_TOKEN": "hf_nobody_may_see",
    }
    command = ["deploy", "--model", REPO, "--target", "kubernetes", "-o", folder / "files", *words]
    return subprocess.run(
        [sys.executable, "-m", "minitron_trt", *map(str, command)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def checked(folder: Path) -> Result:
    """Return what `deploy check` says of the files."""
    return CliRunner().invoke(main, ["deploy", "check", str(folder)])


def prepare(hub: tuple[Any, str], files: Path, place: Path) -> Path:
    """Run the commands of the init containers here; return what the server sees of their volume."""
    pod = yaml.safe_load((files / SERVER).read_text())["spec"]["template"]["spec"]
    variables = {"HF_HOME": str(place / "hub"), "HF_ENDPOINT": hub[1], "NO_PROXY": "127.0.0.1"}
    for container in pod["initContainers"]:
        words = [word.replace("/prepared", str(place)) for word in container["command"]]
        command = [sys.executable, "-m", "minitron_trt", *words[1:]]
        subprocess.run(command, env=os.environ | variables, check=True, timeout=120)
    server = pod["containers"][0]
    mount = next(m for m in server["volumeMounts"] if m["name"] == "models")
    assert f"--model-repository={mount['mountPath']}" in " ".join(server["args"])
    return place / str(mount["subPath"])


def test_the_files_of_a_model_on_the_hub(hub: tuple[Any, str], tmp_path: Path) -> None:
    run = deploy(hub, tmp_path, "--gpu", "H100", "--tp", 2)
    files = tmp_path / "files"

    assert run.returncode == 0, run.stderr
    # Beside the weights a repository has the code of its models, which grows now and then.
    size = size_text(read_deployment(files).facts.repository_bytes)
    check("hub-model.yaml", (files / SERVER).read_text().replace(size, "SIZE"), tmp_path)
    assert "error" not in checked(files).output
    # Of the weights nothing was fetched, and the token stands nowhere.
    assert "model.safetensors" not in hub[0].fetched
    texts = [path.read_text() for path in files.rglob("*") if path.is_file()]
    assert not any("hf_nobody_may_see" in text for text in texts)
    assert "create secret generic model-hub-token" in (files / "README.md").read_text()
    policies = yaml.safe_load_all((files / "base/network-policies.yaml").read_text())
    server = next(p for p in policies if p["metadata"]["name"] == "model")
    ports = [p["port"] for rule in server["spec"]["egress"] for p in rule["ports"]]
    assert 443 in ports
    # What the init containers make is what the numbers were derived from.
    manifest = json.loads((prepare(hub, files, tmp_path / "volume") / "minitron.json").read_text())
    recorded = json.loads((files / "minitron.json").read_text())["server"]
    assert (manifest["kind"], manifest["runtime"]) == ("repository", "llmapi")
    assert recorded["repository"] == f"{REPO}@{COMMIT}"
    size = sum(manifest["files"].values())
    assert size == pytest.approx(recorded["repository_bytes"], rel=0.01)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the runtime llmapi, as Pods would make it."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    emit_repository(sample_folder("solar-llama"), folder, ServingRecipe(tp=2))
    return folder


@pytest.mark.parametrize("target", ON_KUBERNETES)
def test_each_target_prepares_the_model_before_its_server(
    repository: Path, tmp_path: Path, target: str
) -> None:
    spread = {"gpus_per_node": 1} if target == LEADERWORKERSET else {}
    files = planned(repository, target, storage=f"hub:a/b@{COMMIT}", gpu="H100", **spread)
    write_files(files, tmp_path / "files")

    text = "".join(text for name, text in files.texts.items() if name.startswith("base/"))
    pods = text.count("initContainers:")
    assert (text.count("- name: convert\n"), text.count("- name: triton-repo\n")) == (pods, pods)
    # Whoever has the models in a Pod, Dynamo's worker too, sees the repository alone.
    assert text.count("subPath: repository") == text.count("mountPath: /models\n") >= pods > 0
    assert not check_deployment(tmp_path / "files").errors


@pytest.mark.parametrize(
    ("words", "exit_code", "line"),
    [
        (["--model", "folder"], 2, "is no hub id"),
        (["--model", "a/b", "--target", "compose"], 2, "make the repository first"),
        (["--model", "a/b", "--precision", "fp8"], 2, "fp8"),
        (["--tp", "2", "repository"], 2, "--tp goes with --model"),
        ([], 2, "--model with a hub id"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, words: list[str], exit_code: int, line: str
) -> None:
    target = [] if "--target" in words else ["--target", "kubernetes"]
    result = CliRunner().invoke(
        main, ["deploy", "write", *words, *target, "-o", str(tmp_path / "files")]
    )

    assert (result.exit_code, line in result.stderr) == (exit_code, True), result.stderr
    assert not (tmp_path / "files").exists()
