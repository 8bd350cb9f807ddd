"""Figures of the transformer that learns modular addition, in the style of `grokutils.paper.kit.figures`.

>>> from grokutils.records.study import study
>>> matrix_curves("alpha", study("results/modular-wd1"))             # doctest: +SKIP
"""

from __future__ import annotations

from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.judge.published import MODULAR_MATRICES
from grokutils.paper.kit import figures as kit
from grokutils.paper.kit.figures import COLORS, WIDTH, figure
from grokutils.paper.modular_addition.modular import attention_kernels, embedding_spectrum, key_frequencies
from grokutils.paper.modular_addition.tables import mean_over_matrices
from grokutils.records.study import Study

__all__ = ["embedding_panels", "kernel_curves", "matrix_curves", "seeds_by_decay"]

#: The median test accuracy has to come so far for a tint of grokking.
GROKKED = 0.5

# By the order in which runs are given; the first is the one that the tints are of.
_RUNS = ("#1845fb", "#ff5e02", "#8a8a3c")


@figure
def matrix_curves(column: str, *studies: Study) -> Figure:
    """``alpha`` or ``traps`` of each of the eight matrices over steps, a line per run.

    >>> matrix_curves("traps", study("results/modular-wd1"), study("results/modular-wd0"))     # doctest: +SKIP

    Raises
    ------
    ValueError : another column, or no run.
    """
    if column not in ("alpha", "traps"):
        raise ValueError(f"column must be 'alpha' or 'traps'; got {column!r}.")
    _some(studies)
    made, grid = plt.subplots(4, 2, figsize=(WIDTH, 7.6), sharex=True, sharey=True)
    panels = grid.ravel()
    kit.steps_axis(panels, *(data.step for data in studies))
    for axes, (theirs, ours) in zip(panels, MODULAR_MATRICES.items(), strict=True):
        for data, color in zip(studies, _RUNS, strict=False):
            kit.bands(axes, data.over_steps(ours), column, color, f"weight decay {data.weight_decay:g}")
        _tints(axes, studies[0])
        axes.set_title(theirs, fontsize=9)
    kit.alpha_axis(*panels) if column == "alpha" else kit.trap_axis(*panels, least=1)
    for axes in grid[:, 0]:
        axes.set_ylabel("α" if column == "alpha" else "traps")
    grid[-1, 0].set_xlabel("optimisation step")
    if len(studies) > 1:
        _legend(made, *grid[0, 1].get_legend_handles_labels())
    kit.headed(made, *studies)
    return made


@figure
def seeds_by_decay(*studies: Study) -> Figure:
    """Accuracies, and alpha and traps in the mean over the eight matrices, a column per weight decay and a line per
    seed.

    >>> seeds_by_decay(*study_each_decay("results/modular-p29"))     # doctest: +SKIP

    Tints are those of the median accuracies; without a yellow one where the median test accuracy stays below 0.5.
    """
    _some(studies)
    made, grid = plt.subplots(3, len(studies), figsize=(WIDTH, 5.4), sharex=True, sharey="row", squeeze=False)
    for column, data in zip(grid.T, studies, strict=True):
        kit.steps_axis(column, *(one.step for one in studies))
        mean = mean_over_matrices(data)
        for frame, axes, name, color in (
            (data.metrics, column[0], "train_accuracy", COLORS["train"]), (data.metrics, column[0], "test_accuracy", COLORS["test"]),
            (mean, column[1], "alpha", COLORS["norm"]), (mean, column[2], "traps", COLORS["norm"]),
        ):  # fmt: skip
            sns.lineplot(frame[frame.step >= 1], x="step", y=name, units="member", estimator=None, color=color, lw=1.1, ax=axes)
        for axes in column:
            _tints(axes, data)
        column[0].set_title(f"weight decay {data.weight_decay:g}\n{data.seeds}", fontsize=9)
        column[-1].set_xlabel("optimisation step")
    kit.alpha_axis(*grid[1])
    kit.trap_axis(*grid[2], least=1)
    grid[0, 0].set(ylim=(0, 1.04))
    for axes, name in zip(grid[:, 0], ("accuracy", "α, mean over\nthe matrices", "traps a matrix"), strict=True):
        axes.set_ylabel(name)
    recipes = dict.fromkeys(f"{data.recipe}, to step {data.step:,}" for data in studies)
    made.suptitle("\n".join(recipes), fontsize=9, color="0.25", wrap=True)
    return made


def _some(studies: tuple[Study, ...]) -> None:
    if not studies:
        raise ValueError("studies must hold at least one run; got none.")


@figure
def embedding_panels(data: Study, member: int | None = None) -> Figure:
    """Share of the number embedding's variance at each frequency, where the phases are read (of the steps whose
    weights were kept, the nearest); key frequencies are named.

    >>> embedding_panels(study("results/modular-wd1"))               # doctest: +SKIP
    """
    member = data.members[0] if member is None else member
    steps = data.kept_steps(member)
    made, panels = plt.subplots(len(steps), 1, figsize=(WIDTH, 0.9 + 1.5 * len(steps)), sharex=True, squeeze=False)
    for axes, step in zip(panels[:, 0], steps, strict=True):
        spectrum = embedding_spectrum(data.record.weights(step, member)["embed.weight"][: data.config.p])
        keys = key_frequencies(spectrum)
        k = np.arange(1, spectrum.size + 1)
        bars = axes.bar(k, spectrum, color=["#1845fb" if i in keys else "#b8c4d6" for i in k])
        axes.bar_label(bars, [f"{i}" if i in keys else "" for i in k], fontsize=8)
        axes.axhline(1 / spectrum.size, color="0.35", ls=":", lw=1)
        at = data.metrics[(data.metrics.member == member) & (data.metrics.step <= step)].iloc[-1]
        axes.set_title(f"step {step:,}: test accuracy {at.test_accuracy:.2f}, {len(keys)} key frequencies", fontsize=9)
        axes.set(ylabel="share of\nthe variance", ylim=(0, 1.25 * spectrum.max()))
    panels[-1, 0].set_xlabel("frequency k of cos and sin (2πkn / p) over the numbers n")
    kit.headed(made, data)
    return made


@figure
def kernel_curves(*studies: Study) -> Figure:
    """Largest singular value of each head's attention kernel at the steps whose weights were kept.

    >>> kernel_curves(study("results/modular-wd1"))                  # doctest: +SKIP
    """
    made, panels = plt.subplots(1, len(studies), figsize=(WIDTH, 3.0), sharey=True, squeeze=False)
    for axes, data in zip(panels[0], studies, strict=True):
        kept = {step: data.record.weights(step, data.members[0]) for step in data.record.steps_saved}
        kernels = [attention_kernels(w["q_proj.weight"], w["k_proj.weight"], data.config.n_heads) for w in kept.values()]
        lines = axes.plot(np.maximum(list(kept), 1), np.stack(kernels), "o-", ms=3, lw=1.4)
        _tints(axes, data)
        axes.set_title(f"weight decay {data.weight_decay:g}, {data.seeds}, to step {data.step:,}", fontsize=9)
        kit.steps_axis([axes], data.step)
        axes.set(yscale="log", xlim=(0.9, None))
        kit.plain_log(axes.yaxis)
    panels[0, 0].set_ylabel("largest singular value\nof a head's kernel")
    _legend(made, lines, [f"head {head}" for head in range(len(lines))])
    return made


def _legend(made: Figure, handles, names) -> None:
    made.legend(handles, names, loc="outside lower center", ncols=len(names), frameon=False, fontsize=8)


def _tints(axes: Axes, data: Study) -> None:
    """The tints of the phases; a test accuracy that rises and stays low is no grokking."""
    found = data.phases
    if data.metrics.groupby("step").test_accuracy.median().max() < GROKKED:
        found = replace(found, grokking=None, collapse=None)
    kit.phase_tints(axes, found, data.step)
