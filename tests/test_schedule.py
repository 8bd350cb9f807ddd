"""Measured and saved steps are spread evenly over the decades, and a longer run keeps a shorter one's."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grokutils.records.schedule import MEASURES_PER_DECADE, SAVES_PER_DECADE, every, log_spaced

steps = st.integers(0, 10**8)
densities = st.integers(1, 60)


def test_a_run_is_measured_forty_times_a_decade_and_saved_ten_times():
    assert (MEASURES_PER_DECADE, SAVES_PER_DECADE) == (40, 10)
    for density in (40, 10):
        points = log_spaced(10**7, density)
        for decade in range(3, 7):
            assert sum(10**decade <= p < 10 ** (decade + 1) for p in points) == density
    assert set(log_spaced(10**7, 10)) <= set(log_spaced(10**7, 40)), (
        "weights are saved where they are measured"
    )


@pytest.mark.parametrize(
    "count, expected", [(0, [0]), (1, [0, 1]), (2, [0, 1, 2]), (7, [0, 1, 2, 3, 4, 5, 6, 7])]
)
def test_short_runs(count, expected):
    assert log_spaced(count, 10) == expected


@given(steps, densities)
def test_points_ascend_from_zero_to_the_last_step(count, density):
    points = log_spaced(count, density)
    assert points[0] == 0 and points[-1] == count
    assert points == sorted(set(points)) and all(type(p) is int for p in points)


@given(st.integers(1, 10**8), densities)
def test_points_are_evenly_spaced_in_the_logarithm(count, density):
    points = log_spaced(count, density)[1:]
    for a, b in zip(points, points[1:], strict=False):
        assert b == a + 1 or math.log10((b - 0.5) / (a + 0.5)) <= 1 / density + 1e-9
    inner = points[:-1]
    assert all(
        abs(p - 10 ** (round(math.log10(p) * density) / density)) <= 0.5 + 1e-6 * p
        for p in inner
        if p > 10 * density
    )


@given(steps, steps, densities)
def test_a_longer_run_keeps_the_points_of_a_shorter(a, b, density):
    short, long = sorted((a, b))
    assert set(log_spaced(short, density)) - {short} <= set(log_spaced(long, density))


@pytest.mark.parametrize("value", [-1, 0.5, 1e3, float("nan"), "10", None, True])
def test_bad_numbers_are_refused(value):
    with pytest.raises(ValueError, match=r"^steps must be a whole number of at least 0; got .+\.$"):
        log_spaced(value, 10)
    with pytest.raises(ValueError, match=r"^per_decade must be a whole number of at least 1; got .+\.$"):
        log_spaced(100, value)
    with pytest.raises(ValueError, match="per_decade"):
        log_spaced(100, 0)
    with pytest.raises(ValueError, match=r"^interval must be a whole number of at least 1; got .+\.$"):
        every(100, value)
