"""What is read of a network to judge claims on harmful traps, prototypes and forgetting by; as `grokutils.paper.judge.evidence`.

>>> from grokutils.paper.judge.evidence import Source
>>> from grokutils.records.study import study
>>> undone(Source(study("results/express/wd0")), 0)                  # doctest: +SKIP
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
from grokutils.paper.judge.findings import FEWEST, Finding, Sources, Test, exact_share

__all__ = [
    "answer_is", "answers_told_by_norm", "layers_trapped_again", "likeness", "near_prototype", "piled", "planted",
    "planted_ever", "raised", "regrown", "relieved", "same_when_shuffled", "share_of_known", "told", "trapped_again", "undone", "undone_beside_random",
]  # fmt: skip

_RESAMPLES = 1000
_seen: weakref.WeakKeyDictionary[Source, dict[str, pd.DataFrame]] = weakref.WeakKeyDictionary()


def _frame(source: Source, name: str, make: Callable[[], pd.DataFrame], lacking: str) -> pd.DataFrame:
    """A frame of a record that has ended, made once; only of the networks that the source is about."""
    source.until_the_end()
    known = _seen.setdefault(source, {})
    if name not in known:
        try:
            known[name] = make()
        except (DataError, ValueError) as why:
            raise NotMeasured(f"{source.name}: {why}") from None
    frame = known[name]
    frame = frame[frame.member.isin(source.members)]
    if frame.empty:
        raise NotMeasured(f"{source.name} {lacking}")
    return frame


def _interventions(source: Source) -> pd.DataFrame:
    return _frame(source, "interventions", lambda: interventions_of(source.study.record), "holds no interventions")


def _one(values: pd.Series) -> float:
    return float(values.iloc[0]) if len(values) else np.nan


def _of_collapsed(quantity: Quantity) -> Quantity:
    return lambda source, member: quantity(source, member) if collapsed(source, member) else np.nan


# -- traps ----------------------------------------------------------------------------------------------------


def _removed(source: Source, member: int, control: str) -> float:
    own = _frame(source, "removals", lambda: removals(_interventions(source)), "holds no removals")
    own = own[(own.when == "last") & (own.layer == ALL) & (own.operation == "taken out") & (own.control == control)]
    return _one(own[own.member == member].test_change)


@_of_collapsed
def undone(source: Source, member: int) -> float:
    """Change of test accuracy when all traps are taken out of the collapsed network."""
    return _removed(source, member, "")


@_of_collapsed
def undone_beside_random(source: Source, member: int) -> float:
    """The same, less that by random directions of the same norms."""
    return _removed(source, member, "") - _removed(source, member, "direction")


def raised(source: Source, member: int) -> float:
    """Share of removals of a single trap, at all kept steps and of both kinds, that raise the test accuracy with the whole
    95 % interval."""
    frame = _interventions(source)
    own = frame[(frame.member == member) & frame.operation.isin(list(REMOVALS)) & (frame.control == "") & (frame.layer != ALL)]
    return float((own.test_low > 0).mean()) if len(own) else np.nan


def planted(source: Source, member: int) -> float:
    """Share of injected traps, of one, four or all weights, at the best kept step, that lower the test accuracy by ten
    points or more while over 99 % of the training set stay right."""
    own = injections(_interventions(source))
    own = own[(own.when == "best") & (own.member == member) & (own.operation != "rank-one")]
    known = own.train_accuracy + own.train_change > 0.99
    return float(((own.test_change <= -0.1) & known).mean()) if len(own) else np.nan


def planted_ever(source: Source, member: int) -> float:
    """Whether any injected trap did so (1 or 0); NaN of a network without injections."""
    share = planted(source, member)
    return share if np.isnan(share) else float(share > 0)


def told(key: str, operation: str, score: str = "js") -> Test:
    """Youden's J, hits minus false alarms, of "the score is over a threshold" for traps whose removal moves the test
    accuracy by more than two points; judged on networks of odd number, the threshold chosen on those of even number."""

    def test(sources: Sources) -> Finding:
        source = sources[key]
        threshold, judged = judged_traps(_interventions(source), "matters", operation, score)
        # of each network: false alarms and benign traps, misses and harmful ones
        counts = np.array([
            [(own.over & ~own.yes).sum(), (~own.yes).sum(), (~own.over & own.yes).sum(), own.yes.sum()]
            for _, own in judged.groupby("member")
        ])  # fmt: skip
        if len(counts) < FEWEST:
            raise NotMeasured(f"{source.name} has {len(counts)} networks to judge a threshold on; this needs at least {FEWEST}")
        if not (np.isfinite(threshold) and counts.sum(axis=0)[[1, 3]].all()):
            raise NotMeasured(f"{source.name} has no two kinds of traps to tell apart")
        chosen = np.random.default_rng(0).integers(len(counts), size=(_RESAMPLES, len(counts)))
        value, resampled = _informed(counts.sum(axis=0)), _informed(counts[chosen].sum(axis=1))
        low, high = np.nanquantile(resampled, [0.025, 0.975])
        return Finding(float(value), float(low), float(high), len(counts), f"threshold {threshold:.2g}")

    return test


def _informed(counts: np.ndarray) -> np.ndarray:
    """Youden's J of (false alarms, benign, misses, harmful) along the last axis; NaN where there is only one kind."""
    false, benign, missed, harmful = np.moveaxis(counts.astype(float), -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 1 - false / benign - missed / harmful


def _regrowth(source: Source) -> pd.DataFrame:
    return _frame(source, "regrowth", lambda: regrowth_of(source.study.record), "holds no forks without traps")


def _at_end(source: Source, member: int, start: str, layer: str) -> pd.DataFrame:
    own = _regrowth(source)
    own = own[(own.start == start) & (own.layer == layer)]
    return own[(own.step == own.step.max()) & (own.member == member)].set_index("arm")


def regrown(start: str, layer: str) -> Quantity:
    """Size of the largest trap after training on without it, over that after training on with it; NaN of a network that
    was not forked."""

    def quantity(source: Source, member: int) -> float:
        end = _at_end(source, member, start, layer)
        return float(end.trap_strength["traps taken out"] / end.trap_strength["nothing done"]) if len(end) else np.nan

    return quantity


def trapped_again(start: str, layer: str) -> Quantity:
    """Whether there is a trap after training on (1 or 0); NaN of a network that was not forked, and of one that holds
    another trap once its largest is taken out: there nothing shows whether one has grown."""

    def quantity(source: Source, member: int) -> float:
        frame = _regrowth(source)
        own = frame[(frame.start == start) & (frame.layer == layer) & (frame.member == member)]
        traps = own[own.arm == "traps taken out"].sort_values("step").traps
        return float(traps.iloc[-1] >= 0.5) if len(traps) and traps.iloc[0] < 0.5 else np.nan

    return quantity


def layers_trapped_again(start: str, layers: Sequence[str]) -> Quantity:
    """The share of a network's layers without a trap at the fork that hold one after training on; NaN if none is."""

    def quantity(source: Source, member: int) -> float:
        found = [trapped_again(start, layer)(source, member) for layer in layers]
        known = [value for value in found if np.isfinite(value)]
        return float(np.mean(known)) if known else np.nan

    return quantity


# -- what networks see ----------------------------------------------------------------------------------------


def _piling(source: Source, member: int, when: str, starts: str) -> pd.DataFrame:
    frame = _frame(source, "piling", lambda: piling(source.study), "holds no weights")
    return frame[
        (frame.member == member) & (frame.kind == INPUTS[0]) & (frame.when == when) & frame.edit.str.startswith(starts)
    ]  # fmt: skip


@_of_collapsed
def piled(source: Source, member: int) -> float:
    """Share of test images given the commonest answer, at the end less that at the best kept step."""
    return _one(_piling(source, member, "last", "as it is").share) - _one(_piling(source, member, "best", "as it is").share)


@_of_collapsed
def relieved(source: Source, member: int) -> float:
    """How much of the share of the commonest answer goes when the first layer's largest trap is replaced by noise."""
    return _one(_piling(source, member, "last", "as it is").share) - _one(_piling(source, member, "last", "first trap").share)


def answer_is(digit: int) -> Quantity:
    """Whether a collapsed network's commonest answer is this digit (1 or 0)."""
    return _of_collapsed(lambda source, member: float(_one(_piling(source, member, "last", "as it is").answer) == digit))


def _norms(source: Source, member: int) -> pd.DataFrame:
    frame = _frame(source, "norms", lambda: norm_answers(source.study), "holds no weights")
    return frame[(frame.member == member) & (frame.when == "last")]


@_of_collapsed
def same_when_shuffled(source: Source, member: int) -> float:
    """Share of test images given the same answer with pixels shuffled, less that by chance."""
    own = _norms(source, member)
    return _one(own.same - own.same_by_chance)


@_of_collapsed
def answers_told_by_norm(source: Source, member: int) -> float:
    """Share of answers told from the norm of the image, less the share of the commonest answer."""
    own = _norms(source, member)
    return _one(own.from_norm - own.commonest)


def likeness(depth: int) -> Quantity:
    """Correlation of a prototype, at the end, with the most similar mean image of a digit, less that of random directions
    through the same matrices."""

    @_of_collapsed
    def quantity(source: Source, member: int) -> float:
        frame = _frame(source, "prototypes", lambda: prototype_matches(source.study), "holds no weights")
        own = frame[(frame.member == member) & (frame.depth == depth) & (frame.step == frame.step.max())]
        return _one(own.r - own.r_random)

    return quantity


@_of_collapsed
def near_prototype(source: Source, member: int) -> float:
    """Share of pairs in which the image still known is nearer to the prototype v3 than the one forgotten, less 0.5."""
    frame = _frame(source, "nearness", lambda: nearness(source.study), "has no network that forgot images")
    return _one(frame[(frame.member == member) & (frame.near == NEARNESS[2])].auc) - 0.5


def share_of_known(key: str, quantity: Quantity) -> Test:
    """The share of a record's networks of which something is true, among those of which it is known."""

    def test(sources: Sources) -> Finding:
        source = sources[key]
        values = np.array([quantity(source, member) for member in source.members], dtype=float)
        known = values[np.isfinite(values)]
        if not len(known):
            raise NotMeasured(f"no network of {source.name} has a value")
        return exact_share(int(known.sum()), len(known))

    return test
