"""Where an image lies, as people write it."""

from __future__ import annotations

import pytest

from minitron_trt.errors import UsageError
from minitron_trt.registry.image_reference import Reference, check_image

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("registry.example.org/a/b-c:v1.2", ("registry.example.org", "a/b-c", "v1.2")),
        ("localhost/a", ("localhost", "a", "")),
        ("host:5000/a:T_1", ("host:5000", "a", "T_1")),
        ("[::1]:5000/a", ("[::1]:5000", "a", "")),
        (f"127.0.0.1:5000/a/b@{DIGEST}", ("127.0.0.1:5000", "a/b", DIGEST)),
        (f"host.org/a:tag@{DIGEST}", ("host.org", "a", DIGEST)),
    ],
)
def test_a_place_is_read(text: str, expected: tuple[str, str, str]) -> None:
    place = Reference.parse(text)
    assert (place.host, place.name, place.version) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "a/b:tag", "host.org/", "host.org/A:t", "host.org/a:", "https://host.org/a"),
        *("host.org/a:ü", "host.org:٥/a"),
    ],
)
def test_what_is_no_place_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no place in a registry; expected HOST"):
        Reference.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        *("nginx", "nvidia/a:26.07-py3", "host:5000/a", f"a@{DIGEST}", f"host.org/a:t@{DIGEST}"),
        *("localhost/a", "[::1]:5000/a"),
    ],
)
def test_an_image_may_leave_out_its_host(text: str) -> None:
    check_image("--image", text)


@pytest.mark.parametrize("text", ["", "a b", "A", "a:", "a@b", "a/", "/a", "https://a/b", "-a"])
def test_what_is_no_image_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no reference of an image; expected"):
        check_image("--image", text)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost:5000", True),
        ("127.0.0.1", True),
        ("[::1]:5000", True),
        ("host.org:5000", False),
        ("127.0.0.1.example.org", False),
    ],
)
def test_a_registry_on_this_machine_is_known(host: str, expected: bool) -> None:
    assert Reference.parse(f"{host}/a").is_loopback is expected
