"""What the server says of itself meanwhile: its Prometheus metrics, every second of a run."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import httpcore2

from minitron_trt.clients.endpoint import Endpoint
from minitron_trt.clients.network import LIBRARY_ERRORS, system_reason
from minitron_trt.errors import MissingExtraError, ServerError, UnreachableError, UsageError

_EVERY_S: Final = 1.0
_LIMIT_S: Final = 5.0
_OK: Final = 200
_PARTS: Final = ("_bucket", "_created")
_NAMES: Final = re.compile(r"^[A-Za-z_:][\w:]*", re.MULTILINE)
_LARGEST_BYTES: Final = 2**24
_TRITONS_METRICS: Final[Mapping[int, int]] = {8000: 8002, 8001: 8002}

Key: TypeAlias = tuple[str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class ServerSeries:
    """A series during a run: how much a counter grew, or a gauge's mean and largest value."""

    name: str
    labels: Mapping[str, str]
    growth: float | None = None
    mean: float | None = None
    largest: float | None = None

    def as_record(self) -> dict[str, Any]:
        """Return it for JSON, in aiperf's words for its figures."""
        if self.growth is not None:
            return {"name": self.name, "labels": dict(self.labels), "delta": self.growth}
        own = {"avg": self.mean, "max": self.largest}
        return {"name": self.name, "labels": dict(self.labels), **own}


def usual_metrics_url(url: str) -> str | None:
    """Return where a service's metrics usually are; None where there is no custom."""
    endpoint = Endpoint.parse(url)
    if endpoint.path.endswith("/v1"):
        root = endpoint.path.removesuffix("/v1")
        return f"{endpoint.scheme}://{endpoint.address}{root}/metrics"
    port = _TRITONS_METRICS.get(endpoint.port)
    return f"http://{replace(endpoint, port=port).address}/metrics" if port else None


class MetricsScraper:
    """Reads a page of metrics while a block runs."""

    def __init__(self, url: str) -> None:
        try:
            import prometheus_client.parser  # noqa: F401
        except ImportError:
            raise MissingExtraError("prometheus-client", "bench", "--metrics-url") from None
        try:
            self._address = httpcore2.URL(url)
        except (ValueError, TypeError) as error:
            raise UsageError(
                f"--metrics-url {url!r} is not a URL ({error}); expected one like "
                "http://127.0.0.1:8002/metrics"
            ) from error
        self.url = url
        self._pages: list[str] = []

    async def check(self) -> None:
        """Read once; ServerError where there are no metrics."""
        _values(await self._page())

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Read at the begin and the end of the block, and every second in between."""
        self._pages = []
        await self._read()
        reader = asyncio.create_task(self._go_on_reading())
        try:
            yield
        finally:
            reader.cancel()
        await self._read()

    async def _go_on_reading(self) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            await self._read()

    async def _read(self) -> None:
        # A page that is missing is no reason to end a load: what the others say is worth something.
        with contextlib.suppress(ServerError):
            self._pages.append(await self._page())

    def series(self) -> list[ServerSeries]:
        """Return the last block's series: counters that grew, gauges that were not always 0."""
        pages = []
        for page in self._pages:
            # Read after the block: answers under way would wait for the parser.
            with contextlib.suppress(ServerError):
                pages.append(_values(page))
        if not pages:
            return []
        found = []
        for (name, labels), (kind, last) in pages[-1].items():
            key = (name, labels)
            if kind == "counter":
                before = pages[0].get(key)
                growth = last - (before[1] if before else 0.0)
                if growth:
                    found.append(ServerSeries(name, dict(labels), growth=growth))
                continue
            values = [page[key][1] for page in pages if key in page]
            if any(values):
                mean = sum(values) / len(values)
                found.append(ServerSeries(name, dict(labels), mean=mean, largest=max(values)))
        return found

    async def _page(self) -> str:
        limits = dict.fromkeys(("connect", "read", "write", "pool"), _LIMIT_S)
        try:
            # A limit beside the library's own, which begin anew with every byte.
            async with (
                asyncio.timeout(_LIMIT_S),
                httpcore2.AsyncConnectionPool() as pool,
                pool.stream("GET", self._address, extensions={"timeout": limits}) as reply,
            ):
                parts: list[bytes] = []
                async for part in reply.aiter_stream():
                    parts.append(part)
                    if sum(map(len, parts)) > _LARGEST_BYTES:
                        break
        # That limit raises a TimeoutError, which is an OSError.
        except (OSError, *LIBRARY_ERRORS) as error:
            raise self._absent(system_reason(error)) from error
        if reply.status != _OK:
            raise self._absent(f"HTTP {reply.status}")
        return b"".join(parts).decode(errors="replace")

    def _absent(self, detail: str) -> UnreachableError:
        return UnreachableError(
            f"no metrics answer at {self.url} ({detail}); expected a page of Prometheus metrics, "
            "for Triton http://HOST:8002/metrics"
        )


def _values(page: str) -> dict[Key, tuple[str, float]]:
    """Return each series' kind and value; ServerError where the page is none of metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    values: dict[Key, tuple[str, float]] = {}
    published = set(_NAMES.findall(page))
    try:
        for family in text_string_to_metric_families(page):
            for sample in family.samples:
                # Buckets would be most of the page; counts and sums say what a mean needs.
                is_part = sample.name.endswith(_PARTS) or "quantile" in sample.labels
                if is_part or not math.isfinite(sample.value):
                    continue
                grows = family.type == "counter" or sample.name.endswith(("_sum", "_count"))
                # The library adds to a counter's name what Triton's lack.
                name = sample.name
                name = name if name in published else name.removesuffix("_total")
                key = (name, tuple(sorted(sample.labels.items())))
                values[key] = ("counter" if grows else "gauge", float(sample.value))
    except (ValueError, KeyError, IndexError) as error:
        raise ServerError(f"the page of metrics cannot be read ({error})") from error
    return values


def added(parts: Sequence[Sequence[ServerSeries]]) -> list[ServerSeries]:
    """Return the series of several runs: growths together, gauges over all."""
    keys: dict[Key, list[ServerSeries]] = {}
    for each in (series for part in parts for series in part):
        keys.setdefault((each.name, tuple(sorted(each.labels.items()))), []).append(each)
    return [_joined(group) for group in keys.values()]


def _joined(group: Sequence[ServerSeries]) -> ServerSeries:
    first = group[0]
    if first.growth is not None:
        growth = sum(each.growth or 0.0 for each in group)
        return ServerSeries(first.name, first.labels, growth=growth)
    mean = sum(each.mean or 0.0 for each in group) / len(group)
    largest = max(each.largest or 0.0 for each in group)
    return ServerSeries(first.name, first.labels, mean=mean, largest=largest)
