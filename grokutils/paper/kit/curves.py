"""Figures over the steps of a run that several pages show, in the style of `grokutils.paper.kit.figures`; every one says
which record it shows and how far that reaches.

>>> from grokutils.records.study import study
>>> alpha_curves(study("results/express/wd0"))                       # doctest: +SKIP
"""

from __future__ import annotations

import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.judge.published import FIGURE_1
from grokutils.paper.kit import figures as kit
from grokutils.paper.kit.figures import COLORS, NOTE, WIDTH, figure
from grokutils.records.phases import find_phases
from grokutils.records.record import Record
from grokutils.records.study import PROGRESS_MEASURES, Study

__all__ = ["accuracy_panels", "alpha_curves", "progress_curves", "training_curves"]

_UNITS = {"activation_sparsity": ", share of units", "circuit_complexity": ", nats"}  # of `PROGRESS_MEASURES`


@figure
def training_curves(
    record: Record, reference: Record | None = None, reference_member: int = 0, *, member: int | None = None
) -> Figure:
    """Accuracies and weight norm over steps, phases tinted; several members as median and range.

    >>> training_curves(load_record("runs/x"))     # doctest: +SKIP

    Parameters
    ----------
    reference : a longer record of the same configuration, drawn behind as thin grey lines.
    reference_member : which of its networks
    member : which of several networks to draw, alone; None: all
    """
    made, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(WIDTH, 5.0), height_ratios=[2.2, 1])
    metrics = record.metrics if member is None else record.metrics.query("member == @member")
    end = int(metrics.step.max())
    kit.steps_axis([top, bottom], end, reference.step if reference is not None else 0)
    drawn = {"train_accuracy": (top, "train"), "test_accuracy": (top, "test"), "l2_norm": (bottom, "norm")}
    for column, (axes, name) in drawn.items():
        if reference is not None:
            behind = reference.metrics[(reference.metrics.member == reference_member) & (reference.metrics.step >= 1)]
            axes.plot(behind.step, behind[column], color="0.55", lw=1, ls=(0, (4, 2)), zorder=1)
        kit.bands(axes, metrics, column, COLORS[name], name if axes is top else None, level=100)
    kit.direct_labels([top])
    if reference is not None:
        top.legend(top.lines[:1], [f"reference record {reference.name}"], loc="center left", frameon=False, fontsize=8)
    median = metrics.groupby("step")[["train_accuracy", "test_accuracy"]].median().reset_index()
    for axes in (top, bottom):
        kit.phase_tints(axes, find_phases(median), end, labels=axes is top)
    top.set(ylabel="accuracy", ylim=(0, 1.04))
    bottom.set(ylabel=r"$\ell^2$ norm of" "\nthe weights", ylim=(0, None))
    return made


@figure
def alpha_curves(data: Study) -> Figure:
    """Test accuracy, average alpha, and alpha of each layer over steps, the line alpha = 2 drawn.

    >>> alpha_curves(study("results/express/wd0"))                   # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 % (of a single seed: plus and minus the standard error
    of the fit). What lies above the upper end of the axis is off the figure.
    """
    count = 2 + len(data.layers)
    made, panels = plt.subplots(count, 1, sharex=True, figsize=(WIDTH, 1.0 + 1.35 * count))
    kit.accuracies(panels[0], data)
    for axes, where in zip(panels[1:], ("average", *data.layers), strict=True):
        own = data.over_steps(where)
        kit.bands(axes, own, "alpha", kit.layer_color(where, data.layers), spread="alpha_sigma" if "alpha_sigma" in own else None)
        axes.set_ylabel(f"α, {where}")
        kit.alpha_axis(axes)
    kit.finish(made, panels, data)
    return made


@figure
def progress_curves(data: Study) -> Figure:
    """The measures that the papers hold alpha against, in both definitions, and the l2 norm, over steps.

    >>> progress_curves(study("results/express/wd0"))                # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 %.
    """
    made, grid = plt.subplots(4, 2, figsize=(WIDTH, 7.6), sharex=True)
    kit.accuracies(grid[0, 0], data)
    kit.bands(grid[0, 1], data.metrics, "l2_norm", COLORS["norm"])
    grid[0, 1].set(ylim=(0, None))
    grid[0, 1].set_title("ℓ² norm of the weights", fontsize=9)
    grid[0, 0].set_title("accuracy", fontsize=9)
    grid[0, 0].set_ylabel("")
    for row, (name, title) in zip(grid[1:], PROGRESS_MEASURES.items(), strict=True):
        for axes, kind in zip(row, ("text", "notebook"), strict=True):
            kit.bands(axes, data.baselines, f"{name}_{kind}", "#3f7f6f")
            axes.set_title(f"{title}{_UNITS.get(name, '')}\nas the {kind} has it", fontsize=9)
            if name == "circuit_complexity" and len(data.baselines):
                axes.set_yscale("log")
    kit.finish(made, grid.ravel().tolist(), data, labels=False)
    grid[-1, 0].set_xlabel("optimisation step")
    return made


@figure
def accuracy_panels(*studies: Study) -> Figure:
    """Accuracies of runs side by side, each on its own axis of steps: Figure 1.

    >>> accuracy_panels(study("results/mnist-wd0"), study("results/express/wd0"))    # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 %. Beside a run of the unchanged paper recipe without
    weight decay, the levels that the paper's own figure shows (`published.FIGURE_1`) are marked.
    """
    made, panels = plt.subplots(1, len(studies), figsize=(WIDTH, 3.0), sharey=True, squeeze=False)
    for axes, data in zip(panels[0], studies, strict=True):
        kit.accuracies(axes, data)
        kit.phase_tints(axes, data.phases, data.step)
        reach = f"to step {data.step:,}" + (f" of {data.config.steps:,}" if data.step < data.config.steps else "")
        axes.set_title(f"{textwrap.fill(data.recipe, 48)}, {data.seeds},\nweight decay {data.weight_decay:g}, {reach}", fontsize=9)
        axes.set(ylabel="", xlabel="optimisation step")
        if data.recipe == "paper recipe" and data.weight_decay == 0:
            axes.set_xlim(1, max(data.step, FIGURE_1["end_steps"]))
            _paper_levels(axes)
    panels[0, 0].set_ylabel("accuracy")
    return made


def _paper_levels(axes: Axes) -> None:
    low, high = FIGURE_1["final_accuracy"]
    look = dict(fmt="D", mfc="white", mec=COLORS["test"], ecolor=COLORS["test"], ms=5, lw=1.2, clip_on=False, zorder=4)
    axes.errorbar([FIGURE_1["peak_steps"]], [FIGURE_1["peak_accuracy"]], **look)
    axes.errorbar([FIGURE_1["end_steps"]], [np.mean([low, high])], yerr=[(high - low) / 2], **look)
    axes.text(FIGURE_1["end_steps"] * 0.75, low - 0.05, "◇ the paper's\nfigure", ha="right", va="top", **NOTE)
