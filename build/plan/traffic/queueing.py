"""A replica under a rate of requests, in closed form.

Requests arrive at random (Poisson). While n of them are there, min(n, slots) run and share the
engine's steps, and the rest wait in line: processor sharing at a rate that depends on n. Then n is
a chain of births and deaths, whose probabilities are products:

    p(n) / p(n - 1) = rate / requests_per_s(min(n, slots))

Of a station that shares its work these hold for any distribution of the lengths, not only for the
exponential one (Kelly's symmetric queues); of the line behind full slots only for that, and with
less variable lengths it is shorter. Little's law turns numbers of requests into times.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from minitron_trt.build.plan.traffic.service_times import ServiceTimes


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """Means over time and requests at one replica; `waits` is the share that finds no free slot."""

    utilization: float
    running: float
    waiting: float
    waits: float
    ttft_s: float
    itl_s: float
    latency_s: float


def queue_figures(times: ServiceTimes, rate: float) -> QueueFigures:
    """Return what `rate` requests a second see; it must be below the capacity."""
    chances, beyond = _chances(times, rate)
    utilization = rate / times.capacity
    idle, waits = chances[0], chances[-1] + beyond
    running = sum(n * chance for n, chance in enumerate(chances)) + times.slots * beyond
    # Behind full slots each further request is less likely by the load: a geometric series.
    waiting = beyond / (1 - utilization)
    wait_s, served_s = waiting / rate, running / rate
    first_s = _first_token_s(times, rate, running=running, busy=1 - idle)
    gaps = times.output_len - 1
    return QueueFigures(
        utilization=utilization,
        running=running,
        waiting=waiting,
        waits=waits,
        ttft_s=wait_s + first_s,
        # Both are approximations: their difference must not promise less than a request alone
        # takes.
        itl_s=max(served_s - first_s, times.itl_s * gaps) / gaps if gaps else 0.0,
        latency_s=wait_s + (max(served_s, first_s) if gaps else first_s),
    )


def _chances(times: ServiceTimes, rate: float) -> tuple[list[float], float]:
    """Return the chances of 0 to `slots` requests, and of more."""
    # Logarithms, since products over thousands of slots leave the range of floats.
    logs = [0.0]
    for n in range(1, times.slots + 1):
        logs.append(logs[-1] + math.log(rate / times.requests_per_s(n)))
    highest = max(logs)
    weights = [math.exp(each - highest) for each in logs]
    load = rate / times.capacity
    beyond = weights[-1] * load / (1 - load)
    total = sum(weights) + beyond
    return [weight / total for weight in weights], beyond / total


def _first_token_s(times: ServiceTimes, rate: float, *, running: float, busy: float) -> float:
    """Return the time to first token of a request that finds a free slot.

    It comes during a step and joins the next, with those that came during the same step. More
    requests come during long steps than during short ones.
    """
    # The share of time that prompts take. With answers of one token it is as near to 1 as the load,
    # and what it leaves is a divisor below.
    prompts = min(rate * times.prompt_s, 0.99)
    decoding_s = times.step_s + running * times.token_s
    mean_s = decoding_s / (1 - prompts)
    # Of which the second part is variance / mean: steps with prompts are met more often.
    met_s = busy * mean_s + times.prompt_s * prompts / (1 - prompts**2)
    joined_s = decoding_s * times.prompt_steps + times.prompt_s * (1 + rate * met_s)
    return met_s / 2 + joined_s
