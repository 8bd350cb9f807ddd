"""Figures of the study of causes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from grokutils.paper.causes import detectors
from grokutils.paper.causes.conditions import CONTROL, Cause
from grokutils.paper.causes.detectors import Signal, Watch
from grokutils.paper.causes.outcomes import FALL
from grokutils.paper.kit.curves import ALPHA_LOW, TRAPPED_FROM, layer_color
from grokutils.paper.kit.figures import COLORS, _shown_once, style
from grokutils.records.study import Study

__all__ = ["areas", "condition_panels", "fall_dots", "false_alarm_map", "lead_curves"]

_WIDTH = 7.2
_TOPIC_COLORS = {
    "control": "#404040", "optimiser": "#1845fb", "norm": "#ff5e02", "traps": "#c849a9", "negative": "#7f7f4f",
}  # fmt: skip


def fall_dots(rows: pd.DataFrame, compared: pd.DataFrame) -> Figure:
    """The fall of every network in points, and the mean of each condition with its 95 % interval; dotted: the
    control's mean.

    Parameters
    ----------
    rows, compared : of `grokutils.paper.causes.outcomes.outcomes` and `grokutils.paper.causes.outcomes.compare`
    """
    if not len(compared):
        return _nothing("not yet measured")
    groups = [group for _, group in compared.groupby(~compared.forked, sort=True)]  # the forks first
    with style():
        heights = [len(group) + 0.6 for group in groups]
        figure, panels = plt.subplots(
            len(heights), 1, sharex=True, figsize=(_WIDTH, 0.8 + 0.25 * sum(heights)), height_ratios=heights, squeeze=False
        )
        for axes, group in zip(panels[:, 0], groups, strict=True):
            _falls(axes, group.iloc[::-1], rows)
        panels[-1, 0].set_xlabel("fall of test accuracy from its best to the end, points")
    return _shown_once(figure)


def _falls(axes, group: pd.DataFrame, rows: pd.DataFrame) -> None:
    for y, row in enumerate(group.itertuples()):
        color = _TOPIC_COLORS[row.topic]
        own = 100 * rows[rows.name == row.name].fall.dropna()
        axes.plot(own, np.full(len(own), y), "o", ms=3.5, alpha=0.35, color=color, mec="none")
        if np.isfinite(row.fall):
            low, high = (row.fall_low, row.fall_high) if np.isfinite(row.fall_low) else (row.fall, row.fall)
            axes.plot([100 * low, 100 * high], [y, y], color=color, lw=2.2)
            axes.plot([100 * row.fall], [y], "o", ms=6, color=color, mec="white", mew=0.8)
        else:
            axes.text(1, y, "never knew its training set", fontsize=8, color="0.35", va="center")
        if row.name in CONTROL.values():
            axes.axvline(100 * row.fall, color="0.35", ls=":", lw=1)
    axes.axvline(100 * FALL, color="0.2", ls="--", lw=1)
    axes.set_yticks(range(len(group)), group.says, fontsize=8)
    axes.set(ylim=(-0.6, len(group) - 0.4))
    axes.margins(x=0.02)


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
        return _nothing("not yet measured")
    lines = -(-len(shown) // columns)
    columns = min(columns, len(shown))
    with style():
        figure, grid = plt.subplots(
            lines * len(rows), columns, figsize=(_WIDTH, 0.6 + 1.5 * lines * len(rows)), sharex=True, squeeze=False
        )
        for axes in grid.flat:
            axes.set_visible(False)
        for place, cause in enumerate(shown):
            line, column = divmod(place, columns)
            own, behind = found[cause.name], found.get(CONTROL[cause.forked])
            for k, name in enumerate(rows):
                axes = grid[line * len(rows) + k, column]
                axes.set_visible(True)
                _panel(axes, name, own, behind)
                axes.tick_params(labelsize=7, labelbottom=k == len(rows) - 1 and place + columns >= len(shown))
                axes.tick_params(labelleft=column == 0)
                if column == 0:
                    axes.set_ylabel(_ROWS[name][0], fontsize=8)
            grid[line * len(rows), column].set_title(textwrap.fill(cause.says, 21), fontsize=8)
        forked = shown[0].forked
        for axes in grid.flat:
            axes.set(xscale="linear" if forked else "log")
            if forked:
                axes.xaxis.set_major_formatter(EngFormatter(sep=""))
            else:
                axes.set_xlim(1, None)
        figure.supxlabel("steps after the fork" if forked else "optimisation step", fontsize=9)
    return _shown_once(figure)


#: Axis label, and limits, of each row that can be drawn.
_ROWS = {
    "test_accuracy": ("test accuracy", (0, 1)), "alpha": ("α", (1, 10)), "traps": ("traps", (0, 40)),
    "max_over_std": ("max|w| / std", (0, 30)),
}  # fmt: skip


def _panel(axes, name: str, own: Study, behind: Study | None) -> None:
    if name == "test_accuracy":
        curves = [("metrics", None, COLORS["test"])]
    else:
        curves = [("diagnostics", layer, layer_color(layer)) for layer in own.layers]
    for study, grey in ((behind, True), (own, False)):
        for table, layer, color in curves if study is not None else ():
            frame = getattr(study, table)
            frame = frame if layer is None else frame[frame.layer == layer]
            over = frame[frame.step >= 1].groupby("step")[name]
            median = over.median()
            if grey:
                axes.plot(median.index, median, color="0.6", lw=1, ls="-" if layer in (None, "fc1") else "--", zorder=1)
            else:
                axes.plot(median.index, median, color=color, lw=1.5, zorder=3)
                axes.fill_between(median.index, over.min(), over.max(), color=color, alpha=0.18, lw=0, zorder=2)
    axes.set_ylim(*_ROWS[name][1])
    if name == "alpha":
        axes.axhline(ALPHA_LOW, color="0.2", ls="--", lw=0.8)
    if name == "traps":
        axes.set_yscale("symlog", linthresh=1, linscale=0.6)
        axes.set_yticks([0, 1, 10], ["0", "1", "10"])
        axes.axhline(TRAPPED_FROM, color="0.35", ls=":", lw=0.8)


def _nothing(why: str) -> Figure:
    with style():
        figure, axes = plt.subplots(figsize=(_WIDTH, 1.2))
        axes.set_axis_off()
        axes.text(0.5, 0.5, why, ha="center", color="0.35")
    return _shown_once(figure)


def areas(found: pd.DataFrame, watched: Sequence[Watch], drawn: Sequence[Signal]) -> Figure:
    """Left: the area under the ROC curve of every signal, with its 95 % interval over seeds; hollow, the area with
    the networks near chance as well. Right: the curves of some, without these.

    Parameters
    ----------
    found : of `grokutils.paper.causes.detectors.table`
    watched : what it was made from
    drawn : signals whose curve is drawn
    """
    if not found.auc.notna().any():
        return _nothing("with networks of one kind alone there is nothing to tell apart")
    judged = detectors.comparable(watched)
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH, 4.2), width_ratios=[1.1, 1])
        for y, row in enumerate(found.iloc[::-1].itertuples()):
            left.plot([row.auc_all], [y], "o", ms=5, mfc="none", mec="0.4")
            left.plot([row.auc_low, row.auc_high], [y, y], color="0.4", lw=2)
            left.plot([row.auc], [y], "o", ms=5, color=_signal_color(row.signal, drawn))
        left.set_yticks(range(len(found)), found.label[::-1], fontsize=8)
        left.axvline(0.5, color="0.2", lw=1)
        left.set(xlim=(-0.02, 1.02), xlabel="area under the ROC curve")
        for signal in drawn:
            points = detectors.curve(judged, signal)
            right.step([0, *points.false, 1], [0, *points.hits, 1], where="post", lw=1.5, color=_signal_color(signal, drawn),
                       label=signal.label)  # fmt: skip
            hits, falls, false, stayed = detectors.alarms(judged, signal, detectors.threshold_of(signal))
            right.plot([false / stayed], [hits / falls], "D", ms=5, color=_signal_color(signal, drawn), mec="white", zorder=4)
        right.plot([0, 1], [0, 1], color="0.6", lw=1, ls=":")
        right.set(xlabel="false alarms, share of networks\nthat generalised and never fell",
                  ylabel="falls warned of, share", aspect="equal",
                  xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))  # fmt: skip
        right.legend(fontsize=7, frameon=False, loc="upper center", bbox_to_anchor=(0.45, -0.36))
    return _shown_once(figure)


def _signal_color(signal: Signal, drawn: Sequence[Signal]) -> str:
    cycle = ("#1845fb", "#ff5e02", "#c849a9", "#c91f16", "#86c8dd", "#adad7d")
    return cycle[list(drawn).index(signal) % len(cycle)] if signal in drawn else "0.4"


def lead_curves(watched: Sequence[Watch], drawn: Sequence[Signal]) -> Figure:
    """Share of all falls that a signal, at its usual threshold, announced at least so many decades of steps before;
    in the legend, how often it went off in networks that had generalised and never fell."""
    falls = sum(w.fall is not None for w in watched)
    if not falls:
        return _nothing("no network fell")
    with style():
        figure, axes = plt.subplots(figsize=(_WIDTH, 3.2))
        for signal in drawn:
            at = detectors.threshold_of(signal)
            found = np.sort(detectors.leads(watched, signal, at))[::-1]
            _, _, false, stayed = detectors.alarms(detectors.comparable(watched), signal, at)
            share = np.arange(1, len(found) + 1) / falls
            wolf = f", false alarms in {false} of {stayed}" if stayed else ""
            x, y = ([found[0], *found, 0], [0, *share, share[-1]]) if len(found) else ([1, 0], [0, 0])
            axes.step(x, y, where="post", lw=1.6, color=_signal_color(signal, drawn), label=f"{signal.label}{wolf}")  # fmt: skip
        axes.set(xlabel="lead over the fall, decades of steps, at least", ylabel="falls warned of, share", ylim=(-0.02, 1.04))
        axes.invert_xaxis()
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return _shown_once(figure)


def false_alarm_map(
    shares: pd.DataFrame, says: Mapping[str, str], counts: pd.DataFrame | None = None
) -> Figure:
    """`grokutils.paper.causes.detectors.false_alarms` as a map: how many of the networks that never fell set off each signal.

    Parameters
    ----------
    shares : a row per signal, a column per condition; columns without such a network are left out
    says : names of conditions in words
    counts : of `grokutils.paper.causes.detectors.never_fell`, written under each column
    """
    shares = shares.dropna(axis=1, how="all")
    if shares.empty:
        return _nothing("every network fell")
    with style():
        figure, axes = plt.subplots(figsize=(_WIDTH, 0.24 * len(shares) + 1.6))
        axes.imshow(shares, cmap="Oranges", vmin=0, vmax=1.3, aspect="auto")
        for (i, j), share in np.ndenumerate(shares.to_numpy()):
            axes.text(j, i, f"{share:.0%}", ha="center", va="center", fontsize=7, color="0.1")
        labels = [textwrap.fill(says.get(name, name), 14) + _counted(counts, name) for name in shares]
        axes.set_xticks(range(shares.shape[1]), labels, fontsize=7)
        axes.set_yticks(range(len(shares)), shares.index, fontsize=8)
        axes.grid(False)
        axes.tick_params(length=0)
    return _shown_once(figure)


def _counted(counts: pd.DataFrame | None, name: str) -> str:
    if counts is None:
        return ""
    row = counts.loc[name]
    return f"\nn = {row.networks}" + ("" if row.generalised else "\nnear chance")
