"""`push` and `pull` against a real registry, and what skopeo makes of what lies there."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from click.testing import Result
from tests.patience import PATIENCE_S, until
from tests.registry.conftest import contents

from minitron_trt.registry.image import PackedImage
from minitron_trt.registry.layers import LAYER

REGISTRY: Final = shutil.which("docker-registry") or shutil.which("registry")
SKOPEO: Final = shutil.which("skopeo")
needs_registry = pytest.mark.skipif(
    REGISTRY is None, reason="NOT TESTED, there is no registry (Debian: docker-registry)"
)
needs_skopeo = pytest.mark.skipif(SKOPEO is None, reason="NOT TESTED, there is no skopeo")
Command = Callable[..., Result]
BCRYPT_OF_SECRET: Final = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def running_registry(folder: Path, **settings: Any) -> Iterator[str]:
    """Run a registry that keeps its blobs in a folder; yield its host and port."""
    host = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "blobs")}},
        "http": {"addr": host},
        **settings,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yml").write_text(json.dumps(config))
    assert REGISTRY is not None
    with (folder / "log").open("wb") as log:
        command = [REGISTRY, "serve", str(folder / "config.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        until(lambda: _answers(f"http://{host}/v2/"))
        yield host
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=PATIENCE_S).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The host and port of a registry."""
    with running_registry(tmp_path_factory.mktemp("registry")) as host:
        yield host


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A maker of pairs of keys, by openssl."""
    folder = tmp_path_factory.mktemp("keys")

    def make(name: str) -> tuple[Path, Path]:
        private, public = folder / f"{name}.pem", folder / f"{name}.pub"
        curve = ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private))
        subprocess.run(["openssl", *curve], check=True)
        out = ("ec", "-in", str(private), "-pubout", "-out", str(public))
        subprocess.run(["openssl", *out], check=True, capture_output=True)
        return private, public

    return make


def record_of(result: Result) -> dict[str, Any]:
    """Return the JSON object of a command that did what it was to."""
    assert result.exit_code == 0, result.stderr
    record: dict[str, Any] = json.loads(result.stdout)
    return record


@pytest.mark.slow
@needs_registry
def test_what_is_pulled_is_what_was_pushed(
    registry: str, repository: Path, tmp_path: Path, command: Command
) -> None:
    pushed = record_of(command("push", repository, f"{registry}/models/solar", "--json"))
    digest = pushed["digest"]
    assert pushed["reference"] == f"{registry}/models/solar:solar-llama-bf16-repository"

    for output, place in (("tag", pushed["reference"]), ("digest", f"models/solar@{digest}")):
        at = place if place.startswith(registry) else f"{registry}/{place}"
        pulled = record_of(command("pull", at, "-o", tmp_path / output, "--json"))
        assert (pulled["kind"], pulled["digest"]) == ("repository", digest)
        assert contents(tmp_path / output) == contents(repository)


@needs_registry
@needs_skopeo
def test_skopeo_reads_and_copies_it(
    registry: str, repository: Path, tmp_path: Path, command: Command
) -> None:
    pushed = record_of(command("push", repository, f"{registry}/models/copied:1", "--json"))
    inspected = skopeo("inspect", "--tls-verify=false", f"docker://{registry}/models/copied:1")
    record = json.loads(inspected.stdout)
    assert record["Digest"] == pushed["digest"]
    assert record["Labels"]["minitron-trt.precision"] == "bf16"

    image = tmp_path / "image"
    source = f"docker://{pushed['reference']}"
    plain = ("copy", "--src-tls-verify=false", "--dest-oci-accept-uncompressed-layers")
    skopeo(*plain, source, f"oci:{image}:1")
    again = record_of(command("push", image, f"{registry}/models/copied:2", "--json"))
    assert again["digest"] == pushed["digest"]


@pytest.mark.slow
@needs_registry
@needs_skopeo
def test_an_image_that_a_tool_compressed_on_its_way_is_unpacked(
    registry: str, repository: Path, tmp_path: Path, command: Command
) -> None:
    place, image = f"{registry}/models/compressed", tmp_path / "image"
    command("push", repository, f"{place}:1")
    skopeo("copy", "--src-tls-verify=false", f"docker://{place}:1", f"oci:{image}:1")
    assert any("gzip" in layer.mediaType for layer in PackedImage.open(image).read().layers)

    record_of(command("push", image, f"{place}:2", "--json"))
    record_of(command("pull", f"{place}:2", "-o", tmp_path / "output", "--json"))
    assert contents(tmp_path / "output") == contents(repository)


def skopeo(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run skopeo to its end."""
    assert SKOPEO is not None
    command = [SKOPEO, "--insecure-policy", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.slow
@needs_registry
def test_a_signature_is_asked_for_by_its_key(
    registry: str,
    repository: Path,
    tmp_path: Path,
    command: Command,
    keys: Callable[[str], tuple[Path, Path]],
) -> None:
    (mine, public), (_, others) = keys("mine"), keys("others")
    place = f"{registry}/signed/solar:1"
    assert record_of(command("push", repository, place, "--sign-key", mine, "--json"))["signed"]
    pull = ("pull", place, "-o", tmp_path / "output", "--json", "--verify-key")
    assert record_of(command(*pull, public))["verified"]

    refused = command("pull", place, "-o", tmp_path / "other", "--verify-key", others)
    assert (refused.exit_code, refused.stdout) == (3, "")
    assert "is not signed by this key" in refused.stderr

    command("push", repository, f"{registry}/unsigned/solar:1")
    unsigned = f"{registry}/unsigned/solar:1"
    refused = command("pull", unsigned, "-o", tmp_path / "other", "--verify-key", public)
    assert refused.exit_code == 3
    assert "has no signature" in refused.stderr
    assert not (tmp_path / "other").exists()


@needs_registry
@needs_skopeo
def test_openssl_verifies_the_signature(
    registry: str,
    repository: Path,
    tmp_path: Path,
    command: Command,
    keys: Callable[[str], tuple[Path, Path]],
) -> None:
    """Debian's skopeo and podman are built without the policy that would verify it whole."""
    private, public = keys("openssl")
    place = f"{registry}/signed/openssl"
    pushed = record_of(command("push", repository, f"{place}:1", "--sign-key", private, "--json"))
    tag = pushed["digest"].replace(":", "-") + ".sig"
    skopeo("copy", "--src-tls-verify=false", f"docker://{place}:{tag}", f"dir:{tmp_path / 's'}")
    manifest = json.loads((tmp_path / "s/manifest.json").read_text())
    (layer,) = manifest["layers"]
    payload = tmp_path / "s" / layer["digest"].removeprefix("sha256:")
    signature = tmp_path / "signature"
    signature.write_bytes(
        base64.b64decode(layer["annotations"]["dev.cosignproject.cosign/signature"])
    )

    assert layer["mediaType"] == "application/vnd.dev.cosign.simplesigning.v1+json"
    assert json.loads(payload.read_text())["critical"] == {
        "identity": {"docker-reference": place},
        "image": {"docker-manifest-digest": pushed["digest"]},
        "type": "cosign container image signature",
    }
    verify = ("dgst", "-sha256", "-verify", str(public), "-signature", str(signature))
    subprocess.run(["openssl", *verify, str(payload)], check=True, capture_output=True)


@needs_registry
def test_a_blob_that_changed_in_the_registry_is_refused(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    with running_registry(tmp_path / "registry") as host:
        command("push", repository, f"{host}/a:1")
        blobs = tmp_path.glob("registry/blobs/docker/registry/v2/blobs/sha256/*/*/data")
        largest = max(blobs, key=lambda path: path.stat().st_size)
        data = bytearray(largest.read_bytes())
        data[700] ^= 1
        largest.write_bytes(data)
        result = command("pull", f"{host}/a:1", "-o", tmp_path / "output")

    assert result.exit_code == 3, result.stderr
    assert "fetch it again" in result.stderr
    assert not (tmp_path / "output").exists()


@needs_registry
def test_credentials_are_those_of_docker_login(
    repository: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = tmp_path / "htpasswd"
    users.write_text(f"somebody:{BCRYPT_OF_SECRET}\n")
    auth = {"htpasswd": {"realm": "here", "path": str(users)}}
    home = tmp_path / "home"
    (home / ".docker").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    with running_registry(tmp_path / "registry", auth=auth) as host:
        refused = command("push", repository, f"{host}/a:1")
        credentials = {"auth": base64.b64encode(b"somebody:secret").decode()}
        config = home / ".docker/config.json"
        config.write_text(json.dumps({"auths": {host: credentials}}))
        pushed = command("push", repository, f"{host}/a:1")
        pulled = command("pull", f"{host}/a:1", "-o", tmp_path / "output")

    assert (refused.exit_code, refused.stdout) == (7, "")
    assert f"docker login or podman login to {host}" in refused.stderr
    assert (pushed.exit_code, pulled.exit_code) == (0, 0), pushed.stderr + pulled.stderr
    assert contents(tmp_path / "output") == contents(repository)


@needs_registry
def test_an_image_that_is_not_there_is_named(
    registry: str, tmp_path: Path, command: Command
) -> None:
    result = command("pull", f"{registry}/a:none", "-o", tmp_path / "output")
    assert (result.exit_code, result.stdout) == (3, "")
    assert result.stderr == (
        f"error: {registry}/a:none is not there; expected an image in the registry\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["push", "pull"])
def test_a_registry_that_is_not_there_is_said(
    name: str, repository: Path, tmp_path: Path, command: Command
) -> None:
    place = f"127.0.0.1:{free_port()}/a:1"
    arguments = (repository, place) if name == "push" else (place, "-o", tmp_path / "output")
    result = command(name, *arguments)

    assert (result.exit_code, result.stdout) == (6, "")
    assert "cannot be reached or went away" in result.stderr
    assert list(tmp_path.iterdir()) == []


class _Nonsense(BaseHTTPRequestHandler):
    """A double: answers every request with what is no registry's answer."""

    def do_GET(self) -> None:
        """Answer with a page."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def served(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """Serve a double of a registry; yield its host and port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_web_server_is_no_registry(tmp_path: Path, command: Command) -> None:
    with served(_Nonsense) as host:
        result = command("pull", f"{host}/a:1", "-o", tmp_path / "output")

    assert result.exit_code == 3
    assert f"{host}/a:1 is no image of one platform" in result.stderr


class _Endless(_Nonsense):
    """A double: answers with bytes for as long as anybody reads them."""

    def do_GET(self) -> None:
        """Answer without an end."""
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            while True:
                self.wfile.write(b"[" * 65536)


def test_a_manifest_without_an_end_is_refused(tmp_path: Path, command: Command) -> None:
    with served(_Endless) as host:
        result = command("pull", f"{host}/a:1", "-o", tmp_path / "output")

    assert (result.exit_code, list(tmp_path.iterdir())) == (6, [])
    assert "expected a manifest or a signature" in result.stderr


class _Nested(_Nonsense):
    """A double: answers with JSON that is nested deeper than a reader goes."""

    def do_GET(self) -> None:
        """Answer with brackets."""
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"[" * 1_000_000)


def test_a_manifest_that_is_nested_too_deep_is_refused(tmp_path: Path, command: Command) -> None:
    with served(_Nested) as host:
        result = command("pull", f"{host}/a:1", "-o", tmp_path / "output")

    assert result.exit_code == 3
    assert "is no image of one platform" in result.stderr


class _Leaving(_Nonsense):
    """A double: has an image of one layer, and breaks off in the middle of that."""

    def do_GET(self) -> None:
        """Answer with the manifest, or with the beginning of the layer."""
        blob = {"digest": f"sha256:{'0' * 64}", "size": 5000}
        config = {"mediaType": "application/vnd.oci.image.config.v1+json", **blob}
        layer = {"mediaType": LAYER, **blob}
        body = json.dumps({"config": config, "layers": [layer]}).encode()
        self.send_response(200)
        if "/blobs/" in self.path:
            self.send_header("Content-Length", "5000")
            body = b"\0" * 100
        self.end_headers()
        self.wfile.write(body)


def test_a_registry_that_breaks_off_in_a_layer_is_said(tmp_path: Path, command: Command) -> None:
    with served(_Leaving) as host:
        result = command("pull", f"{host}/a:1", "-o", tmp_path / "output")

    assert (result.exit_code, list(tmp_path.iterdir())) == (6, [])
    assert f"{host} cannot be reached or went away" in result.stderr
