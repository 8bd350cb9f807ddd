"""Which signal would have warned of a fall, how early, and how often it would have cried wolf.

>>> watched = watch([study("results/express/wd0"), study("results/express/wd0.01")])     # doctest: +SKIP
>>> table(watched)                                                                       # doctest: +SKIP

A *watch* follows each network from the step at which it knows its training set (one that never does, from the start),
as somebody would who trains it: a signal counts once it has lasted for three measurements, and from the third of them
on. Of a network that falls (five points of test accuracy for good) only what comes before the fall counts; of the
others everything to the end.

A network that never generalised cannot lose it, and an alarm in one that has learnt random labels by heart is not
false of overfitting. Signals are therefore judged on the networks that had generalised (`comparable`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from grokutils.paper.causes.outcomes import FALL
from grokutils.paper.kit.tables import TRAPPED_FROM
from grokutils.records.phases import NETWORK_CONTROLS, early_range, find_phases, onset
from grokutils.records.study import NAMES, Study

__all__ = [
    "GENERALISED", "SIGNALS", "Signal", "Watch", "alarms", "at_chance", "auc", "comparable", "curve",
    "false_alarms", "fitted", "leads", "never_fell", "table", "threshold_of", "watch",
]  # fmt: skip

#: A network has generalised if its best test accuracy is at least so much (a tenth is chance).
GENERALISED = 0.5

#: How many measurements make a signal.
LASTING = 3
_RESAMPLES = 1000


@dataclass(frozen=True)
class Signal:
    """A quantity watched, and the threshold it is usually given."""

    name: str
    #: A layer, or ``network``.
    where: str
    #: ``below`` and ``above`` a threshold; ``more``: above its value where it first lasted above a half;
    #: ``away``: outside its range before the test accuracy rose, in widths of that range.
    kind: str
    usual: float

    @property
    def label(self) -> str:
        where = "" if self.where == "network" else f" of {self.where.upper()}"
        names = {"traps": {"above": "traps", "more": "growth of traps"}[self.kind]} if self.name == "traps" else NAMES
        return f"{names[self.name]}{where}"


def _signals() -> tuple[Signal, ...]:
    layers = ("fc1", "fc2")
    found = [Signal("alpha", where, "below", 2.0) for where in layers]
    found += [Signal("traps", where, kind, usual) for kind, usual in (("above", 0.5), ("more", 1.0)) for where in layers]
    found += [Signal(name, where, "away", 1.0) for name in ("max_over_std", "kurtosis") for where in layers]
    found += [Signal(name, "network", "away", 1.0) for name in (*NETWORK_CONTROLS, "train_loss")]
    return tuple(found)


SIGNALS = _signals()


@dataclass(frozen=True, eq=False)
class Watch:
    """One network, watched."""

    #: What it is an example of: the name of its condition.
    name: str
    seed: int
    #: The step of its fall; None if it never fell.
    fall: int | None
    #: Of each signal, steps and how far it is towards an alarm: it goes off where this exceeds a threshold
    #: (-alpha for one below, so that more is always more alarming), after lasting. Only while it is watched.
    steps: dict[Signal, np.ndarray]
    scores: dict[Signal, np.ndarray]
    #: Its best test accuracy, from where it knows its training set.
    best: float = 1.0

    @property
    def generalised(self) -> bool:
        return self.best >= GENERALISED

    def highest(self, signal: Signal, until: float = np.inf) -> float:
        """The largest threshold at which the signal goes off, by a step; -inf if at none."""
        return float(self.scores[signal][self.steps[signal] <= until].max(initial=-np.inf))

    def alarm(self, signal: Signal, threshold: float) -> int | None:
        """The step at which it goes off; None if never."""
        over = np.flatnonzero(self.scores[signal] > threshold)
        return int(self.steps[signal][over[0]]) if over.size else None


def watch(studies: Iterable[Study], names: Sequence[str] | None = None, signals: Sequence[Signal] = SIGNALS) -> list[Watch]:
    """Watch every network of some studies.

    Parameters
    ----------
    studies : of runs from initial weights, since a fork has no time before its rise
    names : what each is called; the names of the records by default
    signals : those to follow
    """
    studies = list(studies)
    names = [study.name for study in studies] if names is None else names
    return [
        _watch(study, member, name, signals)
        for study, name in zip(studies, names, strict=True)
        for member in study.members
    ]


def _watch(study: Study, member: int, name: str, signals: Sequence[Signal]) -> Watch:
    own = study.metrics[study.metrics.member == member].sort_values("step")
    phases = find_phases(own, drop=FALL)
    steps, scores = {}, {}
    for signal in signals:
        at, value = _series(study, member, signal, own)
        since = at >= (phases.memorised or 0)
        at, value = at[since], value[since]
        score = _score(signal, at, value, phases.grokking)
        # lasting: the weakest of the last three, known at the third
        lasted = np.full(len(score), -np.inf)
        for i in range(LASTING - 1, len(score)):
            lasted[i] = score[i - LASTING + 1 : i + 1].min()
        before = at < (np.inf if phases.collapse is None else phases.collapse)
        steps[signal], scores[signal] = at[before], lasted[before]
    return Watch(name, int(own.seed.iloc[0]), phases.collapse, steps, scores, phases.peak_accuracy)


def _series(study: Study, member: int, signal: Signal, metrics: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    if signal.where != "network":
        frame = study.diagnostics[(study.diagnostics.member == member) & (study.diagnostics.layer == signal.where)]
    elif signal.name in study.baselines:
        frame = study.baselines[study.baselines.member == member]
    else:
        # as often as the spectra, so that "three measurements" are as long for every signal
        frame = metrics[metrics.step.isin(study.diagnostics.step)]
    frame = frame.sort_values("step")
    return frame.step.to_numpy(), frame[signal.name].to_numpy(dtype=float)


def _score(signal: Signal, at: np.ndarray, value: np.ndarray, rise: int | None) -> np.ndarray:
    if signal.kind == "below":
        score = -value
    elif signal.kind == "above":
        score = value
    elif signal.kind == "more":
        first = onset(np.arange(len(value)), value >= TRAPPED_FROM, LASTING)
        # all three measured, unlike an onset at the end of a record: what is watched is not over yet
        lasted = first is not None and first <= len(value) - LASTING
        score = value - (value[first] if lasted else np.inf)
    else:
        if (found := early_range(at, value, rise)) is None:
            return np.full(len(value), -np.inf)
        count, low, high, width = found
        score = np.maximum(value - high, low - value) / width
        score[:count] = -np.inf
    return np.where(np.isnan(score), -np.inf, score)


def threshold_of(signal: Signal) -> float:
    """The usual threshold, in the units of the scores."""
    return -signal.usual if signal.kind == "below" else signal.usual


# -- how good a signal is ---------------------------------------------------------------------------------------


def _groups(watched: Sequence[Watch]) -> tuple[list[Watch], list[Watch]]:
    return [w for w in watched if w.fall is not None], [w for w in watched if w.fall is None]


def comparable(watched: Sequence[Watch]) -> list[Watch]:
    """The networks that fell, and those that never did though they had generalised."""
    return [w for w in watched if w.fall is not None or w.generalised]


def at_chance(watched: Sequence[Watch]) -> list[Watch]:
    """The networks that never generalised, and so could not fall."""
    return [w for w in watched if w.fall is None and not w.generalised]


def auc(watched: Sequence[Watch], signal: Signal, until: float = np.inf) -> tuple[float, float, float]:
    """Chance that the signal rises higher before a fall than in a network that never falls, ties counted half (the
    area under the ROC curve), and its 95 % bootstrap interval over seeds; NaN without networks of both kinds.

    A seed is drawn with all its networks, whatever their condition. `until`: a step after which nobody is watched.
    """
    groups = _groups(watched)
    if not all(groups):
        return np.nan, np.nan, np.nan
    fell, stayed = (np.array([w.highest(signal, until) for w in group]) for group in groups)
    above = np.where(fell[:, None] == stayed, 0.5, fell[:, None] > stayed)
    seeds = sorted({w.seed for w in watched})
    first, second = (np.array([seeds.index(w.seed) for w in group]) for group in groups)
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(_RESAMPLES):
        times = np.bincount(rng.integers(len(seeds), size=len(seeds)), minlength=len(seeds))
        a, b = times[first], times[second]
        if a.any() and b.any():
            drawn.append(a @ above @ b / (a.sum() * b.sum()))
    low, high = np.quantile(drawn, [0.025, 0.975]) if len(seeds) > 1 else (np.nan, np.nan)
    return float(above.mean()), float(low), float(high)


def curve(watched: Sequence[Watch], signal: Signal) -> pd.DataFrame:
    """The ROC curve: ``threshold`` (of the score), share of falls with an alarm before them ``hits``, share of the
    other networks with an alarm ``false``; from no alarms at all to the most there can be."""
    fell, stayed = ([w.highest(signal) for w in group] for group in _groups(watched))
    cuts = np.array(sorted({np.inf, *fell, *stayed}, reverse=True))
    share = lambda values, cut: float(np.mean(np.array(values) >= cut)) if values else np.nan  # noqa: E731
    rows = [(cut, share(fell, cut), share(stayed, cut)) for cut in cuts if cut > -np.inf]
    return pd.DataFrame(rows, columns=["threshold", "hits", "false"])


def fitted(watched: Sequence[Watch], signal: Signal) -> float:
    """The threshold with the most hits minus false alarms (Youden), in the middle of its gap; NaN if there is no
    choice, or if the best is one below every value, which always alarms."""
    fell, stayed = (np.array([w.highest(signal) for w in group]) for group in _groups(watched))
    values = np.unique(np.concatenate([fell, stayed]))
    values = values[np.isfinite(values)]
    if not fell.size or not stayed.size or not values.size:
        return np.nan
    cuts = np.concatenate([[values[0] - 1.0], (values[1:] + values[:-1]) / 2])
    best = int(np.argmax([(fell > cut).mean() - (stayed > cut).mean() for cut in cuts]))
    return float(cuts[best]) if best else np.nan


def leads(watched: Sequence[Watch], signal: Signal, threshold: float) -> np.ndarray:
    """Decades of steps from the alarm to the fall, of the falls that it came before."""
    found = [(w.fall, w.alarm(signal, threshold)) for w in watched if w.fall is not None]
    return np.array([np.log10(fall / max(at, 1)) for fall, at in found if at is not None])


def alarms(watched: Sequence[Watch], signal: Signal, threshold: float) -> tuple[int, int, int, int]:
    """(falls warned of, falls, false alarms, networks without a fall)."""
    fell, stayed = ([w.alarm(signal, threshold) is not None for w in group] for group in _groups(watched))
    return sum(fell), len(fell), sum(stayed), len(stayed)


def table(watched: Sequence[Watch], signals: Sequence[Signal] = SIGNALS) -> pd.DataFrame:
    """All signals, the best first.

    Returns
    -------
    A row per signal. Of the networks that fell and those that never did though they had generalised
    (`comparable`): ``label``, ``auc`` with ``auc_low`` and ``auc_high``; ``auc_same_time``, with nobody watched for
    longer than the median fall took; at the usual threshold ``warned`` of
    ``falls``, median ``lead`` in decades, ``false`` of ``stayed``; and the threshold ``fitted`` to networks of even
    seed (in the signal's own units), with ``fitted_warned`` of ``fitted_falls``, ``fitted_lead`` and ``fitted_false`` of
    ``fitted_stayed`` among those of odd seed. With those `at_chance` as well: ``auc_all`` with ``auc_all_low``
    and ``auc_all_high``, and of ``chance`` such networks in how many, ``chance_alarms``, it goes off.
    """
    judged, chance = comparable(watched), at_chance(watched)
    falls = [w.fall for w in watched if w.fall is not None]
    median_fall = float(np.median(falls)) if falls else np.inf
    even, odd = ([w for w in judged if w.seed % 2 == rest] for rest in (0, 1))
    rows = []
    for signal in signals:
        usual, cut = threshold_of(signal), fitted(even, signal)
        row = {"signal": signal, "label": signal.label}
        row |= dict(zip(("auc", "auc_low", "auc_high"), auc(judged, signal), strict=True))
        row |= dict(zip(("auc_all", "auc_all_low", "auc_all_high"), auc(watched, signal), strict=True))
        row["auc_same_time"] = auc(judged, signal, median_fall)[0]
        row |= dict(zip(("warned", "falls", "false", "stayed"), alarms(judged, signal, usual), strict=True))
        row["chance_alarms"], row["chance"] = alarms(chance, signal, usual)[2:]
        row["lead"] = _median(leads(watched, signal, usual))
        row["fitted"] = -cut if signal.kind == "below" else cut
        names = ("fitted_warned", "fitted_falls", "fitted_false", "fitted_stayed")
        row |= dict(zip(names, alarms(odd, signal, np.inf if np.isnan(cut) else cut), strict=True))
        row["fitted_lead"] = _median(leads(odd, signal, np.inf if np.isnan(cut) else cut))
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else np.nan


def false_alarms(watched: Sequence[Watch], signals: Sequence[Signal] = SIGNALS) -> pd.DataFrame:
    """Of each condition the share of networks in which each signal goes off at its usual threshold though they never
    fall (`never_fell` counts them); NaN where all fell. A row per signal, a column per condition, in the order in
    which they were watched."""
    names = list(dict.fromkeys(w.name for w in watched))
    rows = {}
    for signal in signals:
        shares = {}
        for name in names:
            warned = alarms([w for w in watched if w.name == name], signal, threshold_of(signal))
            shares[name] = warned[2] / warned[3] if warned[3] else np.nan
        rows[signal.label] = shares
    return pd.DataFrame.from_dict(rows, orient="index", columns=names)


def never_fell(watched: Sequence[Watch]) -> pd.DataFrame:
    """A row per condition: how many ``networks`` never fell, and how many of these had ``generalised``."""
    names = list(dict.fromkeys(w.name for w in watched))
    groups = [[w for w in watched if w.name == name and w.fall is None] for name in names]
    known = [sum(w.generalised for w in group) for group in groups]
    return pd.DataFrame({"networks": map(len, groups), "generalised": known}, index=names, dtype=int)
