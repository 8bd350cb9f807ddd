"""Page 05: the other measures: which of them tells which phases apart, and what goes off before the fall.

>>> printed_effects(effect_sizes(study("results/express/wd0")))      # doctest: +SKIP
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from IPython.display import Markdown
from matplotlib.figure import Figure

from grokutils.paper.judge.stats import bootstrap, cliffs_delta, resampled_delta
from grokutils.paper.kit.curves import progress_curves
from grokutils.paper.kit.figures import COLORS, NOTE, WIDTH, figure, headed, layer_color, use_svg
from grokutils.paper.kit.tables import NONE, interval, printed, readings
from grokutils.records.phases import PHASES
from grokutils.records.signals import NAMES
from grokutils.records.study import Study, study

__all__ = [
    "Markdown", "cliffs_delta", "effect_sizes", "lead_dots", "lead_summary", "leads", "printed", "printed_effects",
    "printed_leads", "progress_curves", "readings", "study", "use_svg",
]  # fmt: skip

#: The pairs of phases that a measure may tell apart.
PAIRS = tuple((a, b) for i, a in enumerate(PHASES) for b in PHASES[i + 1 :])


# -- which measure tells which phases apart -------------------------------------------------------------------------


def effect_sizes(data: Study) -> pd.DataFrame:
    """How well a single reading of each measure tells two phases apart: Cliff's delta over seeds.

    >>> effect_sizes(study("results/express/wd0"))                   # doctest: +SKIP

    Only seeds that have collapsed count where anti-grokking is one of the two. The interval is over seeds, each drawn with
    both of its values.

    Returns
    -------
    Tidy frame: ``measure``, ``where`` (a layer, ``average``, ``network``), ``first`` and ``second`` phase, ``delta``
    (positive if the measure is larger in the second), ``low``, ``high``, ``n`` seeds.
    """
    at = {phase: data.reading(phase, data.collapsed if phase == PHASES[-1] else None) for phase in PHASES}
    rows = []
    for key in data.compared:
        for first, second in PAIRS:
            pair = pd.concat([at[phase].get(key, pd.Series(dtype=float)) for phase in (first, second)], axis=1, join="inner").dropna()
            a, b = pair.to_numpy().T
            seeds = np.arange(len(pair))
            low, high = bootstrap(resampled_delta(a, b, seeds, seeds), len(pair))
            rows.append((*key, first, second, cliffs_delta(a, b), low, high, len(pair)))
    return pd.DataFrame(rows, columns=["measure", "where", "first", "second", "delta", "low", "high", "n"])


def printed_effects(effects: pd.DataFrame) -> pd.DataFrame:
    """`effect_sizes` as a reader sees it: a row per measure, a column per pair of phases."""
    texts = effects.assign(
        pair=effects["first"] + " to " + effects["second"], measure=effects.measure.map(NAMES),
        text=[interval(*row, "+.2f") for row in effects[["delta", "low", "high"]].itertuples(index=False)],
    )  # fmt: skip
    keys = list(dict.fromkeys(zip(texts.measure, texts["where"], strict=True)))
    table = texts.pivot(index=["measure", "where"], columns="pair", values="text")
    table = table.reindex(pd.MultiIndex.from_tuples(keys), columns=list(dict.fromkeys(texts.pair)))
    return table.rename_axis(columns=None)


# -- what goes off first --------------------------------------------------------------------------------------------


def leads(data: Study) -> pd.DataFrame:
    """The leads of the layers and of the network (`Study.leads`), of alpha as fitted."""
    found = data.leads
    return found[(found.layer != "average") & ~found.signal.str.startswith("alpha_clipped")]


def lead_summary(found: pd.DataFrame) -> pd.DataFrame:
    """`leads` over the members, a row per layer and signal.

    >>> lead_summary(leads(study("results/express/wd0")))            # doctest: +SKIP

    Returns
    -------
    Columns ``layer``, ``signal``; of the members whose test accuracy fell: ``fell`` how many there are, in how many
    the signal came ``before`` the fall, ``after`` it (or with it), ``never``; median lead in decades ``lead`` of
    those in which it came at all, with the 95 % bootstrap interval ``low`` to ``high`` of that median; of the
    others: ``stayed`` how many there are and in how many it went off all the same, ``false``.
    """
    rows = []
    for (layer, signal), own in found.groupby(["layer", "signal"], sort=False):
        fell, stayed = own[own.fall.notna()], own[own.fall.isna()]
        lead = fell.lead_decades.dropna().to_numpy()
        low, high = bootstrap(lambda drawn, lead=lead: np.median(lead[drawn], axis=1), len(lead))
        rows.append({
            "layer": layer, "signal": signal, "fell": len(fell), "before": int((lead > 0).sum()),
            "after": int((lead <= 0).sum()), "never": int(fell.onset.isna().sum()),
            "lead": fell.lead_decades.median(), "low": low, "high": high,
            "stayed": len(stayed), "false": int(stayed.onset.notna().sum()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def printed_leads(summary: pd.DataFrame, control: pd.DataFrame | None = None) -> pd.DataFrame:
    """`lead_summary` as a reader sees it; false alarms are those of a control's summary, if one is given."""
    quiet = (summary if control is None else control).set_index(["layer", "signal"]).reindex(
        pd.MultiIndex.from_frame(summary[["layer", "signal"]]), fill_value=0
    )  # fmt: skip
    names = [summary.layer, summary.signal.map(lambda signal: NAMES.get(signal, signal))]
    return pd.DataFrame({
        "median lead, decades": [interval(*row, "+.2f") for row in summary[["lead", "low", "high"]].itertuples(index=False)],
        "before the fall": [f"{k} of {n}" for k, n in zip(summary.before, summary.fell, strict=True)],
        "after": summary.after, "never": summary.never,
        "without a fall": [f"{k} of {n}" if n else NONE for k, n in zip(quiet.false, quiet.stayed, strict=True)],
    }).set_index(names).rename_axis([None, None])  # fmt: skip


@figure
def lead_dots(found: pd.DataFrame, data: Study) -> Figure:
    """When each signal went off, in decades before the fall of the test accuracy; a dot per seed, a bar at the
    median. Signals that came in fewer than half of the seeds that fell are left out.

    >>> data = study("results/express/wd0")                          # doctest: +SKIP
    >>> lead_dots(leads(data), data)                                 # doctest: +SKIP
    """
    summary = lead_summary(found)
    often = summary[(summary.before + summary.after) * 2 >= summary.fell.clip(lower=1)].sort_values("lead", kind="stable")
    named = {(row.layer, row.signal): f"{NAMES.get(row.signal, row.signal)}, {row.layer}" for row in often.itertuples()}
    shown = found.assign(name=[named.get(key) for key in zip(found.layer, found.signal, strict=True)]).dropna(subset="name")
    colors = {name: COLORS["norm"] if layer == "network" else layer_color(layer, data.layers) for (layer, _), name in named.items()}
    made, axes = plt.subplots(figsize=(WIDTH, max(1.6, 0.23 * len(often) + 1.0)))
    if len(often):
        look = dict(x="lead_decades", y="name", hue="name", order=list(colors), palette=colors, ax=axes, legend=False)
        sns.stripplot(shown, jitter=False, alpha=0.4, size=4, **look)
        sns.pointplot(shown, estimator="median", errorbar=None, linestyle="none", marker="|", markersize=12, markeredgewidth=2, **look)
    else:
        axes.text(0.5, 0.5, "the test accuracy of none has fallen for good", transform=axes.transAxes, ha="center", **NOTE)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=8)
    axes.axvline(0, color="0.2", lw=1)
    axes.set(xlabel="lead over the fall of the test accuracy, in decades of steps", ylabel="")
    headed(made, data)
    return made
