"""From a quantity of each network to one number with its interval over networks.

>>> found = over_networks(np.array([1.0, 2.0, 2.0, 3.0, 2.0]), np.median)
>>> found.value, found.n
(2.0, 5)

The functions from `share` on make *tests*: from the records (`Sources`) to a `Finding`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from grokutils.paper.judge.evidence import NotMeasured, Quantity, Source, collapsed
from grokutils.records.phases import PHASES

__all__ = [
    "FEWEST",
    "Finding",
    "Sources",
    "Test",
    "exact_share",
    "informedness",
    "mean",
    "median",
    "over_networks",
    "phase_accuracy",
    "separation",
    "share",
]

#: With fewer networks there is no interval over them.
FEWEST = 5
_RESAMPLES = 2000


@dataclass(frozen=True)
class Finding:
    """One number."""

    value: float
    #: Its 95 % interval over networks; None if there are fewer than `FEWEST`.
    low: float | None = None
    high: float | None = None
    #: Networks it rests on; 0 for arithmetic.
    n: int = 0
    #: What else is to be said, such as which of several candidates it is of.
    note: str = ""


#: Records by what a claim needs them as, such as ``wd0``.
Sources = Mapping[str, Source]
Test = Callable[[Sources], Finding]


def over_networks(values: np.ndarray, statistic: Callable[..., np.ndarray]) -> Finding:
    """A statistic of one number per network, with its bootstrap interval (percentiles of 2000 resamples)."""
    values = np.asarray(values, dtype=float)
    low, high = None, None
    if len(values) >= FEWEST:
        chosen = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
        low, high = map(float, np.quantile(statistic(values[chosen], axis=1), [0.025, 0.975]))
    return Finding(float(statistic(values)), low, high, len(values))


def exact_share(count: int, n: int) -> Finding:
    """A share of networks, with the exact (Clopper-Pearson) interval.

    >>> round(exact_share(20, 20).low, 3)
    0.832
    """
    if n < FEWEST:
        return Finding(count / n, n=n, note=f"{count} of {n}")
    low, high = stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    return Finding(count / n, float(low), float(high), n, note=f"{count} of {n}")


def _values(source: Source, quantity: Quantity) -> np.ndarray:
    return np.array([quantity(source, member) for member in source.members], dtype=float)


def share(key: str, quantity: Quantity) -> Test:
    """The share of a record's networks of which something is true."""

    def test(sources: Sources) -> Finding:
        flags = _values(sources[key], quantity)
        return exact_share(int(np.nansum(flags)), len(flags))

    return test


def _summary(key: str, quantity: Quantity, statistic) -> Test:
    def test(sources: Sources) -> Finding:
        values = _values(sources[key], quantity)
        known = values[np.isfinite(values)]
        if not len(known):
            raise NotMeasured(f"no network of {sources[key].name} has a value")
        found = over_networks(known, statistic)
        lacking = len(values) - len(known)
        return Finding(
            found.value, found.low, found.high, found.n, f"{lacking} without a value" if lacking else ""
        )

    return test


def median(key: str, quantity: Quantity) -> Test:
    return _summary(key, quantity, np.median)


def mean(key: str, quantity: Quantity) -> Test:
    return _summary(key, quantity, np.mean)


def informedness(candidates: Mapping[str, Quantity], keys: Sequence[str] = ("wd0", "wd0.01")) -> Test:
    """The share of collapsed networks that a signal goes off for, minus that of the others (Youden's J): 1 for a
    perfect signal, 0 for one that knows nothing. Of several candidates the best, in every resample as well."""
    names = list(candidates)

    def test(sources: Sources) -> Finding:
        flags, fell = [], []
        for source in (sources[key] for key in keys):
            for member in source.members:
                flags.append([float(candidates[name](source, member)) for name in names])
                fell.append(collapsed(source, member))
        flags, fell = np.array(flags), np.array(fell)
        for group, what in ((fell, "collapsed"), (~fell, "kept its test accuracy")):
            if not group.any():
                raise NotMeasured(f"no network {what}, so nothing can be told apart")
        hits, false = flags[fell], flags[~fell]
        j = hits.mean(0) - false.mean(0)
        best = int(np.argmax(j))
        low, high = _two_groups(hits, false, lambda a, b: (a.mean(1) - b.mean(1)).max(1))
        note = f"{hits[:, best].mean():.2f} of {len(hits)} collapsed, {false[:, best].mean():.2f} of {len(false)} others"
        return Finding(
            float(j[best]), low, high, len(flags), f"{names[best]}: {note}" if len(names) > 1 else note
        )

    return test


def _two_groups(a: np.ndarray, b: np.ndarray, statistic) -> tuple[float | None, float | None]:
    """Bootstrap interval of a statistic of two groups, each resampled by itself: (resamples, networks, ...)."""
    if min(len(a), len(b)) < FEWEST:
        return None, None
    rng = np.random.default_rng(0)
    one, two = (rng.integers(len(x), size=(_RESAMPLES, len(x))) for x in (a, b))
    low, high = np.quantile(statistic(a[one], b[two]), [0.025, 0.975])
    return float(low), float(high)


def _enough(source: Source, members: Sequence[int], what: str) -> None:
    if len(members) < FEWEST:
        raise NotMeasured(f"{source.name} has {len(members)} {what}; this test needs at least {FEWEST}")


def separation(key: str, columns: Mapping[str, tuple[str, str]]) -> Test:
    """|2 AUC - 1| between a measure at the best test accuracy and the same after the collapse, over networks: 0 if
    its values overlap wholly, 1 if one threshold tells the two phases apart. Of several candidates the best."""

    def test(sources: Sources) -> Finding:
        source = sources[key]
        fell = [m for m in source.members if collapsed(source, m)]
        _enough(source, fell, "collapsed networks")
        before, after = (
            np.array([[source.read(m, phase, *columns[name]) for name in columns] for m in fell])
            for phase in PHASES[1:]
        )
        known = np.isfinite(before).all(1) & np.isfinite(after).all(1)
        _enough(source, np.flatnonzero(known), "collapsed networks with values")
        before, after = before[known], after[known]
        each = np.array([_dominance(before[:, i], after[:, i]) for i in range(len(columns))])
        best = int(np.argmax(np.abs(each)))
        rng = np.random.default_rng(0)
        found = []
        for _ in range(_RESAMPLES // 4):  # of whole networks, so that the two phases stay paired
            chosen = rng.integers(len(before), size=len(before))
            found.append(
                max(abs(_dominance(before[chosen, i], after[chosen, i])) for i in range(len(columns)))
            )
        low, high = map(float, np.quantile(found, [0.025, 0.975]))
        note = f"{list(columns)[best]}, " if len(columns) > 1 else ""
        note += f"{'higher' if each[best] > 0 else 'lower'} after the collapse"
        return Finding(float(abs(each[best])), low, high, int(known.sum()), note)

    return test


def _dominance(a: np.ndarray, b: np.ndarray) -> float:
    """P(b > a) - P(b < a), which is 2 AUC - 1."""
    return float(np.sign(b[:, None] - a[None, :]).mean())


def phase_accuracy(key: str, columns: Mapping[str, tuple[str, str]]) -> Test:
    """How often the phase of a network left out is told from one measure, by the two thresholds that tell
    those of all others best; a third is chance. Of several candidates the best."""

    def test(sources: Sources) -> Finding:
        source = sources[key]
        fell = [m for m in source.members if collapsed(source, m)]
        _enough(source, fell, "collapsed networks")
        hits = {}
        for name, (where, column) in columns.items():
            values = np.array([[source.read(m, phase, where, column) for phase in PHASES] for m in fell])
            values = values[np.isfinite(values).all(1)]
            if len(values) >= FEWEST:
                hits[name] = _left_out(values)
        if not hits:
            raise NotMeasured(f"{source.name} has too few networks with values in all three phases")
        best = max(hits, key=lambda name: hits[name].mean())
        found = over_networks(hits[best], np.mean)
        return Finding(found.value, found.low, found.high, found.n, best if len(columns) > 1 else "")

    return test


def _left_out(values: np.ndarray) -> np.ndarray:
    """For each network (a row), the share of its phases (columns) that the others tell rightly."""
    right = np.empty(len(values))
    for i, own in enumerate(values):
        order, thresholds = _thresholds(np.delete(values, i, axis=0))
        said = order[np.searchsorted(thresholds, own)]
        right[i] = np.mean(said == np.arange(values.shape[1]))
    return right


def _thresholds(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The phases (columns) in the order of their medians, and two thresholds between them that put as many
    values as possible on their right sides."""
    order = np.argsort(np.median(values, axis=0), kind="stable")
    known = np.unique(values)
    cuts = np.concatenate([[-np.inf], (known[1:] + known[:-1]) / 2, [np.inf]])
    low, middle, high = (np.searchsorted(np.sort(values[:, phase]), cuts) for phase in order)
    first, second = low - middle, middle - high  # rightly told, as far as each threshold decides it
    before = np.maximum.accumulate(first)
    last = int(np.argmax(before + second))
    return order, np.array([cuts[int(np.argmax(first[: last + 1]))], cuts[last]])
