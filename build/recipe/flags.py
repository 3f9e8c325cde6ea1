"""The flags that each version of `trtllm-build` knows, and a check of arguments against them."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from minitron_trt.build.containers import LAST_PRERELEASE, TRTLLM_VERSION
from minitron_trt.errors import UnsupportedError, UsageError

_LAST_BUILDER: Final = (1, 2)  # later releases have no trtllm-build
_DATA: Final = Path(__file__).with_name("trtllm_flags.json")


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag; its type is int, path, text, list, choice (of `choices`) or switch (no value)."""

    name: str
    type: str
    choices: tuple[str, ...] = ()
    default: str | int | None = None
    deprecated: bool = False

    def check(self, value: str | None) -> None:
        """Raise UsageError when a value is not what the flag takes; None is no value."""
        if (value is None) != (self.type == "switch"):
            raise UsageError(f"--{self.name} takes {'a' if value is None else 'no'} value")
        if self.type == "int" and not re.fullmatch(r"\d+", value or ""):
            raise UsageError(f"--{self.name} is {value!r}; expected a whole number")
        if self.type == "choice" and value not in self.choices:
            raise UsageError(f"--{self.name} is {value!r}; expected {', '.join(self.choices)}")


def minor_of(version: str) -> str:
    """Return `1.2` of `1.2.1`; UnsupportedError when that version has no engine builder we know."""
    numbers = re.match(r"(\d+)\.(\d+)", version)
    if not numbers:
        raise UsageError(f"TensorRT-LLM version {version!r} is not a version like {TRTLLM_VERSION}")
    known: tuple[str, ...] = tuple(_data()["versions"])
    minor = f"{numbers[1]}.{numbers[2]}"
    if minor in known:
        return minor
    if (int(numbers[1]), int(numbers[2])) > _LAST_BUILDER:
        raise UnsupportedError(
            f"TensorRT-LLM {version} is newer than {TRTLLM_VERSION}, the last release with an "
            f"engine builder ({LAST_PRERELEASE} is the last pre-release, and its flags are not "
            f"known here); build with --trtllm-version {TRTLLM_VERSION}, or serve the model "
            "without an engine: "
            "minitron-trt triton-repo MODEL --runtime llmapi"
        )
    raise UnsupportedError(f"TensorRT-LLM {version} is too old; known are {', '.join(known)}")


@functools.cache
def flags_of(version: str) -> Mapping[str, Flag]:
    """Return the flags of a version by name."""
    minor, data = minor_of(version), _data()
    versions = data["versions"]
    return MappingProxyType(
        {
            name: Flag(
                name,
                record["type"],
                tuple(record.get("choices", ())),
                record.get("default"),
                record.get("deprecated", False),
            )
            for main, record in data["flags"].items()
            for name in (main, *record.get("aliases", ()))
            # No flag is known to have come after the oldest of these versions: the last is enough.
            if versions.index(minor) <= versions.index(record.get("last", versions[-1]))
        }
    )


def check_arguments(arguments: Iterable[str], version: str) -> None:
    """Raise when a version would not take the arguments, each `--name=value` or `--switch`."""
    flags = flags_of(version)
    for argument in arguments:
        name, equals, value = argument.removeprefix("--").partition("=")
        if name not in flags:
            raise UnsupportedError(f"trtllm-build of TensorRT-LLM {version} has no flag --{name}")
        flags[name].check(value if equals else None)


@functools.cache
def _data() -> Mapping[str, Any]:
    record: Mapping[str, Any] = json.loads(_DATA.read_text())
    return record
