"""Every figure, in one style: log step axis, phases as the same three tints, bands for seeds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from grokutils.experiment import data
from grokutils.experiment.config import RunConfig
from grokutils.records.phases import Phases, find_phases
from grokutils.records.record import Record

__all__ = ["PHASE_COLORS", "phase_tints", "style", "training_curves", "training_images"]

STYLE = Path(__file__).with_name("grokutils.mplstyle")

# A colour keeps its meaning in every figure; all can be told apart by colour-blind readers (petroff6).
COLORS = {"test": "#1845fb", "train": "#c91f16", "norm": "#404040"}

# The tints of the paper's Figure 1: grey, yellow, green.
PHASE_COLORS = {"pre-grokking": "#9a9a9a", "grokking": "#f2c500", "anti-grokking": "#3aa655"}


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's style; figures come out as SVG that is the same file when nothing in it changed."""
    with plt.style.context(STYLE), mpl.rc_context({"svg.hashsalt": "grokutils"}):
        yield


def use_svg() -> None:
    """Show figures in a notebook as SVG without a date, in the project's style from here on."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.style.use(STYLE)
    mpl.rcParams["svg.hashsalt"] = "grokutils"
    set_matplotlib_formats("svg", metadata={"Date": None})


def phase_tints(axes: Axes, phases: Phases, end: int, *, labels: bool = True) -> None:
    """Tint the background by phase, up to step `end`."""
    starts = {
        "pre-grokking": phases.memorised, "grokking": phases.grokking, "anti-grokking": phases.collapse
    }  # fmt: skip
    known = [(name, start) for name, start in starts.items() if start is not None]
    for i, (name, start) in enumerate(known):
        stop = known[i + 1][1] if i + 1 < len(known) else end
        axes.axvspan(max(start, 1), stop, color=PHASE_COLORS[name], alpha=0.18, lw=0)
        if labels:
            middle = np.sqrt(max(start, 1) * max(stop, 1))
            axes.text(middle, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom",
                      fontsize=8, color="0.35")  # fmt: skip


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
    with style():
        figure, (top, bottom) = plt.subplots(2, 1, sharex=True, figsize=(7.2, 5.0), height_ratios=[2.2, 1])
        metrics = record.metrics if member is None else record.metrics.query("member == @member")
        steps = np.sort(metrics.step.unique())
        if reference is not None:
            behind = reference.metrics
            behind = behind[(behind.member == reference_member) & (behind.step >= 1)]
            for axes, column in ((top, "train_accuracy"), (top, "test_accuracy"), (bottom, "l2_norm")):
                axes.plot(behind.step, behind[column], color="0.55", lw=1, ls=(0, (4, 2)), zorder=1)
            top.plot([], [], color="0.55", lw=1, ls=(0, (4, 2)), label=f"reference record {reference.name}")
            top.legend(loc="center left", frameon=False, fontsize=8)
        for label in ("train", "test"):
            _curve(top, metrics, f"{label}_accuracy", COLORS[label], label)
        _curve(bottom, metrics, "l2_norm", COLORS["norm"], None)
        median = metrics.groupby("step")[["train_accuracy", "test_accuracy"]].median().reset_index()
        phases = find_phases(median)
        for axes in (top, bottom):
            phase_tints(axes, phases, int(steps[-1]), labels=axes is top)
        top.set(ylabel="accuracy", ylim=(0, 1.04), xscale="log")
        top.set_xlim(1, max(steps[-1], reference.step if reference is not None else 0, 10))
        bottom.set(xlabel="optimisation step", ylabel=r"$\ell^2$ norm of" "\nthe weights", ylim=(0, None))
    return _shown_once(figure)


def _curve(axes: Axes, metrics: pd.DataFrame, column: str, color: str, label: str | None) -> None:
    """One quantity over steps: the line of a single member, the median and range of several."""
    shown = metrics[metrics.step >= 1]
    over = shown.groupby("step")[column]
    middle = over.median()
    axes.plot(middle.index, middle, color=color, lw=1.8, zorder=3)
    if shown.member.nunique() > 1:
        axes.fill_between(middle.index, over.min(), over.max(), color=color, alpha=0.2, lw=0, zorder=2)
    if label and len(middle):
        axes.annotate(
            label, (middle.index[-1], middle.iloc[-1]), xytext=(4, 0), textcoords="offset points",
            color=color, va="center", annotation_clip=False,
        )  # fmt: skip


def _plain_log(axis: Axis) -> None:
    """Label a logarithmic axis of a decade or two 1, 2, 5, 10, ... without exponents."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def _shown_once(figure: Figure) -> Figure:
    """A figure that only its value shows: a notebook would draw an open one at the end of the cell as well."""
    plt.close(figure)
    return figure


def training_images(config: RunConfig, columns: int = 10) -> Figure:
    """The first training images of each class: one row a class."""
    if columns < 1:
        raise ValueError(f"columns must be at least 1; got {columns!r}.")
    dataset = data.load(config, config.networks[0].seed)
    if dataset.image_shape is None:
        raise ValueError(f"the data of this run, {config.dataset}, are no images.")
    columns = min(columns, config.per_class)
    with style():
        figure, grid = plt.subplots(
            10, columns, figsize=(0.42 * columns + 0.5, 4.6), squeeze=False,
            gridspec_kw=dict(wspace=0.08, hspace=0.08), layout="none",
        )  # fmt: skip
        for label in range(10):
            images = dataset.x_train[dataset.y_train == label]
            for place, axes in enumerate(grid[label]):
                axes.set(xticks=[], yticks=[])
                axes.grid(False)
                for spine in axes.spines.values():
                    spine.set_visible(False)
                if place < len(images):
                    axes.imshow(images[place].reshape(dataset.image_shape), cmap="gray_r", vmin=0, vmax=1)
            grid[label, 0].set_ylabel(str(label), rotation=0, ha="right", va="center")
    return _shown_once(figure)
