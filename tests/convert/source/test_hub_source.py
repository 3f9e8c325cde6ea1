"""Models on a hub: a small server that speaks its protocol, and what is asked of it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import huggingface_hub.errors
import pytest
import torch
from safetensors.torch import load_file
from tests.convert.nemo.packing import archive

from minitron_trt.artifacts import CHECKPOINT, Manifest
from minitron_trt.convert.source.hub import DATA_SET, HubRepository, refusal

pytestmark = pytest.mark.slow

WriteGguf = Callable[..., Path]
HTTP: Final = sys.modules[huggingface_hub.errors.HfHubHTTPError.__mro__[1].__module__.split(".")[0]]
"""The HTTP client of the installed release: requests below 1.0, then httpx, then httpx2."""
NO_CONNECTION: Final = "ConnectionError" if HTTP.__name__ == "requests" else "ConnectError"
REPO: Final = "some/model"
COMMIT: Final = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """One repository of files, and the names of those that were fetched."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fetched: set[str] = set()

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body of a request."""
        names = sorted(file.name for file in self.folder.iterdir())
        if path.startswith(f"/api/models/{REPO}"):
            about: Any = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            if "/tree/" in path:
                about = [{"type": "file", "path": n, "size": 1, "oid": COMMIT} for n in names]
            return 200, {"Content-Type": "application/json"}, json.dumps(about).encode()
        name = path.rsplit("/", 1)[-1]
        if "/resolve/" not in path or name not in names:
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
        body = (self.folder / name).read_bytes()
        etag = hashlib.sha256(body).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}, body


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Hub, str]]:
    """Return a hub without files, and its address."""
    folder = tmp_path / "repository"
    folder.mkdir()
    state = Hub(folder)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send(with_body=False)

        def do_GET(self) -> None:
            self.send(with_body=True)

        def send(self, with_body: bool) -> None:
            status, headers, body = state.answer(self.path.split("?")[0])
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                state.fetched |= (
                    {self.path.rsplit("/", 1)[-1]} if "/resolve/" in self.path else set()
                )
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield state, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def run(
    source: str, output: Path, address: str, **changes: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own: the hub's library reads its environment once."""
    environment = {
        **os.environ,
        "HF_HOME": str(output.parent / "cache"),
        "HF_ENDPOINT": address,
        "HF_HUB_OFFLINE": "0",
        "NO_PROXY": "127.0.0.1",
        **changes,
    }
    return subprocess.run(
        [sys.executable, "-m", "minitron_trt", "convert", source, "-o", str(output)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def add_torch_weights(source: Path, folder: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), folder / "pytorch_model.bin")


def test_torch_files_are_fetched_where_a_repository_has_no_safetensors(
    hub: tuple[Hub, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    for name in ("config.json", "generation_config.json"):
        shutil.copyfile(tiny_nemotron / name, state.folder / name)
    add_torch_weights(tiny_nemotron, state.folder)
    result = run(REPO, tmp_path / "out", address)

    assert (result.returncode, state.fetched) == (
        0,
        {"config.json", "generation_config.json", "pytorch_model.bin"},
    ), result.stderr
    manifest = Manifest.read(tmp_path / "out", CHECKPOINT)
    assert (manifest.source["repo"], manifest.source["revision"]) == (REPO, COMMIT)


def test_what_says_how_a_repository_was_quantized_is_fetched(
    hub: tuple[Hub, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_nemotron / name, state.folder / name)
    (state.folder / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "NVFP4"}}')
    result = run(REPO, tmp_path / "out", address)

    assert (result.returncode, state.fetched) == (
        4,
        {"config.json", "hf_quant_config.json", "model.safetensors"},
    )
    assert "hf_quant_config.json has quant_algo 'NVFP4', which is not supported" in result.stderr


def test_torch_files_are_left_where_a_repository_has_safetensors_too(
    hub: tuple[Hub, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_nemotron / name, state.folder / name)
    add_torch_weights(tiny_nemotron, state.folder)
    result = run(REPO, tmp_path / "out", address)

    assert (result.returncode, state.fetched) == (0, {"config.json", "model.safetensors"})


def test_one_gguf_file_of_a_repository_is_fetched_by_its_name(
    hub: tuple[Hub, str], tiny_nemotron: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    state, address = hub
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tiny_nemotron, state.folder / name, "F16")
    result = run(f"{REPO}/b.gguf", tmp_path / "out", address)

    assert (result.returncode, state.fetched) == (0, {"b.gguf"}), result.stderr
    manifest = Manifest.read(tmp_path / "out", CHECKPOINT)
    assert (manifest.source["repo"], manifest.source["revision"]) == (REPO, COMMIT)
    assert manifest.source["path"].endswith(f"snapshots/{COMMIT}/b.gguf")


def test_all_parts_of_a_gguf_file_are_fetched_by_the_name_of_the_first(
    hub: tuple[Hub, str], tiny_nemotron: Path, write_gguf: WriteGguf, tmp_path: Path
) -> None:
    state, address = hub
    write_gguf(tiny_nemotron, state.folder / "m.gguf", "BF16", tensors_in_part=20)
    parts = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    refused = run(f"{REPO}/{parts[1]}", tmp_path / "out", address)
    fetched_of_the_second = set(state.fetched)
    result = run(f"{REPO}/{parts[0]}", tmp_path / "out", address)

    assert (refused.returncode, refused.stderr) == (
        3,
        f"error: {parts[1]} is part 2 of 2; pass the first, {parts[0]}, which opens the others\n",
    )
    assert fetched_of_the_second == set()
    assert (result.returncode, state.fetched) == (0, set(parts)), result.stderr


def test_a_nemo_archive_of_a_repository_is_fetched_by_its_name(
    hub: tuple[Hub, str], tmp_path: Path
) -> None:
    state, address = hub
    shutil.copyfile(archive("nemotron", "zarr"), state.folder / "minitron.nemo")
    result = run(f"{REPO}/minitron.nemo", tmp_path / "out", address)

    assert (result.returncode, state.fetched) == (0, {"minitron.nemo"}), result.stderr
    manifest = Manifest.read(tmp_path / "out", CHECKPOINT)
    assert manifest.source["path"].endswith(f"snapshots/{COMMIT}/minitron.nemo")


def test_a_gguf_file_that_a_repository_lacks_is_named(hub: tuple[Hub, str], tmp_path: Path) -> None:
    result = run(f"{REPO}/c.gguf", tmp_path / "out", hub[1])

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr == f"error: {REPO} has no file c.gguf on the hub\n"


@pytest.mark.parametrize("status", [401, 403])
def test_a_hub_that_refuses_without_a_code_is_one_line(
    status: int, hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = hub
    monkeypatch.setattr(state, "answer", lambda path: (status, {}, b""))
    result = run(REPO, tmp_path / "out", address)

    assert (result.returncode, result.stdout, result.stderr) == (
        3,
        "",
        f"error: {REPO} is not a folder here and the hub refuses it (HTTP {status}); pass --token "
        "or run: hf auth login\n",
    )


def test_a_page_in_the_place_of_the_hub_is_one_line(
    hub: tuple[Hub, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, address = hub
    page = (200, {"Content-Type": "text/html"}, b"<html>Sign in to this network</html>")
    monkeypatch.setattr(state, "answer", lambda path: page)
    result = run(REPO, tmp_path / "out", address)

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(
        f"error: {REPO} cannot be read from the hub or its cache (JSONDecodeError: Expecting value"
    )
    assert result.stderr.count("\n") == 1


def test_a_damaged_cache_is_one_line(
    hub: tuple[Hub, str], tiny_nemotron: Path, tmp_path: Path
) -> None:
    state, address = hub
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(tiny_nemotron / name, state.folder / name)
    first = run(REPO, tmp_path / "out", address)
    (branch,) = (tmp_path / "cache").rglob("refs/main")
    branch.write_bytes(b"\xff\xfe")
    result = run(REPO, tmp_path / "again", address, HF_HUB_OFFLINE="1")

    assert first.returncode == 0, first.stderr
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(
        f"error: {REPO} cannot be read from the hub or its cache (UnicodeDecodeError: "
    )
    assert result.stderr.count("\n") == 1


def test_a_cache_that_cannot_be_written_is_one_line(hub: tuple[Hub, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    result = run(REPO, tmp_path / "out", hub[1])

    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith(f"error: {REPO} needs the hub's cache, which cannot be used (")
    assert result.stderr.endswith("; make room in it, or set HF_HOME to another folder\n")
    assert result.stderr.count("\n") == 1


def errors_of(module: ModuleType) -> list[type[Exception]]:
    members = vars(module).values()
    return [kind for kind in members if isinstance(kind, type) and issubclass(kind, Exception)]


@pytest.mark.parametrize(
    "kind",
    [*errors_of(huggingface_hub.errors), *errors_of(HTTP), socket.gaierror, ssl.SSLError],
)
def test_no_error_of_the_hubs_library_is_taken_for_a_fault_of_this_tool(
    kind: type[Exception],
) -> None:
    line = refusal(HubRepository(REPO, "v9"), kind.__new__(kind))

    assert line is not None
    assert line.startswith(f"{REPO} ")
    assert "{" not in line


def test_an_error_of_this_tools_own_code_is_not_laid_at_the_hubs_door() -> None:
    assert refusal(HubRepository(REPO), AttributeError("'NoneType' has no attribute 'x'")) is None


def test_a_data_set_is_refused_by_the_name_of_its_option() -> None:
    gated = huggingface_hub.errors.GatedRepoError.__new__(huggingface_hub.errors.GatedRepoError)

    assert refusal(HubRepository("some/news", kind=DATA_SET), gated) == (
        "--calib-data some/news is gated on the hub; accept its terms there, then set HF_TOKEN or "
        "run: hf auth login"
    )
