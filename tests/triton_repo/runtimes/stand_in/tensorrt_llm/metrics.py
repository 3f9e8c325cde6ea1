"""What the stand-in says a request took."""

from __future__ import annotations

import datetime
import time
from types import SimpleNamespace
from typing import Any


def metrics(arrival: float) -> Any:
    """Return the records of a request that ends now."""
    begin, end = (datetime.timedelta(seconds=s) for s in (arrival, time.monotonic()))
    return SimpleNamespace(
        timing_metrics=SimpleNamespace(
            arrival_time=begin,
            first_scheduled_time=begin,
            first_token_time=begin,
            last_token_time=end,
        ),
        kv_cache_metrics=SimpleNamespace(
            num_new_allocated_blocks=1, num_reused_blocks=2, num_total_allocated_blocks=3
        ),
        speculative_decoding=SimpleNamespace(
            acceptance_rate=0.5, total_accepted_draft_tokens=4, total_draft_tokens=8
        ),
    )
