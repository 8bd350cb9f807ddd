"""Figures of the grid of small transformers (`grokutils.paper.modular_addition.grid`).

>>> accuracy_grid(29)                                                             # doctest: +SKIP
"""

from __future__ import annotations

import itertools
import math

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from grokutils.paper.kit.figures import COLORS, WIDTH, figure
from grokutils.paper.modular_addition import grid
from grokutils.paper.modular_addition.grid_tables import records
from grokutils.records.record import Record

__all__ = ["accuracy_grid", "course"]

#: What lies so far below the largest logit adds nothing to the sum of a softmax in float32, half a unit in the last place
#: of 1.
LOST = 24 * math.log(2)


@figure
def accuracy_grid(p: int, learning_rate: float = 1e-2) -> Figure:
    """Training and test accuracy of every network of one size and learning rate over steps: a row per weight decay, a column per precision of the loss and beta2.

    >>> accuracy_grid(29, 1e-3)                                                   # doctest: +SKIP

    Raises
    ------
    ValueError : no records of them.
    """
    found = [(r, record) for part, r, record in records() if (part.base.p, r.learning_rate) == (p, learning_rate)]
    if not found:
        raise ValueError(f"there are no records of p = {p} with learning rate {learning_rate:g} yet.")
    columns = [(loss_dtype, beta2) for loss_dtype in grid.LOSS_DTYPES for beta2 in grid.BETA2S]
    made, panels = plt.subplots(len(grid.DECAYS), len(columns), figsize=(WIDTH, 5.2), sharex=True, sharey=True)
    for (row, decay), (column, kind) in itertools.product(enumerate(grid.DECAYS), enumerate(columns)):
        axes = panels[row, column]
        for r, record in found:
            if (r.weight_decay, r.loss_dtype, r.beta2) != (decay, *kind):
                continue
            for _, own in record.metrics.groupby("member"):
                axes.plot(own.step, own.train_accuracy, color=COLORS["train"], lw=0.6)
                axes.plot(own.step, own.test_accuracy, color=COLORS["test"], lw=0.8)
        if row == 0:
            axes.set_title(f"loss in {kind[0]}\nβ₂ = {kind[1]:g}", fontsize=8)
    for axes, decay in zip(panels[:, 0], grid.DECAYS, strict=True):
        axes.set_ylabel(f"accuracy\n(weight decay {decay:g})", fontsize=8)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    panels[0, 0].set(xscale="log", xlim=(30, max(record.config.steps for _, record in found)), ylim=(0, 1.04))
    return made


@figure
def course(record: Record, member: int = 0, first: int = 0, last: int | None = None) -> Figure:
    """Accuracies, margins, losses and norm of one network between two steps, on a linear axis.

    >>> course(load_record("results/modular-grid/..."), first=8_000, last=12_000)  # doctest: +SKIP

    Dashed: the margin above which float32 cannot see the answer to be anything but certain, 24 ln 2.
    """
    own = record.metrics.query("member == @member and step >= @first")
    own = own if last is None else own[own.step <= last]
    made, panels = plt.subplots(4, 1, figsize=(WIDTH, 6.4), sharex=True)
    for axes, quantity in zip(panels, ("accuracy", "margin_min", "loss"), strict=False):
        for kind in ("train", "test"):
            axes.plot(own.step, own[f"{kind}_{quantity}"], color=COLORS[kind], lw=1.1, label=kind)
    panels[3].plot(own.step, own.l2_norm, color=COLORS["norm"], lw=1.1)
    panels[0].set(ylabel="accuracy", ylim=(0, 1.04))
    panels[0].legend(loc="lower left", frameon=False, fontsize=8)
    panels[1].axhline(LOST, color="0.35", ls="--", lw=1)
    panels[1].set_ylabel("smallest\nmargin")
    panels[1].set_yscale("symlog", linthresh=20)
    panels[1].set_yticks([-100, -20, 0, 20], ["−100", "−20", "0", "20"])
    panels[2].set(yscale="log", ylabel="loss")
    panels[3].set(ylabel="norm", xlabel="optimisation step")
    return made
