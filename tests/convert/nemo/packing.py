"""The archives that megatron-core wrote, and copies of them with changes."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

FOLDER: Final = Path(__file__).parent / "archives"
GRAPHS: Final = ("llama", "nemotron")
FORMS: Final = ("zarr", "torch_dist", "single", "ranks", "stages")
CONFIG: Final = "model_config.yaml"
TOKENIZER: Final = "0123456789abcdef0123456789abcdef_tokenizer.model"


def archive(graph: str, form: str) -> Path:
    """Return an archive, compressed."""
    return FOLDER / f"{graph}_{form}.nemo"


def expected_logits(graph: str) -> tuple[list[int], Any]:
    """Return the tokens that megatron-core was given and the logits that it computed."""
    record = json.loads((FOLDER / f"{graph}.json").read_text())
    return record["tokens"], record["logits"]


def members(path: Path) -> dict[str, bytes]:
    """Return the files of an archive."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(path.read_bytes()))) as tar:
        files = {one.name.removeprefix("./"): tar.extractfile(one) for one in tar if one.isfile()}
        return {name: file.read() for name, file in files.items() if file}


def pack(path: Path, files: Mapping[str, bytes], *special: tarfile.TarInfo) -> Path:
    """Write a plain archive; `special` are members that are no files."""
    with tarfile.open(path, "w:") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for member in special:
            tar.addfile(member)
    return path


def unpack(folder: Path, files: Mapping[str, bytes]) -> Path:
    """Write the folder that an archive unpacks to."""
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def with_config(files: Mapping[str, bytes], **changes: Any) -> dict[str, bytes]:
    """Return an archive's files with other values in its config; `...` leaves one out."""
    config = {**yaml.safe_load(files[CONFIG]), **changes}
    kept = {key: value for key, value in config.items() if value is not ...}
    return {**files, CONFIG: yaml.safe_dump(kept).encode()}
