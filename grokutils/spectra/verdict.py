"""What the numbers of a layer say of it: every threshold, and the words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

__all__ = ["THRESHOLDS", "VERDICTS", "Thresholds", "verdict", "with_verdicts"]


@dataclass(frozen=True)
class Thresholds:
    """Where one verdict ends and the next begins; the only place.

    P1 (section 3.1) calls alpha between 2 and 5 or 6 moderately heavy-tailed: layers that have learnt. Below 2
    is very heavy-tailed, above 5 or 6 random-like. It calls the lower bound hard and the upper one loose: alpha
    lies under 6 for 3 of 20 random matrices of 200 x 784, and 15 of 20 of 64 x 100. So a layer also counts as
    random if no eigenvalue of it stands out of the bulk that a random matrix would fill.
    """

    over_correlated_below: float = 2.0
    under_trained_above: float = 6.0
    #: Mean number of traps over the shuffles: half a trap means that about every other shuffle shows one.
    trapped_from: float = 0.5
    #: For the reason only: a weight carries a trap if its share of the singular value is this large,
    carried_from: float = 0.5
    #: and a mean this far from zero, in standard deviations, makes a trap (0.07 in 200 x 784, 0.1 in 200 x 200).
    shifted_from: float = 0.07
    #: Zeros leave the other weights far out: of Gaussian entries, a fifth kept make traps in 200 x 784.
    zeros_from: float = 0.5


THRESHOLDS = Thresholds()

#: What each verdict means, in the order in which `verdict` decides.
VERDICTS = {
    "trapped": "eigenvalues stand out of the random bulk although the entries were shuffled: a fingerprint to look at, no proof "
    "of harm",
    "undetermined": "no power law could be fitted, so there is no alpha; the reason says why",
    "over-correlated": "alpha is below 2: a very heavy tail, said to come with overfitting; a fingerprint to look at, no proof of "
    "harm",
    "under-trained": "alpha is above 6, or no eigenvalue stands out of the random bulk: close to a random matrix",
    "well-trained": "alpha lies between 2 and 6, some eigenvalues stand out of the random bulk, and none are traps",
}


def verdict(row: Mapping[str, Any], thresholds: Thresholds = THRESHOLDS) -> tuple[str, str]:
    """What one row of the table says of its matrix, and why.

    >>> verdict({"alpha": 3.1, "traps": 0.0})
    ('well-trained', 'alpha 3.1 lies between 2 and 6; no traps')

    Parameters
    ----------
    row : of `grokutils.diagnose`; ``alpha`` and ``traps`` are needed, other columns make the reason richer
    thresholds : where the verdicts change

    Returns
    -------
    (verdict, reason). Traps come first, then alpha; "undetermined" where there is no alpha. With alpha between
    the thresholds, a layer without ``spikes`` is "under-trained".
    """
    alpha, traps = float(row["alpha"]), float(row["traps"])
    low, high = thresholds.over_correlated_below, thresholds.under_trained_above
    number = f"alpha {_rounded(alpha, low, high)}"
    if traps >= thresholds.trapped_from:
        reason = f"{traps:.1f} traps{_cause(row, traps, thresholds)}{_zeros(row, thresholds)}"
        return "trapped", reason + (f"; {number} is below {low:g}" if alpha < low else "")
    if math.isnan(alpha):
        return "undetermined", f"no alpha: {row.get('alpha_reason') or 'the reason was not given'}"
    also = _no_traps(row, traps)
    if alpha < low:
        return "over-correlated", f"{number} is below {low:g}; {also}"
    if alpha > high:
        return "under-trained", f"{number} is above {high:g}: close to random; {also}"
    between = f"{number} lies between {low:g} and {high:g}"
    if row.get("spikes") == 0:
        return "under-trained", f"{between}, but no eigenvalue stands out of the random bulk; {also}"
    return "well-trained", f"{between}; {also}"


def with_verdicts(frame: pd.DataFrame, thresholds: Thresholds = THRESHOLDS) -> pd.DataFrame:
    """The table with its two last columns, ``verdict`` and ``reason``."""
    words = [verdict(row, thresholds) for row in frame.to_dict("records")]
    return frame.assign(verdict=[word for word, _ in words], reason=[reason for _, reason in words])


def _rounded(alpha: float, low: float, high: float) -> str:
    """With as few digits as keep it on its side of both thresholds: 1.98 is not to read as 2.0."""
    for digits in (1, 2, 3):
        text = f"{alpha:.{digits}f}"
        if (float(text) < low) == (alpha < low) and (float(text) > high) == (alpha > high):
            return text
    return repr(alpha)


def _cause(row: Mapping[str, Any], traps: float, thresholds: Thresholds) -> str:
    """What makes the traps, as far as the other columns tell. A mean makes one, never more."""
    if row.get("trap_share", math.nan) >= thresholds.carried_from:
        return f", the largest carried by one weight of {row['trap_z']:.0f} standard deviations"
    if traps < 1.5 and abs(mean := row.get("mean_over_std", math.nan)) >= thresholds.shifted_from:
        return f"; the weights' mean is {mean:.2f} standard deviations"
    if not math.isnan(largest := row.get("max_over_std", math.nan)):
        return f"; weights lie up to {largest:.0f} standard deviations from the mean"
    return ""


def _zeros(row: Mapping[str, Any], thresholds: Thresholds) -> str:
    share = row.get("zeros", math.nan)
    return f"; {100 * share:.0f} % of the weights are exactly zero, which makes traps of the others" if share >= thresholds.zeros_from else ""


def _no_traps(row: Mapping[str, Any], traps: float) -> str:
    if math.isnan(traps):
        return f"traps not counted: {row.get('traps_reason') or 'the reason was not given'}"
    return f"a trap in few shuffles ({traps:.2g} on average)" if traps > 0 else "no traps"
