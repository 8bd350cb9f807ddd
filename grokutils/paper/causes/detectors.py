"""Which signal would have warned of a fall, how early, and how often it would have cried wolf.

>>> watched = watch([study("results/express/wd0"), study("results/express/wd0.01")])     # doctest: +SKIP
>>> ranking(watched)                                                                       # doctest: +SKIP

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

from grokutils.paper.judge.stats import best_threshold, bootstrap, resampled_delta, roc_area
from grokutils.records.signals import LASTING, Signal, signals_of, steps_before
from grokutils.records.study import Study

__all__ = [
    "GENERALISED", "SIGNALS", "Watch", "alarms", "at_chance", "auc", "comparable", "curve", "false_alarms", "fitted", "leads",
    "never_fell", "ranking", "watch",
]  # fmt: skip

#: A network has generalised if its best test accuracy is at least so much (a tenth is chance).
GENERALISED = 0.5

_WATCHED = [(name, rule) for name, rule in (
    ("alpha", "below"), ("traps", "reaches"), ("traps", "grows"), ("max_over_std", "away"), ("kurtosis", "away"))]  # fmt: skip
_OF_LAYERS = [signal for where in ("fc1", "fc2") for signal in signals_of(where) if (signal.measure, signal.rule) in _WATCHED]
SIGNALS = (*sorted(_OF_LAYERS, key=lambda s: _WATCHED.index((s.measure, s.rule))), *signals_of("network"))


@dataclass(frozen=True, eq=False)
class Watch:
    """One network, watched."""

    #: What it is an example of: the name of its condition.
    name: str
    seed: int
    #: The step of its fall; None if it never fell.
    fall: int | None
    #: The analysed steps while it is watched, and how alarming each signal has been for `LASTING` of them.
    steps: np.ndarray
    scores: dict[Signal, np.ndarray]
    #: Its best test accuracy, from where it knows its training set.
    best: float = 1.0

    @property
    def generalised(self) -> bool:
        return self.best >= GENERALISED

    def highest(self, signal: Signal, until: float = np.inf) -> float:
        """The largest threshold at which the signal goes off, by a step; -inf if at none."""
        return float(self.scores[signal][self.steps <= until].max(initial=-np.inf))

    def alarm(self, signal: Signal, threshold: float | None = None) -> int | None:
        """The step at which it goes off, at its usual threshold by default; None if never."""
        over = np.flatnonzero(self.scores[signal] >= (signal.threshold if threshold is None else threshold))
        return int(self.steps[over[0]]) if over.size else None


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
    phases, network = study.member_phases[member], study.networks.loc[member]
    own = study.measures.xs(member, level="member").sort_index()
    own = own[own.index >= (phases.memorised or 0)]
    watched = own.index < (np.inf if phases.fall is None else phases.fall)
    before, scores = steps_before(own.index, phases.grokking), {}
    for signal in signals:
        score = signal.scores(own[signal.measure, signal.where], before)
        # lasting: the weakest of the last three, known at the third
        padded = np.concatenate([np.full(LASTING - 1, -np.inf), score])
        lasted = np.lib.stride_tricks.sliding_window_view(padded, LASTING).min(axis=1)
        scores[signal] = lasted[watched]
    return Watch(name, int(network.seed), phases.fall, own.index.to_numpy()[watched], scores, phases.peak_accuracy)


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
    fell, stayed = _groups(watched)
    seeds = sorted({w.seed for w in watched})
    of_fell, of_stayed = ([seeds.index(w.seed) for w in group] for group in (fell, stayed))
    a, b = ([w.highest(signal, until) for w in group] for group in (fell, stayed))
    if not (a and b):
        return np.nan, np.nan, np.nan
    low, high = bootstrap(resampled_delta(b, a, of_stayed, of_fell), len(seeds), resamples=1000)
    return roc_area(a, b), (1 + low) / 2, (1 + high) / 2


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
    cut = best_threshold(stayed, fell)
    return np.nan if np.isinf(cut) else cut


def leads(watched: Sequence[Watch], signal: Signal, threshold: float | None = None) -> np.ndarray:
    """Decades of steps from the alarm to the fall, of the falls that it came before."""
    found = [(w.fall, w.alarm(signal, threshold)) for w in watched if w.fall is not None]
    return np.array([np.log10(fall / max(at, 1)) for fall, at in found if at is not None])


def alarms(watched: Sequence[Watch], signal: Signal, threshold: float | None = None) -> tuple[int, int, int, int]:
    """(falls warned of, falls, false alarms, networks without a fall)."""
    fell, stayed = ([w.alarm(signal, threshold) is not None for w in group] for group in _groups(watched))
    return sum(fell), len(fell), sum(stayed), len(stayed)


def ranking(watched: Sequence[Watch], signals: Sequence[Signal] = SIGNALS) -> pd.DataFrame:
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
        cut = fitted(even, signal)
        at = np.inf if np.isnan(cut) else cut
        row = {
            "signal": signal, "label": signal.label, "auc_same_time": auc(judged, signal, median_fall)[0],
            "chance_alarms": alarms(chance, signal)[2], "chance": len(chance), "lead": _median(leads(watched, signal)),
            "fitted": -cut if signal.rule == "below" else cut, "fitted_lead": _median(leads(odd, signal, at)),
        }  # fmt: skip
        for names, values in (
            (("auc", "auc_low", "auc_high"), auc(judged, signal)), (("auc_all", "auc_all_low", "auc_all_high"), auc(watched, signal)),
            (("warned", "falls", "false", "stayed"), alarms(judged, signal)),
            (("fitted_warned", "fitted_falls", "fitted_false", "fitted_stayed"), alarms(odd, signal, at)),
        ):  # fmt: skip
            row |= dict(zip(names, values, strict=True))
        rows.append(row)
    frame = pd.DataFrame(rows)
    return frame.sort_values("auc", ascending=False, kind="stable", ignore_index=True)


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if values.size else np.nan


def false_alarms(watched: Sequence[Watch], signals: Sequence[Signal] = SIGNALS) -> pd.DataFrame:
    """Of each condition the share of networks in which each signal goes off at its usual threshold though they never
    fall (`never_fell` counts them); NaN where all fell. A row per signal, a column per condition, in the order in
    which they were watched."""
    shares = {}
    for name in dict.fromkeys(w.name for w in watched):
        stayed = [w for w in watched if w.name == name and w.fall is None]
        shares[name] = {s.label: np.mean([w.alarm(s) is not None for w in stayed]) if stayed else np.nan for s in signals}
    return pd.DataFrame(shares, index=[signal.label for signal in signals])


def never_fell(watched: Sequence[Watch]) -> pd.DataFrame:
    """A row per condition: how many ``networks`` never fell, and how many of these had ``generalised``."""
    names = list(dict.fromkeys(w.name for w in watched))
    groups = [[w for w in watched if w.name == name and w.fall is None] for name in names]
    return pd.DataFrame({
        "networks": [len(group) for group in groups], "generalised": [sum(w.generalised for w in group) for group in groups],
    }, index=names, dtype=int)  # fmt: skip
