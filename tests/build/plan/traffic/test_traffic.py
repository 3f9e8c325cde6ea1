"""`plan --rate`: replicas, deadlines, what forbids them, and what is printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result

from minitron_trt.build.engine_model import PRESETS, EngineModel
from minitron_trt.build.plan.plan_text import describe
from minitron_trt.build.plan.recommendation import recommend
from minitron_trt.build.plan.sizing import PlanRequest, make_plan
from minitron_trt.build.plan.traffic.planned_traffic import planned_traffic
from minitron_trt.build.plan.traffic.replicas import Demand, Traffic, plan_traffic, quantile
from minitron_trt.build.recipe.request import BuildRequest
from minitron_trt.errors import UnsupportedError
from minitron_trt.gpus import find_gpu, find_target
from minitron_trt.spec import Parallelism

Command = Callable[..., Result]
MINITRON = EngineModel("minitron-8b", PRESETS["minitron-8b"])


def traffic(demand: Demand, *, gpu: str = "H100", slots: int = 128) -> Traffic:
    return plan_traffic(
        MINITRON.stored_as("fp8"), find_gpu(gpu), demand, slots=slots, step_tokens=8192
    )


def planned(command: Command, *arguments: object) -> dict[str, Any]:
    result = command("plan", *arguments, "--json")

    assert (result.exit_code, result.stderr) == (0, "")
    record: dict[str, Any] = json.loads(result.stdout)
    return record


def test_replicas_let_requests_find_a_slot_and_one_fewer_does_not() -> None:
    found = traffic(Demand(200.0, 1000, 300))
    fewer = traffic(Demand(200.0 * found.replicas / (found.replicas - 1), 1000, 300))

    assert found.queue.waits <= 0.01
    assert found.queue.utilization < 1
    assert fewer.replicas > found.replicas
    assert found.replicas >= found.roofline.replicas(200.0)
    assert found.slower_replicas is not None
    assert found.slower_replicas > found.replicas


def test_deadlines_are_kept_by_99_of_100() -> None:
    free = traffic(Demand(200.0, 2000, 300))
    found = traffic(Demand(200.0, 2000, 300, ttft_s=0.06, itl_s=0.01))

    assert found.replicas > free.replicas
    assert quantile(found.simulated.ttfts_s, 0.99) <= 0.06
    assert quantile(found.simulated.itls_s, 0.99) <= 0.01
    assert found.times.slots < free.times.slots


def test_ten_times_the_rate_takes_about_ten_times_the_replicas() -> None:
    tens = [traffic(Demand(rate, 1000, 300)).replicas for rate in (100.0, 1000.0, 10_000.0)]

    assert 8 * tens[0] <= tens[1] <= 10 * tens[0]
    assert 9 * tens[1] <= tens[2] <= 10 * tens[1]


def test_a_replica_may_let_wait_what_the_deadline_leaves() -> None:
    free, strict, lax = (
        traffic(Demand(20.0, 1000, 300, ttft_s=ttft_s)) for ttft_s in (None, 0.1, 4.0)
    )
    times = lax.times
    full_s = 1.5 * (times.step_s + 128 * times.token_s) + times.prompt_s

    assert free.waiting_limit.requests == 128 // 8
    assert strict.waiting_limit.requests < lax.waiting_limit.requests
    assert lax.waiting_limit.requests == int((4.0 - full_s) * times.capacity)
    assert "within the 4 s to the first token" in lax.waiting_limit.reason


@pytest.mark.parametrize(
    ("deadlines", "named"),
    [
        (
            {"ttft_s": 0.001},
            "--ttft 1 ms: even of a request that is alone the prompt takes L40 in fp8 no less than "
            "35.2 ms, by its arithmetic; allow more, or take another GPU, precision or --tp",
        ),
        ({"ttft_s": 0.05}, "as predicted (35.2 ms at its full arithmetic)"),
        (
            {"itl_s": 0.002},
            "a token takes L40 in fp8 no less than 9.8 ms, by its memory bandwidth",
        ),
        ({"itl_s": 0.011}, "at its full memory bandwidth)"),
    ],
)
def test_a_deadline_that_no_number_of_replicas_keeps_is_refused(
    deadlines: dict[str, float], named: str
) -> None:
    with pytest.raises(UnsupportedError) as refused:
        traffic(Demand(1.0, 1000, 1000, **deadlines), gpu="L40")

    assert named in str(refused.value)


def test_a_deadline_that_only_the_uncertainty_breaks_says_so() -> None:
    alone_s = traffic(Demand(1.0, 1000, 1000)).times.ttft_s
    found = traffic(Demand(1.0, 1000, 1000, ttft_s=1.05 * alone_s))

    assert found.slower_replicas is None


def test_pipeline_parallelism_is_refused() -> None:
    model = replace(MINITRON, parallelism=Parallelism(1, 2))

    with pytest.raises(UnsupportedError, match="pipeline parallelism 2"):
        plan_traffic(model, find_gpu("H100"), Demand(1.0, 10, 10), slots=8, step_tokens=8192)


def test_the_record_has_what_others_read(command: Command) -> None:
    arguments = ("minitron-8b", "--gpu", "H100", "--isl", 1000, "--osl", 300)
    record = planned(command, *arguments, "--rate", 200, "--ttft", "200ms", "--itl", 0.02)
    fp8 = next(row for row in record["rows"] if row["precision"] == "fp8")["traffic"]

    assert fp8["replicas"] > fp8["replicas_at_least_by_roofline"]
    assert fp8["tokens_per_s"] == 60_000
    assert fp8["time_to_first_token_ms"]["simulated_p99"] <= 200
    assert fp8["inter_token_latency_ms"]["simulated_p99"] <= 20
    assert fp8["uncertainty"]["leave_one_out"]["median"] <= 0.2
    assert fp8["autoscaler"]["waiting"] >= 1
    assert record["efficiency"]["memory"] < 1
    assert "traffic" not in planned(command, *arguments)["rows"][0]


def test_the_engine_is_built_for_what_was_planned(command: Command) -> None:
    arguments = ("minitron-8b", "--gpu", "H100", "--precision", "fp8", "--rate", 200)
    slots = [
        (row := planned(command, *arguments, *more))["rows"][0]["traffic"]["replica"][
            "concurrency_at_most"
        ]
        for more in ((), ("--max-batch-size", 16), ("--itl", "8ms"))
    ]
    build = row["recommended"][0]["commands"][-1]

    cached = planned(command, *arguments, "--kv-cache", "fp8")["recommended"][0]["commands"]

    assert cached[0].endswith("--precision fp8 --kv-cache fp8")
    assert slots[1] == 16
    assert slots[2] < slots[0]
    assert build.endswith(f"--profile throughput --max-batch-size {slots[2]}")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "named"),
    [
        (("--rate", 0), 2, "0.0 is not in the range x>0"),
        (("--rate", "nan"), 2, "'nan' is not a valid float"),
        (("--rate", "inf"), 2, "--rate inf is no rate"),
        (("--rate", "1e-320"), 2, "is no rate; expected requests a second, from 1e-09 to 1e+09"),
        (("--rate", 1, "--ttft", "1e308"), 2, "--ttft 1e+308 is no deadline; expected seconds"),
        (("--rate", 1, "--itl", "1e400s"), 2, "--itl inf is no deadline; expected seconds"),
        (("--ttft", 1), 2, "--ttft is a deadline of requests; give their --rate, too"),
        (("--rate", 1, "--ttft", "soon"), 2, "'soon' is no time; expected 0.2, 0.2s or 200ms"),
        (("--rate", 1, "--ttft", "1ms"), 4, "error: --ttft 1 ms: "),
    ],
)
def test_what_makes_no_sense_is_refused(
    arguments: tuple[object, ...], exit_code: int, named: str, command: Command
) -> None:
    result = command("plan", "minitron-8b", "--gpu", "H100", *arguments)

    assert result.exit_code == exit_code
    assert named in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("width", [80, 120])
def test_all_but_commands_fits_a_terminal(width: int) -> None:
    targets = tuple(find_target(name) for name in ("H100", "L40", "RTX-PRO-6000"))
    request = PlanRequest(targets, input_len=1000, output_len=300, precisions=("bf16",))
    result = make_plan(MINITRON, request)
    rows = planned_traffic(result, Demand(10_000.0, 1000, 300, ttft_s=0.5))
    recommended = recommend(result, "m", BuildRequest(), traffic=rows)
    text = describe(result, recommended, traffic=rows, width=width)
    lines = [line for line in text.splitlines() if "minitron-trt" not in line]

    assert "at 10,000 requests/s, 99 of 100 within TTFT 500 ms" in lines
    assert max(len(line) for line in lines if "Not compared" not in line) <= width
