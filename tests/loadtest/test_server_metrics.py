"""What a server says of itself during a load, and when it says nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from tests.loadtest.doubles import TimedTarget, questions

from minitron_trt.errors import UsageError
from minitron_trt.loadtest.load_pattern import LoadPattern
from minitron_trt.loadtest.load_test import LoadTest
from minitron_trt.loadtest.request_record import RequestRecord
from minitron_trt.loadtest.server_metrics import MetricsScraper, ServerSeries, usual_metrics_url
from minitron_trt.loadtest.workload import Question

PAGE = """# TYPE nv_requests counter
nv_requests{{model="a"}} {requests}
# TYPE nv_idle counter
nv_idle 7
# TYPE nv_queue gauge
nv_queue {queue}
"""


class _Pages(BaseHTTPRequestHandler):
    """Answers with one page after another; None stands for a server that is too busy."""

    pages: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        page = self.pages.pop(0)
        body = (page or "").encode()
        self.send_response(503 if page is None else 200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: Any) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Pages) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/metrics"
        server.shutdown()
        thread.join()


def read(url: str, *pages: str | None) -> list[ServerSeries]:
    """Return the series of a block in which nothing happened."""
    _Pages.pages = [*pages]
    scraper = MetricsScraper(url)

    async def run() -> None:
        async with scraper.reading():
            pass

    asyncio.run(run())
    return scraper.series()


def test_counters_grow_and_gauges_have_a_mean(url: str) -> None:
    found = read(url, PAGE.format(requests=3, queue=0), PAGE.format(requests=8, queue=4))

    assert found == [
        ServerSeries("nv_requests", {"model": "a"}, growth=5),
        ServerSeries("nv_queue", {}, mean=2, largest=4),
    ]


@pytest.mark.parametrize("first", [True, False], ids=["at the begin", "at the end"])
def test_a_page_that_does_not_come_ends_no_load(url: str, *, first: bool) -> None:
    page = PAGE.format(requests=3, queue=4)

    assert read(url, *((None, page) if first else (page, None))) == [
        ServerSeries("nv_queue", {}, mean=4, largest=4)
    ]
    assert read(url, None, None) == []


@pytest.mark.parametrize("first", [True, False], ids=["at the begin", "at the end"])
def test_a_page_that_cannot_be_read_ends_no_load(url: str, *, first: bool) -> None:
    page, broken = PAGE.format(requests=3, queue=4), "nv_queue{"

    assert read(url, *((broken, page) if first else (page, broken))) == [
        ServerSeries("nv_queue", {}, mean=4, largest=4)
    ]


class _CutShort(TimedTarget):
    """A service under which a load ends at its first request."""

    async def ask(self, question: Question, record: RequestRecord) -> None:
        raise UsageError("no request like this can be sent")


def test_what_was_read_of_a_load_that_is_cut_short_is_kept(url: str) -> None:
    _Pages.pages = [PAGE.format(requests=3, queue=4)]
    test = LoadTest(
        target=_CutShort(),
        workload=lambda run: questions(1),
        patterns=[LoadPattern(concurrency=1, request_count=1)],
        scraper=MetricsScraper(url),
    )
    with pytest.raises(UsageError):
        asyncio.run(test.run())

    assert test.results[0].series == [ServerSeries("nv_queue", {}, mean=4, largest=4)]


@pytest.mark.parametrize(
    ("service", "metrics"),
    [
        ("grpc://triton:8001", "http://triton:8002/metrics"),
        ("localhost:8000", "http://localhost:8002/metrics"),
        ("grpc://[::1]:8001", "http://[::1]:8002/metrics"),
        ("http://[::1]:9000/v1/", "http://[::1]:9000/metrics"),
        ("https://api.example.org:443/openai/v1", "https://api.example.org:443/openai/metrics"),
        ("http://triton:7000", None),
    ],
)
def test_metrics_are_looked_for_beside_the_service(service: str, metrics: str | None) -> None:
    assert usual_metrics_url(service) == metrics


@pytest.mark.parametrize(
    "url", ["http://triton:port/metrics", "http://[::1/metrics", "http://a:99999/", "http://ä/"]
)
def test_a_place_of_metrics_that_is_no_url_is_said_in_one_line(url: str) -> None:
    with pytest.raises(UsageError, match=r"^--metrics-url .* is not a URL .*; expected one like "):
        MetricsScraper(url)
