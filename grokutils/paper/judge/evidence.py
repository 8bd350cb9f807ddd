"""What is read of the networks of a record to judge a claim by.

>>> from grokutils.records.study import study
>>> source = Source(study("results/express/wd0"))                    # doctest: +SKIP
>>> source[at("grokking", "fc1", "alpha")][0]                        # doctest: +SKIP
2.9

A *quantity* is the name of a column of `grokutils.records.study.Study.networks`, or a function from a `Source` (a record)
to one number, truth value or NaN per network. `NotMeasured` says where the record does not reach far enough to tell.
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
from grokutils.records.phases import PHASES
from grokutils.records.study import Study

__all__ = [
    "NotMeasured", "Quantity", "Source", "alarmed", "alpha_against_erg", "any_of", "at", "at_fall", "collapsed", "falls",
    "lead_decades", "less", "lost", "mean_over", "of", "outnumber", "over", "rank_correlation", "reaches", "under",
    "warned", "warned_of_collapse", "way_to_chance",
]  # fmt: skip

# What is final as soon as every network has come so far: the column that says whether it has.
_SETTLED = {"learnt": "learnt", "at_learning": "learnt", "saturated": "saturated", "rise": "rise", "norm_rise": "rise"}
# A best value counts as the peak once the record goes on for twice as long.
_PAST = 2
# A rank correlation of fewer steps means nothing.
_FEWEST_STEPS = 5


class NotMeasured(Exception):
    """No record, or one that does not reach far enough; the message says which and how far."""


class Source:
    """A record to judge claims by; `name` is what messages call it.

    Records of the paper's recipe are read at the steps of the paper's tables, others at the right edges of each network's
    own phases (`Study.phase_steps`).
    """

    def __init__(self, study: Study, name: str = ""):
        self.study = study.at_steps(TABLE_STEPS) if study.config.recipe_name == "paper" else study
        self.name = name or study.name

    @property
    def recipe(self) -> str:
        return self.study.config.recipe_name

    @cached_property
    def horizon(self) -> int:
        """Steps of the whole experiment, which is the recipe's own number; of a network of the reader's own, the run's."""
        return RunConfig.recipe(self.recipe).steps if self.study.config.own is None else self.study.config.steps

    @property
    def ended(self) -> bool:
        return self.study.step >= self.horizon

    def short(self, needed: str) -> NotMeasured:
        """The exception that says how far the record reaches, and what would be needed."""
        return NotMeasured(f"{self.name} reaches step {self.study.step:,}; {needed}")

    def until_the_end(self, unless: bool | np.bool_ = False) -> None:
        """Raises `NotMeasured` if the record does not reach the end of the experiment, unless it is settled before."""
        if not (unless or self.ended):
            raise self.short(f"this is judged at {self.horizon:,}")

    def past_the_peak(self) -> None:
        known = self.study.networks
        still = (known.best < 1) & ~(self.study.step >= _PAST * known.peak)
        if not self.ended and still.any():
            raise self.short("its test accuracy may still rise")

    def __getitem__(self, name: str) -> pd.Series:
        """A column of `Study.networks`, if the record reaches far enough for it to be final."""
        if name not in self.study.networks:
            raise NotMeasured(f"{self.name} has no {name}")
        column, (*_, when) = self.study.networks[name], name.split(" ")
        if when in PHASES:
            self._can_be_read(when)
        elif name in ("best", "peak"):
            self.past_the_peak()
        elif name == "final":
            self.until_the_end()
        elif when in _SETTLED:
            self.until_the_end(unless=self.study.networks[_SETTLED[when]].notna().all())
        return column

    def _can_be_read(self, phase: str) -> None:
        missing = self.study.phase_steps[phase].isna().any()
        if self.study.fixed_steps is not None:
            if missing:
                raise self.short(f"this is read at {TABLE_STEPS[phase]:,.0f}")
        else:
            if phase == PHASES[1]:
                self.past_the_peak()
            self.until_the_end(unless=phase != PHASES[2] and not missing)

    def course(self, member: int, where: str, column: str) -> pd.Series:
        """A column of one network over steps: all that were measured of the network, those analysed of a layer."""
        own, table = self.study.metrics, self.study.measures
        if where == "network" and column in own:
            return own[own.member == member].set_index("step")[column].sort_index()
        if (column, where) not in table:
            raise NotMeasured(f"{self.name} has no {column} of {where}")
        return table.xs(member, level="member")[column, where]


Quantity = str | Callable[[Source], pd.Series]


# -- quantities, a value per network -------------------------------------------------------------------------------


def at(when: str, where: str, column: str) -> str:
    """The column of `Study.networks` that has a measure where a phase is read."""
    return f"{column} {where} {when}"


def over(a: Quantity, b: Quantity) -> Quantity:
    return lambda source: of(source, a) / of(source, b)


def less(a: Quantity, b: Quantity) -> Quantity:
    return lambda source: of(source, a) - of(source, b)


def under(limit: float, *quantities: Quantity) -> Quantity:
    """Whether all of them are below a limit."""
    return lambda source: pd.concat([of(source, quantity) < limit for quantity in quantities], axis=1).all(axis=1)


def reaches(limit: float, quantity: Quantity) -> Quantity:
    return lambda source: of(source, quantity) >= limit


def of(source: Source, quantity: Quantity) -> pd.Series:
    return source[quantity] if isinstance(quantity, str) else quantity(source)


def lost(enough: float = 0.25) -> Quantity:
    """Points of test accuracy from the best to the last, with the training set still known.

    Before the experiment's end it counts once it is as large as the claim says, which settles it.
    """

    def quantity(source: Source) -> pd.Series:
        known = source.study.networks
        points = known.best - known.final
        source.until_the_end(unless=(known.collapsed.notna() & (points >= enough)).all())
        return points

    return quantity


def at_fall(name: str) -> Quantity:
    """A column, once a fall is settled (`lost`)."""
    return lambda source: lost()(source) * 0 + source.study.networks[name]


def way_to_chance(source: Source) -> pd.Series:
    """How much of the way from the best test accuracy down to chance was gone by the end."""
    source.until_the_end()
    config, known = source.study.config, source.study.networks
    chance = 1 / (data_traits(config.dataset).classes(config) or np.inf)
    return (known.best - known.final) / (known.best - chance).clip(lower=1e-9)


def collapsed(source: Source) -> pd.Series:
    """Whether the test accuracy fell by ten points for good (`grokutils.records.phases.find_phases`)."""
    found = source.study.networks.collapsed.notna()
    source.until_the_end(unless=found.all())
    return found


def mean_over(phase: str, layers: Sequence[str], column: str) -> Quantity:
    return lambda source: sum(source[at(phase, layer, column)] for layer in layers) / len(layers)


def outnumber(phase: str, where: str, other: str) -> Quantity:
    """Whether one layer has at least one trap more than another."""
    return lambda source: source[at(phase, where, "traps")] >= source[at(phase, other, "traps")] + 1


def falls(where: str, column: str = "alpha") -> Quantity:
    """Whether a column is lower in each phase than in the one before."""

    def quantity(source: Source) -> pd.Series:
        pre, middle, late = (source[at(phase, where, column)] for phase in PHASES)
        return (pre > middle) & (middle > late)

    return quantity


def rank_correlation(where: str, column: str, with_what: str = "test_accuracy") -> Quantity:
    """Spearman's, over steps from the best test accuracy to the end; 0 if either does not change."""
    return _spearman("peak", lambda source, m: (source.course(m, where, column), source.course(m, "network", with_what)))


def alpha_against_erg(where: str) -> Quantity:
    """Spearman's correlation of |alpha - 2| with |`erg_gap`| from where the training set is learnt to the end."""
    return _spearman(
        "learnt", lambda source, m: ((source.course(m, where, "alpha") - 2).abs(), source.course(m, where, "erg_gap").abs())
    )


def _spearman(since: str, pair: Callable[[Source, int], tuple[pd.Series, pd.Series]]) -> Quantity:
    def one(source: Source, member: int, start: float) -> float:
        both = pd.concat(pair(source, member), axis=1, join="inner").dropna()
        both = both[both.index >= (np.inf if np.isnan(start) else start)]
        if len(both) < _FEWEST_STEPS:
            return np.nan
        if (both.nunique() < 2).any():
            return 0.0
        return float(stats.spearmanr(both.iloc[:, 0], both.iloc[:, 1]).statistic)

    def quantity(source: Source) -> pd.Series:
        source.until_the_end()
        starts = source.study.networks[since]
        return pd.Series({member: one(source, member, start) for member, start in starts.items()})

    return quantity


def _onset(source: Source, where: str, signal: str) -> pd.Series:
    return source[f"onset {where} {signal}"]


def lead_decades(where: str, signal: str) -> Quantity:
    """Decades of steps from a signal to the fall of the test accuracy; NaN where either never came."""

    def quantity(source: Source) -> pd.Series:
        collapsed(source)
        return np.log10(source.study.networks.fell / _onset(source, where, signal).clip(lower=1))

    return quantity


def alarmed(where: str, *signals: str) -> Quantity:
    """Whether all these signals of a layer went off at any time."""

    def quantity(source: Source) -> pd.Series:
        found = _all_by(source, where, signals, np.inf)
        source.until_the_end(unless=found.all())  # otherwise they may still
        return found

    return quantity


def warned(where: str, *signals: str) -> Quantity:
    """Of a network that collapsed: whether they went off before the test accuracy fell. Of another: at any time."""

    def quantity(source: Source) -> pd.Series:
        fell, ever = collapsed(source), _all_by(source, where, signals, np.inf)
        source.until_the_end(unless=(fell | ever).all())
        return ever.where(~fell, _all_by(source, where, signals, source.study.networks.fell))

    return quantity


def _all_by(source: Source, where: str, signals: Sequence[str], step: pd.Series | float) -> pd.Series:
    return pd.concat([_onset(source, where, signal) < step for signal in signals], axis=1).all(axis=1)


def warned_of_collapse(where: str, *signals: str) -> Quantity:
    """Whether the network collapsed and these signals went off before."""
    return lambda source: collapsed(source) & warned(where, *signals)(source)


def any_of(*quantities: Quantity) -> Quantity:
    return lambda source: pd.concat([of(source, quantity) for quantity in quantities], axis=1).any(axis=1)
