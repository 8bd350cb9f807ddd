"""Page 03: alpha, the tail of a layer's spectrum.

>>> esd_with_fit(study("results/express/wd0"))                       # doctest: +SKIP
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.judge.published import TABLE_1, TABLE_1_ARXIV, TABLE_STEPS
from grokutils.paper.kit.curves import alpha_curves
from grokutils.paper.kit.figures import WIDTH, figure, headed, plain_log, use_svg
from grokutils.paper.kit.tables import (
    counted,
    course,
    layers_of,
    of_layer,
    over_phases,
    printed,
    published,
    readings,
    spread,
    tidy,
)
from grokutils.records.study import Study, study
from grokutils.spectra.alpha import fit_power_law

__all__ = [
    "TABLE_1", "TABLE_1_ARXIV", "TABLE_STEPS", "Markdown", "alpha_curves", "alpha_jumps", "counted", "course", "esd_with_fit",
    "printed", "printed_jumps", "readings", "spread", "study", "table_1", "use_svg",
]  # fmt: skip


@figure
def esd_with_fit(data: Study, layer: str = "fc1", step: int | None = None, member: int | None = None) -> Figure:
    """A layer's eigenvalues, the power law that fits their tail, and two from a badly chosen xmin.

    >>> esd_with_fit(study("results/express/wd0"))                   # doctest: +SKIP

    Left the density, as in the paper's Figure 2; right the share of eigenvalues that are larger, in which a
    straight line is easier to judge. Too large an xmin keeps only a fifth of the tail (five eigenvalues at
    least), too small a one the upper half of them all.

    Parameters
    ----------
    data, layer : which layer of which study
    step : an analysed step; by default where the test accuracy of the member is best (else the last)
    member : number in the record; by default the first
    """
    member = data.members[0] if member is None else member
    if step is None:
        best = data.phase_steps.loc[member, "grokking"]
        step = data.nearest(data.step) if pd.isna(best) else int(best)
    x = data.eigenvalues(layer, step, member)
    fit = fit_power_law(x)
    made, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 3.3), width_ratios=[1.25, 1])
    edges = np.geomspace(max(x[x > 0].min(), x.max() * 1e-4), x.max() * 1.02, 26)
    left.hist(x, bins=edges, density=True, color="#86c8dd", label=f"ESD, {x.size} eigenvalues")
    kept = x[x >= x.max() * 1e-4]
    right.step(kept, 1 - np.searchsorted(x, kept, side="left") / x.size, where="post", color="#3f9fb8", lw=1.5)
    if fit.status == "ok":
        largest, middle = x[-max(5, fit.n_tail // 5)], np.median(x)
        for xmin, color, name in ((fit.xmin, "#c91f16", "fit"), (largest, "#7d4dbb", "too large"), (middle, "#9c5b2e", "too small")):
            _draw_fit(left, right, x, xmin, color, name)
        left.axvline(fit.xmax, color="#ff5e02", lw=1.2, label="xmax")
    for axes, label in ((left, "density"), (right, "share of larger eigenvalues")):
        axes.set(xscale="log", yscale="log", xlabel=r"eigenvalue $\lambda$ of $W^\top W$", ylabel=label)
        plain_log(axes.xaxis, (1, 2, 5) if edges[-1] < 100 * edges[0] else (1,))
    right.set_ylim(0.5 / x.size, 1.5)
    left.legend(fontsize=8, loc="lower left", edgecolor="none", framealpha=0.8)
    headed(made, data, more=f"{layer}, seed {data.config.networks[member].seed}, step {step:,}")
    return made


def _draw_fit(density: Axes, survival: Axes, x: np.ndarray, xmin: float, color: str, name: str) -> None:
    """The law fitted above an xmin, in both pictures."""
    tail = x[x >= xmin]
    alpha = 1 + tail.size / np.log(tail / xmin).sum()
    share = tail.size / x.size
    grid = np.geomspace(xmin, x.max(), 50)
    density.plot(grid, share * (alpha - 1) / xmin * (grid / xmin) ** -alpha, color=color, ls="--", lw=1.6,
                 label=f"{name}: α = {alpha:.2f} from {tail.size}")  # fmt: skip
    survival.plot(grid, share * (grid / xmin) ** (1 - alpha), color=color, ls="--", lw=1.6)
    for axes in (density, survival):
        axes.axvline(xmin, color=color, lw=1)


def table_1(*studies: Study) -> pd.DataFrame:
    """Alpha of each layer and their average, at the three phases: the paper's numbers, then ours, as fitted and clipped.

    >>> table_1(study("results/express/wd0"))                        # doctest: +SKIP

    Returns
    -------
    Tidy frame as of `over_phases`; ``quantity`` is a layer or ``average``. Sources: `published.TABLE_1`,
    `published.TABLE_1_ARXIV`. *Clipped* leaves out up to nine of the largest eigenvalues (WeightWatcher's ``clip_xmax``),
    as the authors' notebook does and their text does not say.
    """
    rows = []
    for layer in (*layers_of(studies), "average"):
        rows += [row for table in (TABLE_1, TABLE_1_ARXIV) for row in published(table, layer, layer)]
        for data in (some for some in studies if layer in (*some.layers, "average")):
            rows += over_phases(layer, data, data.over_steps(layer), "alpha", 2)
            clipped = over_phases(layer, data, data.over_steps(layer), "alpha_clipped", 2)
            rows += [row | {"source": f"{row['source']}, clipped"} for row in clipped]
    return tidy(rows)


def alpha_jumps(data: Study) -> pd.DataFrame:
    """How far alpha has jumped from one analysed step to the next while the eigenvalues hardly moved.

    >>> alpha_jumps(study("results/express/wd0"))                    # doctest: +SKIP

    Returns
    -------
    DataFrame, a row per layer, with its largest jump (in the logarithm of alpha) of any member since memorisation:
    ``layer``, ``seed``, ``step_before``, ``step``, ``alpha_before``, ``alpha``, ``xmin_before``, ``xmin``,
    ``tail_before``, ``tail`` (eigenvalues in it) and ``moved``, the root mean square change of the eigenvalues over
    their root mean square.
    """
    rows = []
    for layer in data.layers:
        own = data.after_memorisation(of_layer(data, layer)).sort_values(["member", "step"])
        jump = np.log(own.alpha).groupby(own.member).diff().abs()
        if not jump.notna().any():
            continue
        at = own.index.get_loc(jump.idxmax())
        a, b = own.iloc[at - 1], own.iloc[at]
        x, y = (data.eigenvalues(layer, int(row.step), int(row.member)) for row in (a, b))
        rows.append({
            "layer": layer, "seed": int(b.seed), "step_before": int(a.step), "step": int(b.step),
            "alpha_before": a.alpha, "alpha": b.alpha, "xmin_before": a.xmin, "xmin": b.xmin,
            "tail_before": int(a.n_tail), "tail": int(b.n_tail),
            "moved": float(np.linalg.norm(y - x) / np.linalg.norm(x)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def printed_jumps(*studies: Study) -> pd.DataFrame:
    """`alpha_jumps` of several studies as a reader sees them."""
    rows = {
        (data.place, jump["layer"]): {
            "seed": jump["seed"], "steps": f"{jump['step_before']:,} to {jump['step']:,}",
            "α": f"{jump['alpha_before']:.2f} to {jump['alpha']:.2f}",
            "eigenvalues in the tail": f"{jump['tail_before']} to {jump['tail']}", "eigenvalues moved by": f"{jump['moved']:.2%}",
        }
        for data in studies for jump in alpha_jumps(data).to_dict("records")
    }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")
