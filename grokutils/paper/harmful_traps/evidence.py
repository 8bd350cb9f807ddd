"""What is read of networks to judge claims on harmful traps, prototypes and forgetting by; as `grokutils.paper.judge.evidence`.

>>> from grokutils.paper.judge.evidence import Source
>>> from grokutils.records.study import study
>>> undone(Source(study("results/express/wd0")))[0]                  # doctest: +SKIP
-0.58

Quantities of a collapse are NaN for a network that has not collapsed. `NotMeasured` says where the record ends too early,
or holds no interventions.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from grokutils.experiment.data import DataError
from grokutils.paper.harmful_traps.forgetting import INPUTS, NEARNESS, nearness, norm_answers, piling
from grokutils.paper.harmful_traps.intervention_study import ALL, REMOVALS, interventions_of
from grokutils.paper.harmful_traps.prototypes import prototype_matches
from grokutils.paper.harmful_traps.regrowth import regrowth_of
from grokutils.paper.harmful_traps.tables import injections, judged_traps, removals
from grokutils.paper.judge.evidence import NotMeasured, Quantity, Source, collapsed
from grokutils.paper.judge.findings import Finding, Sources, Test
from grokutils.paper.judge.stats import FEWEST, bootstrap
from grokutils.records.phases import COLLAPSE
from grokutils.records.signals import TRAPPED_FROM

__all__ = [
    "answer_is", "answers_told_by_norm", "layers_trapped_again", "likeness", "near_prototype", "piled", "planted",
    "planted_ever", "raised", "regrown", "relieved", "same_when_shuffled", "told", "trapped_again", "undone",
    "undone_beside_random",
]  # fmt: skip

_seen: weakref.WeakKeyDictionary[Source, dict[str, pd.DataFrame]] = weakref.WeakKeyDictionary()
#: Each frame: how it is made of a record, and what is said where it has no rows.
_FRAMES: dict[str, tuple[Callable[[Source], pd.DataFrame], str]] = {
    "interventions": (lambda source: interventions_of(source.study.record), "holds no interventions"),
    "removals": (lambda source: removals(_frame(source, "interventions")), "holds no removals"),
    "regrowth": (lambda source: regrowth_of(source.study.record), "holds no forks without traps"),
    "piling": (lambda source: piling(source.study), "holds no weights"),
    "norms": (lambda source: norm_answers(source.study), "holds no weights"),
    "prototypes": (lambda source: prototype_matches(source.study), "holds no weights"),
    "nearness": (lambda source: nearness(source.study), "has no network that forgot images"),
}


def _frame(source: Source, name: str) -> pd.DataFrame:
    """A frame of a record that has ended, made once; only of the networks that the source is about."""
    source.until_the_end()
    known, (make, lacking) = _seen.setdefault(source, {}), _FRAMES[name]
    if name not in known:
        try:
            known[name] = make(source)
        except (DataError, ValueError) as why:
            raise NotMeasured(f"{source.name}: {why}") from None
    frame = known[name][known[name].member.isin(source.study.members)]
    if frame.empty:
        raise NotMeasured(f"{source.name} {lacking}")
    return frame


def _each(source: Source, values: pd.Series) -> pd.Series:
    """A value for every network, NaN for those that have none."""
    return values.astype(float).reindex(source.study.members)


def _of_collapsed(quantity: Callable[[Source], pd.Series]) -> Quantity:
    return lambda source: quantity(source).where(collapsed(source))


# -- traps ----------------------------------------------------------------------------------------------------


def _removed(source: Source, control: str) -> pd.Series:
    own = _frame(source, "removals")
    own = own[(own.when == "last") & (own.layer == ALL) & (own.operation == "taken out") & (own.control == control)]
    return _each(source, own.set_index("member").test_change)


@_of_collapsed
def undone(source: Source) -> pd.Series:
    """Change of test accuracy when all traps are taken out of the collapsed network."""
    return _removed(source, "")


@_of_collapsed
def undone_beside_random(source: Source) -> pd.Series:
    """The same, less that by random directions of the same norms."""
    return _removed(source, "") - _removed(source, "direction")


def raised(source: Source) -> pd.Series:
    """Share of removals of a single trap, at all kept steps and of both kinds, that raise the test accuracy with the whole
    95 % interval."""
    frame = _frame(source, "interventions")
    own = frame[frame.operation.isin(list(REMOVALS)) & (frame.control == "") & (frame.layer != ALL)]
    return _each(source, (own.test_low > 0).groupby(own.member).mean())


def planted(source: Source) -> pd.Series:
    """Share of injected traps, of one, four or all weights, at the best kept step, that lower the test accuracy by ten
    points or more while over 99 % of the training set stay right."""
    own = injections(_frame(source, "interventions"))
    own = own[(own.when == "best") & (own.operation != "rank-one")]
    known = own.train_accuracy + own.train_change > 0.99
    return _each(source, ((own.test_change <= -COLLAPSE) & known).groupby(own.member).mean())


def planted_ever(source: Source) -> pd.Series:
    """Whether any injected trap did so (1 or 0); NaN of a network without injections."""
    return np.sign(planted(source))


def told(key: str, operation: str, score: str = "js") -> Test:
    """Youden's J, hits minus false alarms, of "the score is over a threshold" for traps whose removal moves the test
    accuracy by more than two points; judged on networks of odd number, the threshold chosen on those of even number."""

    def test(sources: Sources) -> Finding:
        source = sources[key]
        threshold, judged = judged_traps(_frame(source, "interventions"), "matters", operation, score)
        # of each network: false alarms and benign traps, misses and harmful ones
        counts = np.array([
            [(own.over & ~own.yes).sum(), (~own.yes).sum(), (~own.over & own.yes).sum(), own.yes.sum()]
            for _, own in judged.groupby("member")
        ])  # fmt: skip
        if len(counts) < FEWEST:
            raise NotMeasured(f"{source.name} has {len(counts)} networks to judge a threshold on; this needs at least {FEWEST}")
        if np.isnan(threshold) or not counts.sum(axis=0)[[1, 3]].all():
            raise NotMeasured(f"{source.name} has no two kinds of traps to tell apart")
        interval = bootstrap(lambda drawn: _informed(counts[drawn].sum(axis=1)), len(counts), resamples=1000)
        return Finding(float(_informed(counts.sum(axis=0))), *interval, len(counts), f"threshold {threshold:.2g}")

    return test


def _informed(counts: np.ndarray) -> np.ndarray:
    """Youden's J of (false alarms, benign, misses, harmful) along the last axis; NaN where there is only one kind."""
    false, benign, missed, harmful = np.moveaxis(counts.astype(float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - false / benign - missed / harmful


def regrown(start: str, layer: str) -> Quantity:
    """Size of the largest trap after training on without it, over that after training on with it; NaN of a network that
    was not forked."""

    def quantity(source: Source) -> pd.Series:
        frame = _frame(source, "regrowth")
        own = frame[(frame.start == start) & (frame.layer == layer)]
        size = own[own.step == own.step.max()].pivot(index="member", columns="arm", values="trap_strength")
        return _each(source, size["traps taken out"] / size["nothing done"])

    return quantity


def trapped_again(start: str, layer: str) -> Quantity:
    """Whether there is a trap after training on (1 or 0); NaN of a network that was not forked, and of one that holds
    another trap once its largest is taken out: there nothing shows whether one has grown."""

    def quantity(source: Source) -> pd.Series:
        frame = _frame(source, "regrowth")
        own = frame[(frame.start == start) & (frame.layer == layer) & (frame.arm == "traps taken out")]
        traps = own.sort_values("step").groupby("member").traps
        return _each(source, (traps.last() >= TRAPPED_FROM).astype(float).where(traps.first() < TRAPPED_FROM))

    return quantity


def layers_trapped_again(start: str, layers: Sequence[str]) -> Quantity:
    """The share of a network's layers without a trap at the fork that hold one after training on; NaN if none is."""
    return lambda source: pd.concat([trapped_again(start, layer)(source) for layer in layers], axis=1).mean(axis=1)


# -- what networks see ----------------------------------------------------------------------------------------


def _piling(source: Source, when: str, starts: str) -> pd.DataFrame:
    frame = _frame(source, "piling")
    own = frame[(frame.kind == INPUTS[0]) & (frame.when == when) & frame.edit.str.startswith(starts)]
    return own.set_index("member").reindex(source.study.members)


@_of_collapsed
def piled(source: Source) -> pd.Series:
    """Share of test images given the commonest answer, at the end less that at the best kept step."""
    return _piling(source, "last", "as it is").share - _piling(source, "best", "as it is").share


@_of_collapsed
def relieved(source: Source) -> pd.Series:
    """How much of the share of the commonest answer goes when the first layer's largest trap is replaced by noise."""
    return _piling(source, "last", "as it is").share - _piling(source, "last", "first trap").share


def answer_is(digit: int) -> Quantity:
    """Whether a collapsed network's commonest answer is this digit (1 or 0)."""
    return _of_collapsed(lambda source: (_piling(source, "last", "as it is").answer == digit).astype(float))


def _norms(source: Source) -> pd.DataFrame:
    frame = _frame(source, "norms")
    return frame[frame.when == "last"].set_index("member")


@_of_collapsed
def same_when_shuffled(source: Source) -> pd.Series:
    """Share of test images given the same answer with pixels shuffled, less that by chance."""
    return _each(source, _norms(source).same - _norms(source).same_by_chance)


@_of_collapsed
def answers_told_by_norm(source: Source) -> pd.Series:
    """Share of answers told from the norm of the image, less the share of the commonest answer."""
    return _each(source, _norms(source).from_norm - _norms(source).commonest)


def likeness(depth: int) -> Quantity:
    """Correlation of a prototype, at the end, with the most similar mean image of a digit, less that of random directions
    through the same matrices."""

    @_of_collapsed
    def quantity(source: Source) -> pd.Series:
        frame = _frame(source, "prototypes")
        own = frame[(frame.depth == depth) & (frame.step == frame.step.max())].set_index("member")
        return _each(source, own.r - own.r_random)

    return quantity


@_of_collapsed
def near_prototype(source: Source) -> pd.Series:
    """Share of pairs in which the image still known is nearer to the prototype v3 than the one forgotten, less 0.5."""
    frame = _frame(source, "nearness")
    return _each(source, frame[frame.near == NEARNESS[2]].set_index("member").auc - 0.5)
