"""The modular-addition tables of P2 and P3 beside ours, in the form of `grokutils.tables`.

>>> from grokutils.study import study
>>> from grokutils.tables import printed
>>> printed(modular_alpha(study("results/modular-wd1")))             # doctest: +SKIP
"""

from __future__ import annotations

import pandas as pd

from .published import MODULAR_ACCURACY, MODULAR_MATRICES, MODULAR_TABLE, MODULAR_TRAPS, PHASES, Table
from .study import Study
from .tables import _of_layer, _over_phases, _published, _tidy

__all__ = ["modular_accuracy", "modular_alpha", "modular_traps", "phases_in_words"]


def modular_accuracy(*studies: Study) -> pd.DataFrame:
    """Test accuracy where the phases are read; columns as in `grokutils.tables.table_1`."""
    rows = _published(MODULAR_ACCURACY, "test_accuracy", "test accuracy")
    for data in studies:
        rows += _over_phases("test accuracy", data, data.metrics, "test_accuracy", 3)
    return _tidy(rows)


def modular_alpha(*studies: Study) -> pd.DataFrame:
    """Alpha of the eight matrices, and their mean."""
    return _of_matrices(MODULAR_TABLE, "alpha", studies)


def modular_traps(*studies: Study) -> pd.DataFrame:
    """Traps of the eight matrices, and their mean."""
    return _of_matrices(MODULAR_TRAPS, "traps", studies)


def _of_matrices(table: Table, column: str, studies: tuple[Study, ...]) -> pd.DataFrame:
    rows = []
    for theirs, ours in MODULAR_MATRICES.items():
        rows += _published(table, theirs, theirs)
        for data in studies:
            rows += _over_phases(theirs, data, _of_layer(data, ours), column, 2)
    rows += _published(table, "mean", "mean")
    for data in studies:
        own = data.diagnostics[data.diagnostics.layer.isin(MODULAR_MATRICES.values())]
        # of the matrices that have a number: the fit of a matrix of very low rank fails
        mean = own.groupby(["step", "member"])[column].mean().reset_index()
        rows += _over_phases("mean", data, mean, column, 2)
    return _tidy(rows)


def phases_in_words(data: Study) -> str:
    """What became of each run, in a sentence computed from it.

    >>> phases_in_words(study("results/modular-wd1"))                # doctest: +SKIP
    """
    found = data.phases
    if found.memorised is None:
        return f"{data.label}: it has not learnt its training set."
    parts = [f"{data.label}: the training set is learnt at step {found.memorised:,}"]
    median = data.metrics.groupby("step").test_accuracy.median()
    grokked = median.index[median > 0.95]
    if len(grokked):
        parts.append(f"test accuracy passes 0.95 at step {grokked[0]:,}")
    parts.append(f"it is best, {found.peak_accuracy:.3f}, at step {found.peak:,}")
    fallen = f"collapsed at step {found.collapse:,}" if found.collapse is not None else "no collapse"
    parts.append(f"{found.final_accuracy:.3f} at the end ({fallen})")
    mean = data.diagnostics[data.diagnostics.layer.isin(MODULAR_MATRICES.values())]
    at = data.at_phases(mean)
    end = at[at.phase == PHASES[1]]
    if len(end):
        parts.append(f"at its best {int((end.alpha < 2).sum())} of {len(end)} matrices have α below 2")
    return ", ".join(parts) + "."
