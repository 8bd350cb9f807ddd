"""The modular-addition tables of P2 and P3 beside ours, in the form of `grokutils.paper.kit.tables`.

>>> from grokutils.records.study import study
>>> from grokutils.paper.kit.tables import printed
>>> printed(modular_alpha(study("results/modular-wd1")))             # doctest: +SKIP
"""

from __future__ import annotations

import pandas as pd

from grokutils.paper.judge.published import (
    MODULAR_ACCURACY,
    MODULAR_MATRICES,
    MODULAR_TABLE,
    MODULAR_TRAPS,
    Table,
)
from grokutils.paper.kit.tables import number, over_phases, published, tidy
from grokutils.records.phases import PHASES
from grokutils.records.signals import ALPHA_LOW
from grokutils.records.study import Study

__all__ = [
    "conditions", "courses", "mean_alpha", "mean_over_matrices", "modular_accuracy", "modular_alpha", "modular_traps",
    "printed_conditions",
]  # fmt: skip

#: What a network has to do for its run to be one that the published tables can have come from, with the
#: thresholds of the claims page: it generalises, loses that for good, and its matrices' mean alpha rises by so
#: much and their mean number of traps is so large when it has.
GENERALISES, ALPHA_RISE, TRAPS = 0.95, 1.0, 2.0


def modular_accuracy(*studies: Study) -> pd.DataFrame:
    """Test accuracy where the phases are read; columns as in `grokutils.paper.kit.tables.table_1`."""
    rows = published(MODULAR_ACCURACY, "test_accuracy", "test accuracy")
    for data in studies:
        rows += over_phases("test accuracy", data, data.metrics, "test_accuracy", 3)
    return tidy(rows)


def modular_alpha(*studies: Study) -> pd.DataFrame:
    """Alpha of the eight matrices, and their mean."""
    return _of_matrices(MODULAR_TABLE, "alpha", studies)


def modular_traps(*studies: Study) -> pd.DataFrame:
    """Traps of the eight matrices, and their mean."""
    return _of_matrices(MODULAR_TRAPS, "traps", studies)


def _of_matrices(table: Table, column: str, studies: tuple[Study, ...]) -> pd.DataFrame:
    rows = []
    for theirs, ours in MODULAR_MATRICES.items():
        rows += published(table, theirs, theirs)
        for data in studies:
            rows += over_phases(theirs, data, data.over_steps(ours), column, 2)
    rows += published(table, "mean", "mean")
    for data in studies:
        rows += over_phases("mean", data, mean_over_matrices(data), column, 2)
    return tidy(rows)


def mean_over_matrices(data: Study) -> pd.DataFrame:
    """``step``, ``member``, and ``alpha`` and ``traps`` in the mean over the eight matrices.

    >>> mean_over_matrices(study("results/modular-wd1")).alpha.min()             # doctest: +SKIP

    Alpha is the mean over the matrices that have one: the fit of a matrix of very low rank fails.
    """
    own = _matrices(data)
    return own.groupby(["step", "member"])[["alpha", "traps"]].mean().reset_index()


def _matrices(data: Study) -> pd.DataFrame:
    """Diagnostics of the eight matrices.

    Raises
    ------
    ValueError : a run of another architecture.
    """
    if not set(MODULAR_MATRICES.values()) <= set(data.diagnostics.layer):
        raise ValueError(f"{data.place} must be a run of the transformer (recipe modular); it is one of the {data.config.model}.")
    return data.diagnostics[data.diagnostics.layer.isin(MODULAR_MATRICES.values())]


# -- which recipe the published numbers can have come from ------------------------------------------------------


def conditions(*studies: Study) -> pd.DataFrame:
    """What each network of each condition does of all that the published tables ask for, a row per network.

    >>> conditions(study("results/modular-wd1"))[["generalises", "collapses"]]   # doctest: +SKIP

    Returns
    -------
    ``condition`` (in words), ``run``, ``weight_decay``, ``seed``, ``step`` (the last one); four truth values:
    ``generalises`` (best test accuracy of 0.95 or more), ``collapses`` (by ten points for good),
    ``alpha rises`` (by 1 or more from the best test accuracy to the end, in the mean over those of the eight
    matrices that have an alpha at both) and ``traps`` (2
    or more in the mean over the matrices at the end); ``best``, ``end``, and ``lowest``, the lowest test accuracy
    after 0.95 was first passed, with its step ``lowest_at``.
    """
    parts = []
    for data in studies:
        known, at = data.networks, data.at_phases(_matrices(data))
        metrics = data.metrics.sort_values(["member", "step"])
        after = metrics[(metrics.test_accuracy >= GENERALISES).groupby(metrics.member).cummax()]
        low = after.loc[after.groupby("member").test_accuracy.idxmin()].set_index("member")
        alpha, traps = (at.pivot(index=["member", "layer"], columns="phase", values=name) for name in ("alpha", "traps"))
        alpha, traps = (table.reindex(columns=PHASES[1:]) for table in (alpha, traps))
        rises = (alpha[PHASES[2]] - alpha[PHASES[1]]).groupby(level="member").mean()
        held = traps[PHASES[2]].where(traps[PHASES[1]].notna()).groupby(level="member").mean()
        parts.append(pd.DataFrame({
            "condition": _condition(data), "run": data.place, "weight_decay": data.weight_decay,
            "seed": known.seed.astype(int), "step": data.step,
            "generalises": known.index.isin(low.index), "collapses": known.collapsed.notna(),
            "alpha rises": rises.reindex(known.index) >= ALPHA_RISE, "traps": held.reindex(known.index) >= TRAPS,
            "best": known.best, "end": known.final,
            "lowest": low.test_accuracy.reindex(known.index), "lowest_at": low.step.reindex(known.index),
        }))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _condition(data: Study) -> str:
    c = data.config
    size = f"width {c.d_model}, {c.fraction:.0%} of the pairs, learning rate {c.learning_rate:g}"
    return f"p = {c.p}, {size}, weight decay {data.weight_decay:g}"


def printed_conditions(found: pd.DataFrame) -> pd.DataFrame:
    """`conditions` as a reader sees it: of how many networks each holds."""
    tried = found.groupby(["condition", "step"], sort=False)[list(_ASKED)]
    counts = tried.agg(lambda holds: f"{int(holds.sum())} of {len(holds)}").rename(columns=_ASKED)
    return counts.rename_axis(["condition", "to step"]).rename("{:,}".format, level="to step")


_ASKED = {
    "generalises": f"test accuracy reaches {GENERALISES:g}", "collapses": "then collapses",
    "alpha rises": f"mean α rises by {ALPHA_RISE:g}", "traps": f"{TRAPS:g} traps a matrix at the end",
}  # fmt: skip


# -- what became of each run --------------------------------------------------------------------------------------------


def courses(*studies: Study) -> pd.DataFrame:
    """What became of each run, by its median accuracies, and how many of its matrices have a low alpha at the best.

    >>> courses(study("results/modular-wd1"))                        # doctest: +SKIP
    """
    rows = {}
    for data in studies:
        found, median = data.phases, data.metrics.groupby("step").test_accuracy.median()
        at = data.at_phases(_matrices(data))
        best = at[at.phase == PHASES[1]]
        steps = {"learnt at step": found.memorised, f"test accuracy {GENERALISES:g} at": (median >= GENERALISES).idxmax(),
                 "best at": found.peak, "collapsed at": found.collapse}  # fmt: skip
        if found.memorised is None or median.max() < GENERALISES:
            steps[f"test accuracy {GENERALISES:g} at"] = None
        rows[data.label] = {name: number(float("nan") if step is None else step, ",.0f") for name, step in steps.items()} | {
            "best": number(found.peak_accuracy, ".3f"), "at the end": number(found.final_accuracy, ".3f"),
            "matrices with α < 2 at the best": f"{int((best.alpha < ALPHA_LOW).sum())} of {len(best)}",
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def mean_alpha(data: Study) -> tuple[dict[str, float], int]:
    """The mean alpha where each phase is read, over those matrices that have one at every one of these steps, so that all
    means are of the same ones; and how many matrices these are.

    >>> mean_alpha(study("results/modular-wd1"))                     # doctest: +SKIP
    """
    at = data.at_phases(_matrices(data)).pivot(index=["member", "layer"], columns="phase", values="alpha").dropna()
    return at.mean().to_dict(), len(at)
