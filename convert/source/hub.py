"""Models and data sets on the Hugging Face hub, and one line for whatever goes wrong there.

Nothing else calls huggingface_hub. Its functions raise errors of their own and those of their HTTP
client, of the operating system and of the parsers that meet a proxy's page or a damaged cache, so
all of them are told apart in one table.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Final

from minitron_trt.errors import BadInputError

log = logging.getLogger(__name__)
_TELL_S: Final = 5.0

HUB_ID: Final = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:/([\w./ -]+\.(?:gguf|nemo)))?")
"""`owner/name`, or `owner/name/file.gguf` (or `.nemo`) for one file of a repository."""


@dataclass(frozen=True, slots=True)
class HubKind:
    """A kind of repository, and the words in which messages speak of one."""

    repo_type: str  # the library's name of it
    noun: str
    local: str  # what the user may pass in its place
    option: str = ""  # how the command line names it
    hint: str = ""
    sign_in: str = "set HF_TOKEN"


MODEL: Final = HubKind(
    repo_type="model",
    noun="model",
    local="folder",
    hint="; check the name, or pass --token",
    sign_in="pass --token",
)
DATA_SET: Final = HubKind(
    repo_type="dataset", noun="data set", local="file", option="--calib-data "
)


@dataclass(frozen=True, slots=True)
class HubRepository:
    """A repository by its id; whatever it does not give is a BadInputError of one line."""

    name: str  # owner/name
    revision: str | None = None
    token: str | None = None
    kind: HubKind = MODEL

    def snapshot(self, patterns: tuple[str, ...]) -> Path:
        """Return a folder with the files that match, downloaded or from the hub's cache."""
        import huggingface_hub

        with self._errors():
            return Path(
                huggingface_hub.snapshot_download(
                    self.name,
                    repo_type=self.kind.repo_type,
                    revision=self.revision,
                    token=self.token,
                    allow_patterns=list(patterns),
                )
            )

    def file(self, name: str, *, called: str | None = None) -> Path:
        """Return one file, downloaded or from the cache; `called` is what a message calls it."""
        import huggingface_hub
        from huggingface_hub import errors

        with self._errors():
            try:
                return Path(
                    huggingface_hub.hf_hub_download(
                        self.name,
                        name,
                        repo_type=self.kind.repo_type,
                        revision=self.revision,
                        token=self.token,
                    )
                )
            except errors.EntryNotFoundError as error:
                # Absent from the cache says nothing about the hub.
                if isinstance(error, errors.LocalEntryNotFoundError):
                    raise
                raise BadInputError(f"{self.name} has no {called or name} on the hub") from error

    def data_set_files(self) -> list[str]:
        """Return the names of all files of a data set."""
        import huggingface_hub

        with self._errors():
            # The library retries a listing of the tree for half a minute, and prints each retry.
            about = huggingface_hub.HfApi().dataset_info(
                self.name, revision=self.revision, token=self.token
            )
            return [file.rfilename for file in about.siblings or ()]

    def tensor_shape(self, tensor: str) -> tuple[int, ...] | None:
        """Return the shape of a tensor, or None where no safetensors header tells it.

        Only the headers are fetched.
        """
        import huggingface_hub
        from huggingface_hub import errors

        with self._errors():
            try:
                headers = huggingface_hub.get_safetensors_metadata(
                    self.name, revision=self.revision, token=self.token
                )
                file = headers.files_metadata[headers.weight_map[tensor]]
                return tuple(file.tensors[tensor].shape)
            except (errors.NotASafetensorsRepoError, errors.SafetensorsParsingError, KeyError):
                return None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the hub's library raises into one line."""
        from huggingface_hub.utils.tqdm import disable_progress_bars

        if not sys.stderr.isatty():
            disable_progress_bars()
        # A download may have no bar, and a hub that is not reached is asked for half a minute.
        waiting = threading.Timer(_TELL_S, log.info, ("waiting for the hub: %s", self.name))
        waiting.daemon = True
        waiting.start()
        try:
            yield
        except BadInputError:
            raise
        except Exception as error:
            if (line := refusal(self, error)) is None:
                raise
            raise BadInputError(line) from error
        finally:
            waiting.cancel()


def refusal(repository: HubRepository, error: Exception) -> str | None:
    """Return what an error of the hub's library means for the user, or None for a fault in code."""
    status, kind = _status(error), repository.kind
    meaning = next((text for types, text in _meanings() if isinstance(error, types)), None)
    if meaning is None:
        return None
    if meaning is _UNREACHED and status in _UNAUTHORIZED:
        meaning = _NOT_LET_IN
    said = meaning.format(
        local=kind.local,
        noun=kind.noun,
        hint=kind.hint,
        sign_in=kind.sign_in,
        revision=repository.revision,
        status=status,
        error=type(error).__name__,
        detail=(str(error).splitlines() or [""])[0],
    )
    return f"{kind.option}{repository.name} {said}"


_UNAUTHORIZED: Final = (401, 403)
_NOT_LET_IN: Final = (
    "is not a {local} here and the hub refuses it (HTTP {status}); {sign_in} or run: hf auth login"
)
_UNREACHED: Final = (
    "is not a {local} here and the hub cannot be reached ({error}); go online, or pass a {local}"
)

_UNREADABLE: Final = (
    "cannot be read from the hub or its cache ({error}: {detail}); check HF_ENDPOINT, the token "
    "and the proxy, or remove it from the cache"
)


def _meanings() -> tuple[tuple[tuple[type[Exception], ...], str], ...]:
    """Return what errors mean; the first line that fits is said, so the special ones go first."""
    from huggingface_hub import errors

    unreached, unread = _http_errors()
    reaching = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, *unreached)
    # A sign-in page in place of the hub, a damaged cache, and a malformed token or proxy end here.
    reading: tuple[type[Exception], ...] = (ValueError, *_errors_of(errors), *unread)
    return (
        (
            (errors.GatedRepoError,),
            "is gated on the hub; accept its terms there, then {sign_in} or run: hf auth login",
        ),
        ((errors.RevisionNotFoundError,), "has no revision {revision!r} on the hub"),
        (
            (errors.RepositoryNotFoundError,),
            "is neither a {local} here nor a {noun} the hub shows you{hint}",
        ),
        ((errors.HFValidationError,), "is neither a {local} here nor a valid hub id"),
        # requests counts a page that is no JSON among the failures to reach a server.
        ((json.JSONDecodeError,), _UNREADABLE),
        ((*reaching, ConnectionError, TimeoutError), _UNREACHED),
        (
            (OSError,),
            "needs the hub's cache, which cannot be used ({detail}); make room in it, or set "
            "HF_HOME to another folder",
        ),
        (reading, _UNREADABLE),
    )


_HTTP_CLIENTS: Final = {"requests": "RequestException", "httpx": "HTTPError", "httpx2": "HTTPError"}
"""What releases of huggingface_hub fetch with, and its error for a hub that is not reached."""


def _http_errors() -> tuple[list[type[Exception]], list[type[Exception]]]:
    """Return errors of the hub library's HTTP client: the hub is not reached, and all of them."""
    unreached: list[type[Exception]] = []
    every: list[type[Exception]] = []
    for name, base in _HTTP_CLIENTS.items():
        # The library has imported the one that raised.
        if (client := sys.modules.get(name)) is not None:
            unreached.append(getattr(client, base))
            every.extend(_errors_of(client))
    return unreached, every


def _errors_of(module: ModuleType) -> Iterator[type[Exception]]:
    """Yield the errors that a library exports."""
    for each in vars(module).values():
        if isinstance(each, type) and issubclass(each, Exception):
            yield each


def _status(error: BaseException | None) -> int | None:
    """Return the HTTP status behind an error; the library raises some errors from others."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            return int(response.status_code)
        error = error.__cause__
    return None
