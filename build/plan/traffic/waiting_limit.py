"""When there should be another replica: how many requests may wait at each, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from minitron_trt.build.plan.traffic.service_times import ServiceTimes

# An assumption: no load was measured at which more replicas pay.
_SLOTS_OF_ONE: Final = 8


@dataclass(frozen=True, slots=True)
class WaitingLimit:
    """How many requests may wait at a replica before there should be another one."""

    requests: int
    reason: str


def limit_by_slots(slots: int) -> WaitingLimit:
    """Return the limit where no deadline gives one."""
    reason = f"an eighth of the {slots} sequences that a replica runs at once"
    return WaitingLimit(max(slots // _SLOTS_OF_ONE, 1), reason)


def limit_by_deadline(times: ServiceTimes, ttft_s: float) -> WaitingLimit:
    """Return the limit that leaves the last one its first token in time."""
    # With all slots taken: the rest of a step, then one with the prompt.
    full_s = times.step_s + times.slots * times.token_s
    left_s = ttft_s - 1.5 * full_s - times.prompt_s
    reason = (
        f"so many get slots, at {times.capacity:.3g} requests/s, within the {ttft_s:g} s to the "
        "first token"
    )
    return WaitingLimit(max(math.floor(left_s * times.capacity), 1), reason)
