"""Benign or harmful in numbers: what interventions did, how well the divergence tells it, and what a network answers to.

>>> from grokutils import load_record
>>> from grokutils.paper.harmful_traps.intervention_study import interventions_of
>>> rates_table(interventions_of(load_record("results/express/wd0")))            # doctest: +SKIP

Intervals are over networks (95 %, bootstrap), and of a single network over its test examples.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from grokutils.paper.harmful_traps.forgetting import INPUTS
from grokutils.paper.harmful_traps.intervention_study import ALL, REMOVALS
from grokutils.paper.harmful_traps.prototypes import NAMES
from grokutils.paper.judge.stats import best_threshold
from grokutils.paper.kit.tables import number, said
from grokutils.records.phases import COLLAPSE
from grokutils.records.signals import TRAPPED_FROM

__all__ = [
    "MATTERS", "HarmRates", "agreement", "at_best_and_last", "correlates_table", "forgotten", "harm_rates", "injections",
    "injections_table", "judged_traps", "nearness_table", "norm_table", "piling_table", "prototype_table", "rates_table",
    "regrowth_table", "removals", "removals_table",
]  # fmt: skip

#: A removal counts as one that matters if the 95 % interval of its change of test accuracy lies beyond this.
MATTERS = 0.02
WHENS = {"best": "best kept step", "last": "last step"}


# -- the divergence as a test ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class HarmRates:
    """How well "J is over a threshold" tells traps apart, on networks that the threshold was not chosen on."""

    truth: str
    #: Nats; NaN where no trap, or every trap, is what is looked for.
    threshold: float
    #: Of traps that are not what is looked for, the share over the threshold; of those that are, the share under it.
    false_alarms: float
    misses: float
    #: Traps that are, and that are not, among those judged.
    positive: int
    negative: int


def harm_rates(frame: pd.DataFrame, truth: str = "matters", operation: str = "taken out", score: str = "js") -> HarmRates:
    """Choose a threshold of J on networks of even number, and judge it on those of odd number.

    >>> f = pd.DataFrame({"member": [0, 0, 1, 1], "operation": "taken out", "control": "", "layer": "fc1",
    ...                   "js": [0.1, 0.5, 0.1, 0.6], "test_low": [-0.01, -0.5, -0.01, -0.5],
    ...                   "test_high": [0.01, -0.4, 0.01, -0.4]})
    >>> rates = harm_rates(f)
    >>> rates.false_alarms, rates.misses
    (0.0, 0.0)

    Parameters
    ----------
    frame : of `grokutils.paper.harmful_traps.intervention_study.interventions_of`; only single traps count, not controls. If it is of one
        network, the threshold is judged on what it was chosen on.
    truth : what is looked for: ``"matters"``: taking the trap out changes the test accuracy by more than two points,
        up or down, with the whole 95 % interval; ``"hurts"``: it raises it, with the whole interval
    operation : one of `grokutils.paper.harmful_traps.intervention_study.REMOVALS`
    score : the column that is held against the threshold; ``norm`` is the control

    The threshold lies where Youden's J (hits minus false alarms) is largest, half-way to the next value.

    Raises
    ------
    ValueError : another truth.
    """
    threshold, judged = judged_traps(frame, truth, operation, score)
    over, yes = judged.over.to_numpy(bool), judged.yes.to_numpy(bool)
    rates = [_share(over[~yes]), _share(~over[yes])] if not np.isnan(threshold) else [np.nan, np.nan]
    return HarmRates(truth, threshold, *rates, int(yes.sum()), int((~yes).sum()))


def judged_traps(
    frame: pd.DataFrame, truth: str = "matters", operation: str = "taken out", score: str = "js"
) -> tuple[float, pd.DataFrame]:
    """The threshold of `harm_rates`, and the traps that it is judged on: ``member``, ``over`` (the threshold) and ``yes``
    (it is what is looked for)."""
    if truth not in ("matters", "hurts"):
        raise ValueError(f"truth must be matters or hurts; got {truth!r}.")
    own = _single_traps(frame, operation)
    yes = ((own.test_low > 0) if truth == "hurts" else (own.test_low > MATTERS) | (own.test_high < -MATTERS)).astype(bool)
    chosen = own.member % 2 == 0
    judged = ~chosen
    if own.member.nunique() < 2:
        chosen = judged = own.member == own.member
    values, true = own[chosen.astype(bool)][score].to_numpy(float), yes[chosen.astype(bool)].to_numpy()
    threshold = best_threshold(values[~true], values[true])
    found = pd.DataFrame({"member": own.member, "over": own[score] > threshold, "yes": yes})
    return threshold, found[judged.astype(bool)]


def _single_traps(frame: pd.DataFrame, operation: str) -> pd.DataFrame:
    return frame[(frame.operation == operation) & (frame.control == "") & (frame.layer != ALL)]


def _share(flags: np.ndarray) -> float:
    return float(flags.mean()) if len(flags) else np.nan


def rates_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`harm_rates` for both truths and both ways of taking a trap out, by J and by the norm of the change."""
    rows = {}
    for operation in REMOVALS:
        for truth, words in (("matters", "moves test accuracy by > 2 points"), ("hurts", "raises test accuracy")):
            found, norm = (harm_rates(frame, truth, operation, score) for score in ("js", "norm"))
            rows[operation, words] = {
                "traps that do": found.positive, "that do not": found.negative,
                "threshold of J, nats": number(found.threshold, ".2g"),
                "false alarms": number(found.false_alarms, ".0%"), "misses": number(found.misses, ".0%"),
                "by the norm alone": f"{number(norm.false_alarms, '.0%')}, {number(norm.misses, '.0%')}",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(["trap", "looked for: it"])


def correlates_table(*named: tuple[str, pd.DataFrame]) -> pd.DataFrame:
    """Spearman's correlation, over single traps, of the size of the change of test accuracy with J and with the norm."""
    rows = {}
    for name, frame in named:
        for operation in REMOVALS:
            own = _single_traps(frame, operation)
            size = own.test_change.abs()
            cells = {"traps": len(own)}
            for title, column in (("with J", "js"), ("with the norm of the change", "norm")):
                known = len(own) > 4 and own[column].nunique() > 1 and size.nunique() > 1
                cells[title] = number(stats.spearmanr(own[column], size).statistic if known else np.nan)
            rows[name, operation] = cells
    return pd.DataFrame.from_dict(rows, orient="index")


# -- what removals and injections did -------------------------------------------------------------------------


def at_best_and_last(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows at each network's best step of those in the frame and at the last one, with a column ``when``."""
    if frame.empty:
        return frame.assign(when=pd.Series(dtype=object))
    best = frame.loc[frame.groupby("member").test_accuracy.idxmax()].set_index("member").step
    last = frame.step.max()
    parts = [
        frame[frame.step == frame.member.map(best)].assign(when="best"), frame[frame.step == last].assign(when="last")
    ]  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def removals(frame: pd.DataFrame) -> pd.DataFrame:
    """Of each network, the mean change over its traps, and of what stands beside them: ``when``, ``layer``,
    ``operation``, ``control``, ``member``, ``train_change``, ``test_change``."""
    own = at_best_and_last(frame)
    own = own[own.operation.isin(list(REMOVALS))]
    keys = ["when", "layer", "operation", "control", "member"]
    return own.groupby(keys, sort=False)[["train_change", "test_change"]].mean().reset_index()


_CONTROL = {"": "test accuracy", "direction": "random direction", "places": "same numbers, other places"}


def removals_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Median change of test accuracy by taking traps out, and by the controls, with the interval over networks."""
    found = removals(frame)
    rows = {}
    for (when, layer, operation), own in found.groupby(["when", "layer", "operation"], sort=False):
        cells = {"networks": own.member.nunique()}
        cells |= {title: said(own[own.control == kind].test_change, "+.2f") for kind, title in _CONTROL.items()}
        cells["training accuracy"] = said(own[own.control == ""].train_change, "+.2f")
        rows[WHENS[when], layer, operation] = cells
    return pd.DataFrame.from_dict(rows, orient="index")


def injections(frame: pd.DataFrame) -> pd.DataFrame:
    """What was put in: rows of the frame at the best and the last step, with ``when``."""
    own = at_best_and_last(frame)
    return own[~own.operation.isin(list(REMOVALS))]


def injections_table(frame: pd.DataFrame) -> pd.DataFrame:
    """What one, four or all weights and a random direction did at the best kept step, medians over networks; and in how
    many cases it was a collapse: ten points lost with more than 99 % of the training set still right."""
    own = injections(frame)
    own = own[own.when == "best"].assign(known=lambda f: f.train_accuracy + f.train_change)
    rows = {}
    for (layer, kind), some in own.groupby(["layer", "operation"], sort=False):
        change = some.groupby("strength").test_change.median()
        collapse = (some.test_change <= -COLLAPSE) & (some.known > 0.99)
        rows[layer, kind] = {f"test accuracy, strength {strength:g}": f"{x:+.2f}" for strength, x in change.items()} | {
            "training accuracy at the strongest": number(some[some.strength == some.strength.max()].known.median()),
            "a collapse": f"{collapse.sum()} of {len(some)}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


# -- images ---------------------------------------------------------------------------------------------------


def forgotten(accuracies: pd.DataFrame) -> pd.DataFrame:
    """Of each digit: accuracy at each network's best kept step (the mean over digits decides) and at the last, and the
    change, medians over networks, worst first.

    >>> forgotten(pd.DataFrame({"step": [1, 1, 2, 2], "member": 0, "digit": [0, 1, 0, 1],
    ...                         "accuracy": [1.0, 1.0, 0.9, 0.5]})).index.tolist()
    [1, 0]
    """
    best, last = _best_and_last(accuracies)
    change = last - best
    order = change.median().sort_values(kind="stable").index
    cells = {"at its best": best[order].agg(said), "at the end": last[order].agg(said), "change": change[order].agg(said, style="+.2f")}
    return pd.DataFrame(cells).rename_axis("digit")


def _best_and_last(accuracies: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Accuracy on each digit (columns) of each network (rows) where its mean is best, and at the last step."""
    table = accuracies.pivot_table(index=["member", "step"], columns="digit", values="accuracy")
    best = table.mean(axis=1).groupby(level="member").idxmax() if len(table) else []
    return table.loc[best].droplevel("step"), table.groupby(level="member").tail(1).droplevel("step")


def agreement(accuracies: pd.DataFrame) -> float:
    """Kendall's W of the networks on which digits lose most: 0 none, 1 full; NaN of a single network.

    >>> lost = [0.0, 0.1, 0.2]
    >>> agreement(pd.DataFrame({"step": [1, 1, 1, 2, 2, 2] * 2, "member": [0] * 6 + [1] * 6, "digit": [0, 1, 2] * 4,
    ...                         "accuracy": ([0.9] * 3 + [0.9 - x for x in lost]) * 2}))
    1.0
    """
    best, last = _best_and_last(accuracies)
    ranks = (last - best).dropna(axis=1).rank(axis=1).to_numpy()
    m, n = ranks.shape
    if m < 2 or n < 2:
        return np.nan
    return float(12 * ((ranks.sum(axis=0) - m * (n + 1) / 2) ** 2).sum() / (m**2 * (n**3 - n)))


def nearness_table(*named: tuple[str, pd.DataFrame]) -> pd.DataFrame:
    """`grokutils.paper.harmful_traps.forgetting.nearness` of several records: medians over networks."""
    return pd.DataFrame({name: frame.groupby("near", sort=False).auc.agg(said) for name, frame in named})


def piling_table(frame: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.harmful_traps.forgetting.piling`: the share of answers that are the commonest one, medians over networks."""
    table = frame.groupby(["when", "edit", "kind"], sort=False).share.agg(said).unstack("kind", sort=False)
    return table.reindex(columns=list(INPUTS)).rename(WHENS, level="when").rename_axis(index=[None, None], columns=None)


_NORM = {
    "same": "same answer with pixels shuffled", "same_by_chance": "... by chance", "from_norm": "told from the norm",
    "from_random": "... from a random projection", "commonest": "... by the commonest answer",
}  # fmt: skip


def norm_table(*named: tuple[str, pd.DataFrame]) -> pd.DataFrame:
    """`grokutils.paper.harmful_traps.forgetting.norm_answers` of several records: medians over networks."""
    tables = {name: frame.groupby("when", sort=False)[list(_NORM)].agg(said) for name, frame in named}
    return pd.concat(tables).rename(columns=_NORM).rename(WHENS, level="when").rename_axis([None, None])


def prototype_table(matches: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.harmful_traps.prototypes.prototype_matches` at the first and the last kept step: the correlation with the most
    similar mean image, that of random directions through the same matrices, and by how many networks the former is larger."""
    rows = {}
    for step in sorted({matches.step.min(), matches.step.max()}) if len(matches) else ():
        for depth, own in matches[matches.step == step].groupby("depth"):
            rows[f"step {step:,}", NAMES[depth]] = {
                "mean image of a digit": said(own.r), "random directions": said(own.r_random),
                "single training image": said(own.image_r), "random directions ": said(own.image_r_random),
                "more than random": f"{(own.r > own.r_random).sum()} of {len(own)}",
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def regrowth_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Of forks, the size of the largest shuffled eigenvalue over the threshold before and after, and test accuracy."""
    rows = {}
    for (start, arm, layer), own in frame.groupby(["start", "arm", "layer"], sort=False):
        first, last = own[own.step == 0], own[own.step == own.step.max()]
        rows[WHENS[start], arm, layer] = {
            "size at the fork": said(first.trap_strength), f"after {own.step.max():,} steps": said(last.trap_strength),
            "with a trap at the end": f"{(last.traps >= TRAPPED_FROM).sum()} of {len(last)}",
            "test accuracy at the fork": said(first.test_accuracy), "at the end": said(last.test_accuracy),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
