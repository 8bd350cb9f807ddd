"""What a `Monitor` may raise an alarm at, and how often each was wrong where the truth is known.

The rates are of this project's own records of small perceptrons, with and without weight decay (``python -m
grokutils.paper.alarm_rates`` makes them). They say what a signal was worth there; another network is another question.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from grokutils.spectra.verdict import THRESHOLDS, Thresholds

__all__ = ["RULES", "Alarm", "Rates", "Rule", "rates", "rates_table"]

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Alarm:
    """One alarm: what an `on_alarm` is given."""

    step: int
    layer: str
    #: Name of the rule.
    name: str
    #: What a warning says.
    message: str
    #: The row of the history that it is about.
    row: Row = field(repr=False)

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class Rule:
    """When a layer's alarm goes off: `holds` of its row, its first row and the thresholds; and what is said then."""

    holds: Callable[[Row, Row, Thresholds], bool]
    says: Callable[[Row, Row, Thresholds], str]


#: Growth of the norm since the first measurement, and largest weight in standard deviations, that raise an alarm.
NORM_GROWTH = 1.25
LARGEST_WEIGHT = 10.0


def _unreadable(row: Row, first: Row, limits: Thresholds) -> bool:
    return math.isnan(row["l2_norm"])


RULES: dict[str, Rule] = {
    "unreadable": Rule(_unreadable, lambda row, first, limits: f"cannot be measured: {row['reason']}"),
    "alpha": Rule(
        lambda row, first, limits: row["alpha"] < limits.over_correlated_below,
        lambda row, first, limits: f"alpha {row['alpha']:.3g} is below {limits.over_correlated_below:g}",
    ),
    "traps": Rule(
        lambda row, first, limits: row["traps"] >= limits.trapped_from,
        lambda row, first, limits: f"{row['traps']:.1f} correlation traps on average over the shuffles",
    ),
    "norm": Rule(
        lambda row, first, limits: row["l2_norm"] >= NORM_GROWTH * first["l2_norm"] > 0,
        lambda row, first, limits: f"its norm is {row['l2_norm'] / first['l2_norm']:.2f} times its first",
    ),
    "largest weight": Rule(
        lambda row, first, limits: row["max_over_std"] >= LARGEST_WEIGHT,
        lambda row, first, limits: f"its largest weight is {row['max_over_std']:.0f} standard deviations from the mean",
    ),
}


@dataclass(frozen=True)
class Rates:
    """What an alarm did in the reference ensemble: networks in which it went off, of how many."""

    #: Of those that never lost ten points of test accuracy: every one is a false alarm.
    false: int
    stayed: int
    #: Of those that did, before they had.
    before: int
    fell: int

    def __str__(self) -> str:
        return (
            f"in the reference ensemble it went off in {self.false} of {self.stayed} networks that never lost their test "
            f"accuracy, and before the loss in {self.before} of {self.fell} that did"
        )


@cache
def _stored() -> dict[str, Any]:
    return json.loads(files("grokutils.spectra").joinpath("alarms.json").read_text())


def rates(name: str) -> Rates | None:
    """Of a rule, None of one that no network of the ensemble could trip.

    >>> rates("alpha").false > rates("norm").false
    True
    """
    found = _stored()["rules"].get(name)
    return None if found is None else Rates(**found)


def rates_table() -> str:
    """All rates, as Markdown.

    >>> print(rates_table().splitlines()[0])
    | alarm | goes off in a layer if | networks that never fell: went off in | networks that fell: went off before |
    """
    said = {
        "alpha": f"alpha < {THRESHOLDS.over_correlated_below:g}",
        "traps": f"traps >= {THRESHOLDS.trapped_from:g} (mean over shuffles)",
        "norm": f"norm >= {NORM_GROWTH:g} times its first",
        "largest weight": f"max\\|w - mean\\|/std >= {LARGEST_WEIGHT:g}",
    }
    lines = ["| alarm | goes off in a layer if | networks that never fell: went off in | networks that fell: went off before |", "|---|---|---|---|"]
    for name, when in said.items():
        r = rates(name)
        lines.append(f"| `{name}` | {when} | {r.false} of {r.stayed} | {r.before} of {r.fell} |")
    return "\n".join(lines)


def sentence(name: str, row: Row, first: Row, limits: Thresholds = THRESHOLDS) -> str:
    """What an alarm says of a row: the signal, the cheap ones beside it, and the rates."""
    said = f"{row['layer']}: {RULES[name].says(row, first, limits)}"
    if name == "unreadable":
        return said
    beside = []
    if name != "alpha" and not math.isnan(row["alpha"]):
        beside.append(f"alpha {row['alpha']:.3g}")
    if name != "traps" and not math.isnan(row["traps"]):
        beside.append(f"{row['traps']:.1f} traps")
    if name != "norm" and first["l2_norm"] > 0:
        beside.append(f"norm {row['l2_norm'] / first['l2_norm']:.2f} times its first")
    if name != "largest weight" and not math.isnan(row["max_over_std"]):
        beside.append(f"largest weight {row['max_over_std']:.0f} standard deviations")
    found = rates(name)
    return said + f" ({', '.join(beside)})" + (f"; {found}" if found else "") + "."
