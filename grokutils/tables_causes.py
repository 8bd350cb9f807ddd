"""Tables and sentences of the study of causes, from the frames of `grokutils.outcomes` and `grokutils.detectors`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from . import detectors
from .causes import CONTROL, TOPICS, Cause
from .detectors import Signal, Watch
from .outcomes import FALL, VERDICTS
from .study import Study

__all__ = [
    "false_alarms_in_words", "missing_in_words", "printed_detectors", "printed_ends", "printed_falls", "statements",
    "warnings_in_words",
]  # fmt: skip

_NONE = "–"
# Half a trap or more, in the mean over the shuffles, is a trap.
_TRAPPED = 0.5


def _number(x: float, style: str = ".2f") -> str:
    return _NONE if not np.isfinite(x) else f"{x:{style}}"


def _upper(text: str) -> str:
    """With a capital at the beginning."""
    return text[:1].upper() + text[1:]


def _interval(x: float, low: float, high: float, style: str = "+.3f") -> str:
    if not np.isfinite(x):
        return _NONE
    return f"{x:{style}}" + (f"\u00a0[{low:{style}},\u00a0{high:{style}}]" if np.isfinite(low) else "")


def _p(p: float) -> str:
    return _NONE if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def printed_falls(compared: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.outcomes.compare` as a reader sees it."""
    rows = {}
    for row in compared.to_dict("records"):
        diverged = f", {row['diverged']} diverged" if row["diverged"] else ""
        difference = (100 * row[name] for name in ("difference", "difference_low", "difference_high"))
        rows[TOPICS[row["topic"]], row["says"]] = {
            "the condition": row["verdict"] if np.isfinite(row["p"]) else _NONE,
            "mean fall, points": _interval(*(100 * row[name] for name in ("fall", "fall_low", "fall_high")), ".1f"),
            "difference, points": _interval(*difference, "+.1f"), "p, corrected": _p(row["p_holm"]),
            "fell": f"{row['collapsed']} of {row['seeds']}".replace(" ", "\N{NO-BREAK SPACE}") + diverged,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=[None, None])


def printed_ends(rows: pd.DataFrame, table: Sequence[Cause], layers: Sequence[str] = ("fc1", "fc2")) -> pd.DataFrame:
    """What the networks are like at the end: medians over seeds of `grokutils.outcomes.outcomes`."""
    made = {}
    for cause in table:
        own = rows[rows.name == cause.name]
        if not len(own):
            continue
        row = {
            "training accuracy": _number(own.train.median(), ".3f"), "test accuracy": _number(own.final.median(), ".3f"),
            "norm / start": _number(own.norm.median()),
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
    """`grokutils.detectors.table` as a reader sees it."""
    rows = {}
    for row in found.to_dict("records"):
        signal: Signal = row["signal"]
        unit = " widths" if signal.kind == "away" else ""
        rule = {"below": "<", "above": "≥", "more": "≥ +", "away": ">"}[signal.kind]
        rows[row["label"]] = {
            "ROC area": _interval(row["auc"], row["auc_low"], row["auc_high"], ".2f"),
            "for the same time": _number(row["auc_same_time"]),
            "usual rule": f"{rule} {signal.usual:g}{unit}",
            "warned": f"{row['warned']} of {row['falls']}", "lead, decades": _number(row["lead"]),
            "false alarms": f"{row['false']} of {row['stayed']}",
            "fitted rule": _NONE if not np.isfinite(row["fitted"]) else f"{rule} {row['fitted']:.3g}{unit}",
            "warned ": f"{row['fitted_warned']} of {row['fitted_falls']}", "lead, decades ": _number(row["fitted_lead"]),
            "false alarms ": f"{row['fitted_false']} of {row['fitted_stayed']}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def missing_in_words(found: Mapping[str, Study | None], table: Sequence[Cause]) -> str:
    """Which conditions have no complete record; empty if all have one."""
    lacking = [cause.says for cause in table if found.get(cause.name) is None]
    if not lacking:
        return ""
    return f"Not yet measured, and left out below: {'; '.join(lacking)}. `grokutils causes` runs them."


# -- what it all says -----------------------------------------------------------------------------------------------


def statements(compared: pd.DataFrame, rows: pd.DataFrame) -> list[str]:
    """What is supported and what is not, a sentence or two each, from the numbers."""
    if not len(compared):
        return ["Nothing has been measured."]
    by = compared.set_index("name")
    found = [_control(by), _of_topic(by, "optimiser"), _of_topic(by, "norm"), _traps(by, rows), _negative(by, rows)]
    return [text for text in found if text]


def _fall(by: pd.DataFrame, name: str) -> str:
    row = by.loc[name]
    return _interval(100 * row.fall, 100 * row.fall_low, 100 * row.fall_high, ".1f")


def _control(by: pd.DataFrame) -> str:
    parts = [
        f"{by.loc[name].says}: {_fall(by, name)} points ({by.loc[name].collapsed} of {by.loc[name].seeds} fell by five)"
        for name in CONTROL.values() if name in by.index
    ]  # fmt: skip
    return f"**The controls.** Mean fall of test accuracy from its best to the end: {'; '.join(parts)}." if parts else ""


def _of_topic(by: pd.DataFrame, topic: str) -> str:
    own = by[(by.topic == topic) & by.p.notna()]
    if not len(own):
        return ""
    parts = []
    for verdict in VERDICTS[:4]:
        names = own.index[own.verdict == verdict]
        if len(names):
            listed = "; ".join(f"{own.loc[name].says} ({_fall(by, name)} points)" for name in names)
            parts.append(f"*{verdict}*: {listed}")
    return f"**{TOPICS[topic]}.** What each change does to the fall, {', and '.join(parts)}."


def _traps(by: pd.DataFrame, rows: pd.DataFrame) -> str:
    names = [name for name in ("clip", "center", "clip-center") if name in by.index]
    if not names:
        return ""
    parts = []
    for name in names:
        own = rows[rows.name == name]
        free = own[(own[["most_traps_fc1", "most_traps_fc2"]] < _TRAPPED).all(axis=1)]
        parts.append(
            f"with {by.loc[name].says}, {len(free)} of {len(own)} networks never held a trap in FC1 or FC2, and of those "
            f"{int(free.collapsed.sum())} fell by five points or more (mean fall of all {_fall(by, name)} points)"
        )
    judged = rows[rows.name.isin([*names, CONTROL[False]])]
    free = judged[(judged[["most_traps_fc1", "most_traps_fc2"]] < _TRAPPED).all(axis=1)]
    fell = int(free.collapsed.sum())
    if not len(free):
        needed = "No network stayed free of traps, so whether a collapse needs them is not settled"
    elif fell:
        needed = f"A collapse does not need traps: {fell} of {len(free)} networks that never held one collapsed"
    else:
        needed = f"None of the {len(free)} networks that never held a trap collapsed, as if a collapse needed them"
    quiet = rows[~rows.collapsed & rows.train.ge(0.99)]
    held = int((quiet[["traps_fc1", "traps_fc2"]] >= _TRAPPED).any(axis=1).sum())
    said = f"**Traps.** {_upper('; '.join(parts))}. {needed}."
    if held:
        said += (
            f" Nor do they suffice: of {len(quiet)} networks of all conditions that know their training set and did not "
            f"fall, {held} hold a trap at the end."
        )
    return said


def _negative(by: pd.DataFrame, rows: pd.DataFrame) -> str:
    parts = []
    for name, row in by[by.topic == "negative"].iterrows():
        own = rows[rows.name == name]
        trapped = int((own[["traps_fc1", "traps_fc2"]] >= _TRAPPED).any(axis=1).sum())
        low = int((own[["alpha_fc1", "alpha_fc2"]] < 2).any(axis=1).sum())
        parts.append(
            f"{row.says}: {row.collapsed} of {row.seeds} fell by five points, {trapped} hold a trap and {low} have an α "
            "below 2 at the end"
        )
    return f"**Negative controls.** {_upper('; '.join(parts))}." if parts else ""


def warnings_in_words(found: pd.DataFrame, watched: Sequence[Watch]) -> str:
    """What the detectors come to."""
    falls = sum(w.fall is not None for w in watched)
    if not falls or falls == len(watched):
        return f"Of {len(watched)} networks {falls} fell by five points: with networks of one kind alone nothing can be told apart."
    best = found.iloc[0]
    of = found.set_index("label")
    parts = [
        f"{label}, {_interval(of.loc[label].auc, of.loc[label].auc_low, of.loc[label].auc_high, '.2f')}"
        for label in of.index if label.startswith(("α", "traps", "largest weight"))
    ]  # fmt: skip
    return (
        f"{falls} of {len(watched)} networks fell by {100 * FALL:g} points for good. The signal that parts them best beforehand "
        f"is {best.label} (area {_interval(best.auc, best.auc_low, best.auc_high, '.2f')}; at the rule fitted to the even "
        f"seeds it warned of {best.fitted_warned} of {best.fitted_falls} falls among the odd ones, "
        f"{_number(best.fitted_lead)} decades ahead, with {best.fitted_false} false alarms in {best.fitted_stayed}). "
        f"The papers' signals and the cheap control of traps: {'; '.join(parts)}. An area of 0.5 knows nothing; below it, "
        "the signal is stronger where nothing falls."
    )


def false_alarms_in_words(watched: Sequence[Watch]) -> str:
    """Which signals cry wolf."""
    stayed = [w for w in watched if w.fall is None]
    if not stayed:
        return "Every network fell, so that no alarm was false."
    counted = {
        signal.label: sum(w.alarm(signal, detectors.threshold_of(signal)) is not None for w in stayed)
        for signal in detectors.SIGNALS
    }
    worst = [name for name, count in counted.items() if count >= 0.5 * len(stayed)]
    least = [f"{name} ({count})" for name, count in counted.items() if count <= 0.1 * len(stayed)]
    return (
        f"Of {len(stayed)} networks that never fell, at least half set off {', '.join(worst) or 'no signal'}. "
        f"In a tenth or fewer: {', '.join(least) or 'none'}."
    )
