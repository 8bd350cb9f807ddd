"""Figures of spectra, and of what is read from them over the steps of a run. Style, colours and tints are those
of `grokutils.paper.kit.figures`; every figure says which record it shows and how far that reaches.

>>> from grokutils.records.study import study
>>> alpha_curves(study("results/express/wd0"))                       # doctest: +SKIP
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from grokutils.paper.judge.published import FIGURE_1
from grokutils.paper.kit.figures import COLORS, _shown_once, phase_tints, style
from grokutils.paper.kit.tables import ALPHA_LOW, TRAPPED_FROM, lead_summary
from grokutils.records.phases import NETWORK_CONTROLS, PHASES
from grokutils.records.study import NAMES, PROGRESS_MEASURES, Study
from grokutils.spectra.alpha import fit_power_law
from grokutils.spectra.trap_makers import lone_weight, mean_shift
from grokutils.spectra.traps import count_traps, mp_pdf
from grokutils.util.columns import BASELINES

__all__ = [
    "accuracy_panels",
    "alpha_curves",
    "decay_contrast",
    "esd_with_fit",
    "lead_dots",
    "layer_color",
    "progress_curves",
    "shuffled_esds",
    "trap_curves",
    "traps_against_weights",
]

# A layer keeps its colour in every figure; the colours of accuracies are not used again.
_LAYER_COLORS = {"fc1": "#ff5e02", "fc2": "#c849a9", "fc3": "#8a8a3c", "average": "#404040"}
_OTHER_LAYERS = ("#ff5e02", "#c849a9", "#8a8a3c", "#3f9fb8", "#7d4dbb", "#9c5b2e")
_ESD = "#86c8dd"  # a matrix's own eigenvalues
_SHUFFLED = "#b9a3dc"  # those of the shuffled matrix: light purple, as in the paper
_FIT = "#c91f16"
_NOTE = dict(fontsize=8, color="0.25")

_WIDTH = 7.2
_UNITS = {"activation_sparsity": ", share of units", "circuit_complexity": ", nats"}  # of `PROGRESS_MEASURES`


def layer_color(layer: str, layers: Sequence[str] = ()) -> str:
    """The colour of a layer, the same in every figure.

    >>> layer_color("fc1")
    '#ff5e02'
    """
    if layer in _LAYER_COLORS:
        return _LAYER_COLORS[layer]
    place = list(layers).index(layer) if layer in layers else 0
    return _OTHER_LAYERS[place % len(_OTHER_LAYERS)]


# -- one spectrum -------------------------------------------------------------------------------------------


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
    member, step = _chosen(data, member, step)
    x = data.eigenvalues(layer, step, member)
    fit = fit_power_law(x)
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH, 3.3), width_ratios=[1.25, 1])
        edges = np.geomspace(max(x[x > 0].min(), x.max() * 1e-4), x.max() * 1.02, 26)
        left.hist(x, bins=edges, density=True, color=_ESD, label=f"ESD, {x.size} eigenvalues")
        kept = x[x >= x.max() * 1e-4]
        right.step(kept, 1 - np.searchsorted(x, kept, side="left") / x.size, where="post", color="#3f9fb8", lw=1.5)
        if fit.status == "ok":
            largest, middle = x[-max(5, fit.n_tail // 5)], np.median(x)
            choices = ((fit.xmin, _FIT, "fit"), (largest, "#7d4dbb", "too large"), (middle, "#9c5b2e", "too small"))
            for xmin, color, name in choices:
                _draw_fit(left, right, x, xmin, color, name)
            left.axvline(fit.xmax, color="#ff5e02", lw=1.2, label="xmax")
        for axes, label in ((left, "density"), (right, "share of larger eigenvalues")):
            axes.set(xscale="log", yscale="log", xlabel=r"eigenvalue $\lambda$ of $W^\top W$", ylabel=label)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if edges[-1] < 100 * edges[0] else (1,), numticks=12))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        right.set_ylim(0.5 / x.size, 1.5)
        left.legend(fontsize=8, loc="lower left", edgecolor="none", framealpha=0.8)
        _headed(figure, data, f"{layer}, seed {_seed(data, member)}, step {step:,}")
    return _shown_once(figure)


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
    with style():
        figure, panels = plt.subplots(
            1, len(chosen), figsize=(_WIDTH if len(chosen) > 1 else 4.8, 3.2), squeeze=False, sharex=True, sharey=True
        )
        for axes, (phase, step) in zip(panels[0], chosen.items(), strict=True):
            _shuffled_esd(axes, data, layer, step, member)
            accuracy = data.metrics[(data.metrics.step == step) & (data.metrics.member == member)].test_accuracy
            names = {"start": "at the start", "pre-grokking": "before grokking", "grokking": "at the best test accuracy",
                     "anti-grokking": "at the end", "end": "at the end"}  # fmt: skip
            known = f", test {accuracy.iloc[0]:.2f}" if len(accuracy) else ""
            axes.set_title(f"{names[phase]}: step {step:,}{known}", fontsize=9)
        panels[0, 0].set_ylabel(r"density per unit of $\log_{10}\lambda$")
        _headed(figure, data, f"{layer} shuffled, seed {_seed(data, member)}")
    return _shown_once(figure)


def _shuffled_esd(axes: Axes, data: Study, layer: str, step: int, member: int) -> None:
    shape = data.shape(layer)
    kept = data.eigenvalues(layer, step, member, shuffle=None)
    found = count_traps(kept, shape)
    x = kept[0] / kept[0].mean()
    logs = np.log10(x[x > x.max() * 10**-3.2])
    axes.hist(logs, bins=24, density=True, color=_SHUFFLED)
    if found.status == "ok":
        unit = kept[0].mean()
        low, high = found.bulk_min[0] / unit, found.bulk_max[0] / unit
        grid = np.geomspace(max(low, x.max() * 10**-3.2), high, 400)
        Q = max(shape) / min(shape)
        axes.plot(np.log10(grid), mp_pdf(grid, Q, found.sigma_mp[0]) * grid * np.log(10), color=_FIT, lw=1.8)
        axes.axvline(np.log10(found.threshold[0] / unit), color="0.35", ls="--", lw=1)
        traps = found.trap_eigenvalues[0] / unit
        if traps.size:
            axes.plot(np.log10(traps), np.full(traps.size, 0.06), "v", color=_FIT, ms=7, transform=axes.get_xaxis_transform())
        count = f"{traps.size} trap" + ("" if traps.size == 1 else "s")
        axes.text(0.03, 0.97, f"{count}\nσ_mp = {found.sigma_mp[0]:.3f}", transform=axes.transAxes, va="top", **_NOTE)
    axes.set_xlabel(r"$\log_{10}$ of eigenvalue / mean")


# -- over the steps of a run --------------------------------------------------------------------------------


def alpha_curves(data: Study) -> Figure:
    """Test accuracy, average alpha, and alpha of each layer over steps, the line alpha = 2 drawn.

    >>> alpha_curves(study("results/express/wd0"))                   # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 % (of a single seed: plus and minus the standard error
    of the fit). What lies above the upper end of the axis is off the figure.
    """
    with style():
        figure, panels = _stack(2 + len(data.layers), data)
        _accuracies(panels[0], data)
        _series(panels[1], data.average_alpha, "alpha", layer_color("average"))
        panels[1].set_ylabel("α, average")
        for axes, layer in zip(panels[2:], data.layers, strict=True):
            own = data.diagnostics[data.diagnostics.layer == layer]
            _series(axes, own, "alpha", layer_color(layer, data.layers), spread="alpha_sigma")
            axes.set_ylabel(f"α, {layer}")
        for axes in panels[1:]:
            _alpha_axis(axes)
        _finish(figure, panels, data)
    return _shown_once(figure)


def trap_curves(data: Study) -> Figure:
    """Test accuracy, traps in each layer (mean over shuffles), and the two things that make them, each over the
    size at which it makes a trap by itself.

    >>> trap_curves(study("results/express/wd0"))                    # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 %.
    """
    with style():
        figure, panels = _stack(4, data)
        _accuracies(panels[0], data)
        for layer in data.layers:
            color = layer_color(layer, data.layers)
            own = data.diagnostics[data.diagnostics.layer == layer]
            relative = own.assign(
                mean=own.mean_over_std.abs() / mean_shift(data.shape(layer)),
                largest=own.max_over_std / lone_weight(data.shape(layer)),
            )
            _series(panels[1], own, "traps", color, label=layer)
            _series(panels[2], relative, "mean", color, label=layer)
            _series(panels[3], relative, "largest", color, label=layer)
        panels[1].axhline(TRAPPED_FROM, color="0.35", ls=":", lw=1)
        panels[1].set(ylabel="traps", ylim=(0, None))
        for axes, name in ((panels[2], "|mean| of weights\nover what makes\na trap"), (panels[3], "largest weight\nover what makes\na trap")):
            axes.axhline(1, color="0.35", ls="--", lw=1)
            axes.set(ylabel=name, ylim=(0, None))
        _direct_labels(panels[1:], data)
        _finish(figure, panels, data)
    return _shown_once(figure)


def progress_curves(data: Study) -> Figure:
    """The measures that the papers hold alpha against, in both definitions, and the l2 norm, over steps.

    >>> progress_curves(study("results/express/wd0"))                # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 %.
    """
    with style():
        figure, grid = plt.subplots(4, 2, figsize=(_WIDTH, 7.6), sharex=True)
        _accuracies(grid[0, 0], data)
        norm = grid[0, 1]
        _series(norm, data.metrics, "l2_norm", COLORS["norm"])
        norm.set(ylim=(0, None))
        norm.set_title("ℓ² norm of the weights", fontsize=9)
        grid[0, 0].set_title("accuracy", fontsize=9)
        grid[0, 0].set_ylabel("")
        for row, (name, title) in zip(grid[1:], PROGRESS_MEASURES.items(), strict=True):
            for axes, kind in zip(row, ("text", "notebook"), strict=True):
                column = f"{name}_{kind}"
                assert column in BASELINES and column in NETWORK_CONTROLS
                _series(axes, data.baselines, column, "#3f7f6f")
                axes.set_title(f"{title}{_UNITS.get(name, '')}\nas the {kind} has it", fontsize=9)
                if name == "circuit_complexity" and len(data.baselines):
                    axes.set_yscale("log")
        panels = grid.ravel().tolist()
        _finish(figure, panels, data, labels=False)
        for axes in grid[-1]:
            axes.set_xlabel("optimisation step")
    return _shown_once(figure)


def decay_contrast(*studies: Study) -> Figure:
    """Test accuracy, alpha and traps of runs side by side, on the same axes.

    >>> decay_contrast(study("results/express/wd0"), study("results/express/wd0.01"))    # doctest: +SKIP
    """
    with style():
        figure, grid = plt.subplots(3, len(studies), figsize=(_WIDTH, 6.2), sharex=True, sharey="row", squeeze=False)
        for column, some in zip(grid.T, studies, strict=True):
            _accuracies(column[0], some, labels=some is studies[-1])
            for layer in some.layers:
                color = layer_color(layer, some.layers)
                own = some.diagnostics[some.diagnostics.layer == layer]
                _series(column[1], own, "alpha", color, label=layer)
                _series(column[2], own, "traps", color, label=layer)
            for axes in column:
                phase_tints(axes, some.phases, some.step, labels=False)
            column[0].set_title(f"weight decay {some.weight_decay:g}\n{some.seeds},\nto step {some.step:,}", fontsize=9)
            column[2].axhline(TRAPPED_FROM, color="0.35", ls=":", lw=1)
            column[2].set_xlabel("optimisation step")
        grid[0, 0].set(xscale="log", xlim=(1, max(10, *(some.step for some in studies))))
        _alpha_axis(*grid[1])
        grid[1, 0].set_ylabel("α")
        grid[2, 0].set(ylabel="traps", ylim=(0, None))
        for axes in grid[0, 1:]:
            axes.set_ylabel("")
        for axes in grid[1:, -1]:
            _direct_labels([axes], studies[-1])
        recipes = dict.fromkeys(some.recipe for some in studies)
        figure.suptitle(" | ".join(recipes), fontsize=9, color="0.25")
    return _shown_once(figure)


def accuracy_panels(*studies) -> Figure:
    """Accuracies of runs side by side, each on its own axis of steps: Figure 1.

    >>> accuracy_panels(load_record("results/mnist-wd0"), load_record("results/express/wd0"))    # doctest: +SKIP

    Lines are medians over the seeds, bands their central 80 %. Beside a run of the unchanged paper recipe without
    weight decay, the levels that the paper's own figure shows (`published.FIGURE_1`) are marked.

    Parameters
    ----------
    *studies : `Study` objects
    """
    with style():
        figure, panels = plt.subplots(1, len(studies), figsize=(_WIDTH, 3.0), sharey=True, squeeze=False)
        for axes, data in zip(panels[0], studies, strict=True):
            _accuracies(axes, data, labels=True)
            end = max(data.step, 10)
            if data.recipe == "paper recipe" and data.weight_decay == 0:
                end = max(end, FIGURE_1["end_steps"])
                _paper_levels(axes)
            phase_tints(axes, data.phases, data.step, labels=False)
            reach = f"to step {data.step:,}" + (f" of {data.config.steps:,}" if data.step < data.config.steps else "")
            recipe = textwrap.fill(data.recipe, 48)
            axes.set_title(f"{recipe}, {data.seeds},\nweight decay {data.weight_decay:g}, {reach}", fontsize=9)
            axes.set(xscale="log", xlim=(1, end), xlabel="optimisation step", ylim=(0, 1.04), ylabel="")
        panels[0, 0].set_ylabel("accuracy")
    return _shown_once(figure)


def _paper_levels(axes: Axes) -> None:
    low, high = FIGURE_1["final_accuracy"]
    peak, end = FIGURE_1["peak_steps"], FIGURE_1["end_steps"]
    look = dict(fmt="D", mfc="white", mec=COLORS["test"], ecolor=COLORS["test"], ms=5, lw=1.2, clip_on=False, zorder=4)
    axes.errorbar([peak], [FIGURE_1["peak_accuracy"]], **look)
    axes.errorbar([end], [(low + high) / 2], yerr=[(high - low) / 2], **look)
    axes.text(end * 0.75, low - 0.05, "◇ the paper's\nfigure", ha="right", va="top", **_NOTE)


# -- traps against cheap numbers ----------------------------------------------------------------------------


def traps_against_weights(*studies: Study) -> Figure:
    """Left: traps against the largest weight, in standard deviations. Right: where there are none, one and more, by the
    largest weight and the mean, each over what makes a trap by itself according to random-matrix theory.

    >>> traps_against_weights(study("results/express/wd0"), study("results/express/wd0.01"))    # doctest: +SKIP

    A dot per network and analysed step, from where the training set is learnt.
    """
    layers = list(dict.fromkeys(layer for data in studies for layer in data.layers))
    jitter = np.random.default_rng(0)
    with style():
        figure, (left, right) = plt.subplots(1, 2, figsize=(_WIDTH, 3.6))
        for data, layer in [(some, layer) for some in studies for layer in some.layers]:
            own = data.after_memorisation(data.diagnostics[data.diagnostics.layer == layer]).dropna(subset=["traps"])
            color = layer_color(layer, layers)
            y = own.traps + jitter.uniform(-0.08, 0.08, len(own))
            left.plot(own.max_over_std, y, ".", ms=3.5, alpha=0.5, color=color, mew=0)
            left.axvline(lone_weight(data.shape(layer)), color=color, ls="--", lw=1.2)
            x = own.mean_over_std.abs() / mean_shift(data.shape(layer))
            y = own.max_over_std / lone_weight(data.shape(layer))
            for traps, (least, below) in _HOW_MANY.items():
                some = (own.traps >= least) & (own.traps < below)
                right.plot(x[some], y[some], ".", ms=3.5, alpha=0.5, color=traps, mew=0)
        for i, layer in enumerate(layers):
            left.text(0.97, 0.95 - 0.08 * i, layer, color=layer_color(layer, layers), transform=left.transAxes,
                      ha="right", va="top", fontsize=9)  # fmt: skip
        for i, (color, name) in enumerate(zip(_HOW_MANY, ("no trap", "one", "more"), strict=True)):
            right.text(0.97, 0.95 - 0.08 * i, name, color=color, transform=right.transAxes, ha="right", va="top",
                       fontsize=9)  # fmt: skip
        right.axvline(1, color="0.35", ls="--", lw=1)
        right.axhline(1, color="0.35", ls="--", lw=1)
        left.set(xlabel="largest |weight − mean| / std", ylabel="traps, mean over shuffles")
        right.set(xlabel="|mean| over what makes a trap", ylabel="largest weight over\nwhat makes a trap")
        right.set(xlim=(0, None), ylim=(0, None))
        figure.suptitle("\n".join(data.label for data in studies), fontsize=9, color="0.25")
    return _shown_once(figure)


# Colours of no trap, one trap and more, and what counts as each in a mean over shuffles.
_HOW_MANY = {"#8a8a8a": (-np.inf, 0.5), "#1f9e89": (0.5, 1.5), "#7d1f6b": (1.5, np.inf)}


def lead_dots(found: pd.DataFrame, data: Study) -> Figure:
    """When each signal went off, in decades before the fall of the test accuracy; a dot per seed, a bar at the
    median. Signals that came in fewer than half of the seeds that fell are left out.

    >>> from grokutils.paper.kit.tables import leads
    >>> data = study("results/express/wd0")                          # doctest: +SKIP
    >>> lead_dots(leads(data), data)                                 # doctest: +SKIP
    """
    summary = lead_summary(found)
    often = summary[(summary.before + summary.after) * 2 >= summary.fell.clip(lower=1)]
    often = often.sort_values("lead", kind="stable")
    with style():
        figure, axes = plt.subplots(figsize=(_WIDTH, max(1.6, 0.23 * len(often) + 1.0)))
        for y, row in enumerate(often.itertuples()):
            own = found[(found.layer == row.layer) & (found.signal == row.signal)]
            color = layer_color(row.layer) if row.layer in _LAYER_COLORS else COLORS["norm"]
            axes.plot(own.lead_decades, np.full(len(own), y), "o", ms=4, alpha=0.4, color=color, mec="none")
            axes.plot([row.lead] * 2, [y - 0.35, y + 0.35], color=color, lw=2)
        names = [f"{NAMES.get(row.signal, row.signal)}, {row.layer}" for row in often.itertuples()]
        axes.set_yticks(range(len(often)), names, fontsize=8)
        axes.axvline(0, color="0.2", lw=1)
        axes.set(xlabel="lead over the fall of the test accuracy, in decades of steps", ylim=(-0.7, len(often) - 0.3))
        if not len(often):
            axes.text(0.5, 0.5, "the test accuracy of none has fallen for good", transform=axes.transAxes, ha="center", **_NOTE)
        _headed(figure, data)
    return _shown_once(figure)


# -- parts --------------------------------------------------------------------------------------------------


def _chosen(data: Study, member: int | None, step: int | None) -> tuple[int, int]:
    member = data.members[0] if member is None else member
    if step is None:
        best = data.phase_steps.loc[member, "grokking"]
        step = data.nearest(data.step) if pd.isna(best) else int(best)
    return member, step


def _seed(data: Study, member: int) -> int:
    return data.config.networks[member].seed


def _headed(figure: Figure, data: Study, more: str = "") -> None:
    figure.suptitle(textwrap.fill(data.label, 100) + (f"\n{more}" if more else ""), fontsize=9, color="0.25")


def _stack(count: int, data: Study) -> tuple[Figure, list[Axes]]:
    figure, panels = plt.subplots(count, 1, sharex=True, figsize=(_WIDTH, 1.0 + 1.35 * count))
    return figure, list(panels)


def _finish(figure: Figure, panels: list[Axes], data: Study, labels: bool = True) -> None:
    """Tints, the common axis of steps, and what the figure shows."""
    for axes in panels:
        phase_tints(axes, data.phases, data.step, labels=False)
    panels[0].set(xscale="log", xlim=(1, max(data.step, 10)))
    if labels:
        _phase_names(panels[0], data)
    panels[-1].set_xlabel("optimisation step")
    figure.align_ylabels(panels)
    _headed(figure, data)


def _phase_names(axes: Axes, data: Study) -> None:
    """The names of the phases over their tints, where there is room; the caption explains the tints anyway."""
    found, end = data.phases, max(data.step, 10)
    starts = dict(zip(PHASES, (found.memorised, found.grokking, found.collapse), strict=True))
    known = [(name, max(start, 1)) for name, start in starts.items() if start is not None]
    for i, (name, start) in enumerate(known):
        last = i + 1 == len(known)
        stop = end if last else known[i + 1][1]
        width = np.log(stop / start) / np.log(end)
        if width < 0.1 and not last:
            continue
        place = dict(x=end, ha="right") if last and width < 0.15 else dict(x=start, ha="left")
        axes.text(y=1.02, s=name, transform=axes.get_xaxis_transform(), va="bottom", fontsize=8, color="0.35", **place)


def _accuracies(axes: Axes, data: Study, labels: bool = True) -> None:
    for name in ("train", "test"):
        _series(axes, data.metrics, f"{name}_accuracy", COLORS[name], label=name if labels else None)
    axes.set(ylabel="accuracy", ylim=(0, 1.04))
    if labels:
        _direct_labels([axes], data)


def _series(
    axes: Axes, frame: pd.DataFrame, column: str, color: str, label: str | None = None, spread: str | None = None,
    width: float = 1.8,
) -> None:  # fmt: skip
    """One quantity over steps: the median of the members with their central 80 %, or a single one with its own
    standard error, if it has one."""
    shown = frame[(frame.step >= 1)].dropna(subset=[column])
    if shown.empty:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", **_NOTE)
        return
    over = shown.groupby("step")[column]
    middle = over.median()
    (line,) = axes.plot(middle.index, middle, color=color, lw=width, zorder=3)
    line.set_gid(column)
    if label:
        line.set_label(label)
    if shown.member.nunique() > 1:
        low, high = over.quantile(0.1), over.quantile(0.9)
    elif spread is not None:
        error = shown.groupby("step")[spread].median()
        low, high = middle - error, middle + error
    else:
        return
    axes.fill_between(middle.index, low, high, color=color, alpha=0.2, lw=0, zorder=2)


def _direct_labels(panels: Sequence[Axes], data: Study) -> None:
    """Names at the ends of the lines, moved apart where they would overlap."""
    for axes in panels:
        named = [line for line in axes.lines if not line.get_label().startswith("_")]
        ends = sorted(((line.get_ydata()[-1], line) for line in named), key=lambda pair: pair[0])
        for i, (y, line) in enumerate(ends):
            near = len(ends) > 1 and ends[1][0] - ends[0][0] < 0.14 * np.ptp(axes.get_ylim())
            shift = (6 if i else -6) if near else 0
            axes.annotate(line.get_label(), (line.get_xdata()[-1], y), xytext=(4, shift), textcoords="offset points",
                          color=line.get_color(), va="center", fontsize=9, annotation_clip=False)  # fmt: skip


def _alpha_axis(axes: Axes, *also: Axes) -> None:
    """A logarithmic axis: alpha is always above 1, and has been above 20."""
    # of lines and bands; panels without any are not counted
    highest = max((each.dataLim.y1 for each in (axes, *also) if each.lines), default=8)
    for each in (axes, *also):
        each.axhline(ALPHA_LOW, color="0.2", ls="--", lw=1)
    axes.set(yscale="log", ylim=(1, np.clip(1.15 * highest, 8, 32)))
    axes.yaxis.set_major_locator(LogLocator(base=2, numticks=12))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.text(1.15, ALPHA_LOW * 1.04, "α = 2", va="bottom", **_NOTE)
