"""Figures of the transformer that learns modular addition, in the style of `grokutils.paper.kit.curves`.

>>> from grokutils.records.study import study
>>> matrix_curves("alpha", study("results/modular-wd1"))             # doctest: +SKIP
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.judge.published import MODULAR_MATRICES
from grokutils.paper.kit.curves import _WIDTH, _alpha_axis, _headed, _series
from grokutils.paper.kit.figures import COLORS, _plain_log, _shown_once, phase_tints, style
from grokutils.paper.kit.tables import TRAPPED_FROM
from grokutils.paper.modular_addition.modular import attention_kernels, embedding_spectrum, key_frequencies
from grokutils.paper.modular_addition.tables import mean_over_matrices
from grokutils.records.study import Study

__all__ = ["embedding_panels", "kernel_curves", "matrix_curves", "seeds_by_decay"]

#: The median test accuracy has to come so far for a tint of grokking.
GROKKED = 0.5

# By the order in which runs are given; the first is the one that the tints are of.
_RUNS = ("#1845fb", "#ff5e02", "#8a8a3c")


def matrix_curves(column: str, *studies: Study) -> Figure:
    """``alpha`` or ``traps`` of each of the eight matrices over steps, a line per run.

    >>> matrix_curves("traps", study("results/modular-wd1"), study("results/modular-wd0"))     # doctest: +SKIP

    Raises
    ------
    ValueError : another column, or no run.
    """
    if column not in ("alpha", "traps"):
        raise ValueError(f"column must be 'alpha' or 'traps'; got {column!r}.")
    if not studies:
        raise ValueError("studies must hold at least one run; got none.")
    with style():
        figure, grid = plt.subplots(4, 2, figsize=(_WIDTH, 7.6), sharex=True, sharey=True)
        for axes, (theirs, ours) in zip(grid.ravel(), MODULAR_MATRICES.items(), strict=True):
            for data, color in zip(studies, _RUNS, strict=False):
                own = data.diagnostics[data.diagnostics.layer == ours]
                _series(axes, own, column, color, label=f"weight decay {data.weight_decay:g}")
            _tints(axes, studies[0])
            axes.set_title(theirs, fontsize=9)
        grid[0, 0].set(xscale="log", xlim=(1, max(10, *(data.step for data in studies))))
        if column == "alpha":
            _alpha_axis(*grid.ravel())
            for axes in grid[:, 0]:
                axes.set_ylabel("α")
        else:
            most = max((np.max(line.get_ydata()) for axes in grid.ravel() for line in axes.lines), default=0)
            grid[0, 0].set_ylim(0, max(1.0, 1.1 * most))
            for axes in grid.ravel():
                axes.axhline(TRAPPED_FROM, color="0.35", ls=":", lw=1)
            for axes in grid[:, 0]:
                axes.set_ylabel("traps")
        for axes in grid[-1]:
            axes.set_xlabel("optimisation step")
        if len(studies) > 1:
            handles, names = grid[0, 1].get_legend_handles_labels()
            figure.legend(handles, names, loc="outside lower center", ncols=len(studies), frameon=False, fontsize=8)
        said = "\n".join(textwrap.fill(data.label, 100) for data in studies)
        figure.suptitle(said, fontsize=9, color="0.25")
    return _shown_once(figure)


def seeds_by_decay(*studies: Study) -> Figure:
    """Accuracies, and alpha and traps in the mean over the eight matrices, a column per weight decay and a line per
    seed.

    >>> seeds_by_decay(*study_each_decay("results/modular-p29"))     # doctest: +SKIP

    Tints are those of the median accuracies; without a yellow one where the median test accuracy stays below 0.5.
    """
    if not studies:
        raise ValueError("studies must hold at least one run; got none.")
    with style():
        figure, grid = plt.subplots(3, len(studies), figsize=(_WIDTH, 5.4), sharex=True, sharey="row", squeeze=False)
        for column, data in zip(grid.T, studies, strict=True):
            mean = mean_over_matrices(data)
            for frame, axes, name, color in (
                (data.metrics, column[0], "train_accuracy", COLORS["train"]),
                (data.metrics, column[0], "test_accuracy", COLORS["test"]),
                (mean, column[1], "alpha", COLORS["norm"]), (mean, column[2], "traps", COLORS["norm"]),
            ):  # fmt: skip
                for member in data.members:
                    _series(axes, frame[frame.member == member], name, color, width=1.1)
            for axes in column:
                _tints(axes, data)
            column[0].set_title(f"weight decay {data.weight_decay:g}\n{data.seeds}", fontsize=9)
            column[2].axhline(TRAPPED_FROM, color="0.35", ls=":", lw=1)
            column[2].set_xlabel("optimisation step")
        grid[0, 0].set(xscale="log", xlim=(1, max(10, *(data.step for data in studies))), ylim=(0, 1.04), ylabel="accuracy")
        _alpha_axis(*grid[1])
        grid[1, 0].set_ylabel("α, mean over\nthe matrices")
        most = max((np.max(line.get_ydata()) for axes in grid[2] for line in axes.lines), default=1)
        grid[2, 0].set(ylabel="traps a matrix", ylim=(0, max(1.0, 1.1 * most)))
        recipes = dict.fromkeys(f"{data.recipe}, to step {data.step:,}" for data in studies)
        figure.suptitle("\n".join(textwrap.fill(recipe, 100) for recipe in recipes), fontsize=9, color="0.25")
    return _shown_once(figure)


def embedding_panels(data: Study, member: int | None = None) -> Figure:
    """Share of the number embedding's variance at each frequency, where the phases are read (of the steps whose
    weights were kept, the nearest); key frequencies are named.

    >>> embedding_panels(study("results/modular-wd1"))               # doctest: +SKIP
    """
    member = data.members[0] if member is None else member
    steps = data.kept_steps(member)
    with style():
        figure, panels = plt.subplots(
            len(steps), 1, figsize=(_WIDTH, 0.9 + 1.5 * len(steps)), sharex=True, squeeze=False
        )
        for axes, step in zip(panels[:, 0], steps, strict=True):
            spectrum = embedding_spectrum(data.record.weights(step, member)["embed.weight"][: data.config.p])
            keys = key_frequencies(spectrum)
            k = np.arange(1, spectrum.size + 1)
            axes.bar(k, spectrum, color=["#1845fb" if i in keys else "#b8c4d6" for i in k])
            axes.axhline(1 / spectrum.size, color="0.35", ls=":", lw=1)
            for i in keys:
                axes.annotate(f"{i}", (i, spectrum[i - 1]), ha="center", va="bottom", fontsize=8)
            at = data.metrics[(data.metrics.member == member) & (data.metrics.step <= step)].iloc[-1]
            said = f"step {step:,}: test accuracy {at.test_accuracy:.2f}, {len(keys)} key frequencies"
            axes.set_title(said, fontsize=9)
            axes.set(ylabel="share of\nthe variance", ylim=(0, 1.25 * spectrum.max()))
        panels[-1, 0].set_xlabel("frequency k of cos and sin (2πkn / p) over the numbers n")
        _headed(figure, data)
    return _shown_once(figure)


def kernel_curves(*studies: Study) -> Figure:
    """Largest singular value of each head's attention kernel at the steps whose weights were kept.

    >>> kernel_curves(study("results/modular-wd1"))                  # doctest: +SKIP
    """
    with style():
        figure, panels = plt.subplots(1, len(studies), figsize=(_WIDTH, 3.0), sharey=True, squeeze=False)
        for axes, data in zip(panels[0], studies, strict=True):
            found = dict(_kernels(data))
            steps = np.maximum(list(found), 1)
            lines = axes.plot(steps, np.stack(list(found.values())), "o-", ms=3, lw=1.4)
            _tints(axes, data)
            reach = f"to step {data.step:,}"
            axes.set_title(f"weight decay {data.weight_decay:g}, {data.seeds}, {reach}", fontsize=9)
            axes.set(xscale="log", yscale="log", xlabel="optimisation step", xlim=(0.9, max(10, data.step)))
            _plain_log(axes.yaxis)
        panels[0, 0].set_ylabel("largest singular value\nof a head's kernel")
        names = [f"head {head}" for head in range(len(lines))]
        figure.legend(lines, names, loc="outside lower center", ncols=len(lines), frameon=False, fontsize=8)
    return _shown_once(figure)


def _tints(axes: Axes, data: Study) -> None:
    """The tints of the phases; a test accuracy that rises and stays low is no grokking."""
    found = data.phases
    if data.metrics.groupby("step").test_accuracy.median().max() < GROKKED:
        found = replace(found, grokking=None, collapse=None)
    phase_tints(axes, found, data.step, labels=False)


def _kernels(data: Study) -> Iterator[tuple[int, np.ndarray]]:
    for step in data.record.steps_saved:
        weights: Mapping[str, np.ndarray] = data.record.weights(step, data.members[0])
        yield step, attention_kernels(weights["q_proj.weight"], weights["k_proj.weight"], data.config.n_heads)
