"""One-line answers, computed from the frames of interventions and of what networks see; none is typed.

>>> from grokutils import load_record
>>> from grokutils.paper.harmful_traps.intervention_study import interventions_of
>>> undone_in_words(interventions_of(load_record("results/express/wd0")))        # doctest: +SKIP
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from grokutils.paper.harmful_traps.forgetting import INPUTS, NEARNESS
from grokutils.paper.harmful_traps.intervention_study import ALL
from grokutils.paper.harmful_traps.prototypes import NAMES
from grokutils.paper.harmful_traps.tables import harm_rates, injections, removals, said

__all__ = [
    "cause_in_words", "forgetting_in_words", "nearness_in_words", "norm_in_words", "piling_in_words",
    "prototypes_in_words", "regrowth_in_words", "told_in_words", "undone_in_words",
]  # fmt: skip

_UNMEASURED = "Not measured for this run."


def _apart(a, b) -> str:
    """How a median over networks stands to another: by their intervals, or their values if there are few."""
    (a_low, a_high), (b_low, b_high) = _span(a), _span(b)
    if a_low == a_high and b_low == b_high and said(a) == said(b):
        return "no different from"  # of single networks, as they are printed
    return "more than" if a_low > b_high else "less than" if a_high < b_low else "no different from"


def _span(values) -> tuple[float, float]:
    text = said(values, ".9f")
    if "(" not in text:
        return float(text), float(text)
    low, high = text[text.index("(") + 1 : -1].split(" to ")
    return float(low), float(high)


def told_in_words(frame: pd.DataFrame) -> str:
    """Does J tell the traps that matter from those that do not?"""
    parts = []
    for operation in ("replaced by noise", "taken out"):
        found, norm = (harm_rates(frame, "matters", operation, score) for score in ("js", "norm"))
        if not np.isfinite(found.threshold + found.false_alarms + found.misses):
            parts.append(f"*{operation}*: there are no two kinds of traps to tell apart")
            continue
        parts.append(
            f"*{operation}*: J above {found.threshold:.2g} nats misses {found.misses:.0%} of the traps whose removal moves "
            f"the test accuracy by more than two points, and flags {found.false_alarms:.0%} of the others; the norm of the "
            f"change alone misses {norm.misses:.0%} and flags {norm.false_alarms:.0%}"
        )
    helped = [harm_rates(frame, "hurts", operation) for operation in ("replaced by noise", "taken out")]
    count, total = helped[1].positive, helped[1].positive + helped[1].negative
    rest = f" Harmful in the strict sense, so that taking it out *raises* the test accuracy, are {count} of {total}." if total else ""
    return "; ".join(parts) + "." + rest


def undone_in_words(frame: pd.DataFrame) -> str:
    """Does taking the traps out undo a collapse?"""
    own = removals(frame)
    own = own[(own.when == "last") & (own.layer == ALL) & (own.operation == "taken out")]
    trap, beside = (own[own.control == kind].test_change for kind in ("", "direction"))
    if not len(trap):
        return "No network has a trap at the last step."
    better = (
        "no network is better off without its traps" if not (trap > 0).any() else
        f"{(trap > 0).sum()} of {len(trap)} networks are better off without their traps"
    )  # fmt: skip
    return (
        f"All traps taken out at the last step, test accuracy changes by {said(trap, '+.2f')}; by {said(beside, '+.2f')} with "
        f"random directions of the same norms in place of the traps: {better}."
    )


def cause_in_words(frame: pd.DataFrame, kind: str = "mean") -> str:
    """Does planting traps cause a collapse with the training set still known?"""
    own = injections(frame)
    own = own[own.when == "best"]
    lines = []
    for layer, of_layer in own.groupby("layer", sort=False):
        cells = []
        for strength, at in of_layer.groupby("strength"):
            trap, beside = at[at.operation == kind], at[at.operation == "rank-one"]
            known = (trap.train_accuracy + trap.train_change).median()
            cells.append(
                f"{trap.test_change.median():+.2f} at strength {strength:g} (random direction {beside.test_change.median():+.2f}; "
                f"training accuracy {known:.2f})"
            )
        shifted = of_layer[of_layer.operation == kind]
        collapsed = (shifted.test_change <= -0.1) & (shifted.train_accuracy + shifted.train_change > 0.99)
        lines.append(
            f"- **{layer}**, the mean shifted: test accuracy changes by {', '.join(cells)}. A collapse as in anti-grokking, ten "
            f"points lost with more than 99 % of the training set still right, came of {collapsed.sum()} of {len(shifted)} shifts."
        )
    return "\n".join(lines) if lines else _UNMEASURED


def forgetting_in_words(accuracies: pd.DataFrame) -> str:
    """Which digits are lost first, and do networks agree on it?"""
    if accuracies.empty:
        return _UNMEASURED
    table = accuracies.pivot_table(index=["member", "step"], columns="digit", values="accuracy")
    last = table.groupby(level="member").tail(1).droplevel("step")
    best = table.loc[table.mean(axis=1).groupby(level="member").idxmax()].droplevel("step")
    change = (last - best).dropna(axis=1)
    order = change.median().sort_values(kind="stable")
    worst = change.idxmin(axis=1).value_counts()
    agreement = ""
    if len(change) > 1:
        ranks = change.rank(axis=1).to_numpy()
        m, n = ranks.shape
        w = 12 * ((ranks.sum(axis=0) - m * (n + 1) / 2) ** 2).sum() / (m**2 * (n**3 - n))
        agreement = f" Agreement of the networks on the order (Kendall's W; 0 none, 1 full): {w:.2f}."
    return (
        f"The digits that lost most are {', '.join(str(d) for d in order.index[:3])} (medians {order.iloc[0]:+.2f} to "
        f"{order.iloc[2]:+.2f}), least {order.index[-1]} ({order.iloc[-1]:+.2f}). The one lost most differs from network to "
        f"network: it is {worst.index[0]} in {worst.iloc[0]} of {len(change)}.{agreement}"
    )


def nearness_in_words(frame: pd.DataFrame) -> str:
    """Do the images still known lie nearer to the prototype?"""
    if frame.empty:
        return "No network has both kept and forgotten images."
    auc = {name: frame[frame.near == name].auc for name in NEARNESS}
    parts = [f"{name}: {said(auc[name])}" for name in NEARNESS]
    verdict = _apart(auc[NEARNESS[2]], auc[NEARNESS[-1]])
    return (
        "Share of pairs in which the image still known is the nearer one (0.5 says nothing): " + "; ".join(parts) + ". "
        f"For the network's own prototype (v₃) it is {verdict} that for a random direction, and "
        f"{_apart(auc[NEARNESS[2]], auc[NEARNESS[3]])} that for the mean image of the class."
    )


def piling_in_words(frame: pd.DataFrame) -> str:
    """Do answers pile on one class after the collapse, and is the trap the cause?"""
    if frame.empty:
        return _UNMEASURED
    own = frame[frame.kind == INPUTS[0]]
    best, last = (own[(own.when == when) & (own.edit == "as it is")] for when in ("best", "last"))
    replaced = own[own.edit.str.startswith("first trap")].share
    control = own[own.edit.str.contains("matched")].share
    top = last.answer.value_counts()
    return (
        f"The commonest answer to test images takes {said(best.share)} of them at the best kept step and {said(last.share)} at "
        f"the last; {said(replaced)} with the trap replaced, {said(control)} with a random direction instead. Which class it "
        f"is depends on the network: {top.index[0]} in {top.iloc[0]} of {len(last)}."
    )


def norm_in_words(frame: pd.DataFrame) -> str:
    """Does a collapsed network answer to the norm alone?"""
    last = frame[frame.when == "last"]
    if last.empty:
        return _UNMEASURED
    return (
        f"At the last step {said(last.same)} of the test images are given the same answer with their pixels shuffled, which keeps "
        f"the norm; by chance it would be {said(last.same_by_chance)}. The norm tells {said(last.from_norm)} of the answers, "
        f"always naming the commonest one {said(last.commonest)}: {_apart(last.from_norm, last.commonest)} that."
    )


def prototypes_in_words(matches: pd.DataFrame) -> str:
    """Do prototypes come to look like digits, more than random directions do?"""
    if matches.empty:
        return _UNMEASURED
    last = matches[matches.step == matches.step.max()]
    parts = [
        f"{NAMES.get(depth, depth)}: {said(own.r)} against {said(own.r_random)}, {_apart(own.r, own.r_random)} random"
        for depth, own in last.groupby("depth")
    ]
    return (
        f"At step {matches.step.max():,}, correlation with the most similar mean image of a digit, against that of random "
        f"directions through the same matrices: {'; '.join(parts)}."
    )


def regrowth_in_words(frame: pd.DataFrame, run: str) -> str:
    """Does a trap that was taken out grow back?"""
    if frame.empty:
        return f"Not measured for this run: `grokutils regrowth {run}` trains the forks."
    lines = []
    for (start, layer), own in frame.groupby(["start", "layer"], sort=False):
        end = own[own.step == own.step.max()]
        out = own[own.arm == "traps taken out"]
        back = (end[end.arm == "traps taken out"].traps >= 0.5)
        kept = (end[end.arm == "nothing done"].traps >= 0.5)
        first = out[out.step == 0]
        lines.append(
            f"- from the {'best kept' if start == 'best' else 'last'} step, **{layer}**: {(first.traps >= 0.5).sum()} of "
            f"{len(first)} networks have a trap left after the largest was taken out, {back.sum()} of {len(back)} after "
            f"{own.step.max():,} more steps ({kept.sum()} of {len(kept)} where nothing was done); its size over the threshold "
            f"goes from {said(first.trap_strength)} to {said(end[end.arm == 'traps taken out'].trap_strength)}."
        )
    return "\n".join(lines)
