"""URLs and deadlines."""

from __future__ import annotations

import pytest

from minitron_trt.clients.endpoint import Endpoint, Timeouts
from minitron_trt.errors import UsageError


@pytest.mark.parametrize(
    ("url", "endpoint", "address"),
    [
        ("grpc://127.0.0.1:8001", Endpoint("grpc", "127.0.0.1", 8001), "127.0.0.1:8001"),
        ("grpc://localhost", Endpoint("grpc", "localhost", 8001), "localhost:8001"),
        ("http://[::1]:8000/", Endpoint("http", "::1", 8000), "[::1]:8000"),
        ("GRPCS://a.io", Endpoint("grpcs", "a.io", 443, environment_proxy=True), "a.io:443"),
        (
            "https://a.io/triton/",
            Endpoint("https", "a.io", 443, "/triton", environment_proxy=True),
            "a.io:443",
        ),
        ("http://a.io", Endpoint("http", "a.io", 80, environment_proxy=True), "a.io:80"),
        ("http://a.io.", Endpoint("http", "a.io.", 80, environment_proxy=True), "a.io.:80"),
    ],
)
def test_a_url_names_an_endpoint(url: str, endpoint: Endpoint, address: str) -> None:
    parsed = Endpoint.parse(url)

    assert parsed == endpoint
    assert parsed.address == address
    assert parsed.is_grpc == url.lower().startswith("grpc")
    assert parsed.is_encrypted == ("s://" in url.lower())


def test_an_endpoint_prints_as_its_url() -> None:
    assert str(Endpoint.parse("https://[::1]/triton")) == "https://[::1]:443/triton"


@pytest.mark.parametrize(
    ("place", "url"),
    [
        ("localhost:8000", "http://localhost:8000"),
        ("127.0.0.1:8001", "grpc://127.0.0.1:8001"),
        ("gpu-1.lab:8001", "grpc://gpu-1.lab:8001"),
    ],
)
def test_tritons_own_ports_say_the_protocol(place: str, url: str) -> None:
    assert Endpoint.parse(place) == Endpoint.parse(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "127.0.0.1",
        "localhost:9000",
        "ftp://host:1",
        "grpc://",
        "grpc://:8001",
        "grpc://host:port",
        "grpc://host:70000",
        "grpc://host:0",
        "grpc://host/path",
        "http://host?query",
        "http://user:secret@host",
        "http://ho st",
        "http://a..b",
        "http://.b",
        f"http://{'a' * 64}.b",
        "http://[::1",
    ],
)
def test_what_is_no_url_of_a_server_is_refused(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        Endpoint.parse(url)

    message = str(caught.value)
    assert message.startswith(f"{url!r} ")
    assert message.endswith("like grpc://127.0.0.1:8001 or http://127.0.0.1:8000")


@pytest.mark.parametrize("asked", [True, False])
def test_the_environments_proxy_is_used_where_asked(asked: bool) -> None:
    urls = "grpc://127.0.0.1", "grpc://a.io"

    assert {Endpoint.parse(url, environment_proxy=asked).environment_proxy for url in urls} == {
        asked
    }


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_timeout_is_a_number_above_zero(value: float) -> None:
    with pytest.raises(UsageError, match=r"connect_s is .*; expected a number of seconds above 0"):
        Timeouts(connect_s=value)


def test_looking_for_a_server_takes_no_longer_than_the_request() -> None:
    assert [Timeouts(total_s=1).probe_s, Timeouts(total_s=60).probe_s] == [1, 5]
