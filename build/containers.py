"""TensorRT-LLM's versions: the one that this package is written for, and the images with each.

An engine loads only where TensorRT-LLM has the version that built it. The images' versions are not
monotone: 25.11 has a release candidate newer than what 25.12 to 26.02 have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from minitron_trt.errors import UnsupportedError

TRTLLM_VERSION: Final = "1.2.1"
"""The last release with an engine builder, and the LLM class that `llmapi` is written for."""
LAST_PRERELEASE: Final = "1.3.0rc20"
"""The last pre-release with an engine builder."""
RECOMMENDED: Final = "26.07"
"""The tag of the image to serve with: those before it have known holes (`security_bulletins`)."""
REPOSITORY: Final = "nvcr.io/nvidia/tritonserver"
_SUFFIX: Final = "-trtllm-python-py3"


@dataclass(frozen=True, slots=True)
class Container:
    """One image; None where its notes do not say."""

    tag: str
    trtllm: str
    tensorrt: str | None = None
    cuda: str | None = None

    @property
    def image(self) -> str:
        """Return the full name to pull."""
        return f"{REPOSITORY}:{self.tag}{_SUFFIX}"


# By the release notes and the support matrix of Triton's images. Where those leave a version open,
# it is None; of 26.03 the matrix can be read as 1.2.0, too.
CONTAINERS: Final = (
    Container("25.08", "0.21", "10.11"),
    Container("25.09", "1.0.0"),
    Container("25.10", "1.0.0", "10.11.0.33", "12.9"),
    Container("25.11", "1.2.0rc2", "10.13.3.9", "13.0"),
    Container("25.12", "1.1.0"),
    Container("26.01", "1.1.0"),
    Container("26.02", "1.1.0"),
    Container("26.03", "1.2.0rc8", "10.14.1.48", "13"),
    Container("26.04", "1.2.1", "10.14.1.48", "13"),
    Container("26.05", "1.2.1", "10.14.1.48", "13"),
    Container("26.06", "1.2.1", "10.14.1.48", "13"),
    Container("26.07", "1.2.1", "10.14.1.48", "13"),
)


def find_container(name: str) -> Container:
    """Return the image of a tag or full image name; UnsupportedError names the known tags."""
    # Not before the last slash: a registry's address has numbers of this form as well.
    tag = re.search(r"(?<![\d.])(\d\d\.\d\d)(?!\d)", name.rpartition("/")[2])
    for container in CONTAINERS:
        if tag and container.tag == tag[1]:
            return container
    raise UnsupportedError(
        f"image {name!r} is not known; known are {CONTAINERS[0].tag} to {CONTAINERS[-1].tag} of "
        f"{REPOSITORY}:TAG{_SUFFIX}"
    )


def containers_with(trtllm: str) -> tuple[Container, ...]:
    """Return the images that carry a version of TensorRT-LLM, oldest first."""
    return tuple(container for container in CONTAINERS if same_version(container.trtllm, trtllm))


def container_for(trtllm: str) -> Container:
    """Return the newest image that carries a version; UnsupportedError names those there are."""
    fitting = containers_with(trtllm)
    if not fitting:
        versions = ", ".join(dict.fromkeys(container.trtllm for container in CONTAINERS))
        raise UnsupportedError(
            f"no Triton image carries TensorRT-LLM {trtllm}; there are {versions}"
        )
    return fitting[-1]


def same_version(one: str, other: str) -> bool:
    """Say whether two versions are the same; 1.2 equals 1.2.0, and a local part does not count."""
    return _parts(one) == _parts(other)


def _parts(version: str) -> tuple[str, ...]:
    public = version.partition("+")[0].lower()
    numbers, candidate = re.match(r"([\d.]*)(.*)", public, re.DOTALL).groups()  # type: ignore[union-attr]
    return (*re.sub(r"(\.0)+$", "", numbers.rstrip(".")).split("."), candidate)
