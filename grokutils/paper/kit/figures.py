"""The figure kit: one style, log step axis, phases as the same three tints, bands for seeds, the line alpha = 2.

>>> @figure
... def dots(x):
...     drawn, axes = plt.subplots()
...     axes.plot(x)
...     return drawn
>>> dots([1, 2]).axes[0].get_xscale()
'linear'
"""

from __future__ import annotations

import contextlib
import functools
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from grokutils.records.phases import PHASES, Phases
from grokutils.records.signals import ALPHA_LOW, TRAPPED_FROM
from grokutils.records.study import Study

__all__ = [
    "COLORS", "NOTE", "PHASE_COLORS", "WIDTH", "accuracies", "alpha_axis", "bands", "direct_labels", "figure", "finish",
    "headed", "layer_color", "nothing", "phase_tints", "plain_log", "steps_axis", "style", "trap_axis", "use_svg",
]  # fmt: skip

STYLE = Path(__file__).with_name("grokutils.mplstyle")
WIDTH = 7.2
NOTE = dict(fontsize=8, color="0.25")

# A colour keeps its meaning in every figure; all can be told apart by colour-blind readers (petroff6).
COLORS = {"test": "#1845fb", "train": "#c91f16", "norm": "#404040"}
# The tints of the paper's Figure 1: grey, yellow, green.
PHASE_COLORS = dict(zip(PHASES, ("#9a9a9a", "#f2c500", "#3aa655"), strict=True))
# A layer keeps its colour in every figure; the colours of accuracies are not used again.
_LAYER_COLORS = {"fc1": "#ff5e02", "fc2": "#c849a9", "fc3": "#8a8a3c", "average": "#404040"}
_OTHER_LAYERS = ("#ff5e02", "#c849a9", "#8a8a3c", "#3f9fb8", "#7d4dbb", "#9c5b2e")


@contextlib.contextmanager
def style() -> Iterator[None]:
    """The project's style; figures come out as SVG that is the same file when nothing in it changed."""
    with plt.style.context(STYLE), mpl.rc_context({"svg.hashsalt": "grokutils"}):
        yield


def figure(draw: Callable[..., Figure]) -> Callable[..., Figure]:
    """A function that makes a figure, in the project's style, and closed: a notebook would draw an open one twice."""

    @functools.wraps(draw)
    def drawn(*args, **options) -> Figure:
        with style():
            made = draw(*args, **options)
        plt.close(made)
        return made

    return drawn


def use_svg() -> None:
    """Show figures in a notebook as SVG without a date, in the project's style from here on."""
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    plt.style.use(STYLE)
    mpl.rcParams["svg.hashsalt"] = "grokutils"
    set_matplotlib_formats("svg", metadata={"Date": None})


def layer_color(layer: str, layers: Sequence[str] = ()) -> str:
    """The colour of a layer, the same in every figure.

    >>> layer_color("fc1")
    '#ff5e02'
    """
    place = list(layers).index(layer) if layer in layers else 0
    return _LAYER_COLORS.get(layer) or _OTHER_LAYERS[place % len(_OTHER_LAYERS)]


@figure
def nothing(why: str) -> Figure:
    """A sentence in the place of a figure."""
    made, axes = plt.subplots(figsize=(WIDTH, 1.2))
    axes.set_axis_off()
    axes.text(0.5, 0.5, why, ha="center", color="0.35")
    return made


# -- curves ---------------------------------------------------------------------------------------------------------


def bands(
    axes: Axes, frame: pd.DataFrame, column: str, color: str, label: str | None = None, *, x: str = "step", level: float = 80,
    spread: str | None = None, width: float = 1.8, **look,
) -> None:  # fmt: skip
    """One quantity over steps: the median of the members with their central 80 % (100: their range), or a single one with
    its own standard error, if it has a column for it."""
    shown = frame.dropna(subset=[column])
    if x == "step" and axes.get_xscale() == "log":
        shown = shown[shown.step >= 1]
    if shown.empty:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", **NOTE)
        return
    several = shown.member.nunique() > 1
    titles = axes.get_xlabel(), axes.get_ylabel()
    sns.lineplot(
        shown, x=x, y=column, ax=axes, color=color, lw=width, zorder=3, estimator="median", label=label, legend=False,
        errorbar=("pi", level) if several else None, err_kws=dict(alpha=0.2, lw=0, zorder=2), **look,
    )  # fmt: skip
    axes.set(xlabel=titles[0], ylabel=titles[1])
    if spread is not None and not several:
        axes.fill_between(shown[x], shown[column] - shown[spread], shown[column] + shown[spread], color=color, alpha=0.2, lw=0)


def accuracies(axes: Axes, data: Study, labels: bool = True) -> None:
    """Training and test accuracy over steps."""
    axes.set(xscale="log", xlim=(1, max(data.step, 10)))
    for name in ("train", "test"):
        bands(axes, data.metrics, f"{name}_accuracy", COLORS[name], name if labels else None)
    axes.set(ylabel="accuracy", ylim=(0, 1.04))
    if labels:
        direct_labels([axes])


def direct_labels(panels: Iterable[Axes]) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    for axes in panels:
        named = [line for line in axes.lines if not line.get_label().startswith("_")]
        ends = sorted(((line.get_ydata()[-1], line) for line in named), key=lambda pair: pair[0])
        for i, (y, line) in enumerate(ends):
            near = len(ends) > 1 and ends[1][0] - ends[0][0] < 0.14 * np.ptp(axes.get_ylim())
            shift = (6 if i else -6) if near else 0
            axes.annotate(line.get_label(), (line.get_xdata()[-1], y), xytext=(4, shift), textcoords="offset points",
                          color=line.get_color(), va="center", fontsize=9, annotation_clip=False)  # fmt: skip


# -- axes -----------------------------------------------------------------------------------------------------------


def steps_axis(panels: Sequence[Axes], *ends: float) -> None:
    """The logarithmic axis of optimisation steps, named under the last panel."""
    for axes in panels:
        axes.set(xscale="log", xlim=(1, max(10, *ends)))
    panels[-1].set_xlabel("optimisation step")


def alpha_axis(axes: Axes, *also: Axes) -> None:
    """A logarithmic axis: alpha is always above 1, and has been above 20."""
    # of lines and bands; panels without any are not counted
    highest = max((each.dataLim.y1 for each in (axes, *also) if each.lines), default=8)
    for each in (axes, *also):
        each.axhline(ALPHA_LOW, color="0.2", ls="--", lw=1)
    axes.set(yscale="log", ylim=(1, np.clip(1.15 * highest, 8, 32)))
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.text(1.15, ALPHA_LOW * 1.04, "α = 2", va="bottom", **NOTE)


def trap_axis(axes: Axes, *also: Axes, least: float = 0.0) -> None:
    """From none up, to `least` at least, with a dotted line where a layer counts as trapped."""
    most = max((np.nanmax(line.get_ydata()) for each in (axes, *also) for line in each.lines), default=0)
    for each in (axes, *also):
        each.axhline(TRAPPED_FROM, color="0.35", ls=":", lw=1)
    axes.set_ylim(0, max(least, 1.1 * most) if least else None)


def plain_log(axis: Axis, subs: Sequence[int] = (1, 2, 5)) -> None:
    """Label a logarithmic axis of a decade or two 1, 2, 5, 10, ... without exponents."""
    axis.set_major_locator(LogLocator(subs=subs, numticks=12))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


# -- phases and titles ----------------------------------------------------------------------------------------------


def phase_tints(axes: Axes, phases: Phases, end: int, *, labels: bool = False) -> None:
    """Tint the background by phase, up to step `end`; names where there is room."""
    starts = zip(PHASES, (phases.memorised, phases.grokking, phases.collapse), strict=True)
    known = [(name, max(start, 1)) for name, start in starts if start is not None]
    for i, (name, start) in enumerate(known):
        last = i + 1 == len(known)
        stop = end if last else known[i + 1][1]
        axes.axvspan(start, stop, color=PHASE_COLORS[name], alpha=0.18, lw=0)
        width = np.log(stop / start) / np.log(max(end, 10))
        if labels and (width >= 0.1 or last):
            place = dict(x=stop, ha="right") if last and width < 0.15 else dict(x=start, ha="left")
            axes.text(y=1.02, s=name, transform=axes.get_xaxis_transform(), va="bottom", fontsize=8, color="0.35", **place)


def headed(made: Figure, *studies: Study, more: str = "") -> None:
    """What the figure stands on, above it."""
    said = "\n".join(textwrap.fill(data.label, 100) for data in studies)
    made.suptitle(said + (f"\n{more}" if more else ""), fontsize=9, color="0.25")


def finish(made: Figure, panels: Sequence[Axes], data: Study, labels: bool = True) -> None:
    """Tints, the common axis of steps, and what the figure shows."""
    for axes in panels:
        phase_tints(axes, data.phases, data.step, labels=labels and axes is panels[0])
    steps_axis(panels, data.step)
    made.align_ylabels(panels)
    headed(made, data)
