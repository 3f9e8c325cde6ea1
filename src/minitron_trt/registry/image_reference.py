"""Where an image lies: HOST[:PORT]/NAME[:TAG] or HOST[:PORT]/NAME@DIGEST."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from minitron_trt.errors import UsageError
from minitron_trt.host.addresses import is_loopback

# By OCI's distribution specification. A host is told from a name by its dot, colon or "localhost".
_HOST: Final = (
    r"(?P<host>localhost|[a-zA-Z0-9.-]+\.[a-zA-Z0-9.-]+|[a-zA-Z0-9.-]+(?=:\d)|\[[0-9a-fA-F:]+\])"
    r"(?P<port>:\d{1,5})?/"
)
_NAME: Final = (
    r"(?P<name>[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*)"
    r"(?::(?P<tag>\w[\w.-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_REFERENCE: Final = re.compile(_HOST + _NAME, re.ASCII)
_IMAGE: Final = re.compile(f"(?:{_HOST})?{_NAME}", re.ASCII)


def check_image(option: str, text: str) -> None:
    """Raise UsageError for what no container engine takes for an image; a host may be left out."""
    if _IMAGE.fullmatch(text) is None:
        raise UsageError(
            f"{option} {text!r} is no reference of an image; expected [HOST[:PORT]/]NAME[:TAG], "
            "like registry.example.org/models/server:1, in lower case"
        )


@dataclass(frozen=True, slots=True)
class Reference:
    """A place in a registry; `version` is a tag or a digest, "" where none is named."""

    host: str
    name: str
    version: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference; UsageError when it is none.

        A registry must be named: docker's own would be the wrong guess for an engine.
        """
        match = _REFERENCE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r} is no place in a registry; expected HOST[:PORT]/NAME[:TAG], like "
                "registry.example.org/engines/minitron-8b:fp8, in lower case"
            )
        host = match["host"] + (match["port"] or "")
        return cls(host, match["name"], match["digest"] or match["tag"] or "")

    def at(self, version: str) -> Reference:
        """Return the same place at a tag or digest."""
        return replace(self, version=version)

    @property
    def is_loopback(self) -> bool:
        """Say whether the registry is on this machine, where docker speaks plain HTTP, too."""
        return is_loopback(re.sub(r":\d+$", "", self.host).strip("[]"))

    @property
    def repository(self) -> str:
        """Return the place without a tag or digest."""
        return f"{self.host}/{self.name}"

    def __str__(self) -> str:
        mark = "@" if self.version.startswith("sha256:") else ":"
        return f"{self.repository}{mark}{self.version}" if self.version else self.repository
