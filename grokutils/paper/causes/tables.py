"""Tables and sentences of the study of causes, from the frames of `grokutils.paper.causes.outcomes` and `grokutils.paper.causes.detectors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from grokutils.paper.causes import detectors
from grokutils.paper.causes.conditions import CONTROL, TOPICS, Cause
from grokutils.paper.causes.detectors import GENERALISED, Signal, Watch
from grokutils.paper.causes.outcomes import COLLAPSE, FALL, VERDICTS
from grokutils.paper.kit.tables import TRAPPED_FROM
from grokutils.records.study import Study

__all__ = [
    "false_alarms_in_words", "missing_in_words", "power_in_words", "printed_detectors", "printed_ends",
    "printed_falls", "statements", "warnings_in_words",
]  # fmt: skip

_NONE = "–"
# Weights that moved less than this share of the control's have hardly moved.
_HARDLY = 0.1
# With fewer networks of a kind an area under a ROC curve means nothing.
_FEWEST_OF_A_KIND = 5
_OF = "\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}"


def _number(x: float, style: str = ".2f") -> str:
    return _NONE if not np.isfinite(x) else f"{x:{style}}"


def _upper(text: str) -> str:
    """With a capital at the beginning."""
    return text[:1].upper() + text[1:]


def _interval(x: float, low: float, high: float, style: str = "+.3f") -> str:
    if not np.isfinite(x):
        return _NONE
    return f"{x:{style}}" + (f"\u00a0[{low:{style}},\u00a0{high:{style}}]" if np.isfinite(low) else "")


def _small(x: float) -> str:
    """With more digits the smaller it is.

    >>> _small(0.8375), _small(0.0002), _small(0.00005)
    ('0.84', '0.0002', '< 0.0001')
    """
    return _number(x, ".2f" if x >= 0.01 else ".4f") if not x < 1e-4 else "< 0.0001"


def _p(p: float) -> str:
    return _NONE if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def printed_falls(compared: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.causes.outcomes.compare` as a reader sees it."""
    rows = {}
    for row in compared.to_dict("records"):
        diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
        difference = (100 * row[name] for name in ("difference", "difference_low", "difference_high"))
        rows[TOPICS[row["topic"]], row["says"]] = {
            "the condition": row["verdict"] if np.isfinite(row["p"]) else _NONE,
            "weights moved / control's": _small(row["moved"]),
            "mean fall, points": _interval(*(100 * row[name] for name in ("fall", "fall_low", "fall_high")), ".1f"),
            "difference, points": _interval(*difference, "+.1f"), "p, corrected": _p(row["p_holm"]),
            f"fell by {100 * FALL:g}": f"{row['collapsed']}{_OF}{row['seeds']}" + diverged,
            f"by {100 * COLLAPSE:g}": f"{row['fell_ten']}{_OF}{row['seeds']}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=[None, None])


def printed_ends(rows: pd.DataFrame, table: Sequence[Cause], layers: Sequence[str] = ("fc1", "fc2")) -> pd.DataFrame:
    """What the networks are like at the end: medians over seeds of `grokutils.paper.causes.outcomes.outcomes`."""
    made = {}
    for cause in table:
        own = rows[rows.name == cause.name]
        if not len(own):
            continue
        row = {
            "training accuracy": _number(own.train.median(), ".3f"),
            "test accuracy": _number(own.final.median(), ".3f"),
            "norm / start": _number(own.norm.median()),
            "moved since the fork": _small(own.displacement.median()),
        }  # fmt: skip
        for layer in layers:
            name = layer.upper()
            row |= {
                f"α of {name}": _number(own[f"alpha_{layer}"].median()),
                f"traps of {name}": _number(own[f"traps_{layer}"].median(), ".1f"),
                f"max|w|/std of {name}": _number(own[f"max_over_std_{layer}"].median(), ".1f"),
            }
        made[TOPICS[cause.topic], cause.says] = row
    return pd.DataFrame.from_dict(made, orient="index").rename_axis(index=[None, None])


def printed_detectors(found: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.causes.detectors.table` as a reader sees it."""
    rows = {}
    for row in found.to_dict("records"):
        signal: Signal = row["signal"]
        unit = " widths" if signal.kind == "away" else ""
        rule = {"below": "<", "above": "≥", "more": "≥ +", "away": ">"}[signal.kind]
        is_rule = np.isfinite(row["fitted"])
        rows[row["label"]] = {
            "ROC area": _interval(row["auc"], row["auc_low"], row["auc_high"], ".2f"),
            "for the same time": _number(row["auc_same_time"]),
            "with those at chance": _interval(row["auc_all"], row["auc_all_low"], row["auc_all_high"], ".2f"),
            "usual rule": f"{rule} {signal.usual:g}{unit}",
            "warned": f"{row['warned']} of {row['falls']}", "lead, decades": _number(row["lead"]),
            "false alarms": f"{row['false']} of {row['stayed']}",
            "alarms at chance": f"{row['chance_alarms']} of {row['chance']}",
            "fitted rule": f"{rule} {row['fitted']:.3g}{unit}" if is_rule else _NONE,
            "warned ": f"{row['fitted_warned']} of {row['fitted_falls']}" if is_rule else _NONE,
            "lead, decades ": _number(row["fitted_lead"]),
            "false alarms ": f"{row['fitted_false']} of {row['fitted_stayed']}" if is_rule else _NONE,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def missing_in_words(found: Mapping[str, Study | None], table: Sequence[Cause]) -> str:
    """Which conditions have no complete record; empty if all have one."""
    lacking = [cause.says for cause in table if found.get(cause.name) is None]
    if not lacking:
        return ""
    return f"Not yet measured, and left out below: {'; '.join(lacking)}. `grokutils causes` runs them."


# -- what it all says -----------------------------------------------------------------------------------------------


def power_in_words(compared: pd.DataFrame) -> str:
    """What the comparisons can show at best; empty if there are none."""
    tested = compared[compared.p.notna()] if len(compared) else compared
    if not len(tested):
        return ""
    seeds = int(tested.difference_n.max())
    floor = min(1.0, len(tested) * 2 / 2**seeds)
    return (
        f"The intervals are not corrected for the number of conditions; the p-values are. With {seeds} "
        f"seeds and {len(tested)} comparisons the smallest of them cannot come out below {_p(floor)}. The "
        "power is low: only a difference of one sign in nearly all seeds is told from none, and "
        f"*{VERDICTS[2]}* does not say that there is none."
    )


def statements(compared: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """What is supported and what is not, a sentence or two each, from the numbers."""
    if not len(compared):
        return ["Nothing has been measured."]
    by = compared.set_index("name")
    found = [
        _control(by), _of_topic(by, "optimiser"), _of_topic(by, "norm"), _moving(by), _traps(by, rows),
        _suffice(by, rows), _negative(by, rows), _specific(by, rows),
    ]  # fmt: skip
    return [text for text in found if text]


def _fall(by: pd.DataFrame, name: str) -> str:
    row = by.loc[name]
    return _interval(100 * row.fall, 100 * row.fall_low, 100 * row.fall_high, ".1f")


def _control(by: pd.DataFrame) -> str:
    parts = [
        f"{by.loc[name].says}: {_fall(by, name)} points ({by.loc[name].collapsed} of {by.loc[name].seeds} "
        f"fell by five, {by.loc[name].fell_ten} by ten)"
        for name in CONTROL.values() if name in by.index
    ]  # fmt: skip
    if not parts:
        return ""
    said = f"**The controls.** Mean fall of test accuracy from its best to the end: {'; '.join(parts)}."
    still = [by.loc[name].says for name in CONTROL.values() if name in by.index and not by.loc[name].collapsed]
    if still:
        said += (
            f" **None of the networks of {' and of '.join(still)} has fallen in these steps, so that nothing can be said to "
            "prevent or lessen a fall**: run for longer."
        )
    return said


def _of_topic(by: pd.DataFrame, topic: str) -> str:
    own = by[(by.topic == topic) & by.p.notna()]
    if not len(own):
        return ""
    still = (own.verdict == VERDICTS[0]) & (own.moved < _HARDLY)
    parts = [f"*{verdict}*: {_listed(own[(own.verdict == verdict) & ~still])}"
             for verdict in VERDICTS[:4] if ((own.verdict == verdict) & ~still).any()]  # fmt: skip
    said = f"**{TOPICS[topic]}.**"
    if parts:
        said += f" What each change does to the fall, {', and '.join(parts)}."
    if still.any():
        said += (
            " No fall within these steps, but the weights moved less than a tenth as far as the control's: "
            f"{_listed(own[still])}."
        )
    return said


def _listed(own: pd.DataFrame) -> str:
    parts = []
    for name, row in own.iterrows():
        moved = f"; weights moved {_small(row.moved)} times as far" if np.isfinite(row.moved) else ""
        parts.append(f"{row.says} ({_fall(own, name)} points{moved})")
    return "; ".join(parts)


def _moving(by: pd.DataFrame) -> str:
    """Whether any fork moves its weights and does not fall."""
    forked = by[by.forked & by.p.notna() & by.moved.notna()]
    still, fell = forked[forked.verdict == VERDICTS[0]], forked[forked.verdict != VERDICTS[0]]
    if not len(still) or not len(fell):
        return ""
    said = (
        f"**How far the weights move.** The {len(still)} changes after the fork without a fall in these steps "
        f"moved the weights {_small(still.moved.max())} times as far as the control or less. The {len(fell)} "
        f"others moved them {_small(fell.moved.min())} to {_small(fell.moved.max())} times as far, and of "
        f"each at least {int(fell.collapsed.min())} of {int(fell.seeds.max())} networks fell by five "
        "points. "
    )
    if still.moved.max() < min(1.0, fell.moved.min()):
        return said + (
            "No condition that moves the weights as far as the control avoids the fall, so that whether "
            "Adam's step is the cause, beyond moving the weights fast, is left open."
        )
    return said + f"Farthest without a fall: {still.loc[still.moved.idxmax()].says}."


def _trapped(own: pd.DataFrame, when: str = "") -> pd.Series:
    return (own[[f"{when}traps_fc1", f"{when}traps_fc2"]] >= TRAPPED_FROM).any(axis=1)


def _traps(by: pd.DataFrame, rows: pd.DataFrame) -> str:
    names = [name for name in ("clip", "center", "clip-center") if name in by.index]
    if not names:
        return ""
    parts = []
    for name in names:
        own = rows[rows.name == name]
        parts.append(
            f"with {by.loc[name].says}, {int((~_trapped(own, 'most_')).sum())} of {len(own)} networks never "
            f"held a trap in FC1 or FC2 (mean fall of all {_fall(by, name)} points; {by.loc[name].verdict})"
        )
    judged = rows[rows.name.isin([*names, CONTROL[False]])]
    return f"**Traps.** {_upper('; '.join(parts))}. {_needed(judged[~_trapped(judged, 'most_')], by)}"


def _needed(free: pd.DataFrame, by: pd.DataFrame) -> str:
    """Whether networks that never held a trap fell, and how far."""
    five, ten, n = int(free.collapsed.sum()), int(free.fell_ten.sum()), len(free)
    if not n:
        return "No network stayed free of traps, so whether a fall needs them is not settled."
    if not five:
        return f"None of the {n} networks that never held a trap fell by five points, as if a fall needed them."
    said = (
        f"A fall does not need traps: {five} of {n} networks that never held one fell by five points or "
        f"more, and {ten} of {n} by ten, which is what the rest of the book calls a collapse"
    )
    if CONTROL[False] not in by.index or not by.loc[CONTROL[False]].fall > 0:
        return f"{said}."
    plain, fall = by.loc[CONTROL[False]], free.fall.mean()
    said = (
        f"{said} (as it is, {plain.collapsed} and {plain.fell_ten} of {plain.seeds}). Their mean fall, "
        f"{100 * fall:.1f} points, is {_compared(fall, plain.fall)} the plain run's {100 * plain.fall:.1f}"
    )
    if fall >= plain.fall:
        return f"{said}."
    return f"{said}: traps, or whatever else clipping and centring hold back, may well deepen a fall."


def _compared(x: float, to: float) -> str:
    return f"{abs(1 - x / to):.0%} {'smaller' if x < to else 'larger'} than"


def _suffice(by: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Whether networks hold traps and do not fall; forks are the same networks again and do not count."""
    scratch = rows[rows.name.isin(by.index[~by.forked])]
    quiet = scratch[~scratch.collapsed & scratch.train.ge(0.99)]
    held = quiet[_trapped(quiet)]
    if not len(held):
        return ""
    labels = int((held.name == "random-labels").sum())
    return (
        f"**Traps without a fall.** Traps do not suffice: of {len(quiet)} networks trained from initial "
        f"weights that know their training set and did not fall by five points, {len(held)} hold a trap at "
        f"the end ({labels} of them have learnt random labels and had nothing to lose). Forks are not "
        "counted: they are the same networks again."
    )


def _negative(by: pd.DataFrame, rows: pd.DataFrame) -> str:
    parts = []
    for name, row in by[by.topic == "negative"].iterrows():
        own = rows[rows.name == name]
        low = int((own[["alpha_fc1", "alpha_fc2"]] < 2).any(axis=1).sum())
        parts.append(
            f"{row.says}: {row.collapsed} of {row.seeds} fell by five points, {int(_trapped(own).sum())} "
            f"hold a trap and {low} have an α below 2 at the end"
        )
    return f"**Negative controls.** {_upper('; '.join(parts))}." if parts else ""


def _specific(by: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Whether a network that need not wait for generalising falls as well."""
    if "small-init" not in by.index or CONTROL[False] not in by.index:
        return ""
    own, plain = by.loc["small-init"], by.loc[CONTROL[False]]
    early, late = (rows[rows.name == name].at_learning.median() for name in ("small-init", CONTROL[False]))
    if not (early >= GENERALISED > late and own.collapsed > own.seeds / 2):
        return ""
    most = " the most of all runs from initial weights," if own.fall >= by[~by.forked].fall.max() else ""
    return (
        f"**Not of grokking alone.** With {own.says} the test accuracy is {early:.2f} as soon as the "
        f"training set is known (plain: {late:.2f}), so that there is no delay. These networks fall all the "
        f"same,{most} by {_fall(by, 'small-init')} points, {own.collapsed} of {own.seeds} by five, against "
        f"{_fall(by, CONTROL[False])} points and {plain.collapsed} of {plain.seeds} of the plain run: the "
        "collapse is not specific to grokking."
    )


def warnings_in_words(found: pd.DataFrame, watched: Sequence[Watch]) -> str:
    """What the detectors come to."""
    judged, chance = detectors.comparable(watched), detectors.at_chance(watched)
    falls = sum(w.fall is not None for w in watched)
    counts = (
        f"{falls} of {len(watched)} networks fell by {100 * FALL:g} points for good. Of the "
        f"{len(watched) - falls} that never fell, {len(judged) - falls} had generalised (a best test "
        f"accuracy of at least {GENERALISED:g}) and {len(chance)} stayed near chance and could not fall"
    )
    if not falls or falls == len(judged):
        return f"{counts}: with networks of one kind alone nothing can be told apart."
    if min(falls, len(judged) - falls) < _FEWEST_OF_A_KIND:
        return f"{counts}: too few of one kind for an area to mean anything."
    best = found.iloc[0]
    shown = found[found.label.str.startswith(("α", "traps", "largest weight", "ℓ² norm"))]
    parts = [_areas(row) for _, row in shown.iterrows()]
    fitted = (
        f"; at the rule fitted to the even seeds it warned of {best.fitted_warned} of {best.fitted_falls} "
        f"falls among the odd ones, {_number(best.fitted_lead)} decades ahead, with {best.fitted_false} "
        f"false alarms in {best.fitted_stayed}"
        if np.isfinite(best.fitted) else ""
    )  # fmt: skip
    return (
        f"{counts}. Against those that had generalised, the signal that parts falls best beforehand is "
        f"{_areas(best)}{fitted}. The papers' signals, the cheap control of traps, and the norm: "
        f"{'; '.join(parts)}. An area of 0.5 knows nothing; below it, the signal is stronger where nothing "
        "falls."
    )


def _areas(row: pd.Series) -> str:
    own = _interval(row.auc, row.auc_low, row.auc_high, ".2f")
    every = _interval(row.auc_all, row.auc_all_low, row.auc_all_high, ".2f")
    return f"{row.label}, {own} (with those near chance, {every})"


def false_alarms_in_words(watched: Sequence[Watch], says: Mapping[str, str] | None = None) -> str:
    """Which signals cry wolf; conditions by name, or in the words of `says`."""
    if all(w.fall is not None for w in watched):
        return "Every network fell, so that no alarm was false."
    judged = [w for w in detectors.comparable(watched) if w.fall is None]
    chance = detectors.at_chance(watched)
    said = []
    if judged:
        counts = pd.Series([w.name for w in judged]).value_counts(sort=False)
        kinds = ", ".join(f"{count} of {(says or {}).get(name, name)}" for name, count in counts.items())
        said.append(
            f"{len(judged)} networks had generalised and never fell ({kinds}). {_set_off(judged)} An alarm "
            "of theirs is false."
        )
    if chance:
        said.append(
            f"{len(chance)} more stayed near chance. {_set_off(chance)} Those that have learnt random "
            "labels by heart are as overfitted as can be: an alarm is not false of that, it only tells of "
            "no fall."
        )
    return " ".join(said)


def _set_off(group: Sequence[Watch]) -> str:
    counted = {
        signal.label: sum(w.alarm(signal, detectors.threshold_of(signal)) is not None for w in group)
        for signal in detectors.SIGNALS
    }
    worst = [f"{name} ({count})" for name, count in counted.items() if count >= 0.5 * len(group)]
    least = [f"{name} ({count})" for name, count in counted.items() if count <= 0.1 * len(group)]
    return (
        f"In at least half of them went off: {', '.join(worst) or 'no signal'}; "
        f"in a tenth or fewer: {', '.join(least) or 'none'}."
    )
