"""`pack`: an artifact as an image in a folder, and what unpacking takes from others' images."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import pytest
from click.testing import Result
from tests.build.engines import add_manifest, write_engine
from tests.registry.conftest import contents

from minitron_trt.console import no_progress
from minitron_trt.errors import BadInputError
from minitron_trt.registry.identity import identity_of
from minitron_trt.registry.image import PackedImage
from minitron_trt.registry.layers import LAYER, Blob, plan_layers, read_layer

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def image(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's image."""
    from click.testing import CliRunner

    from minitron_trt.cli import main

    output = tmp_path_factory.mktemp("images") / "image"
    result = CliRunner().invoke(main, ["pack", str(repository), "-o", str(output)])
    assert result.exit_code == 0, result.stderr
    return output


def test_every_blob_is_what_its_name_says_and_nothing_else_lies_there(image: Path) -> None:
    """As OCI's image layout has it."""
    blobs = {path.name for path in (image / "blobs/sha256").iterdir()}
    packed = PackedImage.open(image)
    manifest = packed.read()
    named = [packed.manifest, manifest.config, *manifest.layers]

    assert json.loads((image / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    assert blobs == {each.digest.removeprefix("sha256:") for each in named}
    for each in named:
        data = packed.blob_path(each.digest).read_bytes()
        assert (f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)) == (each.digest, each.size)
    config = json.loads(packed.blob_path(manifest.config.digest).read_text())
    assert config["rootfs"]["diff_ids"] == [layer.digest for layer in manifest.layers]


def test_its_files_are_the_artifacts(image: Path, repository: Path, tmp_path: Path) -> None:
    packed = PackedImage.open(image)
    for layer in packed.read().layers:
        with tarfile.open(packed.blob_path(layer.digest)) as archive:
            members = archive.getmembers()
            archive.extractall(tmp_path, filter="data")
        assert {(each.uid, each.gid, each.mtime) for each in members} == {(0, 0, 0)}

    assert contents(tmp_path) == contents(repository)


def test_equal_artifacts_are_equal_images(
    image: Path, repository: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(repository, tmp_path / "copy")
    result = command("pack", tmp_path / "copy", "-o", tmp_path / "image", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["digest"] == PackedImage.open(image).manifest.digest
    assert contents(tmp_path / "image") == contents(image)


def test_an_engine_is_called_by_model_precision_gpu_and_version(tmp_path: Path) -> None:
    engine = add_manifest(write_engine(tmp_path / "Minitron 8B", tp=2, size_bytes=2000))
    identity = identity_of(engine)

    assert identity.tag == "minitron-8b-bf16-x2-sm90-trtllm1.2.1-engine"
    assert identity.annotations["minitron-trt.sm"] == "90"


def test_large_files_are_layers_of_their_own_up_to_what_file_systems_take() -> None:
    large = {f"rank{index}.engine": (16 << 20) + index for index in range(120)}
    layers = plan_layers({"config.json": 10, "a": 1, **large})

    assert len(layers) == 100
    assert layers[0][:2] == ("a", "config.json")
    # The smallest of them are with the small ones.
    assert sorted(name for names in layers for name in names) == sorted(
        {"config.json", "a", *large}
    )
    assert layers[0][2:] == tuple(sorted(f"rank{index}.engine" for index in range(21)))


def test_what_people_may_edit_is_packed_as_it_is_and_code_is_not(
    repository: Path, tmp_path: Path, command: Command
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(repository, copy)
    with (copy / "ensemble/config.pbtxt").open("a") as file:
        file.write("# mine\n")
    assert command("pack", copy, "-o", tmp_path / "edited").exit_code == 0

    code = copy / "tensorrt_llm/1/model.py"
    code.write_bytes(code.read_bytes().replace(b"import", b"Import", 1))
    result = command("pack", copy, "-o", tmp_path / "changed")

    assert result.exit_code == 3
    assert "model.py is not the file that the manifest lists" in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "edited"]


def test_what_is_no_artifact_is_refused(tmp_path: Path, command: Command) -> None:
    (tmp_path / "folder").mkdir()
    result = command("pack", tmp_path / "folder", "-o", tmp_path / "image")

    assert (result.exit_code, result.stdout) == (3, "")
    assert "has no minitron.json; expected a checkpoint, an engine" in result.stderr
    assert not (tmp_path / "image").exists()


def _layer(*members: tuple[str, bytes | None, dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data, facts in members:
            entry = tarfile.TarInfo(name)
            for key, value in facts.items():
                setattr(entry, key, value)
            entry.size = len(data or b"")
            archive.addfile(entry, io.BytesIO(data or b""))
    return buffer.getvalue()


def _read(data: bytes, folder: Path, digest: str | None = None) -> None:
    named = digest or f"sha256:{hashlib.sha256(data).hexdigest()}"
    read_layer(io.BytesIO(data), LAYER, Blob(named, len(data)), folder, no_progress)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (("a", None, {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}), "which is no file"),
        (("a", None, {"type": tarfile.LNKTYPE, "linkname": "b"}), "which is no file"),
        (("a", None, {"type": tarfile.CHRTYPE}), "which is no file"),
        (("a", None, {"type": tarfile.FIFOTYPE}), "which is no file"),
        (("../a", b"x", {}), "no tar archive that can be unpacked"),
    ],
    ids=["link", "hard link", "device", "pipe", "above"],
)
def test_a_layer_of_others_writes_nothing_outside(
    member: tuple[str, bytes | None, dict[str, Any]], message: str, tmp_path: Path
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with pytest.raises(BadInputError, match=message):
        _read(_layer(member), folder)

    assert [path for path in tmp_path.rglob("*") if path != folder] == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 700, b"no tar archive at all" * 60])
def test_a_layer_that_is_none_is_refused(damage: bytes, tmp_path: Path) -> None:
    whole = _layer(("a", b"x" * 2000, {}))
    with pytest.raises(BadInputError, match="the layer sha256:"):
        _read(damage or whole[:1000], tmp_path, digest="sha256:" + "0" * 64)


@pytest.mark.parametrize(
    "header",
    [{"path": "a\0b"}, {"mtime": "1e400"}, {"mtime": "nan"}, {"GNU.sparse.map": "a"}],
    ids=["name", "endless time", "no time", "map"],
)
def test_a_layer_with_an_odd_header_is_refused(header: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no tar archive that can be unpacked"):
        _read(_layer(("a", b"x", {"pax_headers": header})), tmp_path)


def test_a_layer_that_unpacks_to_very_much_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(_layer(("a", bytes(1 << 20), {})))
    blob = Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    with pytest.raises(BadInputError, match="unpacks to more than 100 times that"):
        read_layer(io.BytesIO(data), f"{LAYER}+gzip", blob, tmp_path, no_progress)


def test_a_layer_of_very_many_empty_files_is_refused(tmp_path: Path) -> None:
    data = gzip.compress(_layer(*((f"a{number}", b"", {}) for number in range(2000))))
    size = 1_000
    blob = Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", size)
    with pytest.raises(BadInputError, match="unpacks to more than 100 times that"):
        read_layer(io.BytesIO(data), f"{LAYER}+gzip", blob, tmp_path, no_progress)


class _Forever(io.RawIOBase):
    """A double: the bytes of a layer, and zeros after them for as long as anybody reads."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1, /) -> bytes:
        """Return the next bytes."""
        return self._data.read(size) or bytes(size)


def test_a_layer_that_goes_on_without_an_end_is_refused(tmp_path: Path) -> None:
    data = _layer(("a", b"x", {}))
    blob = Blob(f"sha256:{hashlib.sha256(data).hexdigest()}", len(data))
    with pytest.raises(BadInputError, match="came as sha256:"):
        read_layer(cast(IO[bytes], _Forever(data)), LAYER, blob, tmp_path, no_progress)


def test_a_layer_of_other_bytes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="came as sha256:"):
        _read(_layer(("a", b"x", {})), tmp_path, digest="sha256:" + "0" * 64)
