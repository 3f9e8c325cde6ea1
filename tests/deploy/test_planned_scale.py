"""`deploy --plan`: replicas and the autoscaler's threshold are the plan's, with their reason."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from tests.deploy.conftest import RepositoryOf
from tests.deploy.repositories import settings_of

from minitron_trt.deploy.check.deployment_check import read_deployment
from minitron_trt.deploy.gateway_pod import least_gateways
from minitron_trt.deploy.planned_scale import PlannedScale

Command = Callable[..., Result]
DOCS = Path(__file__).parents[2] / "docs"
PLAN = (
    "llama-3.1-minitron-4b-width",
    "--gpu",
    "H100",
    "--tp",
    2,
    "--rate",
    500,
    "--ttft",
    "300ms",
    "--profile",
    "balanced",
)


@pytest.fixture
def planned(tmp_path: Path, command: Command) -> Callable[..., Path]:
    """Return what writes a plan's record."""

    def write(*options: object) -> Path:
        path = tmp_path / "plan.json"
        path.write_text(command("plan", *PLAN, *options, "--json").stdout)
        return path

    return write


def token_ms() -> str:
    """Return the gateway's time for a token over gRPC, as it was measured."""
    text = (DOCS / "performance.md").read_text()
    (measured,) = re.findall(
        r"^\| processor time of the gateway .* \| ([\d.]+) ms \(.*\|$", text, re.M
    )
    return str(measured)


@pytest.mark.slow
def test_numbers_are_the_plans_and_say_so(
    repository_of: RepositoryOf, tmp_path: Path, command: Command, planned: Callable[..., Path]
) -> None:
    plan = planned("--precision", "fp8")
    (row,) = json.loads(plan.read_text())["rows"]
    traffic, output = row["traffic"], tmp_path / "deployment"
    arguments = ("deploy", repository_of("H100"), "--target", "kubernetes", "--name", "llama")
    result = command(*arguments, "--plan", plan, "-o", output)
    scaling = (output / "base/autoscaling.yaml").read_text()
    settings = read_deployment(output).settings
    waiting = traffic["autoscaler"]["waiting"]

    assert result.exit_code == 0, result.output
    assert f"threshold: '{waiting}'  # the plan for 500 requests/s: so many get slots" in scaling
    assert f"minReplicaCount: {traffic['replicas']}  # the plan for 500 requests/s" in scaling
    tokens = f"{traffic['tokens_per_s']:,.0f} tokens/s at {token_ms()} ms each, 70 % busy"
    assert f"# the plan for 500 requests/s: {tokens}" in (output / "base/gateway.yaml").read_text()
    assert f"> {waiting}" in (output / "base/monitoring.yaml").read_text()
    assert (settings.replicas, settings.max_replicas) == (
        traffic["replicas"],
        traffic["replicas_if_slower"],
    )
    result = command(*arguments, "--plan", plan, "--replicas", 30, "-o", output, "--overwrite")
    assert "minReplicaCount: 30  # --replicas" in (output / "base/autoscaling.yaml").read_text()


def test_the_worked_example_has_the_gateways_that_deploy_writes() -> None:
    text = (DOCS / "scale.md").read_text()
    shown = re.findall(r"^\| ([\d,]+) \| (?:[\d,]+ \| ){4}([\d,]+) \| ([\d,]+) \|", text, re.M)
    rows = [[int(number.replace(",", "")) for number in row] for row in shown]

    assert [rate for rate, _, _ in rows] == [10, 100, 1000, 10000]
    for rate, tokens, gateways in rows:
        scale = PlannedScale(
            rate=rate,
            tokens_per_s=tokens,
            gpu="H100-SXM",
            tp=1,
            concurrency=256,
            replicas=1,
            most_replicas=1,
            waiting=17,
            waiting_reason="",
        )
        assert least_gateways(settings_of(scale=scale)).value == gateways
    assert f"takes {token_ms()} ms of a processor for a streamed token" in text


def test_a_single_replica_gets_another_for_when_it_goes(
    repository_of: RepositoryOf, tmp_path: Path, command: Command, planned: Callable[..., Path]
) -> None:
    plan = planned("--precision", "fp8")
    changed(plan, lambda record: record["rows"][0]["traffic"].update(replicas=1))
    arguments = ("deploy", repository_of("H100"), "--target", "kubernetes", "--name", "llama")
    result = command(*arguments, "--plan", plan, "--dry-run", "-o", tmp_path / "deployment")

    assert "minReplicaCount: 2  # --replicas" in result.stdout


def changed(plan: Path, change: Callable[[dict[str, Any]], object]) -> None:
    record = json.loads(plan.read_text())
    change(record)
    plan.write_text(json.dumps(record))


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], object], int, str]] = {
    "other-gpu": (
        lambda record: record["rows"][0].update(gpu="L40"),
        2,
        "--plan is of L40 with tp 2, ",
    ),
    "other-ranks": (lambda record: record["rows"][0].update(tp=1), 2, "of H100-SXM with tp 2; "),
    "larger-batch": (
        lambda record: record["rows"][0]["traffic"]["replica"].update(concurrency_at_most=9999),
        2,
        "--plan has 9999 sequences at once, ",
    ),
    "no-rate": (lambda record: record.pop("demand"), 2, "has no --rate; expected one"),
    "several-rows": (
        lambda record: record["rows"].append(record["rows"][0]),
        2,
        "has 2 rows that serve it; expected one: plan with a --rate, one --gpu",
    ),
    "no-plan": (lambda record: record.pop("rows"), 3, "is no plan (Object missing required field"),
    "no-replicas": (
        lambda record: record["rows"][0]["traffic"].update(replicas=0),
        3,
        "is no plan (Expected `int` >= 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_plan_of_something_else_is_refused(
    case: str,
    repository_of: RepositoryOf,
    tmp_path: Path,
    command: Command,
    planned: Callable[..., Path],
) -> None:
    plan, output = planned("--precision", "fp8"), tmp_path / "deployment"
    change, code, said = REFUSED[case]
    changed(plan, change)
    arguments = ("deploy", repository_of("H100"), "--target", "kubernetes", "--name", "llama")
    result = command(*arguments, "--plan", plan, "-o", output)

    assert (result.exit_code, output.exists()) == (code, False), result.output
    assert said in result.stderr
    assert "Traceback" not in result.stderr
