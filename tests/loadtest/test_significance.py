"""Intervals and tests against published values, and against what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from minitron_trt.loadtest.significance import exchanged, holm, interval, t_quantile, welch


@pytest.mark.parametrize(
    ("freedom", "critical"),
    # The table of every textbook.
    [(1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (30, 2.04227)],
)
def test_critical_values_of_t_are_the_published_ones(freedom: int, critical: float) -> None:
    assert t_quantile(0.975, freedom) == pytest.approx(critical, rel=1e-5)


def test_an_interval_is_of_the_mean_over_runs() -> None:
    found = interval([10.0, 12.0, 14.0])

    assert (found.mean, found.std, found.min, found.max) == (12, 2, 10, 14)
    assert found.ci_high - found.mean == pytest.approx(4.30265 * 2 / 3**0.5, rel=1e-5)
    assert found.mean - found.ci_low == pytest.approx(found.ci_high - found.mean)


def test_welch_gives_what_scipy_gives() -> None:
    # The p-value is that of scipy.stats.ttest_ind(equal_var=False).
    assert welch([1.0, 1.2, 0.9], [1.5, 1.4, 1.9, 1.6]) == pytest.approx(
        0.009693048010867, rel=1e-9
    )


@pytest.mark.parametrize(("b", "p"), [([5.0, 5.0], 1.0), ([6.0, 6.0], 0.0)])
def test_runs_that_never_differ_leave_no_doubt(b: list[float], p: float) -> None:
    assert welch([5.0, 5.0], b) == p


def test_exchanging_requests_finds_a_shift_and_nothing_where_there_is_none() -> None:
    chance = np.random.default_rng(1)
    a, same, slower = (chance.gamma(3, 10, 200) + shift for shift in (0, 0, 8))

    def p99(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
        return float(np.percentile(values, 99))

    assert exchanged(a, slower, np.mean) < 0.01
    assert exchanged(a, same, np.mean) > 0.05
    assert exchanged(a, same, p99) > 0.05


def test_p_values_hold_together() -> None:
    assert holm([0.01, 0.04, 0.03, 0.5]) == [0.04, 0.09, 0.09, 0.5]
