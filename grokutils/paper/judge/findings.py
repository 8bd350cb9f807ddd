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

from grokutils.paper.judge.evidence import NotMeasured, Quantity, Source, at, collapsed, of
from grokutils.paper.judge.stats import (
    FEWEST,
    bootstrap,
    cliffs_delta,
    has_width,
    resampled_delta,
    two_thresholds,
)
from grokutils.records.phases import PHASES

__all__ = [
    "Finding", "Sources", "Test", "exact_share", "informedness", "mean", "median", "over_networks", "phase_accuracy",
    "separation", "share",
]  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One number."""

    value: float
    #: Its 95 % interval over networks; None if there are fewer than `FEWEST`, or if all resamples agree.
    low: float | None = None
    high: float | None = None
    #: Networks it rests on; 0 for arithmetic.
    n: int = 0
    #: What else is to be said, such as which of several candidates it is of.
    note: str = ""

    def __post_init__(self) -> None:
        if not has_width(self.low, self.high):
            object.__setattr__(self, "low", None)
            object.__setattr__(self, "high", None)


#: Records by what a claim needs them as, such as ``wd0``.
Sources = Mapping[str, Source]
Test = Callable[[Sources], Finding]
#: Measures by what they are called: (where, measure).
Columns = Mapping[str, tuple[str, str]]


def over_networks(values: np.ndarray, statistic: Callable[..., np.ndarray], note: str = "") -> Finding:
    """A statistic of one number per network, with its bootstrap interval."""
    values = np.asarray(values, dtype=float)
    interval = bootstrap(lambda drawn: statistic(values[drawn], axis=1), len(values))
    return Finding(float(statistic(values)), *interval, len(values), note)


def exact_share(count: int, n: int) -> Finding:
    """A share of networks, with the exact (Clopper-Pearson) interval.

    >>> round(exact_share(20, 20).low, 3)
    0.832
    """
    interval = stats.binomtest(count, n).proportion_ci(0.95, method="exact") if n >= FEWEST else (None, None)
    return Finding(count / n, *interval, n, f"{count} of {n}")


def _known(source: Source, quantity: Quantity) -> tuple[np.ndarray, int]:
    """The values there are, and how many networks have none."""
    values = np.asarray(of(source, quantity), dtype=float)
    known = values[np.isfinite(values)]
    if not len(known):
        raise NotMeasured(f"no network of {source.name} has a value")
    return known, len(values) - len(known)


def share(key: str, quantity: Quantity, known: bool = False) -> Test:
    """The share of a record's networks of which something is true; with ``known``, among those of which it is known."""

    def test(sources: Sources) -> Finding:
        source = sources[key]
        flags = _known(source, quantity)[0] if known else np.asarray(of(source, quantity), dtype=float)
        return exact_share(int(np.nansum(flags)), len(flags))

    return test


def _summary(key: str, quantity: Quantity, statistic) -> Test:
    def test(sources: Sources) -> Finding:
        known, lacking = _known(sources[key], quantity)
        return over_networks(known, statistic, f"{lacking} without a value" if lacking else "")

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
        chosen = [sources[key] for key in keys]
        flags = np.array([[float(x) for source in chosen for x in of(source, candidates[name])] for name in names]).T
        fell = np.concatenate([collapsed(source) for source in chosen])
        for group, what in ((fell, "collapsed"), (~fell, "kept its test accuracy")):
            if not group.any():
                raise NotMeasured(f"no network {what}, so nothing can be told apart")
        hits, false = flags[fell], flags[~fell]
        j = hits.mean(0) - false.mean(0)
        best = int(np.argmax(j))
        interval = bootstrap(lambda a, b: (hits[a].mean(1) - false[b].mean(1)).max(1), len(hits), len(false))
        note = f"{hits[:, best].mean():.2f} of {len(hits)} collapsed, {false[:, best].mean():.2f} of {len(false)} others"
        return Finding(float(j[best]), *interval, len(flags), f"{names[best]}: {note}" if len(names) > 1 else note)

    return test


def _of_collapsed(source: Source, columns: Columns, phases: Sequence[str]) -> np.ndarray:
    """(measures, networks that collapsed, phases)."""
    fell = collapsed(source)
    _enough(source, int(fell.sum()), "collapsed networks")
    return np.array([[source[at(phase, *place)][fell] for phase in phases] for place in columns.values()]).transpose(0, 2, 1)


def _enough(source: Source, n: int, what: str) -> None:
    if n < FEWEST:
        raise NotMeasured(f"{source.name} has {n} {what}; this test needs at least {FEWEST}")


def separation(key: str, columns: Columns) -> Test:
    """|2 AUC - 1| between a measure at the best test accuracy and the same after the collapse, over networks: 0 if
    its values overlap wholly, 1 if one threshold tells the two phases apart. Of several candidates the best."""

    def test(sources: Sources) -> Finding:
        values = _of_collapsed(sources[key], columns, PHASES[1:])
        values = values[:, np.isfinite(values).all(axis=(0, 2))]
        n = values.shape[1]
        _enough(sources[key], n, "collapsed networks with values")
        each = np.array([cliffs_delta(*own.T) for own in values])
        best, networks = int(np.argmax(np.abs(each))), np.arange(n)
        # of whole networks, so that the two phases stay paired
        deltas = [resampled_delta(*own.T, networks, networks) for own in values]
        interval = bootstrap(lambda drawn: np.abs([delta(drawn) for delta in deltas]).max(axis=0), n, resamples=500)
        note = f"{list(columns)[best]}, " if len(columns) > 1 else ""
        note += f"{'higher' if each[best] > 0 else 'lower'} after the collapse"
        return Finding(float(abs(each[best])), *interval, n, note)

    return test


def phase_accuracy(key: str, columns: Columns) -> Test:
    """How often the phase of a network left out is told from one measure, by the two thresholds that tell
    those of all others best; a third is chance. Of several candidates the best."""

    def test(sources: Sources) -> Finding:
        hits = {}
        for name, values in zip(columns, _of_collapsed(sources[key], columns, PHASES), strict=True):
            values = values[np.isfinite(values).all(axis=1)]
            if len(values) >= FEWEST:
                hits[name] = _left_out(values)
        if not hits:
            raise NotMeasured(f"{sources[key].name} has too few networks with values in all three phases")
        best = max(hits, key=lambda name: hits[name].mean())
        return over_networks(hits[best], np.mean, best if len(columns) > 1 else "")

    return test


def _left_out(values: np.ndarray) -> np.ndarray:
    """For each network (a row), the share of its phases (columns) that the others tell rightly."""
    right = np.empty(len(values))
    for i, own in enumerate(values):
        order, thresholds = two_thresholds(np.delete(values, i, axis=0))
        right[i] = np.mean(order[np.searchsorted(thresholds, own)] == np.arange(values.shape[1]))
    return right
