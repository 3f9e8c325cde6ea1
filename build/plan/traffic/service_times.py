"""What requests take of one replica: three times, from which everything about a queue follows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from minitron_trt.build.engine_model import EngineModel
from minitron_trt.build.plan.roofline import prompt_work, step_work, token_work
from minitron_trt.build.plan.traffic.efficiency import Efficiency
from minitron_trt.gpus import Gpu


@dataclass(frozen=True, slots=True)
class ServiceTimes:
    """A step takes `step_s`, `token_s` more for each sequence and `prompt_s` for each prompt.

    A replica runs up to `slots` requests at once, each of which takes a step for its prompt and one
    for each token after the first, on average; a step takes up to `step_tokens` of prompts.
    """

    step_s: float
    token_s: float
    prompt_s: float
    input_len: int
    output_len: int
    slots: int
    step_tokens: int

    @property
    def request_s(self) -> float:
        """Return what a request adds to the steps that it shares."""
        return self.prompt_s + (self.output_len - 1) * self.token_s

    @property
    def prompt_steps(self) -> int:
        """Return the steps over which one prompt is spread."""
        return -(-self.input_len // self.step_tokens)

    @property
    def steps(self) -> int:
        """Return the steps of one request."""
        return self.prompt_steps + self.output_len - 1

    @property
    def ttft_s(self) -> float:
        """Return the time to first token of a request that is alone."""
        return self.prompt_s + self.prompt_steps * self.step_s

    @property
    def itl_s(self) -> float:
        """Return the time between tokens of a request that is alone."""
        return self.step_s + self.token_s

    def requests_per_s(self, running: int) -> float:
        """Return how many requests end a second while so many run; the others take their place."""
        return running / (self.steps * self.step_s + running * self.request_s)

    @property
    def capacity(self) -> float:
        """Return the requests a second at which all slots are busy."""
        return self.requests_per_s(self.slots)

    def slots_within(self, itl_s: float) -> int:
        """Return how many requests may run at once for tokens to come so fast, at least one."""
        room_s = self.steps * (itl_s - self.step_s)
        return max(int(room_s / self.request_s), 1)

    def slower(self, factor: float) -> ServiceTimes:
        """Return the same replica were all its times longer by a factor."""
        return replace(
            self,
            step_s=self.step_s * factor,
            token_s=self.token_s * factor,
            prompt_s=self.prompt_s * factor,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record that --json prints."""
        return {
            "step_ms": round(self.step_s * 1e3, 4),
            "token_ms": round(self.token_s * 1e3, 5),
            "prompt_ms": round(self.prompt_s * 1e3, 3),
        }


def service_times(
    model: EngineModel,
    gpu: Gpu,
    found: Efficiency,
    *,
    input_len: int,
    output_len: int,
    slots: int,
    step_tokens: int,
) -> ServiceTimes:
    """Return a replica's times at the efficiencies that were found."""
    step, token, prompt = (
        found.seconds(work, model.precision)
        for work in (
            step_work(model, gpu),
            token_work(model, gpu, input_len, output_len),
            prompt_work(model, gpu, input_len),
        )
    )
    return ServiceTimes(step, token, prompt, input_len, output_len, slots, step_tokens)
