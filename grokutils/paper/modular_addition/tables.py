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
from grokutils.paper.kit.tables import _of_layer, _over_phases, _published, _tidy
from grokutils.records.phases import PHASES
from grokutils.records.study import Study

__all__ = [
    "conditions",
    "conditions_in_words",
    "mean_alpha_in_words",
    "mean_over_matrices",
    "modular_accuracy",
    "modular_alpha",
    "modular_traps",
    "phases_in_words",
    "printed_conditions",
]

#: What a network has to do for its run to be one that the published tables can have come from, with the
#: thresholds of the claims page: it generalises, loses that for good, and its matrices' mean alpha rises by so
#: much and their mean number of traps is so large when it has.
GENERALISES, ALPHA_RISE, TRAPS = 0.95, 1.0, 2.0


def modular_accuracy(*studies: Study) -> pd.DataFrame:
    """Test accuracy where the phases are read; columns as in `grokutils.paper.kit.tables.table_1`."""
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
        rows += _over_phases("mean", data, mean_over_matrices(data), column, 2)
    return _tidy(rows)


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
    ``generalises`` (best test accuracy of 0.95 or more), ``collapses`` (has fallen for good by the end),
    ``alpha rises`` (by 1 or more from the best test accuracy to the end, in the mean over those of the eight
    matrices that have an alpha at both) and ``traps`` (2
    or more in the mean over the matrices at the end); ``best``, ``end``, and ``lowest``, the lowest test accuracy
    after 0.95 was first passed, with its step ``lowest_at``.
    """
    rows = []
    for data in studies:
        at = data.at_phases(mean_over_matrices(data)).set_index(["member", "phase"])
        rises = _alpha_rises(data)
        for member, found in data.member_phases.items():
            own = data.metrics[data.metrics.member == member].sort_values("step")
            passed = own[(own.test_accuracy >= GENERALISES).cummax()]
            low = passed.loc[passed.test_accuracy.idxmin()] if len(passed) else None
            best, end = (at.loc[(member, p)] if (member, p) in at.index else None for p in PHASES[1:])
            both = best is not None and end is not None
            rows.append({
                "condition": _condition(data), "run": data.place, "weight_decay": data.weight_decay,
                "seed": int(own.seed.iloc[0]), "step": data.step,
                "generalises": len(passed) > 0, "collapses": found.collapse is not None,
                "alpha rises": bool(rises.get(member, 0.0) >= ALPHA_RISE),
                "traps": bool(both and end.traps >= TRAPS),
                "best": found.peak_accuracy, "end": found.final_accuracy,
                "lowest": None if low is None else low.test_accuracy, "lowest_at": None if low is None else int(low.step),
            })  # fmt: skip
    return pd.DataFrame(rows)


def _alpha_rises(data: Study) -> pd.Series:
    """By how much alpha rose from the best test accuracy to the end, for each member read at both, in the mean over
    the matrices that have an alpha at both."""
    at = data.at_phases(_matrices(data))
    best, end = (at[at.phase == phase].set_index(["member", "layer"]).alpha for phase in PHASES[1:])
    return (end - best).dropna().groupby(level="member").mean()


def _condition(data: Study) -> str:
    c = data.config
    size = f"width {c.d_model}, {c.fraction:.0%} of the pairs, learning rate {c.learning_rate:g}"
    return f"p = {c.p}, {size}, weight decay {data.weight_decay:g}"


def printed_conditions(found: pd.DataFrame) -> pd.DataFrame:
    """`conditions` as a reader sees it: of how many networks each holds."""
    rows = []
    for (condition, step), own in found.groupby(["condition", "step"], sort=False):
        counts = {name: f"{int(own[column].sum())} of {len(own)}" for column, name in _ASKED.items()}
        rows.append({"condition": condition, "to step": f"{step:,}", **counts})
    return pd.DataFrame(rows).set_index(["condition", "to step"])


_ASKED = {
    "generalises": f"test accuracy reaches {GENERALISES:g}", "collapses": "then falls for good",
    "alpha rises": f"mean α rises by {ALPHA_RISE:g}", "traps": f"{TRAPS:g} traps a matrix at the end",
}  # fmt: skip


def conditions_in_words(found: pd.DataFrame) -> str:
    """Which of the conditions can have given the published numbers, in sentences computed from `conditions`.

    >>> conditions_in_words(conditions(study("results/modular-wd1")))            # doctest: +SKIP
    """
    asked = list(_ASKED)
    n, tried = len(found), found.groupby("condition", sort=False)
    fits = [condition for condition, own in tried if own[asked].all(axis=1).any()]
    if fits:
        verdict = f"The published numbers can have come from: {'; '.join(fits)}"
    elif len(tried) == 1:
        verdict = "The one condition tried cannot have given the published numbers, as far as the record reaches"
    else:
        verdict = f"None of the {len(tried)} conditions tried can have given the published numbers, as far as the records reach"
    generalise = found[found.generalises]
    said = [
        f"{verdict}. Of {n} {_networks(n)}, {len(generalise)} {'generalises' if len(generalise) == 1 else 'generalise'} "
        f"(test accuracy of {GENERALISES:g} or more)"
        + (f", and {int(generalise.collapses.sum())} of those lose it again for good." if len(generalise) else ".")
    ]
    if len(generalise):
        low = generalise.loc[generalise.lowest.astype(float).idxmin()]
        said.append(
            f"The lowest test accuracy after that point was {low.lowest:.2f}, at step {int(low.lowest_at):,} with weight decay "
            f"{low.weight_decay:g} and seed {low.seed}; that network ended at {low.end:.2f}."
        )
    if anyway := int((found["alpha rises"] & ~found.collapses).sum()):
        said.append(f"The mean α rose by {ALPHA_RISE:g} or more in {anyway} that did not collapse.")
    return " ".join(said)


def _networks(n: int) -> str:
    return "network" if n == 1 else "networks"


# -- in words --------------------------------------------------------------------------------------------------


def phases_in_words(data: Study) -> str:
    """What became of each run, in a sentence computed from it.

    >>> phases_in_words(study("results/modular-wd1"))                # doctest: +SKIP
    """
    found, matrices = data.phases, _matrices(data)
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
    at = data.at_phases(matrices)
    best = at[at.phase == PHASES[1]]
    if len(best):
        parts.append(f"at its best {int((best.alpha < 2).sum())} of {len(best)} matrices have α below 2")
    return ", ".join(parts) + "."


def mean_alpha_in_words(data: Study) -> str:
    """The mean alpha of the matrices where the phases are read, beside the published one: of those matrices that
    have an alpha at each of these steps, so that all means are of the same ones.

    >>> mean_alpha_in_words(study("results/modular-wd1"))            # doctest: +SKIP
    """
    at = data.at_phases(_matrices(data))
    if at.alpha.isna().all():
        return f"{data.place} has no α at any phase."
    each = at.groupby(["member", "layer"]).alpha
    at, total = at[each.transform("count") == each.transform("size")], each.ngroups
    if at.empty:
        return f"No matrix of {data.place} has an α at each of the phases."
    kept = at.groupby(["member", "layer"]).ngroups
    where = dict(zip(PHASES, ("before grokking", "at the best test accuracy", "at the end"), strict=True))
    said = [
        f"{own.mean():.2f} {name} (published: {MODULAR_TABLE['mean'][phase]})"
        for phase, name in where.items() if len(own := at[at.phase == phase].alpha)
    ]  # fmt: skip
    of = f"of the {kept} of {total} matrices that have one at each of these steps" if kept < total else "of all matrices"
    return f"In {data.place}, the mean α {of} is {', '.join(said)}."
