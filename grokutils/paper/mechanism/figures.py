"""Figures of the study of the mechanism, one message each.

>>> falls(paths_frame(), ("adam", "walk"))                                      # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.kit.figures import WIDTH, figure
from grokutils.paper.mechanism.conditions import CONTROL, PRIMARY, TOPICS, condition

__all__ = ["curve", "difference_dots", "falls", "fingerprints", "on_the_line", "repairs"]

#: Colours that colour-blind readers can tell apart (petroff10), the control's apart.
_COLORS = ("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#a96b59", "#e76300", "#94a4a2", "#b9ac70", "#717581", "#92dadd")
_CONTROL = "#202020"
_TOPIC_COLORS = dict(zip(TOPICS, (_CONTROL, *_COLORS), strict=False))


def curve(rows: pd.DataFrame, column: str, by: str = "displacement", step: float = 0.04) -> pd.DataFrame:
    """A quantity of one condition over how far it has come: index the distance, a column for each seed.

    Each seed's value at a distance is the median of its measurements within a step before it; there is none beyond where
    it has come to. Where a path turns back, only new ground counts.
    """
    found = {}
    for seed, own in rows.groupby("seed"):
        own = own.sort_values("step", kind="stable")
        way = own[by].cummax()
        place = np.ceil(way / step - 1e-6).astype(int)
        values = own[column].groupby(place).median()
        filled = values.reindex(range(int(values.index.max()) + 1)).ffill()
        found[seed] = filled.rename(lambda k: round(step * k, 6))
    return pd.DataFrame(found)


def _lost(rows: pd.DataFrame) -> pd.DataFrame:
    start = rows.sort_values("step").groupby(["name", "seed"]).test_settled.transform("first")
    return rows.assign(lost=100 * (start - rows.test_settled))


def _draw(axes: Axes, rows: pd.DataFrame, column: str, by: str, color: str, label: str, most: float) -> None:
    found = curve(rows, column, by, 1.0 if by == "lost" else 0.04).loc[:most]
    # a median over fewer and fewer seeds would jump
    found = found[found.notna().sum(axis=1) >= max(1, found.shape[1] / 2)]
    middle = found.median(axis=1)
    axes.plot(middle.index, middle, color=color, lw=1.8, label=label)
    if found.shape[1] > 2:
        low, high = found.quantile(0.25, axis=1), found.quantile(0.75, axis=1)
        axes.fill_between(middle.index, low, high, color=color, alpha=0.15, lw=0)


@figure
def falls(
    rows: pd.DataFrame, panels: Sequence[Sequence[str]], titles: Sequence[str], by: str = "displacement", most: float = 0.8
) -> Figure:
    """Test accuracy lost over how far the weights have come, a panel for each group of conditions.

    Lines are medians over seeds, bands their middle half; black: the control. A line ends where half of the seeds have not
    come to.

    Parameters
    ----------
    rows : of `grokutils.paper.mechanism.study.paths_frame`
    panels : names of conditions of each
    titles : of each
    by : "displacement" or "rotation"
    most : where the axis ends
    """
    rows = _lost(rows)
    made, grid = plt.subplots(
        -(-len(panels) // 2), 2, sharex=True, sharey=True, squeeze=False,
        figsize=(WIDTH, 0.5 + 2.9 * -(-len(panels) // 2)),
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, names, title in zip(grid.flat, panels, titles, strict=False):
        for name, color in zip((CONTROL, *names), (_CONTROL, *_COLORS), strict=False):
            own = rows[rows.name == name]
            if len(own):
                _draw(axes, own, "lost", by, color, condition(name).says, most)
        axes.axhline(0, color="0.6", lw=0.8)
        axes.set_title(title, fontsize=9)
        axes.legend(fontsize=6.5, frameon=False, loc="lower left")
    for axes in grid[:, 0]:
        axes.set_ylabel("test accuracy lost, points")
    made.supxlabel(_LABELS[by], fontsize=9)
    grid[0, 0].invert_yaxis()
    return made


_LABELS = {
    "displacement": "displacement: norm of the change / norm at the fork",
    "rotation": "rotation: tangent of the angle to the fork",
    "lost": "test accuracy lost, points",
}


@figure
def fingerprints(
    rows: pd.DataFrame, names: Sequence[str], columns: Sequence[tuple[str, str]], by: str = "lost", most: float = 12.0
) -> Figure:
    """What spectra do while generalisation is lost: quantities over the points of test accuracy lost.

    If a quantity were a fingerprint of lost generalisation, all lines would lie on one another.

    Parameters
    ----------
    rows : of `grokutils.paper.mechanism.study.paths_frame`
    names : of conditions
    columns : of the record, and what they are called
    by : "lost", "displacement" or "rotation"
    most : where the axis ends
    """
    rows = _lost(rows)
    made, grid = plt.subplots(
        -(-len(columns) // 2), 2, sharex=True, squeeze=False, figsize=(WIDTH, 0.4 + 2.5 * -(-len(columns) // 2))
    )
    for axes, (column, label) in zip(grid.flat, columns, strict=False):
        for name, color in zip(names, (_CONTROL, *_COLORS), strict=False):
            own = rows[rows.name == name]
            if len(own):
                _draw(axes, own, column, by, color, condition(name).says, most)
        axes.set_ylabel(label)
        if column.startswith("alpha"):
            axes.axhline(2, color="0.4", lw=1, ls="--")
    if grid[0, 0].lines:
        grid[0, 0].legend(fontsize=6.5, frameon=False)
    made.supxlabel(_LABELS[by], fontsize=9)
    return made


@figure
def repairs(rows: pd.DataFrame, names: Sequence[str], columns: Sequence[tuple[str, str]]) -> Figure:
    """Contraction after the fall: quantities over the norm, which falls from right to left.

    Lines are medians over seeds, bands their middle half; dotted: the weights that the loss of accuracy began with.

    Parameters
    ----------
    rows : of `grokutils.paper.mechanism.study.paths_frame`
    names : of conditions
    columns : of the record, and what they are called
    """
    grokked = rows[(rows.name == CONTROL) & (rows.step == 0)]
    made, panels = plt.subplots(1, len(columns), figsize=(WIDTH, 2.7), squeeze=False)
    for axes, (column, label) in zip(panels[0], columns, strict=True):
        for name, color in zip(names, _COLORS, strict=False):
            own = rows[rows.name == name]
            if not len(own):
                continue
            # only what has shrunk counts, not the walk before it
            own = own.assign(shrunk=1 - own.norm / own.groupby("seed").norm.transform("max"))
            own = own[own.index >= own.groupby("seed").norm.transform("idxmax")]
            found = curve(own, column, "shrunk", 0.05)
            found = found[found.notna().sum(axis=1) >= max(1, found.shape[1] / 2)]
            norm, middle = 1 - found.index.to_numpy(), found.median(axis=1)
            axes.plot(norm, middle, color=color, lw=1.8, label=condition(name).says)
            if found.shape[1] > 2:
                axes.fill_between(norm, found.quantile(0.25, axis=1), found.quantile(0.75, axis=1), color=color,
                                  alpha=0.15, lw=0)  # fmt: skip
        if len(grokked):
            axes.axhline(grokked[column].median(), color=_CONTROL, ls=":", lw=1)
        axes.set_title(label, fontsize=9)
        axes.invert_xaxis()
    if panels[0, 0].get_legend_handles_labels()[0]:
        panels[0, 0].legend(fontsize=6, frameon=False, loc="lower right")
    made.supxlabel("norm of the matrices / their largest on the path", fontsize=9)
    return made


@figure
def on_the_line(lines: pd.DataFrame, names: Sequence[str]) -> Figure:
    """Accuracies on the straight line from the fork through where a path ended, and half as far beyond: medians over
    seeds, bands their middle half."""
    made, panels = plt.subplots(1, 2, sharex=True, figsize=(WIDTH, 2.9))
    for axes, column in zip(panels, ("train_accuracy", "test_accuracy"), strict=True):
        for name, color in zip(names, (_CONTROL, *_COLORS), strict=False):
            own = lines[lines.name == name]
            if not len(own):
                continue
            own = own[own["until"] == own.groupby("seed")["until"].transform("max")]
            over = own.groupby("share")[column]
            middle = over.median()
            axes.plot(middle.index, middle, color=color, lw=1.8, label=condition(name).says)
            axes.fill_between(middle.index, over.quantile(0.25), over.quantile(0.75), color=color, alpha=0.15, lw=0)
        axes.axvline(1, color="0.6", lw=0.8)
        axes.set(xlabel="way from the fork (0) to the end of the path (1)", ylabel=column.replace("_", "ing ", 1)
                 if column.startswith("train") else "test accuracy")  # fmt: skip
    if panels[0].lines:
        panels[0].legend(fontsize=6.5, frameon=False, loc="lower left")
    return made


@figure
def difference_dots(compared: pd.DataFrame, here: pd.DataFrame, at: float = PRIMARY) -> Figure:
    """The fall of every path where it has come as far, and the mean of each condition with its 95 % interval; dotted: the
    control's mean.

    Parameters
    ----------
    compared, here : of `grokutils.paper.mechanism.study`
    at : how far, for the label
    """
    shown = compared[compared.reached > 0].iloc[::-1]
    made, axes = plt.subplots(figsize=(WIDTH, 0.7 + 0.24 * max(len(shown), 1)))
    for y, row in enumerate(shown.itertuples()):
        color = _TOPIC_COLORS[row.topic]
        own = 100 * here[(here.name == row.name) & here.reached].fall
        axes.plot(own, np.full(len(own), y), "o", ms=3.5, alpha=0.35, color=color, mec="none")
        if np.isfinite(row.fall_low):
            axes.plot([100 * row.fall_low, 100 * row.fall_high], [y, y], color=color, lw=2.2)
        axes.plot([100 * row.fall], [y], "o", ms=6, color=color, mec="white", mew=0.8)
        if row.name == CONTROL:
            axes.axvline(100 * row.fall, color="0.35", ls=":", lw=1)
    axes.axvline(0, color="0.6", lw=0.8)
    axes.set_yticks(range(len(shown)), [f"{row.says} ({row.reached})" for row in shown.itertuples()], fontsize=8)
    axes.set(ylim=(-0.6, max(len(shown), 1) - 0.4), xlabel=f"test accuracy lost at {at:g}, points")
    return made
