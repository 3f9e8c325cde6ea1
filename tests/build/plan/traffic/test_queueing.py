"""The queue's closed form beside simulated arrivals."""

from __future__ import annotations

from dataclasses import replace
from statistics import fmean

import pytest

from minitron_trt.build.plan.traffic.arrivals import simulate
from minitron_trt.build.plan.traffic.queueing import queue_figures
from minitron_trt.build.plan.traffic.replicas import WAITS
from minitron_trt.build.plan.traffic.service_times import ServiceTimes

CASES = {
    "chat": ServiceTimes(
        step_s=0.004,
        token_s=0.00006,
        prompt_s=0.03,
        input_len=1000,
        output_len=1000,
        slots=256,
        step_tokens=8192,
    ),
    "summaries": ServiceTimes(
        step_s=0.012,
        token_s=0.0004,
        prompt_s=0.08,
        input_len=2048,
        output_len=128,
        slots=64,
        step_tokens=8192,
    ),
    "books": ServiceTimes(
        step_s=0.006,
        token_s=0.0008,
        prompt_s=0.6,
        input_len=20000,
        output_len=500,
        slots=16,
        step_tokens=8192,
    ),
    "few slots": ServiceTimes(
        step_s=0.005,
        token_s=0.0001,
        prompt_s=0.01,
        input_len=500,
        output_len=200,
        slots=8,
        step_tokens=8192,
    ),
    "one token": ServiceTimes(
        step_s=0.005,
        token_s=0.0001,
        prompt_s=0.05,
        input_len=2000,
        output_len=1,
        slots=64,
        step_tokens=8192,
    ),
}
LOADS = (0.05, 0.3, 0.6, 0.8, 0.9)
# Where more wait than a plan allows, the line is that of more variable lengths: see queueing.
TRIED = [
    (name, load)
    for name, times in CASES.items()
    for load in LOADS
    if queue_figures(times, load * times.capacity).waits <= WAITS
]


def test_most_loads_are_tried() -> None:
    assert len(TRIED) >= 18


@pytest.mark.parametrize(("case", "load"), TRIED)
def test_the_formula_is_within_a_tenth_of_simulated_arrivals(case: str, load: float) -> None:
    times = CASES[case]
    rate = load * times.capacity
    formula = queue_figures(times, rate)
    seen = simulate(times, rate, requests=4000, seed=1)

    assert formula.ttft_s == pytest.approx(fmean(seen.ttfts_s), rel=0.1)
    assert formula.latency_s == pytest.approx(seen.latency_s, rel=0.1)
    if times.output_len > 1:
        assert formula.itl_s == pytest.approx(fmean(seen.itls_s), rel=0.1)
        assert formula.running == pytest.approx(seen.running, rel=0.1)


def test_lengths_that_vary_change_no_mean() -> None:
    times = CASES["summaries"]
    rate = 0.6 * times.capacity
    formula = queue_figures(times, rate)
    seen = simulate(times, rate, requests=20_000, seed=2, fixed_lengths=False)

    assert formula.running == pytest.approx(seen.running, rel=0.1)
    assert formula.itl_s == pytest.approx(fmean(seen.itls_s), rel=0.1)
    assert formula.ttft_s == pytest.approx(fmean(seen.ttfts_s), rel=0.1)


def test_a_request_that_is_alone_takes_its_steps() -> None:
    times = CASES["books"]
    seen = simulate(times, 1e-6, requests=8, seed=3)
    # Three steps of 8192, 8192 and 3616 tokens, then 499 that decode.
    first_s = 3 * 0.006 + 0.6

    assert seen.ttfts_s == pytest.approx([first_s] * len(seen.ttfts_s))
    assert seen.itls_s == pytest.approx([0.0068] * len(seen.itls_s))
    assert queue_figures(times, 1e-6).ttft_s == pytest.approx(first_s, rel=1e-3)


def test_arrivals_come_by_the_seed() -> None:
    times = CASES["few slots"]

    assert simulate(times, 2.0, requests=50, seed=1) == simulate(times, 2.0, requests=50, seed=1)
    assert simulate(times, 2.0, requests=50, seed=1) != simulate(times, 2.0, requests=50, seed=2)


def test_simulated_requests_obey_littles_law_at_any_load() -> None:
    times = CASES["few slots"]
    rate = 0.95 * times.capacity
    seen = simulate(times, rate, requests=20_000, seed=4)

    assert seen.running + seen.waiting == pytest.approx(rate * seen.latency_s, rel=0.05)


def test_above_its_capacity_a_replica_falls_behind() -> None:
    times = CASES["few slots"]
    short, long = (
        simulate(times, 1.3 * times.capacity, requests=requests, seed=5)
        for requests in (1000, 4000)
    )

    assert long.latency_s > 2 * short.latency_s


def test_slots_within_a_deadline_are_the_most_that_keep_it() -> None:
    times = CASES["chat"]
    slots = times.slots_within(0.015)

    def itl_s(running: int) -> float:
        return running / (times.requests_per_s(running) * times.steps)

    assert itl_s(slots) <= 0.015 < itl_s(slots + 1)
    assert replace(times, slots=slots).capacity < times.capacity
