"""Find what a source names: a model folder, GGUF file or NeMo archive here or on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG
from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.gguf.header import MAGIC
from minitron_trt.convert.gguf.part_names import PartName
from minitron_trt.convert.nemo.archive import NEMO_SUFFIX, is_nemo
from minitron_trt.convert.source.hub import HUB_ID, HubRepository
from minitron_trt.convert.source.quantization_config import QUANTIZATION_FILE
from minitron_trt.convert.source.weight_files import ADAPTER_CONFIG, WEIGHT_FORMATS, has_weights
from minitron_trt.errors import BadInputError

GGUF_SUFFIX: Final = ".gguf"
_FILE_SUFFIXES: Final = (GGUF_SUFFIX, NEMO_SUFFIX)
_FACTS: Final = (
    CONFIG_NAME,
    ADAPTER_CONFIG,
    QUANTIZATION_FILE,
    GENERATION_CONFIG,
    *TOKENIZER_FILES,
)


def locate(source: str, *, revision: str | None, token: str | None) -> Path:
    """Return the model folder, GGUF file or NeMo archive of a source; a hub id is downloaded first.

    A hub id is `owner/name`, or `owner/name/file.gguf` (or `.nemo`) for one file of a repository.
    BadInputError when it is neither, or the hub does not give it.
    """
    path = Path(source)
    hub_id = HUB_ID.fullmatch(source)
    # `models/a.gguf` has the form owner/name: a mistyped path must not be looked for on the hub.
    missing = hub_id is not None and hub_id[1].endswith(_FILE_SUFFIXES)
    if path.exists() or hub_id is None or missing:
        return _local(path)
    name, file = hub_id.groups()
    repository = HubRepository(name, revision, token)
    if file:
        return _downloaded(repository, file)
    # Some repositories hold the weights in several formats; only one of them is fetched.
    for form in WEIGHT_FORMATS:
        folder = repository.snapshot((*_FACTS, form.index, form.pattern))
        if has_weights(folder):
            break
    return folder


def _downloaded(repository: HubRepository, name: str) -> Path:
    """Return a file of a repository; beside the first part of several, the others lie too."""
    part = PartName.parse(name)
    if part is not None:
        part.check_first(name)
    names = (name, *(part.others() if part is not None else ()))
    path, *_ = [repository.file(each, called=f"file {each}") for each in names]
    return path


def _local(path: Path) -> Path:
    """Return the folder, the file, or the only such file of a folder without other weights."""
    if path.is_file() and not path.stat().st_size:
        raise BadInputError(f"{path} is empty; download it again")
    if is_gguf(path) or is_nemo(path):
        return path
    if not path.is_dir():
        raise BadInputError(
            f"{path} is not a folder; expected a Hugging Face model folder, a GGUF file, a .nemo "
            "archive or a hub id like nvidia/Minitron-4B-Base"
        )
    if has_weights(path):
        return path
    for suffix, kind in ((GGUF_SUFFIX, "GGUF files"), (NEMO_SUFFIX, "NeMo archives")):
        names = {file: PartName.parse(file.name) for file in sorted(path.glob(f"*{suffix}"))}
        files = [file for file, part in names.items() if part is None or part.number == 1]
        if len(files) > 1:
            raise BadInputError(
                f"{path} holds {len(files)} {kind}; name one of them, for example {files[0]}"
            )
        if names:
            # Without the first part the reader names what is missing.
            return next(iter(files or names))
    return path


def is_gguf(path: Path) -> bool:
    """Return whether a path is a GGUF file, by its name or its start."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == GGUF_SUFFIX or file.read(len(MAGIC)) == MAGIC
