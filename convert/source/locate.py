"""Find what a source names: a model folder or GGUF file here, or one on the Hugging Face hub."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from minitron_trt.artifacts import CONFIG_NAME, GENERATION_CONFIG
from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.source.quantization_config import QUANTIZATION_FILE
from minitron_trt.convert.source.weight_files import INDEX_NAME, TORCH_INDEX_NAME, has_weights
from minitron_trt.errors import BadInputError

GGUF_SUFFIX: Final = ".gguf"
HUB_ID: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:/([\w./ -]+\.gguf))?")
_FACTS: Final = (CONFIG_NAME, QUANTIZATION_FILE, GENERATION_CONFIG, *TOKENIZER_FILES)
_SAFETENSORS: Final = (INDEX_NAME, "model*.safetensors")
_TORCH: Final = (TORCH_INDEX_NAME, "pytorch_model*.bin")


def locate(source: str, *, revision: str | None, token: str | None) -> Path:
    """Return the model folder or GGUF file of a source; a hub id is downloaded first.

    A hub id is `owner/name`, or `owner/name/file.gguf` for one file of a repository of GGUF files.
    BadInputError when it is neither, or the hub does not give it.
    """
    path = Path(source)
    hub_id = HUB_ID.fullmatch(source)
    # A mistyped path of a file would pass for a hub id.
    missing = hub_id is not None and hub_id[1].endswith(GGUF_SUFFIX)
    if path.exists() or hub_id is None or missing:
        return _local(path)
    repo, file = hub_id.groups()
    if file:
        return _download_file(repo, file, revision, token)
    folder = _download(repo, (*_FACTS, *_SAFETENSORS), revision, token)
    # The weights of some repositories are there in both forms; only one is wanted.
    return folder if has_weights(folder) else _download(repo, (*_FACTS, *_TORCH), revision, token)


def _local(path: Path) -> Path:
    """Return the folder, the GGUF file, or the only GGUF file of a folder without other weights."""
    if path.is_file() and _is_gguf(path):
        return path
    if not path.is_dir():
        raise BadInputError(
            f"{path} is not a folder; expected a Hugging Face model folder, a GGUF file or a hub "
            "id like nvidia/Minitron-4B-Base"
        )
    files = [] if has_weights(path) else sorted(path.glob(f"*{GGUF_SUFFIX}"))
    if len(files) > 1:
        raise BadInputError(
            f"{path} holds {len(files)} GGUF files; name one of them, for example {files[0]}"
        )
    return files[0] if files else path


def _is_gguf(path: Path) -> bool:
    with path.open("rb") as file:
        return path.suffix == GGUF_SUFFIX or file.read(4) == b"GGUF"


def _download(
    repo: str, patterns: tuple[str, ...], revision: str | None, token: str | None
) -> Path:
    import huggingface_hub

    with hub_errors(repo, revision):
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, token=token, allow_patterns=list(patterns)
            )
        )


def _download_file(repo: str, file: str, revision: str | None, token: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors

    with hub_errors(repo, revision):
        try:
            return Path(huggingface_hub.hf_hub_download(repo, file, revision=revision, token=token))
        except errors.RemoteEntryNotFoundError as error:
            raise BadInputError(f"{repo} has no file {file} on the hub") from error


@contextmanager
def hub_errors(repo: str, revision: str | None) -> Iterator[None]:
    """Turn the hub's refusals into one line each."""
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        yield
    except errors.GatedRepoError as error:
        raise BadInputError(
            f"{repo} is gated on the hub; accept its terms there, then pass --token or "
            "run: hf auth login"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise BadInputError(f"{repo} has no revision {revision!r} on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise BadInputError(
            f"{repo} is neither a folder here nor a model the hub shows you; check the "
            "name, or pass --token"
        ) from error
    except errors.HFValidationError as error:
        raise BadInputError(f"{repo} is neither a folder here nor a valid hub id") from error
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise BadInputError(
            f"{repo} is not a folder here and the hub cannot be reached "
            f"({type(error).__name__}); go online, or pass a folder"
        ) from error
