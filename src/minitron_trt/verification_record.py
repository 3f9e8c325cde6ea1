"""What manifests keep of a comparison with the source, from the checkpoint to the repository."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from minitron_trt.records import check_record

_KEY: Final = "verification"


@dataclass(frozen=True, slots=True)
class VerificationRecord:
    """A checkpoint that was found to compute what its source does; errors are shares."""

    tokens: int
    bound: float
    largest_layer_error: float
    layer: int  # that has it
    kl: float
    same_top: float

    def __str__(self) -> str:
        return (
            f"verified against its source: layers within {self.largest_layer_error:.2g} "
            f"(bound {self.bound:g}), KL {self.kl:.2g}, same best token {self.same_top:.1%}, "
            f"on {self.tokens} tokens"
        )


def verification_facts(record: VerificationRecord | None) -> dict[str, Any]:
    """Return what a manifest says of a verification: nothing where there was none."""
    return {_KEY: asdict(record)} if record else {}


def recorded_verification(facts: Mapping[str, Any]) -> VerificationRecord | None:
    """Return what a manifest's facts say of a verification; None where there was none.

    ValueError when the record is damaged.
    """
    return check_record(facts[_KEY], VerificationRecord) if facts.get(_KEY) else None
