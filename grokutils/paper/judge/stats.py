"""All statistics of the book: intervals over networks, areas under ROC curves, thresholds, p-values.

>>> p = sign_flip_p(np.array([0.1, 0.2, 0.15, 0.12]))
>>> p, holm([p, 0.01]).tolist()
(0.125, [0.125, 0.02])

An interval is always the central 95 % of resamples of whole networks, or of seeds with all their networks. Where all
resamples agree it has no width and says only that these networks agree, so that nobody prints it (`has_width`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import stats

__all__ = [
    "FEWEST", "best_threshold", "bootstrap", "cliffs_delta", "has_width", "holm", "resampled_delta", "roc_area", "sign_flip_p",
    "two_thresholds",
]  # fmt: skip

#: With fewer networks there is no interval over them.
FEWEST = 5
#: Up to so many patterns of signs all are gone through; of more, so many are drawn.
_PATTERNS = 2**16


def bootstrap(statistic: Callable[..., np.ndarray], *sizes: int, resamples: int = 2000) -> tuple[float, float]:
    """The central 95 % of a statistic over resamples; NaN with a group of fewer than `FEWEST`.

    >>> x = np.arange(10.0)
    >>> bootstrap(lambda drawn: x[drawn].mean(axis=1), 10)
    (2.7, 6.3)

    Parameters
    ----------
    statistic : from one array (resamples, size) of places for each size to (resamples,)
    sizes : of the groups, each of which is resampled by itself
    """
    if min(sizes) < FEWEST:
        return np.nan, np.nan
    rng = np.random.default_rng(0)
    values = statistic(*(rng.integers(size, size=(resamples, size)) for size in sizes))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)


def has_width(low: float | None, high: float | None) -> bool:
    """Whether there is an interval to print.

    >>> has_width(0.1, 0.2), has_width(1.0, 1.0), has_width(np.nan, np.nan), has_width(None, None)
    (True, False, False, False)
    """
    return low is not None and high is not None and bool(low < high)


def roc_area(a, b) -> float:
    """The chance that a value of a is larger than one of b, ties counted half; NaN if one of them is empty.

    >>> roc_area([2, 3], [1, 2])
    0.875

    The area under the ROC curve of "large values are of a".
    """
    return (1 + cliffs_delta(b, a)) / 2


def cliffs_delta(a, b) -> float:
    """Share of pairs in which b is larger than a, minus the share in which it is smaller: -1 to 1; NaN if one is empty.

    >>> cliffs_delta([1, 2, 3], [4, 5, 6]), cliffs_delta([1, 2], [1, 2])
    (1.0, 0.0)

    0 if the measure says nothing, 1 or -1 if a single threshold parts the two sets. Source: Cliff, Psychological Bulletin
    114, 1993; here from Mann and Whitney's U.
    """
    pairs = len(a) * len(b)
    return float((2 * stats.mannwhitneyu(b, a).statistic - pairs) / pairs) if pairs else np.nan


def resampled_delta(a, b, of_a, of_b) -> Callable[[np.ndarray], np.ndarray]:
    """`cliffs_delta` in resamples of units, as a statistic for `bootstrap`; NaN where a resample has values of one kind alone.

    Parameters
    ----------
    a, b : values, infinities included
    of_a, of_b : which unit (a network, a seed) each is of
    """
    first, second = np.asarray(a)[:, None], np.asarray(b)
    signs = (second > first).astype(float) - (second < first)

    def deltas(drawn: np.ndarray) -> np.ndarray:
        times = np.apply_along_axis(np.bincount, 1, drawn, minlength=drawn.shape[1])
        a, b = times[:, of_a], times[:, of_b]
        count = a.sum(axis=1) * b.sum(axis=1)
        return np.divide(((a @ signs) * b).sum(axis=1), count, out=np.full(len(drawn), np.nan), where=count > 0)

    return deltas


def best_threshold(no: np.ndarray, yes: np.ndarray) -> float:
    """The threshold that most of `yes` and fewest of `no` are above (Youden's J), in the middle of the widest gap that is
    as good; -inf if it is best to call all of them, NaN if there is nothing to choose from.

    >>> best_threshold(np.array([1.0, 2.0]), np.array([4.0, 5.0]))
    3.0
    """
    values = np.unique(np.concatenate([no, yes]))
    values = values[np.isfinite(values)]
    if not len(no) or not len(yes) or not values.size:
        return np.nan
    cuts = np.concatenate([[-np.inf], (values[1:] + values[:-1]) / 2])
    gain = np.mean(yes > cuts[:, None], axis=1) - np.mean(no > cuts[:, None], axis=1)
    best = np.flatnonzero(gain >= gain.max() - 1e-12)
    return float(cuts[best[np.argmax(np.concatenate([[0.0], np.diff(values)])[best])]])


def two_thresholds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The three columns in the order of their medians, and two thresholds between them that put as many values as possible
    on their right sides."""
    order = np.argsort(np.median(values, axis=0), kind="stable")
    known = np.unique(values)
    cuts = np.concatenate([[-np.inf], (known[1:] + known[:-1]) / 2, [np.inf]])
    low, middle, high = (np.searchsorted(np.sort(values[:, column]), cuts) for column in order)
    first, second = low - middle, middle - high  # rightly told, as far as each threshold decides it
    last = int(np.argmax(np.maximum.accumulate(first) + second))
    return order, np.array([cuts[int(np.argmax(first[: last + 1]))], cuts[last]])


def sign_flip_p(differences) -> float:
    """Two-sided p-value of "the mean difference is zero", by flipping signs (Fisher 1935).

    >>> sign_flip_p(np.ones(10))
    0.001953125

    Exact up to 16 differences. Its smallest value is 2 / 2^n: with fewer than six seeds nothing can be shown at 5 %.

    Parameters
    ----------
    differences : (seeds,) of one condition less the other

    Raises
    ------
    ValueError : no difference, or one that is not finite.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not d.size or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite numbers, one for each seed; got {differences!r}.")
    if d.size == 1:
        return 1.0
    found = stats.permutation_test(
        (d,), lambda x, axis: x.mean(axis=axis), permutation_type="samples", n_resamples=_PATTERNS, rng=np.random.default_rng(0)
    )
    return float(found.pvalue)


def holm(p) -> np.ndarray:
    """p-values corrected for their number (Holm 1979): below a level, the chance of any false one is below it.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]

    Raises
    ------
    ValueError : a number outside 0 to 1.
    """
    p = np.asarray(p, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p must be numbers between 0 and 1; got {p!r}.")
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
