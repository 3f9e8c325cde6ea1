"""What only this machine reaches."""

from __future__ import annotations

import pytest

from minitron_trt.host.addresses import is_loopback


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.10", True),
        ("::1", True),
        ("localhost", True),
        ("triton.localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.0.1", False),
        ("localhost.example.org", False),
        ("notlocalhost", False),
        ("", False),
    ],
)
def test_a_loopback_address_is_told_from_others(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
