"""Page 04: what makes a trap in the networks of the records."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from grokutils.records.study import NAMES, Study
from grokutils.spectra.trap_makers import lone_weight, mean_shift, trap_carriers, trap_causes

__all__ = ["printed_causes", "printed_correlates", "trap_carriers", "trap_causes", "trap_correlates", "trap_sizes"]


def trap_correlates(data: Study) -> pd.DataFrame:
    """Whether traps can be told from two numbers that cost next to nothing.

    >>> trap_correlates(study("results/express/wd0"))                # doctest: +SKIP

    Returns
    -------
    DataFrame, a row per layer, over all analysed steps and members from where the training set is learnt: Spearman's
    rank correlation of the number of traps with ``max_over_std``, ``kurtosis`` and |``mean_over_std``| (NaN where one
    of the two is constant), and ``agree``, in which share of ``networks`` "there is a trap" agrees with "the mean passes
    `mean_shift` or the largest weight passes `lone_weight`"; ``trapped``, the share that has one.
    """
    rows = []
    for layer in data.layers:
        own = data.after_memorisation(data.diagnostics[data.diagnostics.layer == layer]).dropna(subset=["traps"])
        shape = data.shape(layer)
        trapped = own.traps >= 0.5
        predicted = (own.mean_over_std.abs() > mean_shift(shape)) | (own.max_over_std > lone_weight(shape))
        ranks = own.assign(mean_over_std=own.mean_over_std.abs()).rank()
        rows.append({
            "layer": layer, "networks": len(own), "trapped": float(trapped.mean()),
            **{name: _correlation(ranks[name], ranks.traps) for name in ("max_over_std", "kurtosis", "mean_over_std")},
            "agree": float((trapped == predicted).mean()),
        })  # fmt: skip
    return pd.DataFrame(rows)


def trap_sizes(*studies: Study) -> pd.DataFrame:
    """What makes a trap by itself in the layers of these studies: `lone_weight` and `mean_shift` of each shape."""
    shapes = {f"{layer}, {data.config.recipe_name}": data.shape(layer) for data in studies for layer in data.layers}
    return pd.DataFrame({
        "shape": {name: f"{rows} × {columns}" for name, (rows, columns) in shapes.items()},
        "a lone weight, in std": {name: f"{lone_weight(shape):.1f}" for name, shape in shapes.items()},
        "a mean, in std": {name: f"{mean_shift(shape):.3f}" for name, shape in shapes.items()},
    })  # fmt: skip


def printed_correlates(*studies: Study) -> pd.DataFrame:
    """`trap_correlates` of several studies as a reader sees them."""
    rows = {}
    for data in studies:
        for row in trap_correlates(data).to_dict("records"):
            ranks = {name: row[name] for name in ("max_over_std", "kurtosis", "mean_over_std")}
            rows[data.place, row["layer"]] = {
                "networks × steps": f"{row['networks']:,}", "with a trap": _percent(row["trapped"]),
                **{f"ρ, {NAMES[name]}": "–" if math.isnan(rank) else f"{rank:+.2f}" for name, rank in ranks.items()},
                "agreement": _percent(row["agree"]),
            }  # fmt: skip
    return pd.DataFrame.from_dict(rows, orient="index")


def _percent(share: float) -> str:
    return "–" if math.isnan(share) else f"{share:.0%}"


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


def _correlation(x: pd.Series, y: pd.Series) -> float:
    return float(np.corrcoef(x, y)[0, 1]) if x.nunique() > 1 and y.nunique() > 1 else np.nan
