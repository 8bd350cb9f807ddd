"""Printed numbers against what arithmetic allows; these tests need no record.

>>> round(excess_over_smallest_alpha(1.0)({}).value, 3)
-0.005
>>> round(excess_after_rounding(1.0)({}).value, 3), round(excess_after_rounding(0.9)({}).value, 3)
(0.045, -0.055)
>>> round(points_for(0.3044, 1.877e-5)({}).value)
60
"""

from __future__ import annotations

import math
from decimal import Decimal
from typing import SupportsFloat

import numpy as np
from scipy import optimize, stats

from grokutils.paper.judge.findings import Finding, Test
from grokutils.spectra.alpha import CUTOFF
from grokutils.spectra.ks import mp_null

__all__ = [
    "decades_off",
    "excess_after_rounding",
    "excess_over_smallest_alpha",
    "networks_for_spread",
    "points_for",
    "random_share",
    "smallest_alpha",
    "trap_over_count",
    "trap_over_norm",
]

_DRAWS = 400


def smallest_alpha(entries: int = 200 * 784) -> float:
    """What alpha = 1 + n / sum ln(x / xmin) exceeds for any float32 matrix of so many entries.

    Every x / xmin is at most the largest eigenvalue there can be, the sum of all squared entries, over the smallest
    that is fitted, so the mean of the logarithms is at most the logarithm of that.
    """
    largest = entries * float(np.finfo(np.float32).max) ** 2
    return 1 + 1 / math.log(largest / CUTOFF)


def excess_over_smallest_alpha(mean: SupportsFloat) -> Test:
    """How far a printed mean lies above `smallest_alpha`, its digits taken for exact.

    A negative number alone shows nothing impossible: the mean may have been rounded (`excess_after_rounding`).
    """
    return lambda sources: Finding(float(mean) - smallest_alpha())


def excess_after_rounding(mean: SupportsFloat) -> Test:
    """How far the largest mean that is printed so lies above `smallest_alpha`; negative for one that no successful
    fits can have: 0.9 stands for at most 0.95, but 1.0 for at most 1.05, which they can."""
    return lambda sources: Finding(_largest(mean) - smallest_alpha())


def networks_for_spread(mean: SupportsFloat, spread: str) -> Test:
    """The fewest networks that can have a printed mean of alpha and standard deviation, rounding allowed for.

    >>> networks_for_spread(1.0, "0.40")({}).value
    77.0

    No alpha is below `smallest_alpha`, so with a mean near it the spread is largest if all networks but one are there:
    sqrt(n) times the excess of the mean (n - 1 in the denominator). A large number makes the pair implausible, not
    impossible; infinity is impossible.
    """
    excess = _largest(mean) - smallest_alpha()
    least = float(spread) - _half_unit(spread)
    return lambda sources: Finding(float(max(2, math.ceil((least / excess) ** 2))) if excess > 0 else math.inf)


def _largest(printed: SupportsFloat) -> float:
    return float(printed) + _half_unit(str(printed).partition("±")[0])


def _half_unit(text: str) -> float:
    """Half a unit of the last digit of a printed number: 0.05 for 1.0."""
    return 0.5 * 10.0 ** int(Decimal(text.strip(" ≈~")).as_tuple().exponent)


def decades_off(D: SupportsFloat, p: SupportsFloat, n: int) -> Test:
    """Decades between a printed p and the Kolmogorov-Smirnov test's own for the printed D and n independent points."""
    return lambda sources: Finding(abs(math.log10(float(p)) - math.log10(stats.kstwo.sf(float(D), n))))


def points_for(D: SupportsFloat, p: SupportsFloat) -> Test:
    """For how many independent points a distance D has the p-value p (as if their number were continuous)."""

    D, p = float(D), float(p)

    def gap(log_n: float) -> float:
        n = math.exp(log_n)
        low, high = math.floor(n), math.floor(n) + 1
        between = (n - low) * math.log(stats.kstwo.sf(D, high)) + (high - n) * math.log(
            stats.kstwo.sf(D, low)
        )
        return between - math.log(p)

    return lambda sources: Finding(math.exp(optimize.brentq(gap, math.log(2), math.log(2000))))


def random_share(D: SupportsFloat, shape: tuple[int, int] = (784, 200)) -> Test:
    """The share of random matrices at least as far from the Marchenko-Pastur law, sigma fitted to each."""

    def test(sources) -> Finding:
        null = mp_null(*shape, draws=_DRAWS)
        return Finding(float((1 + np.sum(null >= float(D))) / (1 + len(null))))

    return test


def trap_over_norm(exponent: float, norm: float) -> Test:
    """log10 of a printed eigenvalue over the squared l2 norm, which no eigenvalue can exceed."""
    return lambda sources: Finding(exponent - 2 * math.log10(norm))


def trap_over_count(exponent: float, count: int) -> Test:
    """log10 of a printed eigenvalue over the number of eigenvalues, their sum if they are rescaled to mean 1."""
    return lambda sources: Finding(exponent - math.log10(count))
