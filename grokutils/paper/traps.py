"""Page 04: correlation traps: what is left of a spectrum when the entries are shuffled, and which weights make it.

>>> trap_curves(study("results/express/wd0"))                        # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grokutils.paper.judge.published import TABLE_2, TABLE_2_LATER, TABLE_4, TABLE_STEPS
from grokutils.paper.kit import figures as kit
from grokutils.paper.kit.figures import layer_color, use_svg
from grokutils.paper.kit.tables import (
    NONE,
    counted,
    layers_of,
    number,
    of_layer,
    over_phases,
    printed,
    published,
    tidy,
)
from grokutils.records.signals import NAMES, TRAPPED_FROM, onset
from grokutils.records.study import Study, study
from grokutils.spectra.trap_makers import lone_weight, mean_shift, trap_carriers, trap_causes
from grokutils.spectra.traps import count_traps, mp_pdf

__all__ = [
    "TABLE_2", "TABLE_4", "TABLE_STEPS", "Markdown", "counted", "output_layer", "printed", "printed_causes",
    "printed_correlates", "shuffled_esds", "study", "table_2", "table_4", "trap_carriers", "trap_correlates", "trap_curves",
    "trap_sizes", "trapped", "traps_against_weights", "use_svg",
]  # fmt: skip

_FIT = "#c91f16"
_TITLES = {"start": "at the start", "pre-grokking": "before grokking", "grokking": "at the best test accuracy"}
# Colours of no trap, one trap and more, and where in a mean over shuffles each begins and ends.
_HOW_MANY = {"no trap": "#8a8a8a", "one": "#1f9e89", "more": "#7d1f6b"}
_LEAST = (-np.inf, TRAPPED_FROM, TRAPPED_FROM + 1, np.inf)


# -- figures --------------------------------------------------------------------------------------------------------


@kit.figure
def shuffled_esds(
    data: Study, layer: str = "fc2", phases: Sequence[str] = ("grokking", "anti-grokking"), member: int | None = None
) -> Figure:
    """Eigenvalues of a shuffled layer against the Marchenko-Pastur law, a panel per phase; traps are marked.

    >>> shuffled_esds(study("results/express/wd0"), "fc1", ["start"])    # doctest: +SKIP

    Eigenvalues are divided by their mean, and densities are per unit of log10. A phase that the member has not reached
    is left out (the last analysed step stands in if none is left). ``start`` is step 0.
    """
    member = data.members[0] if member is None else member
    steps = {"start": 0} | data.phase_steps.loc[member].dropna().astype(int).to_dict()
    chosen = {phase: steps[phase] for phase in phases if phase in steps} or {"end": data.nearest(data.step)}
    made, panels = plt.subplots(
        1, len(chosen), figsize=(kit.WIDTH if len(chosen) > 1 else 4.8, 3.2), squeeze=False, sharex=True, sharey=True
    )
    for axes, (phase, step) in zip(panels[0], chosen.items(), strict=True):
        _shuffled_esd(axes, data, layer, step, member)
        accuracy = data.metrics[(data.metrics.step == step) & (data.metrics.member == member)].test_accuracy
        known = f", test {accuracy.iloc[0]:.2f}" if len(accuracy) else ""
        axes.set_title(f"{_TITLES.get(phase, 'at the end')}: step {step:,}{known}", fontsize=9)
    panels[0, 0].set_ylabel(r"density per unit of $\log_{10}\lambda$")
    kit.headed(made, data, more=f"{layer} shuffled, seed {data.config.networks[member].seed}")
    return made


def _shuffled_esd(axes: Axes, data: Study, layer: str, step: int, member: int) -> None:
    shape = data.shape(layer)
    kept = data.eigenvalues(layer, step, member, shuffle=None)
    found, unit = count_traps(kept, shape), kept[0].mean()
    x = kept[0] / unit
    smallest = x.max() * 10**-3.2
    axes.hist(np.log10(x[x > smallest]), bins=24, density=True, color="#b9a3dc")  # light purple, as in the paper
    if found.status == "ok":
        grid = np.geomspace(max(found.bulk_min[0] / unit, smallest), found.bulk_max[0] / unit, 400)
        axes.plot(np.log10(grid), mp_pdf(grid, max(shape) / min(shape), found.sigma_mp[0]) * grid * np.log(10), color=_FIT, lw=1.8)
        axes.axvline(np.log10(found.threshold[0] / unit), color="0.35", ls="--", lw=1)
        traps = found.trap_eigenvalues[0] / unit
        if traps.size:
            axes.plot(np.log10(traps), np.full(traps.size, 0.06), "v", color=_FIT, ms=7, transform=axes.get_xaxis_transform())
        count = f"{traps.size} trap" + ("" if traps.size == 1 else "s")
        axes.text(0.03, 0.97, f"{count}\nσ_mp = {found.sigma_mp[0]:.3f}", transform=axes.transAxes, va="top", **kit.NOTE)
    axes.set_xlabel(r"$\log_{10}$ of eigenvalue / mean")


def _causes_of(data: Study, layer: str) -> pd.DataFrame:
    """Diagnostics of a layer with |mean| (``mean``) and largest weight (``largest``), over what makes a trap by itself."""
    own, shape = of_layer(data, layer), data.shape(layer)
    return own.assign(mean=own.mean_over_std.abs() / mean_shift(shape), largest=own.max_over_std / lone_weight(shape))


@kit.figure
def trap_curves(data: Study) -> Figure:
    """Test accuracy, traps in each layer (mean over shuffles), and the two things that make them, each over the
    size at which it makes a trap by itself.

    >>> trap_curves(study("results/express/wd0"))                    # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 %.
    """
    made, panels = plt.subplots(4, 1, sharex=True, figsize=(kit.WIDTH, 6.4))
    kit.accuracies(panels[0], data)
    rows = {"traps": "traps", "mean": "|mean| of weights\nover what makes\na trap", "largest": "largest weight\nover what makes\na trap"}
    for axes, (column, name) in zip(panels[1:], rows.items(), strict=True):
        for layer in data.layers:
            kit.bands(axes, _causes_of(data, layer), column, layer_color(layer, data.layers), layer)
        axes.set(ylabel=name, ylim=(0, None))
    kit.trap_axis(panels[1])
    for axes in panels[2:]:
        axes.axhline(1, color="0.35", ls="--", lw=1)
    kit.direct_labels(panels[1:])
    kit.finish(made, panels, data)
    return made


@kit.figure
def traps_against_weights(*studies: Study) -> Figure:
    """Left: traps against the largest weight, in standard deviations. Right: where there are none, one and more, by the
    largest weight and the mean, each over what makes a trap by itself according to random-matrix theory.

    >>> traps_against_weights(study("results/express/wd0"), study("results/express/wd0.01"))    # doctest: +SKIP

    A dot per network and analysed step, from where the training set is learnt.
    """
    layers = layers_of(studies)
    jitter, look = np.random.default_rng(0), dict(ms=3.5, alpha=0.5, mew=0)
    made, (left, right) = plt.subplots(1, 2, figsize=(kit.WIDTH, 3.6))
    for data in studies:
        for layer in data.layers:
            own = data.after_memorisation(_causes_of(data, layer)).dropna(subset=["traps"])
            color = layer_color(layer, layers)
            left.plot(own.max_over_std, own.traps + jitter.uniform(-0.08, 0.08, len(own)), ".", color=color, **look)
            left.axvline(lone_weight(data.shape(layer)), color=color, ls="--", lw=1.2)
            for shade, (least, below) in zip(_HOW_MANY.values(), pairwise(_LEAST), strict=True):
                some = own[(own.traps >= least) & (own.traps < below)]
                right.plot(some["mean"], some.largest, ".", color=shade, **look)
    _listed(left, {layer: layer_color(layer, layers) for layer in layers})
    _listed(right, _HOW_MANY)
    right.axvline(1, color="0.35", ls="--", lw=1)
    right.axhline(1, color="0.35", ls="--", lw=1)
    left.set(xlabel="largest |weight − mean| / std", ylabel="traps, mean over shuffles")
    right.set(xlabel="|mean| over what makes a trap", ylabel="largest weight over\nwhat makes a trap", xlim=(0, None), ylim=(0, None))
    kit.headed(made, *studies)
    return made


def _listed(axes: Axes, colors: dict[str, str]) -> None:
    """Names in their colours in the upper right corner."""
    for i, (name, color) in enumerate(colors.items()):
        axes.text(0.97, 0.95 - 0.08 * i, name, color=color, transform=axes.transAxes, ha="right", va="top", fontsize=9)


# -- the paper's tables ---------------------------------------------------------------------------------------------


def table_2(*studies: Study) -> pd.DataFrame:
    """Traps in each layer, with and without weight decay; a tidy frame as of `grokutils.paper.kit.tables.over_phases`."""
    rows = []
    for decay in sorted({data.weight_decay for data in studies}):
        own = [data for data in studies if data.weight_decay == decay]
        for layer in layers_of(own):
            quantity = f"weight decay {decay:g}, {layer}"
            rows += [row for table in (TABLE_2, TABLE_2_LATER) for row in published(table, (decay, layer), quantity)]
            rows += [row for data in own for row in over_phases(quantity, data, of_layer(data, layer), "traps", 2)]
    return tidy(rows)


def table_4(*studies: Study, layer: str = "fc1") -> pd.DataFrame:
    """A shuffled layer against the Marchenko-Pastur law; a tidy frame as of `grokutils.paper.kit.tables.over_phases`.

    Of p-values the text gives the median and how many are below 0.05, since means of them say nothing. The
    Monte-Carlo p, which takes the repulsion of eigenvalues into account, has no counterpart in the paper.
    """
    rows = []
    for quantity, digits in (("sigma_mp", 3), ("ks_D", 4), ("ks_p_textbook", 4), ("ks_p", 4), ("traps", 2)):
        rows += published(TABLE_4, quantity, NAMES[quantity]) if layer == "fc1" else []
        for data in studies:
            own = over_phases(NAMES[quantity], data, of_layer(data, layer), quantity, digits)
            if quantity.startswith("ks_p"):
                at = data.at_phases(of_layer(data, layer))
                own = [row | {"text": _p_text(at[at.phase == row["phase"]][quantity].dropna())} for row in own]
            rows += own
    return tidy(rows)


def _p_text(p: pd.Series) -> str:
    return number(p.median(), ".2g") + (f" (below 0.05: {int((p < 0.05).sum())} of {len(p)})" if len(p) > 1 else "")


def trapped(data: Study, phase: str, members: Iterable[int] | None = None) -> str:
    """In how many networks any layer holds a trap where a phase is read."""
    return counted((data.reading(phase, members)["traps"] >= TRAPPED_FROM).any(axis=1))


def output_layer(*studies: Study) -> pd.DataFrame:
    """Traps of the layer that the papers do not follow: in how many networks and from when on, beside the phases."""
    rows = {}
    for data in studies:
        own = of_layer(data, data.diagnostics.layer.unique()[-1])
        found = [onset(x.step.to_numpy(), x.traps >= TRAPPED_FROM) for _, x in own.groupby("member")]
        first = pd.Series(found, dtype=float).dropna()
        peak, collapse = (np.nan if x is None else x for x in (data.phases.peak, data.phases.collapse))
        rows[data.place] = {
            "layer": own.layer.iloc[0], "networks with a trap": f"{len(first)} of {data.n}",
            "first at step (median)": number(first.median(), ",.0f"), "best test accuracy at step": number(peak, ",.0f"),
            "collapsed by ten points at step": number(collapse, ",.0f"),
            "traps at the end (mean)": number(own[own.step == own.step.max()].traps.mean()),
        }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


# -- what makes a trap ----------------------------------------------------------------------------------------------


def trap_sizes(*studies: Study) -> pd.DataFrame:
    """What makes a trap by itself in the layers of these studies: `lone_weight` and `mean_shift` of each shape."""
    shapes = {f"{layer}, {data.config.recipe_name}": data.shape(layer) for data in studies for layer in data.layers}
    return pd.DataFrame({
        "shape": {name: f"{rows} × {columns}" for name, (rows, columns) in shapes.items()},
        "a lone weight, in std": {name: f"{lone_weight(shape):.1f}" for name, shape in shapes.items()},
        "a mean, in std": {name: f"{mean_shift(shape):.3f}" for name, shape in shapes.items()},
    })  # fmt: skip


def trap_correlates(data: Study) -> pd.DataFrame:
    """Whether traps can be told from numbers that cost next to nothing.

    >>> trap_correlates(study("results/express/wd0"))                # doctest: +SKIP

    Returns
    -------
    DataFrame, a row per layer, over all analysed steps and members from where the training set is learnt: Spearman's
    rank correlation of the number of traps with ``max_over_std``, ``kurtosis`` and |``mean_over_std``| (NaN where one
    of the two is constant), and ``agree``, in which share of ``networks`` "there is a trap" agrees with "the mean passes
    `mean_shift` or the largest weight passes `lone_weight`"; ``trapped``, the share that has one.
    """
    rows = {}
    for layer in data.layers:
        own = data.after_memorisation(_causes_of(data, layer)).dropna(subset=["traps"])
        own["mean_over_std"] = own.mean_over_std.abs()
        holds, predicted = own.traps >= TRAPPED_FROM, (own["mean"] > 1) | (own.largest > 1)
        ranks = own[["max_over_std", "kurtosis", "mean_over_std"]].rank().corrwith(own.traps.rank())
        rows[layer] = {"networks": len(own), "trapped": holds.mean(), **ranks, "agree": (holds == predicted).mean()}
    return pd.DataFrame.from_dict(rows, orient="index")


def printed_correlates(*studies: Study) -> pd.DataFrame:
    """`trap_correlates` of several studies as a reader sees them."""
    found = pd.concat({data.place: trap_correlates(data) for data in studies})
    ranks = {f"ρ, {NAMES[name]}": found[name].map("{:+.2f}".format, na_action="ignore") for name in ("max_over_std", "kurtosis", "mean_over_std")}
    return pd.DataFrame({
        "networks × steps": found.networks.map("{:,}".format), "with a trap": found.trapped.map("{:.0%}".format, na_action="ignore"),
        **ranks, "agreement": found.agree.map("{:.0%}".format, na_action="ignore"),
    }).fillna(NONE)  # fmt: skip


def printed_causes(data: Study, member: int | None = None, **options) -> pd.DataFrame:
    """`trap_causes` of every layer of a member at the steps whose weights were kept, a row each.

    >>> printed_causes(study("results/express/wd0"))                 # doctest: +SKIP
    """
    member = data.members[0] if member is None else member
    rows = {}
    for layer in data.layers:
        for step in data.kept_steps(member):
            found = trap_causes(data.matrix(layer, step, member), **options)
            counts = {f"traps, {name}": f"{traps:.1f}" for name, traps in zip(found.matrix, found.traps, strict=True)}
            rows[layer, f"step {step:,}"] = counts | {"outlying weights": int(found.weights_changed.max())}
    return pd.DataFrame.from_dict(rows, orient="index")
