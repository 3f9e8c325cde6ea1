"""The small trained models that ship with the package."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES: Final = ("solar-llama", "solar-nemotron")
"""They know their corpus by heart, so that what breaks them shows at once."""
AUSTEN_NAMES: Final = ("austen-llama", "austen-nemotron")
"""They do not know `HELD_OUT_TEXT`, so that perplexity tells their precisions apart."""
HELD_OUT_TEXT: Final = Path(__file__).parent / "persuasion.txt"
SAMPLES: Final[Mapping[str, Path]] = MappingProxyType(
    {name: Path(__file__).parent / name for name in (*NAMES, *AUSTEN_NAMES)}
)


def sample_folder(name: str) -> Path:
    """Return the shipped Hugging Face folder of a sample; an unknown name is a `KeyError`."""
    return SAMPLES[name]
