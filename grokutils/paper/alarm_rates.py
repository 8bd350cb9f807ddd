"""How often each alarm of a `Monitor` is wrong in the reference ensemble, and how often it comes in time.

``python -m grokutils.paper.alarm_rates`` writes ``grokutils/spectra/alarms.json``, which the package brings along.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pandas as pd

from grokutils.records.study import Study, study
from grokutils.spectra import alarms
from grokutils.spectra.verdict import THRESHOLDS

__all__ = ["ENSEMBLE", "counted", "onset"]

#: Twenty seeds at each of four weight decays; some of them lose their test accuracy.
ENSEMBLE = ("results/express/wd0", "results/express/wd0.001", "results/express/wd0.01", "results/express/wd0.1")
#: Measurements in a row, as `Monitor` has it.
PATIENCE = 2


def onset(rows: pd.DataFrame, name: str, patience: int = PATIENCE) -> float:
    """Step at which an alarm goes off in the rows of one layer of one network; infinite if it never does."""
    records = rows.sort_values("step").to_dict("records")
    streak = 0
    for row in records:
        streak = streak + 1 if alarms.RULES[name].holds(row, records[0], THRESHOLDS) else 0
        if streak >= patience:
            return row["step"]
    return math.inf


def _of(data: Study, name: str) -> list[tuple[bool, bool]]:
    """Of each network: whether it fell, and whether the alarm went off in any layer (before the fall, if it fell)."""
    found = []
    for member, phases in data.member_phases.items():
        own = data.diagnostics[(data.diagnostics.member == member) & data.diagnostics.layer.isin(data.layers)]
        first = min(onset(rows, name) for _, rows in own.groupby("layer"))
        fell = phases.collapse is not None
        found.append((fell, first < (phases.collapse if fell else math.inf)))
    return found


def counted(*studies: Study) -> dict[str, alarms.Rates]:
    """The rates of every rule that a finite network can trip.

    >>> counted(study("results/express/wd0"))["traps"].false                     # doctest: +SKIP
    1
    """
    rates = {}
    for name in alarms.RULES:
        if name == "unreadable":
            continue
        found = [pair for data in studies for pair in _of(data, name)]
        stayed, fell = ([off for has_fallen, off in found if has_fallen == side] for side in (False, True))
        rates[name] = alarms.Rates(sum(stayed), len(stayed), sum(fell), len(fell))
    return rates


def text() -> str:
    """The file."""
    rules = {name: vars(found) for name, found in counted(*map(study, ENSEMBLE)).items()}
    return json.dumps({"ensemble": list(ENSEMBLE), "patience": PATIENCE, "rules": rules}, indent=1) + "\n"


def main() -> int:
    path = Path(alarms.__file__).with_name("alarms.json")
    path.write_text(text())
    print(f"Written to {path}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
