"""`plan` on a hub id: the config alone, from a small server that speaks the hub's protocol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import pytest
from tests.convert.source import test_hub_source

from minitron_trt.build.engine_model import HUB_IDS, PRESETS, find_model

pytestmark = pytest.mark.slow

Hub = test_hub_source.Hub
hub = test_hub_source.hub
REPO: Final = test_hub_source.REPO
NOWHERE: Final = "http://127.0.0.1:9"


def plan(
    source: str,
    address: str,
    home: Path,
    *options: str,
    offline: bool = False,
    environment: Mapping[str, str] = MappingProxyType({}),
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: the hub's library reads its environment once."""
    variables = {
        **os.environ,
        "HF_HOME": str(home / "cache"),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": str(int(offline)),
        "NO_PROXY": "127.0.0.1,nowhere.invalid",
        **environment,
    }
    lengths = ("--input-len", "64", "--output-len", "64", "--json")
    return subprocess.run(
        [sys.executable, "-m", "minitron_trt", "plan", source, "--gpu", "H100", *lengths, *options],
        env=variables,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def publish(state: Any, folder: Path, **changes: Any) -> None:
    """Put a model folder on the hub, its config changed; None takes a key out."""
    shutil.copytree(folder, state.folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text()) | changes
    kept = {key: value for key, value in config.items() if value is not None}
    (state.folder / "config.json").write_text(json.dumps(kept))


def test_only_the_config_is_fetched_and_the_cache_serves_offline(
    hub: tuple[Any, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    publish(state, tiny_nemotron)
    online = plan(REPO, address, tmp_path)
    offline = plan(REPO, NOWHERE, tmp_path, offline=True)
    record = json.loads(online.stdout)

    assert (online.returncode, state.fetched) == (0, {"config.json"}), online.stderr
    assert (record["model"], record["kv_bytes_per_token"]) == ("model", 192)
    assert (offline.returncode, offline.stdout) == (0, online.stdout), offline.stderr


def test_a_head_size_that_the_config_lacks_is_read_from_the_weights_header(
    hub: tuple[Any, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    publish(state, tiny_nemotron, head_dim=None)
    result = plan(REPO, address, tmp_path)

    # Twelve heads of 8 do not come out of a hidden size of 40.
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["kv_bytes_per_token"] == 192
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("address", "offline", "reason"),
    [
        (NOWHERE, False, test_hub_source.NO_CONNECTION),
        (NOWHERE, True, "OfflineModeIsEnabled"),
        ("http://nowhere.invalid", False, test_hub_source.NO_CONNECTION),
        ("nowhere", False, "UnsupportedProtocol"),
    ],
    ids=["nobody answers", "offline", "no such host", "no address"],
)
def test_a_head_size_that_is_neither_in_the_cache_nor_to_be_asked_for_is_one_line(
    address: str,
    offline: bool,
    reason: str,
    hub: tuple[Any, str],
    tiny_nemotron: Path,
    tmp_path: Path,
) -> None:
    state, online = hub
    publish(state, tiny_nemotron, head_dim=None)
    first = plan(REPO, online, tmp_path)
    result = plan(REPO, address, tmp_path, offline=offline)

    assert first.returncode == 0, first.stderr
    assert (result.returncode, result.stdout, result.stderr) == (
        3,
        "",
        f"error: {REPO} is not a folder here and the hub cannot be reached ({reason}); go online, "
        "or pass a folder\n",
    )


def test_a_hub_that_does_not_answer_in_time_is_one_line(
    hub: tuple[Any, str], tiny_nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = hub
    publish(state, tiny_nemotron, head_dim=None)
    first = plan(REPO, address, tmp_path)
    stopped = threading.Event()
    monkeypatch.setattr(state, "answer", lambda path: (stopped.wait(), (404, {}, b""))[1])
    soon = dict.fromkeys(("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"), "1")
    result = plan(REPO, address, tmp_path, environment=soon)
    stopped.set()

    assert first.returncode == 0, first.stderr
    assert (result.returncode, result.stdout, result.stderr) == (
        3,
        "",
        f"error: {REPO} is not a folder here and the hub cannot be reached (ReadTimeout); go "
        "online, or pass a folder\n",
    )


def test_a_config_without_heads_is_one_line(
    hub: tuple[Any, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    publish(state, tiny_nemotron, head_dim=None, num_attention_heads=0)
    result = plan(REPO, address, tmp_path)

    assert (result.returncode, result.stdout, result.stderr) == (
        3,
        "",
        "error: config.json: num_attention_heads is 0; expected at least 1\n",
    )


def test_without_any_headers_the_head_size_is_assumed_or_asked_for(
    hub: tuple[Any, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    publish(state, tiny_nemotron, head_dim=None)
    (state.folder / "model.safetensors").unlink()
    refused = plan(REPO, address, tmp_path)
    publish(state, tiny_nemotron, head_dim=None, hidden_size=48)
    (state.folder / "model.safetensors").unlink()
    assumed = plan(REPO, address, tmp_path / "other")

    assert (refused.returncode, refused.stderr) == (
        3,
        f"error: {REPO}: config.json states no head size and its 12 heads do not divide 40; "
        "download the model and pass its folder\n",
    )
    assert assumed.returncode == 0
    assert "warning: some/model: config.json states no head size; 4 is assumed" in assumed.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("GatedRepo", f"{REPO} is gated on the hub; accept its terms there, then pass --token or"),
        ("RepoNotFound", f"{REPO} is neither a folder here nor a model the hub shows you"),
        ("EntryNotFound", f"{REPO} has no config.json on the hub"),
        ("RevisionNotFound", f"{REPO} has no revision 'v9' on the hub"),
    ],
)
def test_what_the_hub_refuses_is_one_line(
    code: str,
    said: str,
    hub: tuple[Any, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    state, address = hub
    status = 403 if code == "GatedRepo" else 404
    headers = {"X-Error-Code": code, "X-Repo-Commit": test_hub_source.COMMIT}
    monkeypatch.setattr(state, "answer", lambda path: (status, headers, b""))
    result = plan(REPO, address, tmp_path, "--revision", "v9")

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1


def test_a_hub_that_cannot_be_reached_is_one_line(tmp_path: Path) -> None:
    result = plan(REPO, NOWHERE, tmp_path, offline=True)

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(
        f"error: {REPO} is not a folder here and the hub cannot be reached"
    )


def test_the_seeds_ids_are_presets_and_need_no_hub(tmp_path: Path) -> None:
    results = [plan(name, NOWHERE, tmp_path) for name in ("nvidia/Minitron-8B-Base", "minitron-8b")]

    assert [result.returncode for result in results] == [0, 0]
    assert results[0].stdout == results[1].stdout
    assert set(HUB_IDS) == set(PRESETS)


def test_a_folder_of_the_same_name_comes_first(
    tiny_nemotron: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_nemotron, tmp_path / "nvidia" / "Minitron-8B-Base")
    monkeypatch.chdir(tmp_path)

    assert find_model("nvidia/Minitron-8B-Base").spec.hidden == 40
