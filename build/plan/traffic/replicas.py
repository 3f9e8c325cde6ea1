"""How many replicas keep a rate of requests within its deadlines, and what they see there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import ceil, inf
from typing import Any, Final

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.plan.roofline import (
    Work,
    prompt_work,
    request_work,
    step_work,
    token_work,
)
from minitron_trt.build.plan.traffic.arrivals import Simulated, simulate
from minitron_trt.build.plan.traffic.efficiency import Uncertainty, efficiency, uncertainty
from minitron_trt.build.plan.traffic.queueing import QueueFigures, queue_figures
from minitron_trt.build.plan.traffic.service_times import ServiceTimes, service_times
from minitron_trt.build.plan.traffic.waiting_limit import (
    WaitingLimit,
    limit_by_deadline,
    limit_by_slots,
)
from minitron_trt.errors import UnsupportedError, UsageError
from minitron_trt.gpus import Gpu

WAITS: Final = 0.01
"""The share of requests that may find no free slot."""
DEADLINE_QUANTILE: Final = 0.99
"""The share of requests that must keep a deadline."""
# Far beyond any service on either side: floats of queues neither overflow nor vanish between them,
# and the search of replicas ends soon.
_FEWEST_REQUESTS_PER_S: Final = 1e-9
_MOST_REQUESTS_PER_S: Final = 1e9
_LATEST_S: Final = 1e9
_SIMULATED_REQUESTS: Final = 1000
# Fixed, so that equal plans print equal figures.
_SEED: Final = 0


@dataclass(frozen=True, slots=True)
class Demand:
    """Requests a second, their lengths, and within what time 99 of 100 must see their tokens.

    `ttft_s` is to the first token, `itl_s` the mean between a request's later ones; None is any.
    """

    rate: float
    input_len: int
    output_len: int
    ttft_s: float | None = None
    itl_s: float | None = None

    def __post_init__(self) -> None:
        if not _FEWEST_REQUESTS_PER_S <= self.rate <= _MOST_REQUESTS_PER_S:
            raise UsageError(
                f"--rate {self.rate:g} is no rate; expected requests a second, from "
                f"{_FEWEST_REQUESTS_PER_S:g} to {_MOST_REQUESTS_PER_S:g}"
            )
        for option, limit_s in (("--ttft", self.ttft_s), ("--itl", self.itl_s)):
            if limit_s is not None and not 0 < limit_s <= _LATEST_S:
                raise UsageError(
                    f"{option} {limit_s:g} is no deadline; expected seconds, above 0 and at most "
                    f"{_LATEST_S:g}"
                )

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {"rate": self.rate, "ttft_s": self.ttft_s, "itl_s": self.itl_s}


@dataclass(frozen=True, slots=True)
class Roofline:
    """The least that a prompt's step, a token's, and a request in a full batch take."""

    prompt: Work
    token: Work
    request: Work

    def replicas(self, rate: float) -> int:
        """Return the replicas below which no software could serve a rate."""
        return ceil(rate * self.request.least_s)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Replicas for a demand, with what one of them sees: `queue` in closed form, `simulated` too.

    `slower_replicas` is their number should the GPU be slower by the uncertainty's ninth decile;
    None where a deadline would then not be kept.
    """

    demand: Demand
    times: ServiceTimes
    roofline: Roofline
    uncertainty: Uncertainty
    replicas: int
    slower_replicas: int | None
    queue: QueueFigures
    simulated: Simulated

    @property
    def rate_each(self) -> float:
        """Return the requests a second of one replica."""
        return self.demand.rate / self.replicas

    @property
    def tokens_per_s(self) -> float:
        """Return the output tokens a second of all replicas."""
        return self.demand.rate * self.demand.output_len

    @property
    def waiting_limit(self) -> WaitingLimit:
        """Return how many requests may wait at a replica before there should be another one."""
        if self.demand.ttft_s is None:
            return limit_by_slots(self.times.slots)
        return limit_by_deadline(self.times, self.demand.ttft_s)

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "replicas": self.replicas,
            "replicas_if_slower": self.slower_replicas,
            "replicas_at_least_by_roofline": self.roofline.replicas(self.demand.rate),
            "tokens_per_s": round(self.tokens_per_s, 1),
            "replica": {
                "requests_per_s": round(self.rate_each, 4),
                "requests_per_s_at_most": round(self.times.capacity, 4),
                "tokens_per_s_at_most": round(self.times.capacity * self.demand.output_len, 1),
                "concurrency": round(self.queue.running, 2),
                "concurrency_at_most": self.times.slots,
                "waiting": round(self.queue.waiting, 4),
                "times": self.times.to_json(),
            },
            "time_to_first_token_ms": _times_record(
                self.queue.ttft_s, self.simulated.ttfts_s, self.times.ttft_s, self.roofline.prompt
            ),
            "inter_token_latency_ms": _times_record(
                self.queue.itl_s, self.simulated.itls_s, self.times.itl_s, self.roofline.token
            ),
            "request_latency_ms": {
                "avg": _ms(self.queue.latency_s),
                "simulated_avg": _ms(self.simulated.latency_s),
            },
            "autoscaler": {
                "waiting": self.waiting_limit.requests,
                "reason": self.waiting_limit.reason,
            },
            "uncertainty": self.uncertainty.to_json(),
        }


def _times_record(
    average_s: float, simulated_s: Sequence[float], alone_s: float, least: Work
) -> dict[str, float | str]:
    return {
        "avg": _ms(average_s),
        **{f"simulated_p{q}": _ms(quantile(simulated_s, q / 100)) for q in (50, 90, 99)},
        "alone": _ms(alone_s),
        "at_least_by_roofline": _ms(least.least_s),
        "roofline_bound_by": least.bound_by,
    }


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value that a share of sorted values does not exceed; 0 of none."""
    return float(ordered[max(ceil(share * len(ordered)) - 1, 0)]) if ordered else 0.0


def plan_traffic(
    model: EngineModel, gpu: Gpu, demand: Demand, *, slots: int, step_tokens: int
) -> Traffic:
    """Return the replicas for a demand; UnsupportedError where no number of them would do."""
    if model.parallelism.pp > 1:
        raise UnsupportedError(
            f"{model.name} has pipeline parallelism {model.parallelism.pp}, of which NVIDIA's "
            "tables have no engine; --rate takes models with --pp 1"
        )
    times = service_times(
        model,
        gpu,
        efficiency(),
        input_len=demand.input_len,
        output_len=demand.output_len,
        slots=slots,
        step_tokens=step_tokens,
    )
    roofline = _roofline(model, gpu, demand, slots)
    _check_deadlines(times, roofline, demand, gpu, model.precision)
    times = _limited(times, demand)
    replicas = _replicas(times, demand)
    trust = uncertainty(model, gpu)
    rate_each = demand.rate / replicas
    return Traffic(
        demand=demand,
        times=times,
        roofline=roofline,
        uncertainty=trust,
        replicas=replicas,
        slower_replicas=_slower_replicas(times.slower(1 + trust.spread.ninth_decile), demand),
        queue=queue_figures(times, rate_each),
        simulated=_simulated(times, rate_each),
    )


def _roofline(model: EngineModel, gpu: Gpu, demand: Demand, slots: int) -> Roofline:
    step = step_work(model, gpu)
    return Roofline(
        prompt=step + prompt_work(model, gpu, demand.input_len),
        token=step + token_work(model, gpu, demand.input_len, demand.output_len),
        request=request_work(model, gpu, demand.input_len, demand.output_len, batch=slots),
    )


def _check_deadlines(
    times: ServiceTimes, roofline: Roofline, demand: Demand, gpu: Gpu, precision: str
) -> None:
    """Raise UnsupportedError for a deadline that a request misses that is alone."""
    for option, deadline_s, alone_s, least, what in (
        ("--ttft", demand.ttft_s, times.ttft_s, roofline.prompt, "the prompt"),
        ("--itl", demand.itl_s, times.itl_s, roofline.token, "a token"),
    ):
        if deadline_s is None or deadline_s >= alone_s:
            continue
        floor = f"{least.least_s * 1e3:.3g} ms"
        took = (
            f"no less than {floor}, by its {least.bound_by}"
            if deadline_s < least.least_s
            else f"{alone_s * 1e3:.3g} ms, as predicted ({floor} at its full {least.bound_by})"
        )
        raise UnsupportedError(
            f"{option} {deadline_s * 1e3:g} ms: even of a request that is alone {what} takes "
            f"{gpu.name} in {precision} {took}; allow more, or take another GPU, precision or --tp"
        )


def _limited(times: ServiceTimes, demand: Demand) -> ServiceTimes:
    """Return a replica that runs no more at once than `itl_s` allows; whoever comes then waits."""
    if demand.itl_s is None:
        return times
    return replace(times, slots=min(times.slots, times.slots_within(demand.itl_s)))


def _replicas(times: ServiceTimes, demand: Demand) -> int:
    least = _smallest(
        ceil(demand.rate / times.capacity),
        lambda count: _finds_slots(times, demand.rate / count),
    )
    if demand.ttft_s is None and demand.itl_s is None:
        return least
    return _smallest(least, lambda count: _keeps(times, demand, demand.rate / count))


def _slower_replicas(times: ServiceTimes, demand: Demand) -> int | None:
    late = demand.ttft_s is not None and times.ttft_s > demand.ttft_s
    slow = demand.itl_s is not None and times.itl_s > demand.itl_s
    return None if late or slow else _replicas(_limited(times, demand), demand)


def _finds_slots(times: ServiceTimes, rate: float) -> bool:
    return rate < times.capacity and queue_figures(times, rate).waits <= WAITS


def _keeps(times: ServiceTimes, demand: Demand, rate: float) -> bool:
    """Return whether 99 of 100 simulated requests keep the deadlines."""
    ttft_s, itl_s = demand.ttft_s or inf, demand.itl_s or inf
    means = queue_figures(times, rate)
    # Means that are late already need no simulation.
    if means.ttft_s > ttft_s or means.itl_s > itl_s:
        return False
    seen = _simulated(times, rate)
    return (
        quantile(seen.ttfts_s, DEADLINE_QUANTILE) <= ttft_s
        and quantile(seen.itls_s, DEADLINE_QUANTILE) <= itl_s
    )


@lru_cache(maxsize=64)
def _simulated(times: ServiceTimes, rate: float) -> Simulated:
    # So many that those who are there at once come and go some ten times.
    requests = _SIMULATED_REQUESTS + 10 * times.slots
    return simulate(times, rate, requests=requests, seed=_SEED)


def _smallest(least: int, enough: Callable[[int], bool]) -> int:
    """Return the smallest count from `least` on that is enough, as all larger ones are, to 1 %."""
    below, count = least - 1, max(least, 1)
    # Each answer may take a simulation, so steps double until one is enough, and the search between
    # ends when 1 % is left.
    more = max(count // 16, 1)
    while not enough(count):
        below, count, more = count, count + more, 2 * more
    while count - below > max(count // 100, 1):
        middle = (below + count) // 2
        below, count = (below, middle) if enough(middle) else (middle, count)
    return count
