"""Simulated arrivals at one replica: events one after another, by a seed.

It knows of an engine what `ServiceTimes` says of it, and does with requests what an in-flight
batching executor does: a step takes prompts from the line into free slots, up to its tokens, and
gives every running sequence a token. Unlike the formula it has percentiles.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from minitron_trt.build.plan.traffic.service_times import ServiceTimes


@dataclass(slots=True)
class _Request:
    arrival_s: float
    output_len: int
    prompt_left: int
    first_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Simulated:
    """What requests of a simulated hour or minute saw, sorted; and means over time."""

    ttfts_s: Sequence[float]
    itls_s: Sequence[float]
    latency_s: float
    running: float
    waiting: float


@dataclass(slots=True)
class _Replica:
    """The state of a replica: who waits, whose prompt is computed, who decodes until which step."""

    times: ServiceTimes
    now_s: float = 0.0
    step: int = 0
    waiting: deque[_Request] = field(default_factory=deque)
    prompts: deque[_Request] = field(default_factory=deque)
    decoding: list[tuple[int, int, _Request]] = field(default_factory=list)

    @property
    def running(self) -> int:
        """Return how many slots are taken."""
        return len(self.prompts) + len(self.decoding)

    def admit(self) -> None:
        """Give free slots to those who wait."""
        while self.waiting and self.running < self.times.slots:
            self.prompts.append(self.waiting.popleft())

    def run_step(self) -> list[_Request]:
        """Run one step, and return the requests that are done with their prompts."""
        room, done = self.times.step_tokens, []
        while self.prompts and room:
            taken = min(self.prompts[0].prompt_left, room)
            self.prompts[0].prompt_left -= taken
            room -= taken
            if not self.prompts[0].prompt_left:
                done.append(self.prompts.popleft())
        # A chunk takes its share of a prompt's time, whatever prompts it is of.
        share = (self.times.step_tokens - room) / self.times.input_len
        self._advance(1, share * self.times.prompt_s)
        for request in done:
            request.first_s = self.now_s
        return done

    def run_until(self, until_s: float) -> None:
        """Run the steps in which nothing but tokens come: up to an arrival or the next end."""
        each_s = self.times.step_s + len(self.decoding) * self.times.token_s
        # After the last arrival the time is infinite, and infinity has no ceiling.
        before_arrival = max(math.ceil(min((until_s - self.now_s) / each_s, 1e9)), 1)
        self._advance(min(before_arrival, self.decoding[0][0] - self.step), 0.0)

    def _advance(self, steps: int, prompts_s: float) -> None:
        each_s = self.times.step_s + len(self.decoding) * self.times.token_s
        self.now_s += steps * each_s + prompts_s
        self.step += steps


def simulate(
    times: ServiceTimes, rate: float, *, requests: int, seed: int, fixed_lengths: bool = True
) -> Simulated:
    """Return what `requests` of them see at `rate` a second, after a warm-up.

    Without `fixed_lengths` output lengths are geometric, with the same mean.
    """
    chance = random.Random(seed)
    arrivals, at_s = [], 0.0
    # What the first fifth sees is not counted: it comes to an empty replica.
    for _ in range(requests + requests // 4):
        at_s += chance.expovariate(rate)
        length = times.output_len if fixed_lengths else _geometric(chance, times.output_len)
        arrivals.append(_Request(at_s, length, times.input_len))
    return _run(_Replica(times), deque(arrivals), warm_up=requests // 4)


def _geometric(chance: random.Random, mean: int) -> int:
    if mean == 1:
        return 1
    # By the inverse of the distribution; random() can be 0 and never 1, hence 1 - random().
    return 1 + int(math.log(1 - chance.random()) / math.log(1 - 1 / mean))


def _run(replica: _Replica, arrivals: deque[_Request], *, warm_up: int) -> Simulated:
    ended: list[tuple[float, _Request]] = []
    begin_s, end_s = arrivals[warm_up].arrival_s, arrivals[-1].arrival_s
    running_s = waiting_s = 0.0
    order = 0
    while arrivals or replica.running:
        if not replica.running:
            replica.now_s = max(replica.now_s, arrivals[0].arrival_s)
        while arrivals and arrivals[0].arrival_s <= replica.now_s:
            replica.waiting.append(arrivals.popleft())
        replica.admit()
        start_s, running, waiting = replica.now_s, replica.running, len(replica.waiting)
        if replica.prompts:
            for request in replica.run_step():
                last = replica.step + request.output_len - 1
                # Of two that end with the same step the heap would compare the requests, which have
                # no order.
                heapq.heappush(replica.decoding, (last, order, request))
                order += 1
        else:
            replica.run_until(arrivals[0].arrival_s if arrivals else math.inf)
        if begin_s <= start_s < end_s:
            running_s += running * (replica.now_s - start_s)
            waiting_s += waiting * (replica.now_s - start_s)
        while replica.decoding and replica.decoding[0][0] <= replica.step:
            ended.append((replica.now_s, heapq.heappop(replica.decoding)[2]))
    return _summary(
        ended, begin_s, running=running_s / (end_s - begin_s), waiting=waiting_s / (end_s - begin_s)
    )


def _summary(
    ended: list[tuple[float, _Request]], begin_s: float, *, running: float, waiting: float
) -> Simulated:
    counted = [(end_s, request) for end_s, request in ended if request.arrival_s >= begin_s]
    return Simulated(
        ttfts_s=sorted(request.first_s - request.arrival_s for _, request in counted),
        itls_s=sorted(
            (end_s - request.first_s) / (request.output_len - 1)
            for end_s, request in counted
            if request.output_len > 1
        ),
        latency_s=sum(end_s - request.arrival_s for end_s, request in counted) / len(counted),
        running=running,
        waiting=waiting,
    )
