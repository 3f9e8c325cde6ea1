"""Two results beside each other, and which differences are more than chance.

Of results with several runs each, runs are compared (Welch's test); of single runs the requests,
by exchanging them. Figures are tested together, so that p-values are raised by Holm's rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from minitron_trt.errors import BadInputError
from minitron_trt.loadtest.aiperf_files import OWN_KEY, REQUESTS_NAME, SUMMARY_NAME
from minitron_trt.loadtest.load_test import UNITS
from minitron_trt.loadtest.metrics import LOWER_IS_BETTER
from minitron_trt.loadtest.significance import CONFIDENCE, exchanged, holm, welch

# The figures that servers are chosen by. Each one more raises the p-values of all.
COMPARED: Final = (
    ("time_to_first_token", "avg"),
    ("time_to_first_token", "p50"),
    ("time_to_first_token", "p99"),
    ("inter_token_latency", "avg"),
    ("inter_token_latency", "p99"),
    ("request_latency", "avg"),
    ("request_latency", "p50"),
    ("request_latency", "p99"),
    ("output_token_throughput", "avg"),
    ("request_throughput", "avg"),
    ("goodput", "avg"),
)
RUNS: Final = "runs"
REQUESTS: Final = "requests"
_Values = NDArray[np.float64]


class _Figures(msgspec.Struct):
    unit: str
    avg: float | None = None
    p50: float | None = None
    p99: float | None = None


@dataclass(frozen=True, slots=True)
class ReadLoad:
    """A load of a result that was written before: figures of each run, values of each request."""

    label: str
    pooled: Mapping[tuple[str, str], float]
    runs: Sequence[Mapping[tuple[str, str], float]]
    requests: Mapping[str, _Values] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure on both sides; `p_value` is None where nothing says how far chance goes."""

    load: str
    tag: str
    name: str
    a: float
    b: float
    tested: str | None = None
    p_value: float | None = None

    @property
    def change(self) -> float | None:
        """Return how much the second is above the first, as a share of that."""
        return (self.b - self.a) / self.a if self.a else None

    @property
    def verdict(self) -> str:
        """Return what is known of the second: better, worse, the same for all one can see."""
        if self.p_value is None:
            return "not tested"
        if self.p_value > 1 - CONFIDENCE:
            return "no difference shown"
        is_lower = self.b < self.a
        return "better" if is_lower == (self.tag in LOWER_IS_BETTER) else "worse"

    def as_record(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "load": self.load,
            "metric": self.tag,
            "figure": self.name,
            "unit": UNITS[self.tag],
            "a": self.a,
            "b": self.b,
            "change": self.change,
            "tested": self.tested,
            "p_value": self.p_value,
            "verdict": self.verdict,
        }


def read_loads(path: Path) -> list[ReadLoad]:
    """Read a result: a folder of `bench -o` or of aiperf, or what `bench --json` printed."""
    if not path.is_dir():
        return [_load(record, path, path.with_name(REQUESTS_NAME)) for record in _records(path)]
    files = sorted([*path.glob(SUMMARY_NAME), *path.glob(f"*/{SUMMARY_NAME}")], key=_by_number)
    if not files:
        raise BadInputError(
            f"{path} has no {SUMMARY_NAME}; expected a folder that bench -o or aiperf wrote"
        )
    return [
        _load(record, file, file.with_name(REQUESTS_NAME))
        for file in files
        for record in _records(file)
    ]


def _by_number(path: Path) -> tuple[int, str]:
    # A sweep's folders are named after their loads: concurrency_10 comes behind concurrency_2.
    digits = "".join(filter(str.isdigit, path.parent.name))
    return (int(digits) if digits else 0, str(path))


def _records(path: Path) -> list[dict[str, Any]]:
    try:
        record = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        return msgspec.convert(record.get("loads", [record]), type=list[dict[str, Any]])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadInputError(f"{path} is no result of bench or aiperf ({error})") from error


class _Own(msgspec.Struct):
    load: str = ""
    runs: list[dict[str, _Figures]] = []


def _load(record: Mapping[str, Any], path: Path, requests: Path) -> ReadLoad:
    try:
        own = msgspec.convert(record.get(OWN_KEY, {}), type=_Own)
        pooled = {
            tag: msgspec.convert(value, type=_Figures)
            for tag, value in record.items()
            if tag in UNITS and value is not None
        }
    except msgspec.MsgspecError as error:
        raise BadInputError(f"{path} is no result of bench or aiperf ({error})") from error
    if not pooled:
        raise BadInputError(f"{path} has no figure that bench or aiperf writes")
    return ReadLoad(
        label=own.load,
        pooled=_flat(pooled),
        runs=[_flat(run) for run in own.runs],
        requests=_requests(requests) if requests.is_file() else {},
    )


def _flat(figures: Mapping[str, _Figures]) -> dict[tuple[str, str], float]:
    named = ((tag, name, getattr(figures.get(tag), name, None)) for tag, name in COMPARED)
    return {(tag, name): value for tag, name, value in named if value is not None}


class _Value(msgspec.Struct):
    value: Any


class _RecordedRequest(msgspec.Struct):
    metrics: dict[str, _Value] = {}


def _requests(path: Path) -> dict[str, _Values]:
    """Return the values of each compared metric of requests."""
    decoder = msgspec.json.Decoder(_RecordedRequest)
    values: dict[str, list[float]] = {tag: [] for tag, _ in COMPARED}
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                metrics = decoder.decode(line).metrics
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise BadInputError(f"{path} cannot be read at line {number}: {error}") from error
            for tag in values.keys() & metrics.keys():
                if isinstance(value := metrics[tag].value, int | float):
                    values[tag].append(value)
    return {tag: np.array(found) for tag, found in values.items() if found}


def compare_results(a: Sequence[ReadLoad], b: Sequence[ReadLoad]) -> list[Difference]:
    """Return every difference between loads of one label; BadInputError when none is in both."""
    # A single load beside another needs no label in common: in aiperf's own files there is none.
    if len(a) == len(b) == 1:
        return _differences(a[0], b[0])
    others = {load.label: load for load in b}
    pairs = [(load, others[load.label]) for load in a if load.label in others]
    if not pairs:
        raise BadInputError(
            f"the results have no load in common: {', '.join(load.label for load in a)} and "
            f"{', '.join(others)}"
        )
    return [difference for pair in pairs for difference in _differences(*pair)]


def _differences(a: ReadLoad, b: ReadLoad) -> list[Difference]:
    keys = [key for key in COMPARED if key in a.pooled and key in b.pooled]
    tested = [_tested(a, b, key) for key in keys]
    p_values = iter(holm([p for _, p in tested if p is not None]))
    return [
        Difference(
            load=a.label if a.label == b.label else f"{a.label} / {b.label}",
            tag=tag,
            name=name,
            a=a.pooled[tag, name],
            b=b.pooled[tag, name],
            tested=unit,
            p_value=None if p is None else next(p_values),
        )
        for (tag, name), (unit, p) in zip(keys, tested, strict=True)
    ]


def _tested(a: ReadLoad, b: ReadLoad, key: tuple[str, str]) -> tuple[str | None, float | None]:
    """Return what a difference is tested by, and the p-value."""
    runs = [[run[key] for run in side.runs if key in run] for side in (a, b)]
    if min(map(len, runs)) >= 2:
        return RUNS, welch(*runs)
    tag, name = key
    if tag in a.requests and tag in b.requests:
        return REQUESTS, exchanged(a.requests[tag], b.requests[tag], _figure(name))
    return None, None


def _figure(name: str) -> Any:
    return np.mean if name == "avg" else partial(np.percentile, q=float(name.removeprefix("p")))
