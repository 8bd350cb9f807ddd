"""Tables of the study of causes, from the frames of `grokutils.paper.causes.outcomes` and `grokutils.paper.causes.detectors`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from grokutils.paper.causes.conditions import TOPICS, Cause
from grokutils.paper.kit.tables import NONE, interval, number
from grokutils.records.phases import COLLAPSE, FALL
from grokutils.records.signals import ALPHA_LOW, TRAPPED_FROM

__all__ = ["least_p", "printed_detectors", "printed_ends", "printed_falls", "printed_traps"]

_LAYERS = ("fc1", "fc2")


def _of(count: int, n: int) -> str:
    return f"{count}\N{NO-BREAK SPACE}of\N{NO-BREAK SPACE}{n}"


def _small(x: float) -> str:
    """With more digits the smaller it is.

    >>> _small(0.8375), _small(0.0002), _small(0.00005)
    ('0.84', '0.0002', '< 0.0001')
    """
    return number(x, ".2f" if x >= 0.01 else ".4f") if not x < 1e-4 else "< 0.0001"


def printed_falls(compared: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.causes.outcomes.compare` as a reader sees it."""
    rows = {}
    for row in compared.to_dict("records"):
        points = {name: [100 * row[name + end] for end in ("", "_low", "_high")] for name in ("lost", "difference")}
        rows[TOPICS[row["topic"]], row["says"]] = {
            "the condition": row["verdict"] if np.isfinite(row["p"]) else NONE,
            "weights moved / control's": _small(row["moved"]),
            "mean loss, points": interval(*points["lost"], ".1f"),
            "difference, points": interval(*points["difference"], "+.1f"),
            "p, corrected": "< 0.001" if row["p_holm"] < 0.001 else number(row["p_holm"], ".3f"),
            f"fell by {100 * FALL:g}": _of(row["fell"], row["seeds"]) + (f", {row['diverged']} diverged" if row["diverged"] else ""),
            f"collapsed by {100 * COLLAPSE:g}": _of(row["collapsed"], row["seeds"]),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis(index=[None, None])


def least_p(compared: pd.DataFrame) -> float:
    """The smallest corrected p-value that so many comparisons of so many seeds can have; NaN without a comparison.

    >>> least_p(pd.DataFrame({"p": [0.5, 0.1], "difference_n": 10}))
    0.00390625
    """
    tested = compared[compared.p.notna()]
    return min(1.0, len(tested) * 2 / 2 ** int(tested.difference_n.max())) if len(tested) else np.nan


def printed_ends(rows: pd.DataFrame, table: Sequence[Cause]) -> pd.DataFrame:
    """What the networks are like at the end: medians over seeds of `grokutils.paper.causes.outcomes.outcomes_of`."""
    median = rows.groupby("name", sort=False).median(numeric_only=True)
    columns = {
        "train": ("training accuracy", ".3f"), "at_learning": ("test accuracy when learnt", ".3f"), "final": ("test accuracy", ".3f"),
        "norm": ("norm / start", ".2f"), "displacement": ("moved since the fork", None),
    }  # fmt: skip
    for layer in _LAYERS:
        for measure, said, style in (("alpha", "α", ".2f"), ("traps", "traps", ".1f"), ("max_over_std", "max|w|/std", ".1f")):
            columns[f"{measure}_{layer}"] = (f"{said} of {layer.upper()}", style)
    made = {title: median[name].map(lambda x, style=style: number(x, style) if style else _small(x)) for name, (title, style) in columns.items()}
    return _by_topic(pd.DataFrame(made), table)


def _by_topic(made: pd.DataFrame, table: Sequence[Cause]) -> pd.DataFrame:
    """Rows by name in the order of the table, under its topics and words."""
    shown = [cause for cause in table if cause.name in made.index]
    index = pd.MultiIndex.from_tuples([(TOPICS[cause.topic], cause.says) for cause in shown])
    return made.loc[[cause.name for cause in shown]].set_axis(index)


def printed_traps(rows: pd.DataFrame, table: Sequence[Cause]) -> pd.DataFrame:
    """Whether a fall needs traps, and whether traps bring one: networks from initial weights (forks are the same networks
    again) that never held a trap in FC1 or FC2, and those that know their training set and did not fall.

    Returns
    -------
    A row per condition and one for all: how many never held a trap, and of these how many fell, collapsed, and what they
    lost; how many did not fall, and of these how many hold a trap or have a low alpha at the end.
    """
    scratch = rows[rows.name.isin([cause.name for cause in table if not cause.forked])]

    def counts(own: pd.DataFrame) -> pd.Series:
        free = own[~_trapped(own, "most_traps")]
        still = own[~own.fell & own.train.ge(0.99)]
        low = (still[[f"alpha_{layer}" for layer in _LAYERS]] < ALPHA_LOW).any(axis=1)
        return pd.Series({
            "never held a trap": _of(len(free), len(own)), "of these fell": free.fell.sum(), "collapsed": free.collapsed.sum(),
            "lost, points": number(100 * free.lost.mean(), ".1f"), "know their training set and did not fall": _of(len(still), len(own)),
            "of these hold a trap": _trapped(still, "traps").sum(), f"have α < {ALPHA_LOW:g}": low.sum(),
        })  # fmt: skip

    made = _by_topic(pd.DataFrame({name: counts(own) for name, own in scratch.groupby("name")}).T, table)
    made.loc[("All", "from initial weights"), :] = counts(scratch)
    return made


def _trapped(own: pd.DataFrame, column: str) -> pd.Series:
    return (own[[f"{column}_{layer}" for layer in _LAYERS]] >= TRAPPED_FROM).any(axis=1)


def printed_detectors(found: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.causes.detectors.ranking` as a reader sees it."""
    rows = {}
    for row in found.to_dict("records"):
        signal, is_rule = row["signal"], np.isfinite(row["fitted"])
        rows[row["label"]] = {
            "ROC area": interval(row["auc"], row["auc_low"], row["auc_high"]),
            "for the same time": number(row["auc_same_time"]),
            "with those at chance": interval(row["auc_all"], row["auc_all_low"], row["auc_all_high"]),
            "usual rule": signal.written(signal.usual),
            "warned": f"{row['warned']} of {row['falls']}", "lead, decades": number(row["lead"]),
            "false alarms": f"{row['false']} of {row['stayed']}",
            "alarms at chance": f"{row['chance_alarms']} of {row['chance']}",
            "fitted rule": signal.written(row["fitted"], ".3g") if is_rule else NONE,
            "warned ": f"{row['fitted_warned']} of {row['fitted_falls']}" if is_rule else NONE,
            "lead, decades ": number(row["fitted_lead"]),
            "false alarms ": f"{row['fitted_false']} of {row['fitted_stayed']}" if is_rule else NONE,
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
