"""Claims that only an experiment with controls can judge, as data for `grokutils.paper.claims`.

>>> [claim.id for claim in CAUSE_CLAIMS][:2]
['collapse-needs-traps', 'traps-are-shifts']

They are judged on the study of causes (`grokutils.paper.causes.conditions`): the express recipe, the same seeds in every condition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from grokutils.paper.causes import detectors
from grokutils.paper.causes.conditions import plan
from grokutils.paper.causes.detectors import GENERALISED, SIGNALS, Watch, watch
from grokutils.paper.causes.outcomes import of_seeds, outcomes_of
from grokutils.paper.judge.evidence import NotMeasured
from grokutils.paper.judge.findings import Finding, Sources, Test, exact_share, over_networks
from grokutils.paper.judge.judging import Claim, Part, Range, at_least, at_most
from grokutils.records.phases import COLLAPSE, FALL
from grokutils.records.record import Record
from grokutils.records.signals import TRAPPED_FROM, Signal
from grokutils.records.study import Study

__all__ = ["CAUSE_CLAIMS", "CAUSE_RECORDS", "CAUSE_TOPIC"]

CAUSE_TOPIC = {"causes": "Causes and warnings, with controls"}

_PLAN = plan()
_SCRATCH = tuple(cause for cause in _PLAN.causes if not cause.forked)

#: What these claims need it as, and the record.
CAUSE_RECORDS = {
    f"causes/{cause.name}": cause.record or f"{_PLAN.out}/{cause.name}" for cause in _SCRATCH
}
_NEEDS = tuple(CAUSE_RECORDS)
_TRAP_FREE = ("clip", "center", "clip-center")


def _study(sources: Sources, name: str) -> Study:
    """The study's own seeds and steps of a record, which may have more of both."""
    source = sources[f"causes/{name}"]
    if source.study.step < 0.79 * _PLAN.base.steps:
        raise source.short(f"this is judged at {_PLAN.base.steps:,}")
    return _cut(source.study.record.folder)


@lru_cache
def _cut(folder) -> Study:
    return of_seeds(Record(folder, _PLAN.base.steps), _PLAN.seeds)


@lru_cache(maxsize=1)
def _watched(studies: tuple[Study, ...]) -> list[Watch]:
    return watch(studies, [cause.name for cause in _SCRATCH])


def _area(pick: Sequence[Signal], everything: bool = False) -> Test:
    """The largest area under the ROC curve of some signals, over the networks from initial weights that fell or
    had generalised; or over `everything`, those near chance as well."""

    def test(sources: Sources) -> Finding:
        watched = _watched(tuple(_study(sources, cause.name) for cause in _SCRATCH))
        watched = watched if everything else detectors.comparable(watched)
        found = {signal.label: detectors.auc(watched, signal) for signal in pick}
        best = max(found, key=lambda label: found[label][0])
        area, low, high = found[best]
        if not math.isfinite(area):
            raise NotMeasured("with networks of one kind alone there is nothing to tell apart")
        falls = sum(w.fall is not None for w in watched)
        seeds = len({w.seed for w in watched})
        note = f"{len(watched)} networks of {seeds} seeds, {falls} of them fell"
        return Finding(area, low, high, len(watched), f"{best}, {note}" if len(found) > 1 else note)

    return test


def _rows(sources: Sources, names: Sequence[str]):
    wanted = [cause for cause in _SCRATCH if cause.name in names]
    return outcomes_of({cause.name: _study(sources, cause.name) for cause in wanted}, wanted)


def _free(sources: Sources):
    """The networks that never held a trap in FC1 or FC2."""
    rows = _rows(sources, _TRAP_FREE)
    free = rows[(rows[["most_traps_fc1", "most_traps_fc2"]] < TRAPPED_FROM).all(axis=1)]
    if not len(free):
        raise NotMeasured("no network stayed free of traps")
    return free


def _fell_without_traps(column: str) -> Test:
    """Of the networks without traps, the share that ``fell`` or ``collapsed``."""

    def test(sources: Sources) -> Finding:
        free = _free(sources)
        return exact_share(int(free[column].sum()), len(free))

    return test


def _smaller_fall(sources: Sources) -> Finding:
    """Mean fall of the networks without traps, over that of the plain run's of the same seeds."""
    own, plain = _free(sources), _rows(sources, ["plain"]).set_index("seed").lost
    if not plain[own.seed].mean() > 0:
        raise NotMeasured("the plain run does not fall")
    ratio = float(own.lost.mean() / plain[own.seed].mean())
    return Finding(ratio, n=len(own), note=f"of {own.seed.nunique()} seeds")


def _mean_fall(name: str) -> Test:
    def test(sources: Sources) -> Finding:
        return over_networks(_rows(sources, [name]).lost.dropna().to_numpy(), np.mean)

    return test


def _ratio_of_traps(layer: str) -> Test:
    """Traps at the end with row means subtracted, over those of the same seeds without."""

    def test(sources: Sources) -> Finding:
        rows = _rows(sources, ("plain", "center"))
        by = rows.pivot(index="seed", columns="name", values=f"traps_{layer}")
        known = by[by.plain >= TRAPPED_FROM]
        if not len(known):
            raise NotMeasured(f"no plain network holds a trap in {layer}")
        return over_networks((known.center / known.plain).to_numpy(), np.median)

    return test


def _of(*names: str) -> tuple[Signal, ...]:
    return tuple(signal for signal in SIGNALS if signal.measure in names)


_RIVALS = tuple(s for s in SIGNALS if s.where == "network" and s.measure != "train_loss")
_WARNS, _BLIND = at_least(0.8, 0.65), at_most(0.65, 0.8)
_REMARK = (
    "The area under the ROC curve, over networks from initial weights of the study of causes: several "
    "weight decays, weights clipped or centred, an ordinary initial scale. 1: the signal always rises "
    "higher before a fall of five points than in any network that generalised (a best test accuracy of at "
    f"least {GENERALISED:g}) and never fell; 0.5: it knows nothing; 0: it is always stronger where nothing "
    "falls. Of several signals the best, which is flattered by having been chosen. Nearly all networks "
    "that do not fall are trained with weight decay, which acts on many of these measures itself. Shown, "
    "not judged: the same with random labels and a network too small for them, which stay near chance and "
    "cannot fall."
)


def _with_chance(pick: Sequence[Signal]) -> Part:
    label = "the same, with the networks near chance among those that never fell"
    return Part(label, _area(pick, everything=True))


CAUSE_CLAIMS: tuple[Claim, ...] = (
    Claim(
        "collapse-needs-traps", "causes", "No traps, no collapse",
        "The collapse is invariably heralded by correlation traps: a network that never holds one does not "
        "collapse.",
        "The abstract of the workshop version of P1; that traps impair generalisation, P2 abstract and, as "
        "a hypothesis, P1 section 5", "invariably", _NEEDS,
        (
            *(Part(f"networks that fell by {points}, of those that never held a trap",
                   _fell_without_traps(column), Range((0.0, 0.1), (0.0, 0.5)), "none")
              for points, column in (("five points", "fell"), ("ten points", "collapsed"))),
            Part("their mean fall over that of the plain run, same seeds", _smaller_fall),
            *(Part(f"mean fall, {cause.says}", _mean_fall(cause.name), style=".3f")
              for cause in _SCRATCH if cause.name in ("plain", *_TRAP_FREE)),
        ),
        "Traps are kept from forming by clipping outlying weights, by subtracting row means, or by both, "
        f"from the first step on. A fall of {100 * FALL:g} points is what the study of causes counts, one "
        f"of {100 * COLLAPSE:g} what is called a collapse elsewhere.",
    ),
    Claim(
        "traps-are-shifts", "causes", "Traps are a shift of the mean",
        "A trap comes with a large shift of the mean of the weights.",
        "P1 section 5", "a mean shift", _NEEDS,
        tuple(
            Part(f"traps of {layer.upper()} with row means subtracted, over those without", _ratio_of_traps(layer),
                 Range((0.0, 0.25), (0.0, 0.75)), "0")
            for layer in ("fc1", "fc2")
        ),
        "If all traps were shifts of the mean, none would be left where every row has the mean 0.",
    ),
    Claim(
        "traps-warn-of-falls", "causes", "Traps detect the onset of overfitting",
        "Correlation traps, in number or in growth, tell a network that is losing generalisation from one "
        "that is not, without data.",
        "P3 abstract", "a detector; no rates printed", _NEEDS,
        (
            Part("area under the ROC curve of the traps or of their growth", _area(_of("traps")), _WARNS, "1"),
            _with_chance(_of("traps")),
            Part("the same of the largest weight over the standard deviation", _area(_of("max_over_std"))),
            Part("the same of the kurtosis of the weights", _area(_of("kurtosis"))),
        ),
        _REMARK,
    ),
    Claim(
        "alpha-warns-of-falls", "causes", "Alpha detects the onset of overfitting",
        "A low alpha tells a network that is losing generalisation from one that is not, without data.",
        "P1 abstract, section 4.1", "a detector; no rates printed", _NEEDS,
        (
            Part("area under the ROC curve of a low alpha", _area(_of("alpha")), _WARNS, "1"),
            _with_chance(_of("alpha")),
        ),
        _REMARK,
    ),
    Claim(
        "rivals-do-not-detect", "causes", "No other measure detects it",
        "The norm, activation sparsity, weight entropy and circuit complexity do not tell a network that "
        "is about to lose generalisation from one that is not.",
        "P1 abstract, section 4.1; the abstract of its workshop version; P2 abstract", "they fail", _NEEDS,
        (
            Part("area under the ROC curve, the best of them", _area(_RIVALS), _BLIND, "0.5"),
            _with_chance(_RIVALS),
            *(Part(f"the same of {signal.label}", _area((signal,))) for signal in _RIVALS),
        ),
        _REMARK,
    ),
)  # fmt: skip
