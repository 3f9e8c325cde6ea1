"""The names by which the parts of one model find each other, as llama-gguf-split gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from minitron_trt.errors import BadInputError

_PART: Final = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PartName:
    """A name like `model-00001-of-00003.gguf`: part 1 of 3, counted from 1."""

    stem: str
    number: int
    count: int

    @classmethod
    def parse(cls, name: str) -> PartName | None:
        """Read the name of a file, or a path; None when it is no part's."""
        match = _PART.fullmatch(name)
        return match and cls(match["stem"], int(match["number"]), int(match["count"]))

    def __str__(self) -> str:
        return f"{self.stem}-{self.number:05d}-of-{self.count:05d}.gguf"

    def check_first(self, path: object) -> None:
        """Raise BadInputError for another part than the first, which opens them all."""
        if self.number != 1:
            raise BadInputError(
                f"{path} is part {self.number} of {self.count}; pass the first, "
                f"{PartName(self.stem, 1, self.count)}, which opens the others"
            )

    def others(self) -> Iterator[str]:
        """Yield the names of the parts after the first."""
        for number in range(2, self.count + 1):
            yield str(PartName(self.stem, number, self.count))
