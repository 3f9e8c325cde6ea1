"""Where a Pod's repository comes from: a claim, an OCI image, or what its start fetches."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from minitron_trt.build.trtllm.cluster.pod_parts import is_name
from minitron_trt.deploy.settings import check_web_url
from minitron_trt.errors import UsageError
from minitron_trt.registry.image_reference import check_image

CLAIM: Final = "claim"
IMAGE: Final = "image"
FETCH: Final = "fetch"
HUB: Final = "hub"
"""The form of `--model`: an id at a commit, which the Pod's start converts."""
HUB_FOLDER: Final = "repository"
FORMS: Final = (CLAIM, IMAGE, FETCH)
VOLUME: Final = "models"
_EXPECTED: Final = "expected claim:NAME[/FOLDER], image:REFERENCE or fetch:URL"


@dataclass(frozen=True, slots=True)
class Storage:
    """One form, and what it names: a claim with a folder of it, an image, a URL, or a hub id."""

    form: str
    place: str
    folder: str = ""

    @classmethod
    def parse(cls, text: str) -> Storage:
        """Read what `--storage` says; UsageError names the forms that there are."""
        form, _, place = text.partition(":")
        if form == HUB and place:
            return cls(form, place, HUB_FOLDER)
        if form not in FORMS or not place:
            raise UsageError(f"--storage {text!r} is no known form of storage; {_EXPECTED}")
        folder = ""
        if form == CLAIM:
            place, _, folder = place.partition("/")
            if not is_name(place):
                raise UsageError(
                    f"--storage {text!r}: {place!r} is no name of a claim; {_EXPECTED}"
                )
            if ".." in PurePosixPath(folder).parts or folder.startswith("/"):
                raise UsageError(f"--storage {text!r}: {folder!r} leads out of the claim")
        elif form == IMAGE:
            check_image("--storage image", place)
        elif form == FETCH:
            check_web_url("--storage fetch", place)
        return cls(form, place, folder)

    def __str__(self) -> str:
        """Return the storage as `--storage` takes it."""
        folder = f"/{self.folder}" if self.folder and self.form == CLAIM else ""
        return f"{self.form}:{self.place}{folder}"

    @property
    def is_scratch(self) -> bool:
        """Say whether the repository lies in the Pod's own scratch space."""
        return self.form in (FETCH, HUB)

    def volume(self) -> dict[str, Any]:
        """Return the volume of a Pod; one that is fetched lies in the Pod's own scratch space."""
        if self.form == CLAIM:
            return {"persistentVolumeClaim": {"claimName": self.place, "readOnly": True}}
        if self.form == IMAGE:
            return {"image": {"reference": self.place, "pullPolicy": "IfNotPresent"}}
        return {"emptyDir": {}}

    def mount(self, at: str, *, read_only: bool = True) -> dict[str, Any]:
        """Return where a container has it."""
        folder = {"subPath": self.folder} if self.folder else {}
        return {"name": VOLUME, "mountPath": at, "readOnly": read_only, **folder}
