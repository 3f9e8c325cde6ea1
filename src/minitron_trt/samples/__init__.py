"""The small trained models that ship with the package."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES: Final = ("solar-llama", "solar-nemotron")
SAMPLES: Final[Mapping[str, Path]] = MappingProxyType(
    {name: Path(__file__).parent / name for name in NAMES}
)


def sample_folder(name: str) -> Path:
    """Return the shipped Hugging Face folder of a sample; an unknown name is a `KeyError`."""
    return SAMPLES[name]
