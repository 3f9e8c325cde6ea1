"""Which of NVIDIA's bulletins concern a release."""

from __future__ import annotations

import pytest

from minitron_trt.build.containers import TRTLLM_VERSION, container_for
from minitron_trt.build.security_bulletins import BULLETINS, bulletins_of, holes_of


@pytest.mark.parametrize(
    ("release", "numbers"),
    [
        ("24.10", [5687, 5828, 5865, 5875]),
        ("25.06-py3", [5687, 5828, 5865, 5875]),
        ("25.07", [5828, 5865, 5875]),
        ("26.02-trtllm-python-py3", [5828, 5865, 5875]),
        ("26.03", [5865, 5875]),
        ("26.06", [5875]),
        ("26.07-trtllm-python-py3", []),
        ("registry.example/triton:26.01", []),
    ],
)
def test_a_release_has_the_holes_that_a_later_one_mends(release: str, numbers: list[int]) -> None:
    assert [bulletin.number for bulletin in bulletins_of(release)] == numbers


def test_the_default_image_has_no_known_hole() -> None:
    assert holes_of(container_for(TRTLLM_VERSION).tag) is None


def test_bulletins_are_in_the_order_of_the_releases_that_mend_them() -> None:
    fixed = [bulletin.fixed_in for bulletin in BULLETINS]

    assert fixed == sorted(fixed)
    assert [b.published for b in BULLETINS] == sorted(b.published for b in BULLETINS)
