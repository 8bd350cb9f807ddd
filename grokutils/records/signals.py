"""What may announce a fall: every signal's rule and threshold, in one place; and what it went off before.

>>> [signal.label for signal in signals_of("fc1")][:3]
['α leaves 2 to 6 of FC1', 'α of FC1', 'traps of FC1']

A signal is a measure with a rule that says how alarming a value is. It goes off where that reaches its threshold
(``>=``) for three measurements in a row. Lead times, detectors, tables and claims all ask `Signal`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from grokutils.records.phases import Phases
from grokutils.spectra.verdict import THRESHOLDS

__all__ = [
    "ALPHA_HIGH", "ALPHA_LOW", "LASTING", "LAYER_CONTROLS", "NAMES", "NETWORK_CONTROLS", "TRAPPED_FROM", "Signal",
    "lead_times", "onset", "signals_of",
]  # fmt: skip

#: Alpha below the first is said to mark an overfitted layer, above the second one that has not learnt.
ALPHA_LOW, ALPHA_HIGH = THRESHOLDS.over_correlated_below, THRESHOLDS.under_trained_above
#: A layer counts as trapped from this mean number over the shuffles.
TRAPPED_FROM = THRESHOLDS.trapped_from
#: How many measurements in a row make a signal.
LASTING = 3

# What is measured of each layer and serves as a control of alpha and of the traps, and of the network.
LAYER_CONTROLS = (
    "max_over_std", "kurtosis", "mean_over_std", "spectral_norm", "l2_norm", "stable_rank", "effective_rank",
)  # fmt: skip
NETWORK_CONTROLS = (
    "l2_norm", "activation_sparsity_text", "activation_sparsity_notebook", "absolute_weight_entropy_text",
    "absolute_weight_entropy_notebook", "circuit_complexity_text", "circuit_complexity_notebook",
)  # fmt: skip

#: What measures are called in tables and figures.
NAMES = {
    "alpha": "α", "alpha_clipped": "α, clipped", "traps": "traps", "max_over_std": "largest weight / std",
    "kurtosis": "kurtosis", "mean_over_std": "|mean| / std", "spectral_norm": "spectral norm", "l2_norm": "ℓ² norm",
    "stable_rank": "stable rank", "effective_rank": "effective rank", "train_loss": "training loss",
    "activation_sparsity_text": "activation sparsity (text)",
    "activation_sparsity_notebook": "activation sparsity (notebook)",
    "absolute_weight_entropy_text": "absolute weight entropy (text)",
    "absolute_weight_entropy_notebook": "absolute weight entropy (notebook)",
    "circuit_complexity_text": "circuit complexity (text)",
    "circuit_complexity_notebook": "circuit complexity (notebook)",
    "alpha leaves 2 to 6": "α leaves 2 to 6", "alpha below 2": "α below 2", "sigma_mp": "σ_mp", "ks_D": "KS distance",
    "ks_p_textbook": "p, textbook (median)", "ks_p": "p, Monte Carlo (median)", "step": "step",
    "train_accuracy": "training accuracy", "test_accuracy": "test accuracy",
}  # fmt: skip

#: The rules: what a signal is called, and how its threshold is written. `Signal.scores` says what they do.
RULES = {
    "below": ("{measure} below {usual:g}", "< "), "leaves": (f"{{measure}} leaves {ALPHA_LOW:g} to {ALPHA_HIGH:g}", "> "),
    "reaches": ("first trap", "≥ "), "grows": ("trap growth", "≥ +"), "away": ("{measure}", "> "),
}  # fmt: skip
# A range needs a few measurements to mean anything.
_FEWEST = 5


@dataclass(frozen=True)
class Signal:
    """A measure that is watched, and when it is alarming.

    >>> Signal("traps", "fc1", "reaches", 0.5).scores(np.array([0.0, 1.0])).tolist()
    [0.0, 1.0]
    """

    measure: str
    #: A layer, ``average`` or ``network``.
    where: str
    #: One of `RULES`.
    rule: str
    #: The threshold it is usually given.
    usual: float

    @property
    def name(self) -> str:
        """As `lead_times` calls it."""
        return RULES[self.rule][0].format(measure=self.measure, usual=self.usual)

    @property
    def label(self) -> str:
        names = {"leaves": NAMES.get(self.name, self.name), "grows": f"growth of {self.measure}"}
        where = "" if self.where == "network" else f" of {self.where.upper()}"
        return names.get(self.rule, NAMES[self.measure]) + where

    def written(self, threshold: float, style: str = "g") -> str:
        """A threshold in the signal's own units, with its sign."""
        return f"{RULES[self.rule][1]}{threshold:{style}}" + (" widths" if self.rule == "away" else "")

    @property
    def threshold(self) -> float:
        """The usual threshold in the units of `scores`; those of "below" and "above" are not reached by equality."""
        if self.rule in ("reaches", "grows"):
            return self.usual
        return float(np.nextafter(-self.usual if self.rule == "below" else self.usual, np.inf))

    def scores(self, values: np.ndarray, before: int = 0) -> np.ndarray:
        """How alarming each value is, the first being where the training set is learnt; -inf where nothing is said.

        - ``below``: how low it is (the value, negated)
        - ``leaves``: how far outside alpha's range, once it has been inside
        - ``reaches``: the value
        - ``grows``: how much more it is than where it first lastingly was `TRAPPED_FROM` or more
        - ``away``: how far outside its range before the rise (`early_range`), in widths of that range: the same in every
          unit, with nothing to tune, and noise alone does not reach 1

        Parameters
        ----------
        values : over analysed steps
        before : how many of them come before the test accuracy begins to rise
        """
        values = np.asarray(values, dtype=float)
        if self.rule == "leaves":
            inside = np.logical_or.accumulate((values >= ALPHA_LOW) & (values <= ALPHA_HIGH))
            score = np.where(inside, np.maximum(ALPHA_LOW - values, values - ALPHA_HIGH), -np.inf)
        elif self.rule == "grows":
            first = onset(np.arange(len(values)), values >= TRAPPED_FROM)
            score = np.full(len(values), -np.inf)
            if first is not None:  # 2.4 is one more than 1.4, whatever rounding makes of it
                score[first:] = (values[first:] - values[first]).round(9)
        elif self.rule == "away":
            score = np.full(len(values), -np.inf)
            if (found := early_range(values, before)) is not None:
                count, low, high, width = found
                score[count:] = np.maximum(values[count:] - high, low - values[count:]) / width
        else:
            score = -values if self.rule == "below" else values
        return np.where(np.isnan(score), -np.inf, score)


def signals_of(where: str) -> tuple[Signal, ...]:
    """All signals of a layer, of ``average`` or of ``network``, at their usual thresholds."""
    if where == "network":
        return tuple(Signal(name, where, "away", 1.0) for name in (*NETWORK_CONTROLS, "train_loss"))
    alphas = (Signal("alpha", where, "leaves", 0.0), Signal("alpha", where, "below", ALPHA_LOW))
    clipped = (Signal("alpha_clipped", where, "below", ALPHA_LOW),)
    if where == "average":
        return (*alphas, *clipped)
    traps = (Signal("traps", where, "reaches", TRAPPED_FROM), Signal("traps", where, "grows", 1.0))
    return (*alphas, *traps, *(Signal(name, where, "away", 1.0) for name in LAYER_CONTROLS), *clipped)


def onset(steps: np.ndarray, holds: np.ndarray, lasting: int = LASTING) -> int | None:
    """The first step from which a condition holds for `lasting` measurements in a row; None if it never does.

    >>> onset(np.array([1, 10, 100, 1000]), np.array([True, False, True, True]), lasting=2)
    100

    At the end of a record fewer measurements count, if the condition holds in all that are left.
    """
    holds = np.asarray(holds, dtype=bool)
    for i in np.flatnonzero(holds):
        if holds[i : i + lasting].all():
            return int(steps[i])
    return None


def early_range(values: np.ndarray, before: int) -> tuple[int, float, float, float] | None:
    """The range of a signal before the test accuracy rose: of how many values, the smallest, the largest, and its
    width; None if fewer than two of them are finite.

    >>> early_range(np.array([3.0, 2.0, 4.0, 3.0, 3.0, 9.0]), before=5)
    (5, 2.0, 4.0, 2.0)

    Five values are taken if there are fewer before the rise, or none. The width is never below a 1e-9 of the values:
    what rounding does to a constant signal is no change.
    """
    count = max(before, _FEWEST)
    reference = values[:count][np.isfinite(values[:count])]
    if reference.size < 2:
        return None
    low, high = float(reference.min()), float(reference.max())
    return count, low, high, max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-300)


def lead_times(measures: pd.DataFrame, phases: Mapping[int, Phases]) -> pd.DataFrame:
    """How long before the fall of the test accuracy each signal went off (`Study.leads` has it of a study).

    >>> from grokutils.records.study import study
    >>> study("results/express/wd0").leads                           # doctest: +SKIP

    The *fall* is the step from which the test accuracy is five points or more below its best for good, with the training
    set still known (`Phases.fall`). Every signal is looked for from the step at which the training set was learnt,
    and its onset is the first of the measurements for which it lasted (`onset`).

    Parameters
    ----------
    measures : a row per analysed step and member, a column per (measure, where); what is missing is left out
    phases : of each member

    Returns
    -------
    DataFrame, a row per member, layer and signal: ``member``, ``layer`` (or ``average``, ``network``), ``signal``
    (`Signal.name`), ``onset``, ``fall``, ``lead_steps`` = fall - onset and ``lead_decades`` = log10(fall / onset), positive
    if the signal came first and negative if it came after; NaN if either never came. ``low`` and ``high`` are the range
    that a control left.
    """
    rows = []
    places = dict.fromkeys(measures.columns.get_level_values("where"))
    for member, found in phases.items():
        own = measures.xs(member, level="member").sort_index()
        own = own[own.index >= (np.inf if found.memorised is None else found.memorised)]
        for signal in _measured([signal for where in places for signal in signals_of(where)], measures):
            values = own[signal.measure, signal.where].to_numpy(float)
            before = steps_before(own.index, found.grokking)
            at = onset(own.index, signal.scores(values, before) >= signal.threshold)
            fall = found.fall
            known = at is not None and fall is not None
            early = early_range(values, before) if signal.rule == "away" else None
            _, low, high, width = early or (0, np.nan, np.nan, 0.0)
            rows.append({
                "member": member, "layer": signal.where, "signal": signal.name, "onset": at, "fall": fall,
                "lead_steps": float(fall - at) if known else np.nan,
                "lead_decades": float(np.log10(fall / max(at, 1))) if known and fall else np.nan,
                "low": low - width, "high": high + width,
            })  # fmt: skip
    return pd.DataFrame(rows).astype({"onset": "Int64", "fall": "Int64"})


def steps_before(steps: pd.Index | np.ndarray, rise: int | None) -> int:
    """How many steps come before the rise of the test accuracy; 0 if it never rises."""
    return 0 if rise is None else int((np.asarray(steps) < rise).sum())


def _measured(signals: Iterable[Signal], measures: pd.DataFrame) -> list[Signal]:
    return [signal for signal in signals if (signal.measure, signal.where) in measures]
