"""Figures of the study of causes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from grokutils.paper.causes import detectors
from grokutils.paper.causes.conditions import CONTROL, Cause
from grokutils.paper.causes.detectors import Watch
from grokutils.paper.kit.figures import COLORS, WIDTH, bands, figure, layer_color, nothing
from grokutils.records.phases import FALL
from grokutils.records.signals import ALPHA_LOW, TRAPPED_FROM, Signal
from grokutils.records.study import Study

__all__ = ["areas", "condition_panels", "fall_dots", "false_alarm_map", "lead_curves"]

_TOPIC_COLORS = {
    "control": "#404040", "optimiser": "#1845fb", "norm": "#ff5e02", "traps": "#c849a9", "negative": "#7f7f4f",
}  # fmt: skip


@figure
def fall_dots(rows: pd.DataFrame, compared: pd.DataFrame) -> Figure:
    """What every network lost, in points, and the mean of each condition with its 95 % interval; dotted: the
    control's mean; dashed: what counts as a fall.

    Parameters
    ----------
    rows, compared : of `grokutils.paper.causes.outcomes.outcomes_of` and `grokutils.paper.causes.outcomes.compare`
    """
    if not len(compared):
        return nothing("not yet measured")
    groups = [group.set_index("name") for _, group in compared.groupby(~compared.forked, sort=True)]  # the forks first
    heights = [len(group) + 0.6 for group in groups]
    made, panels = plt.subplots(
        len(groups), 1, sharex=True, figsize=(WIDTH, 0.8 + 0.25 * sum(heights)), height_ratios=heights, squeeze=False
    )
    for axes, group in zip(panels[:, 0], groups, strict=True):
        colors = group.topic.map(_TOPIC_COLORS).to_dict()
        own = rows[rows.name.isin(group.index)].assign(points=100 * rows.lost)
        sns.stripplot(own, x="points", y="name", order=list(group.index), hue="name", palette=colors, alpha=0.35, size=3.5,
                      jitter=False, legend=False, ax=axes)  # fmt: skip
        for y, row in enumerate(group.itertuples()):
            points = 100 * np.array([row.lost_low, row.lost, row.lost_high])
            axes.plot(points[::2], [y, y], color=colors[row.Index], lw=2.2)
            axes.plot(points[1], y, "o", ms=6, color=colors[row.Index], mec="white", mew=0.8)
            if np.isnan(row.lost):
                axes.text(1, y, "never knew its training set", fontsize=8, color="0.35", va="center")
            if row.Index in CONTROL.values():
                axes.axvline(100 * row.lost, color="0.35", ls=":", lw=1)
        axes.axvline(100 * FALL, color="0.2", ls="--", lw=1)
        axes.set_yticks(range(len(group)), group.says, fontsize=8)
        axes.set(ylabel="", xlabel="test accuracy lost from its best to the end, points")
        axes.margins(x=0.02)
    return made


@figure
def condition_panels(
    found: Mapping[str, Study | None], causes: Sequence[Cause], rows: Sequence[str] = ("test_accuracy",), columns: int = 5
) -> Figure:
    """Quantities over steps, a column per condition, with the control's median in grey behind.

    Lines are medians over seeds, bands their range. Forked conditions count steps from the fork.

    Parameters
    ----------
    found : of `grokutils.paper.causes.outcomes.studies`
    causes : those to draw, all forked or none
    rows : ``test_accuracy``, ``alpha``, ``traps``, ``max_over_std``
    columns : side by side; more go underneath
    """
    shown = [cause for cause in causes if found.get(cause.name) is not None]
    if not shown:
        return nothing("not yet measured")
    forked, lines, columns = shown[0].forked, -(-len(shown) // columns), min(columns, len(shown))
    made, grid = plt.subplots(
        lines * len(rows), columns, figsize=(WIDTH, 0.6 + 1.5 * lines * len(rows)), sharex=True, squeeze=False
    )
    for axes in grid.flat:
        axes.set_visible(False)
        axes.set_xscale("linear" if forked else "log")
    for place, cause in enumerate(shown):
        line, column = divmod(place, columns)
        for k, name in enumerate(rows):
            axes = grid[line * len(rows) + k, column]
            axes.set_visible(True)
            _panel(axes, name, found[cause.name], found.get(CONTROL[cause.forked]))
            axes.tick_params(labelsize=7, labelbottom=k == len(rows) - 1 and place + columns >= len(shown), labelleft=column == 0)
            if column == 0:
                axes.set_ylabel(_ROWS[name][0], fontsize=8)
        grid[line * len(rows), column].set_title(textwrap.fill(cause.says, 21), fontsize=8)
    if forked:
        grid[0, 0].xaxis.set_major_formatter(EngFormatter(sep=""))
    else:
        grid[0, 0].set_xlim(1, None)
    made.supxlabel("steps after the fork" if forked else "optimisation step", fontsize=9)
    return made


#: Axis label, and limits, of each row that can be drawn.
_ROWS = {
    "test_accuracy": ("test accuracy", (0, 1)), "alpha": ("α", (1, 10)), "traps": ("traps", (0, 40)),
    "max_over_std": ("max|w| / std", (0, 30)),
}  # fmt: skip


def _panel(axes: Axes, name: str, own: Study, behind: Study | None) -> None:
    for where in ("network",) if name == "test_accuracy" else own.layers:
        color, dashes = (COLORS["test"], "-") if where == "network" else (layer_color(where), "-" if where == "fc1" else "--")
        if behind is not None:
            median = behind.over_steps(where).groupby("step")[name].median().loc[1:]
            axes.plot(median.index, median, color="0.6", lw=1, ls=dashes, zorder=1)
        bands(axes, own.metrics if where == "network" else own.over_steps(where), name, color, level=100, width=1.5)
    axes.set_ylim(*_ROWS[name][1])
    if name == "alpha":
        axes.axhline(ALPHA_LOW, color="0.2", ls="--", lw=0.8)
    if name == "traps":
        axes.set_yscale("symlog", linthresh=1, linscale=0.6)
        axes.set_yticks([0, 1, 10], ["0", "1", "10"])
        axes.axhline(TRAPPED_FROM, color="0.35", ls=":", lw=0.8)


@figure
def areas(found: pd.DataFrame, watched: Sequence[Watch], drawn: Sequence[Signal]) -> Figure:
    """Left: the area under the ROC curve of every signal, with its 95 % interval over seeds; hollow, the area with
    the networks near chance as well. Right: the curves of some, without these.

    Parameters
    ----------
    found : of `grokutils.paper.causes.detectors.ranking`
    watched : what it was made from
    drawn : signals whose curve is drawn
    """
    if not found.auc.notna().any():
        return nothing("with networks of one kind alone there is nothing to tell apart")
    judged, colors = detectors.comparable(watched), _colors(drawn)
    made, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 4.2), width_ratios=[1.1, 1])
    y = np.arange(len(found))
    left.plot(found.auc_all, y, "o", ms=5, mfc="none", mec="0.4")
    left.hlines(y, found.auc_low, found.auc_high, color="0.4", lw=2)
    left.scatter(found.auc, y, s=25, color=[colors.get(signal, "0.4") for signal in found.signal], zorder=3)
    left.set_yticks(y, found.label, fontsize=8)
    left.invert_yaxis()
    left.axvline(0.5, color="0.2", lw=1)
    left.set(xlim=(-0.02, 1.02), xlabel="area under the ROC curve")
    for signal, color in colors.items():
        points = detectors.curve(judged, signal)
        right.step([0, *points.false, 1], [0, *points.hits, 1], where="post", lw=1.5, color=color, label=signal.label)
        hits, falls, false, stayed = detectors.alarms(judged, signal)
        right.plot([false / stayed], [hits / falls], "D", ms=5, color=color, mec="white", zorder=4)
    right.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
    right.set(xlabel="false alarms, share of networks\nthat generalised and never fell",
              ylabel="falls warned of, share", aspect="equal", xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))  # fmt: skip
    right.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.36))
    return made


def _colors(drawn: Sequence[Signal]) -> dict[Signal, str]:
    return dict(zip(drawn, ("#1845fb", "#ff5e02", "#c849a9", "#c91f16", "#86c8dd", "#adad7d"), strict=False))


@figure
def lead_curves(watched: Sequence[Watch], drawn: Sequence[Signal]) -> Figure:
    """Share of all falls that a signal, at its usual threshold, announced at least so many decades of steps before;
    in the legend, how often it went off in networks that had generalised and never fell."""
    falls = sum(w.fall is not None for w in watched)
    if not falls:
        return nothing("no network fell")
    made, axes = plt.subplots(figsize=(WIDTH, 3.2))
    for signal, color in _colors(drawn).items():
        found = np.sort(detectors.leads(watched, signal))[::-1]
        _, _, false, stayed = detectors.alarms(detectors.comparable(watched), signal)
        share = np.arange(1, len(found) + 1) / falls
        wolf = f", false alarms in {false} of {stayed}" if stayed else ""
        x, y = ([found[0], *found, 0], [0, *share, share[-1]]) if len(found) else ([1, 0], [0, 0])
        axes.step(x, y, where="post", lw=1.6, color=color, label=f"{signal.label}{wolf}")
    axes.set(xlabel="lead over the fall, decades of steps, at least", ylabel="falls warned of, share", ylim=(-0.02, 1.04))
    axes.invert_xaxis()
    axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return made


@figure
def false_alarm_map(shares: pd.DataFrame, says: Mapping[str, str], counts: pd.DataFrame) -> Figure:
    """`grokutils.paper.causes.detectors.false_alarms` as a map: how many of the networks that never fell set off each signal.

    Parameters
    ----------
    shares : a row per signal, a column per condition; columns without such a network are left out
    says : names of conditions in words
    counts : of `grokutils.paper.causes.detectors.never_fell`, written under each column
    """
    shares = shares.dropna(axis=1, how="all")
    if shares.empty:
        return nothing("every network fell")
    made, axes = plt.subplots(figsize=(WIDTH, 0.24 * len(shares) + 1.6))
    look = dict(annot=True, fmt=".0%", annot_kws=dict(fontsize=7, color="0.1"), cmap="Oranges", vmin=0, vmax=1.3, cbar=False)
    sns.heatmap(shares, ax=axes, **look)
    chance = ["" if known else "\nnear chance" for known in counts.generalised[shares.columns]]
    labels = [f"{textwrap.fill(says.get(name, name), 14)}\nn = {counts.networks[name]}{near}" for name, near in zip(shares, chance, strict=True)]
    axes.set_xticklabels(labels, fontsize=7, rotation=0)
    axes.tick_params(length=0, labelsize=7)
    axes.grid(False)
    return made
