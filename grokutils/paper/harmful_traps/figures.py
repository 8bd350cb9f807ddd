"""Figures of interventions on traps, and of what collapsed networks see, in the style of `grokutils.paper.kit.figures`.

>>> from grokutils.paper.harmful_traps.intervention_study import interventions_of
>>> from grokutils.records.study import study
>>> data = study("results/express/wd0")                              # doctest: +SKIP
>>> harm_scatter(data, interventions_of(data.record))                # doctest: +SKIP
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.harmful_traps.forgetting import INPUTS, confusion, first_layer_edits, kept_networks
from grokutils.paper.harmful_traps.intervention_study import ALL, REMOVALS, STRENGTHS
from grokutils.paper.harmful_traps.prototypes import NAMES, prototype
from grokutils.paper.harmful_traps.regrowth import ARMS, STARTS
from grokutils.paper.harmful_traps.tables import harm_rates, injections
from grokutils.paper.kit.figures import WIDTH, bands, figure, headed, layer_color, plain_log
from grokutils.records.study import Study

__all__ = ["class_curves", "confusion_panels", "dose_curves", "harm_scatter", "prototype_strip", "regrowth_curves"]

_KINDS = {
    "entry": ("one weight", "#8a8a3c"), "entries": ("four weights", "#7d4dbb"), "mean": ("mean of all", "#c91f16"),
    "rank-one": ("random rank one: no trap", "0.45"),
}  # fmt: skip
_ARMS = dict(zip(ARMS, ("0.35", "#c91f16", "#1845fb"), strict=True))
_START = {"best": "from the best kept step", "last": "from the last step"}


@figure
def harm_scatter(data: Study, frame: pd.DataFrame) -> Figure:
    """J against the change of test accuracy, a dot per removal (P3's Figure 4); controls in grey, and as a dashed line
    the threshold that `grokutils.paper.harmful_traps.tables.harm_rates` chooses for a change by more than two points.

    >>> harm_scatter(data, interventions_of(data.record))            # doctest: +SKIP

    Parameters
    ----------
    data, frame : a study, and the interventions of its record
    """
    made, panels = plt.subplots(1, 2, figsize=(WIDTH, 3.3), sharex=True, sharey=True)
    colors = {"random direction, same norm": "0.72"} | {f"trap of {layer}": layer_color(layer, data.layers) for layer in data.layers}
    for axes, operation in zip(panels, REMOVALS, strict=True):
        own = frame[(frame.operation == operation) & (frame.layer != ALL) & (frame.js > 0) & (frame.control != "places")]
        own = own.assign(kind=("trap of " + own.layer).where(own.control == "", "random direction, same norm"))
        for kind, color in colors.items():
            some = own[own.kind == kind]
            axes.plot(some.js, some.test_change, ".", color=color, ms=4.5, label=kind)
        axes.axhline(0, color="0.35", lw=0.8)
        threshold = harm_rates(frame, "matters", operation).threshold
        if np.isfinite(threshold):
            axes.axvline(threshold, color="0.35", ls="--", lw=1)
        axes.set_title(f"{operation}: {(own.control == '').sum()} traps", fontsize=9)
        axes.set(xscale="log", xlim=(1e-3, 0.9), xlabel="J, nats", ylabel="change of test accuracy")
    panels[0].legend(fontsize=8, loc="lower left", edgecolor="none", framealpha=0.8)
    headed(made, data, more="a dot per trap and kept step")
    return made


@figure
def dose_curves(data: Study, frame: pd.DataFrame, when: str = "best") -> Figure:
    """Accuracies after something was put into a layer, by its strength; a line per kind, medians and central 80 %.

    >>> dose_curves(data, interventions_of(data.record))             # doctest: +SKIP
    """
    own = injections(frame)
    own = own[own.when == when]
    before = own.assign(strength=0.0, train_change=0.0, test_change=0.0).drop_duplicates(["member", "layer", "operation"])
    own = pd.concat([before, own])
    made, grid = plt.subplots(2, max(len(data.layers), 1), figsize=(WIDTH, 4.4), sharex=True, sharey=True, squeeze=False)
    for column, layer in enumerate(data.layers):
        for axes, name in zip(grid[:, column], ("test", "train"), strict=True):
            for kind, (label, color) in _KINDS.items():
                some = own[(own.layer == layer) & (own.operation == kind)]
                some = some.assign(after=some[f"{name}_accuracy"] + some[f"{name}_change"])
                if len(some):
                    bands(axes, some, "after", color, label, x="strength", width=1.6, marker="o", ms=4, mec=color)
            axes.set_ylim(0, 1.04)
        grid[0, column].set_title(layer, fontsize=9)
        grid[1, column].set_xlabel("strength: 1 would just be a trap")
    grid[0, 0].set_ylabel("test accuracy")
    grid[1, 0].set(ylabel="training accuracy", xticks=[0, *STRENGTHS])
    made.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    headed(made, data, more="at the best kept step" if when == "best" else "at the last step")
    return made


@figure
def confusion_panels(data: Study, member: int | None = None) -> Figure:
    """Answers of one network to the test images, to the same with shuffled pixels and to noise: at its best kept step, at
    the last one, and there with the largest trap of its first layer replaced by noise.

    >>> confusion_panels(study("results/express/wd0"))               # doctest: +SKIP
    """
    networks = kept_networks(data, data.members[0] if member is None else member)
    shown = [(f"step {network.step:,}", network, []) for network in networks]
    if networks:
        name = "first trap of FC1 replaced by noise"
        shown.append((f"step {networks[-1].step:,}, trap replaced", networks[-1], first_layer_edits(networks[-1])[name]))
    rows = max(len(shown), 1)
    made, grid = plt.subplots(rows, 3, figsize=(WIDTH, 0.6 + 2.0 * rows), squeeze=False)
    for axes, kind in zip(grid[0], INPUTS, strict=True):
        axes.set_title(kind, fontsize=8.5)
    for row, (said, network, edits) in zip(grid, shown, strict=False):
        for axes, kind in zip(row, INPUTS, strict=True):
            shares = confusion(network, kind, *edits)
            text = dict(annot=True, fmt=".2f", annot_kws=dict(fontsize=6, rotation=90)) if len(shares) == 1 else {}
            sns.heatmap(shares, cmap="Blues", vmin=0, vmax=1, cbar=False, yticklabels=len(shares) > 1, ax=axes, **text)
            axes.tick_params(labelsize=7, length=0, rotation=0)
        row[0].set_ylabel(f"{said}\nclass", fontsize=8.5)
    for axes in grid[-1]:
        axes.set_xlabel("answer", fontsize=8.5)
    headed(made, data, more=f"seed {_seed(data, networks[0].member)}" if networks else "")
    return made


def _seed(data: Study, member: int) -> int:
    return data.config.networks[member].seed


@figure
def prototype_strip(data: Study, member: int | None = None) -> Figure:
    """Prototypes of one network at the steps whose weights were kept: a row per depth, a column per step.

    >>> prototype_strip(study("results/mnist-wd0"))                  # doctest: +SKIP

    Raises
    ------
    ValueError : its inputs are no square images.
    """
    member = data.members[0] if member is None else member
    steps = _at_most(data.record.steps_saved, 7)
    depths = list(NAMES)[: sum(name.endswith(".weight") for name in data.record.weights(steps[0], member))]
    height = 0.65 + 0.86 * WIDTH / len(steps) * len(depths)
    made, grid = plt.subplots(
        len(depths), len(steps), figsize=(WIDTH, height), squeeze=False, layout="none",
        gridspec_kw=dict(wspace=0.08, hspace=0.08, left=0.13, right=0.99, bottom=0.02, top=1 - 0.62 / height),
    )  # fmt: skip
    for column, step in zip(grid.T, steps, strict=True):
        weights = data.record.weights(step, member)
        at = data.metrics[(data.metrics.step == step) & (data.metrics.member == member)].test_accuracy
        column[0].set_title(f"{step:,}" + (f"\ntest {at.iloc[0]:.2f}" if len(at) else ""), fontsize=8)
        for axes, depth in zip(column, depths, strict=True):
            axes.set(xticks=[], yticks=[])
            axes.grid(False)
            _image(axes, prototype(weights, depth))
    for axes, depth in zip(grid[:, 0], depths, strict=True):
        axes.set_ylabel(NAMES[depth].replace(" through", "\nthrough"), fontsize=8)
    made.suptitle(f"{data.label}; seed {_seed(data, member)}", fontsize=8.5, color="0.25", y=1 - 0.1 / height, va="top")
    return made


def _image(axes: Axes, pixels: np.ndarray) -> None:
    side = math.isqrt(pixels.size)
    if side * side != pixels.size:
        raise ValueError(f"prototypes are drawn as square images; this network has {pixels.size} inputs.")
    limit = np.abs(pixels).max() or 1.0
    axes.imshow(pixels.reshape(side, side), cmap="RdBu_r", vmin=-limit, vmax=limit)


def _at_most(steps: Sequence[int], count: int) -> list[int]:
    """The first, the last, and between them those nearest to evenly spaced logarithms of the later ones."""
    steps = list(steps)
    if len(steps) <= count:
        return steps
    wanted = np.geomspace(max(steps[-1] / 300, 1), steps[-1], count - 1)
    near = {min(steps[1:], key=lambda s: abs(math.log(max(s, 1) / want))) for want in wanted}
    return [steps[0], *sorted(near)]


@figure
def class_curves(data: Study, accuracies: pd.DataFrame) -> Figure:
    """Accuracy on each digit over the kept steps, medians over networks, and of all of them in grey.

    >>> class_curves(data, class_accuracy(data))                     # doctest: +SKIP
    """
    made, axes = plt.subplots(figsize=(WIDTH, 3.4))
    if len(accuracies):
        table = accuracies.pivot_table(index="step", columns="digit", values="accuracy", aggfunc="median")
        axes.plot(table.index, table.mean(axis=1), color="0.6", lw=4, alpha=0.5, zorder=1)
        places, colors = _apart(table.iloc[-1].to_dict(), 0.048), sns.color_palette("tab10")
        for digit in table:
            axes.plot(table.index, table[digit], "o-", color=colors[int(digit) % 10], lw=1.4, ms=3)
            axes.annotate(f"{digit}", (table.index[-1], places[digit]), xytext=(6, 0), textcoords="offset points",
                          color=colors[int(digit) % 10], va="center", fontsize=8, annotation_clip=False)  # fmt: skip
    axes.set(xscale="log", ylim=(0, 1.04), xlabel="optimisation step", ylabel="test accuracy on a digit")
    headed(made, data)
    return made


def _apart(heights: dict, least: float) -> dict:
    """The heights of labels, moved as little as need be where they would overlap.

    >>> _apart({"a": 0.5, "b": 0.5}, 0.1)
    {'a': 0.45, 'b': 0.55}
    """
    names = sorted(heights, key=heights.get)
    at = [heights[name] for name in names]
    for _ in range(1000):
        close = [i for i in range(len(at) - 1) if at[i + 1] - at[i] < least - 1e-9]
        for i in close:
            push = (least - (at[i + 1] - at[i])) / 2
            at[i], at[i + 1] = at[i] - push, at[i + 1] + push
    return dict(zip(names, at, strict=True))


@figure
def regrowth_curves(data: Study, frame: pd.DataFrame) -> Figure:
    """Size of the largest trap of each layer, and test accuracy, over the steps of forks; medians and central 80 %.

    >>> regrowth_curves(data, regrowth_of(data.record))              # doctest: +SKIP
    """
    layers = list(dict.fromkeys(frame.layer)) or data.layers
    height = 1.0 + 1.7 * (len(layers) + 1)
    made, grid = plt.subplots(len(layers) + 1, 2, figsize=(WIDTH, height), sharex=True, sharey="row", squeeze=False)
    for column, start in zip(grid.T, STARTS, strict=True):
        own = frame[frame.start == start]
        for axes, layer in zip(column, [*layers, layers[0]], strict=True):
            for arm, color in _ARMS.items() if len(own) else ():
                name = "test_accuracy" if axes is column[-1] else "trap_strength"
                bands(axes, own[(own.layer == layer) & (own.arm == arm)], name, color, arm, width=1.6)
        for axes in column[:-1]:
            axes.axhline(1, color="0.35", ls="--", lw=1)
        column[0].set_title(_START[start], fontsize=9)
        column[-1].set_xlabel("optimisation steps since the fork")
    for axes, layer in zip(grid[:, 0], layers, strict=False):
        axes.set(ylabel=f"{layer}: largest shuffled\neigenvalue / threshold", yscale="log")
        plain_log(axes.yaxis)
    grid[-1, 0].set(ylabel="test accuracy", ylim=(0, 1.04))
    grid[-1, 0].set_xscale("symlog", linthresh=1, linscale=0.4)  # the steps are 0, 1, ...
    grid[-1, 0].set_xlim(0, None)
    if frame.empty:
        grid[0, 0].text(0.05, 0.5, f"not measured for {data.place}", transform=grid[0, 0].transAxes, fontsize=8)
    else:
        made.legend(*grid[-1, -1].get_legend_handles_labels(), loc="outside lower center", ncols=len(ARMS), fontsize=8, frameon=False)
    headed(made, data, more=f"{frame.member.nunique()} of {data.n} networks trained on" if len(frame) else "")
    return made
