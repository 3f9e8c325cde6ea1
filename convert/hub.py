"""Bring a model from the Hugging Face hub, or find it in the local cache."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Final

from minitron_trt.checkpoint import TOKENIZER_FILES
from minitron_trt.convert.source import GENERATION_CONFIG, INDEX_NAME
from minitron_trt.errors import BadInputError

_HUB_ID: Final = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_WANTED: Final = ("config.json", GENERATION_CONFIG, INDEX_NAME, "model*.safetensors")


def locate(source: str, *, revision: str | None, token: str | None) -> Path:
    """Return the folder of a source: itself, or the snapshot of a hub id.

    BadInputError when it is neither, or the hub does not give it.
    """
    path = Path(source)
    if path.exists() or not _HUB_ID.fullmatch(source):
        if not path.is_dir():
            raise BadInputError(
                f"{source} is not a folder; expected a Hugging Face model folder or a hub id like "
                "nvidia/Minitron-4B-Base"
            )
        return path
    return _download(source, revision, token)


def _download(repo: str, revision: str | None, token: str | None) -> Path:
    import huggingface_hub
    from huggingface_hub import errors
    from huggingface_hub.utils.tqdm import disable_progress_bars

    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                revision=revision,
                token=token,
                allow_patterns=[*_WANTED, *TOKENIZER_FILES],
            )
        )
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
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, OSError) as error:
        raise BadInputError(
            f"{repo} is not a folder here and the hub cannot be reached "
            f"({type(error).__name__}); go online, or pass a folder"
        ) from error
