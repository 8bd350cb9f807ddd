"""What is read of one network to judge a claim by.

>>> from grokutils.records.study import study
>>> source = Source(study("results/express/wd0"))                    # doctest: +SKIP
>>> read("grokking", "fc1", "alpha")(source, 0)                      # doctest: +SKIP
2.9

A *quantity* takes a `Source` (a record) and the number of a network and returns a number, a truth value, or NaN
where the network has none. It raises `NotMeasured` where the record does not reach far enough to tell.
`grokutils.paper.judge.findings` makes one number of those of all networks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np
import pandas as pd
from scipy import stats

from grokutils.experiment.config import RunConfig
from grokutils.experiment.traits import data_traits
from grokutils.paper.judge.published import TABLE_STEPS
from grokutils.records.phases import PHASES, Phases, lead_times
from grokutils.records.study import Study

__all__ = [
    "NotMeasured",
    "Quantity",
    "Source",
    "accuracy_when_learnt",
    "alarmed",
    "alpha_against_erg",
    "any_of",
    "before_rise",
    "below",
    "best_accuracy",
    "change_over",
    "collapsed",
    "decline",
    "fall",
    "fallen_by",
    "falls",
    "growth",
    "last_accuracy",
    "last_train_accuracy",
    "lead_decades",
    "learnt_step",
    "mean_over",
    "none_over",
    "outnumber",
    "over_start",
    "peak_over_learnt",
    "peak_step",
    "rank_correlation",
    "reaches",
    "read",
    "rise",
    "saturation_step",
    "size",
    "warned",
    "warned_of_collapse",
    "way_to_chance",
]

# A record of ten saved steps a decade has one within a factor of 1.13 of any step it reaches.
_NEAR = 1.2
# A best value counts as the peak once the record goes on for twice as long.
_PAST = 2
# A rank correlation of fewer steps means nothing.
_FEWEST_STEPS = 5


class NotMeasured(Exception):
    """No record, or one that does not reach far enough; the message says which and how far."""


class Source:
    """A record to judge claims by; `name` is what messages call it."""

    def __init__(self, study: Study, name: str = ""):
        self.study = study
        self.name = name or study.name

    @property
    def recipe(self) -> str:
        return self.study.config.recipe_name

    @property
    def members(self) -> list[int]:
        return self.study.members

    @cached_property
    def horizon(self) -> int:
        """Steps of the whole experiment, which is the recipe's own number; of a network of the reader's own, the run's."""
        return RunConfig.recipe(self.recipe).steps if self.study.config.own is None else self.study.config.steps

    @property
    def ended(self) -> bool:
        return self.study.step >= self.horizon

    def phases(self, member: int) -> Phases:
        return self.study.member_phases[member]

    def short(self, needed: str) -> NotMeasured:
        """The exception that says how far the record reaches, and what would be needed."""
        return NotMeasured(f"{self.name} reaches step {self.study.step:,}; {needed}")

    def until_the_end(self) -> None:
        if not self.ended:
            raise self.short(f"this is judged at {self.horizon:,}")

    def past_the_peak(self, member: int) -> None:
        found = self.phases(member)
        if not self.ended and found.peak_accuracy < 1 and (found.peak is None or self.study.step < _PAST * found.peak):
            raise self.short("its test accuracy may still rise")

    def mark(self, member: int, phase: str) -> int | None:
        """The analysed step at which a phase of a network is read; None if it never has that phase.

        Records of the paper's recipe are read at the steps of the paper's tables, others at the right edges of each
        network's own phases (`Study.phase_steps`).
        """
        if self.recipe == "paper":
            wanted = TABLE_STEPS[phase]
            step = self.study.nearest(int(wanted))
            if not 1 / _NEAR < step / wanted < _NEAR:
                raise self.short(f"this is read at {wanted:,.0f}")
            return step
        if phase == PHASES[1]:
            self.past_the_peak(member)
        elif phase == PHASES[2]:
            self.until_the_end()
        step = self.study.phase_steps.loc[member, phase]
        if pd.isna(step):
            self.until_the_end()  # otherwise it may still come
            return None
        return int(step)

    @cached_property
    def _tables(self) -> dict[str, pd.DataFrame]:
        """By where a column is: the layers', the networks'."""
        s = self.study
        followed = s.diagnostics[s.diagnostics.layer.isin(s.layers)]
        alphas = followed.groupby(["step", "member"])[["alpha", "alpha_clipped"]]
        average = alphas.agg(lambda a: a.mean(skipna=False)).reset_index().assign(layer="average")
        layers = pd.concat([s.diagnostics, average], ignore_index=True)
        again = [name for name in s.baselines if name in s.metrics and name not in ("member", "step")]
        own = s.metrics.merge(s.baselines.drop(columns=again), on=["member", "step"], how="left")
        return {
            "layers": layers.set_index(["member", "layer", "step"]).sort_index(),
            "network": own.set_index(["member", "step"]).sort_index(),
        }

    def series(self, member: int, where: str, column: str, start: int = 0) -> pd.Series:
        """A column of one network over steps; ``where`` is a layer, ``average`` or ``network``."""
        table = self._tables["network" if where == "network" else "layers"]
        key = member if where == "network" else (member, where)
        try:
            found = table.loc[key, column]
        except KeyError:
            raise NotMeasured(f"{self.name} has no {column} of the {where}") from None
        return found[found.index >= start]

    def read(self, member: int, phase: str, where: str, column: str) -> float:
        """A column where a phase is read; NaN if the network has no such phase."""
        step = self.mark(member, phase)
        return np.nan if step is None else float(self.series(member, where, column).get(step, np.nan))

    @cached_property
    def _leads(self) -> pd.DataFrame:
        """Of the layers, of their average, and of alpha with `alpha_clipped` in its place (``fc1 clipped``)."""
        s = self.study
        layers = s.diagnostics[s.diagnostics.layer.isin(s.layers)]
        mean = layers.groupby(["step", "member"])[["alpha", "alpha_clipped", "traps"]]
        average = mean.agg(lambda x: x.mean(skipna=False)).reset_index().assign(layer="average")
        plain = pd.concat([layers, average], ignore_index=True)
        clipped = plain[["step", "member", "traps"]].assign(
            alpha=plain.alpha_clipped, layer=plain.layer + " clipped"
        )
        frame = lead_times(s.metrics, pd.concat([plain, clipped], ignore_index=True), s.baselines)
        if "member" not in frame:
            frame = frame.assign(member=s.members[0])
        return frame.set_index(["member", "layer", "signal"])[["onset", "fall", "lead_decades"]].astype(float)

    def lead(self, member: int, where: str, signal: str) -> pd.Series:
        """``onset``, ``fall`` and ``lead_decades`` of a signal, as `grokutils.records.phases.lead_times` has them."""
        try:
            return self._leads.loc[(member, where, signal)]
        except KeyError:
            raise NotMeasured(f"{self.name} has no {signal} of the {where}") from None


Quantity = Callable[[Source, int], float]


# -- quantities of one network ---------------------------------------------------------------------


def _nan(step: int | None) -> float:
    return np.nan if step is None else float(step)


def learnt_step(source: Source, member: int) -> float:
    """Step at which the training set is learnt."""
    step = source.phases(member).memorised
    if step is None:
        source.until_the_end()
    return _nan(step)


def saturation_step(source: Source, member: int) -> float:
    """First step at which every training image is classified correctly."""
    train = source.series(member, "network", "train_accuracy")
    perfect = train.index[train >= 1]
    if not len(perfect):
        source.until_the_end()
    return float(perfect[0]) if len(perfect) else np.nan


def accuracy_when_learnt(source: Source, member: int) -> float:
    step = learnt_step(source, member)
    return source.series(member, "network", "test_accuracy").get(step, np.nan)


def best_accuracy(source: Source, member: int) -> float:
    source.past_the_peak(member)
    return source.phases(member).peak_accuracy


def peak_step(source: Source, member: int) -> float:
    source.past_the_peak(member)
    return _nan(source.phases(member).peak)


def peak_over_learnt(source: Source, member: int) -> float:
    """How many times as late as the training set is learnt the test accuracy is best."""
    return peak_step(source, member) / learnt_step(source, member)


def decline(source: Source, member: int) -> float:
    """Points of test accuracy from the best to the end of the experiment."""
    return best_accuracy(source, member) - last_accuracy(source, member)


def rise(source: Source, member: int) -> float:
    """Points of test accuracy from where the training set is learnt to the best."""
    return best_accuracy(source, member) - accuracy_when_learnt(source, member)


def fall(source: Source, member: int, enough: float = 0.25) -> float:
    """Points of test accuracy from the best to the last, with the training set still known.

    Before the experiment's end it counts once it is as large as the claim says, which settles it.
    """
    found = source.phases(member)
    fallen = found.peak_accuracy - found.final_accuracy
    if not (source.ended or (found.collapse is not None and fallen >= enough)):
        source.until_the_end()
    return fallen


def fallen_by(points: float) -> Quantity:
    return lambda source, member: fall(source, member, points) >= points


def last_train_accuracy(source: Source, member: int) -> float:
    fall(source, member)
    return float(source.series(member, "network", "train_accuracy").iloc[-1])


def last_accuracy(source: Source, member: int) -> float:
    source.until_the_end()
    return source.phases(member).final_accuracy


def way_to_chance(source: Source, member: int) -> float:
    """How much of the way from the best test accuracy down to chance was gone by the end."""
    source.until_the_end()
    config, found = source.study.config, source.phases(member)
    chance = 1 / (data_traits(config.dataset).classes(config) or np.inf)
    return (found.peak_accuracy - found.final_accuracy) / max(found.peak_accuracy - chance, 1e-9)


def collapsed(source: Source, member: int) -> bool:
    """Whether the test accuracy fell by ten points for good (`grokutils.records.phases.find_phases`)."""
    if source.phases(member).collapse is None:
        source.until_the_end()
        return False
    return True


def read(phase: str, where: str, column: str) -> Quantity:
    """A column where a phase is read."""
    return lambda source, member: source.read(member, phase, where, column)


def mean_over(phase: str, layers: Sequence[str], column: str) -> Quantity:
    return lambda source, member: float(np.mean([source.read(member, phase, x, column) for x in layers]))


def change_over(first: str, then: str, layers: Sequence[str], column: str) -> Quantity:
    """A column's mean over layers in one phase, less that in an earlier one."""
    early, late = (mean_over(phase, layers, column) for phase in (first, then))
    return lambda source, member: late(source, member) - early(source, member)


def none_over(limit: float, phases: Sequence[str], layers: Sequence[str], column: str) -> Quantity:
    """Whether a column is under a limit in all these layers and phases."""
    return lambda source, member: all(
        source.read(member, phase, layer, column) < limit for phase in phases for layer in layers
    )


def below(limit: float, phase: str, where: str, column: str) -> Quantity:
    return lambda source, member: source.read(member, phase, where, column) < limit


def reaches(limit: float, phase: str, where: str, column: str) -> Quantity:
    return lambda source, member: source.read(member, phase, where, column) >= limit


def outnumber(phase: str, where: str, other: str) -> Quantity:
    """Whether one layer has at least one trap more than another."""
    return lambda source, member: (
        source.read(member, phase, where, "traps") >= source.read(member, phase, other, "traps") + 1
    )


def size(quantity: Quantity) -> Quantity:
    return lambda source, member: abs(quantity(source, member))


def before_rise(where: str, column: str) -> Quantity:
    """A column at the last step it has up to where the network's own test accuracy begins to rise; NaN if it never does."""

    def quantity(source: Source, member: int) -> float:
        rise = source.phases(member).grokking
        if rise is None:
            source.until_the_end()
            return np.nan
        found = source.series(member, where, column)
        return float(found[found.index <= rise].iloc[-1])

    return quantity


def over_start(quantity: Quantity, where: str, column: str) -> Quantity:
    """Something over a column's value at the start."""
    return lambda source, member: quantity(source, member) / source.series(member, where, column).iloc[0]


def growth(phase: str, where: str, column: str) -> Quantity:
    """A column where a phase is read, over its value at the start."""
    return over_start(read(phase, where, column), where, column)


def falls(where: str, column: str = "alpha") -> Quantity:
    """Whether a column is lower in each phase than in the one before."""

    def quantity(source: Source, member: int) -> bool:
        pre, middle, late = (source.read(member, phase, where, column) for phase in PHASES)
        return pre > middle > late

    return quantity


def rank_correlation(where: str, column: str, with_what: str) -> Quantity:
    """Spearman's, over analysed steps from the best test accuracy to the end; 0 if either does not change."""

    def quantity(source: Source, member: int) -> float:
        source.until_the_end()
        start = source.phases(member).peak
        if start is None:
            return np.nan
        one = source.series(member, where, column, start)
        both = pd.concat([one, source.series(member, "network", with_what)], axis=1, join="inner").dropna()
        return _spearman(both.iloc[:, 0], both.iloc[:, 1])

    return quantity


def alpha_against_erg(where: str) -> Quantity:
    """Spearman's correlation of |alpha - 2| with |`erg_gap`| from where the training set is learnt to the end."""

    def quantity(source: Source, member: int) -> float:
        source.until_the_end()
        start = source.phases(member).memorised
        if start is None:
            return np.nan
        alpha, gap = (source.series(member, where, name, start) for name in ("alpha", "erg_gap"))
        both = pd.concat([(alpha - 2).abs(), gap.abs()], axis=1).dropna()
        return _spearman(both.iloc[:, 0], both.iloc[:, 1])

    return quantity


def _spearman(a: pd.Series, b: pd.Series) -> float:
    if len(a) < _FEWEST_STEPS:
        return np.nan
    if a.nunique() < 2 or b.nunique() < 2:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)


def lead_decades(where: str, signal: str) -> Quantity:
    """Decades of steps from a signal to the fall of the test accuracy; NaN where either never came."""

    def quantity(source: Source, member: int) -> float:
        collapsed(source, member)
        return float(source.lead(member, where, signal).lead_decades)

    return quantity


def alarmed(where: str, *signals: str) -> Quantity:
    """Whether all these signals of a layer went off at any time."""

    def quantity(source: Source, member: int) -> bool:
        if all(pd.notna(source.lead(member, where, signal).onset) for signal in signals):
            return True
        source.until_the_end()  # otherwise they may still
        return False

    return quantity


def warned(where: str, *signals: str) -> Quantity:
    """Of a network that collapsed: whether they went off before the test accuracy fell. Of another: at any time."""

    def quantity(source: Source, member: int) -> bool:
        if not collapsed(source, member):
            return alarmed(where, *signals)(source, member)
        found = [source.lead(member, where, signal) for signal in signals]
        return all(pd.notna(one.onset) and one.onset < one.fall for one in found)

    return quantity


def warned_of_collapse(where: str, *signals: str) -> Quantity:
    """Whether the network collapsed and these signals went off before."""
    return lambda source, member: collapsed(source, member) and warned(where, *signals)(source, member)


def any_of(*quantities: Quantity) -> Quantity:
    return lambda source, member: any(quantity(source, member) for quantity in quantities)
