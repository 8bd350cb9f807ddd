"""What a scan found, as text for a terminal."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import scipy.stats

from grokutils.spectra.scan import stack_of
from grokutils.spectra.table import not_measured
from grokutils.util.text import visible

__all__ = ["experts", "summary"]

_BARS = " ▁▂▃▄▅▆▇█"
_EDGES = np.append(np.arange(1, 10.01, 0.5), np.inf)
_MOST = 12  # lines of a list


def experts(frame: pd.DataFrame) -> pd.DataFrame:
    """A row for each stack of experts: means over those measured, and 95 % intervals for the mean over all.

    >>> names = [f"layers.0.experts.up[{i}]" for i in range(3)]
    >>> table = pd.DataFrame({"layer": names, "block": 0, "expert": range(3), "experts": 3,
    ...                       "alpha": [2.0, 3.0, 4.0], "traps": [0.0, 1.0, 0.0]})
    >>> experts(table)[["stack", "experts", "measured", "alpha", "alpha_low"]].values.tolist()
    [['layers.0.experts.up[*]', 3, 3, 3.0, 3.0]]

    The intervals are Student's, narrowed by how many of the stack were measured; with all of them they have no width, and with one of
    several they are NaN. Columns ``stack``, ``block``, ``experts``, ``measured``, and for alpha and traps the mean, ``_low`` and
    ``_high``.
    """
    rows = []
    chosen = frame[frame["expert"] >= 0]
    for stack, part in chosen.groupby(chosen["layer"].map(stack_of), sort=False):
        row = {"stack": stack, "block": int(part["block"].iloc[0]), "experts": int(part["experts"].iloc[0]), "measured": len(part)}
        for name in ("alpha", "traps"):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = _interval(part[name].dropna().to_numpy(), row["experts"])
        rows.append(row)
    columns = ["stack", "block", "experts", "measured", "alpha", "alpha_low", "alpha_high", "traps", "traps_low", "traps_high"]
    return pd.DataFrame(rows, columns=columns)


def _interval(values: np.ndarray, of: int) -> tuple[float, float, float]:
    n = values.size
    if n == 0:
        return math.nan, math.nan, math.nan
    mean = float(values.mean())
    if n >= of:
        return mean, mean, mean
    if n == 1:
        return mean, math.nan, math.nan
    half = scipy.stats.t.ppf(0.975, n - 1) * values.std(ddof=1) / math.sqrt(n) * math.sqrt(1 - n / of)
    return mean, mean - float(half), mean + float(half)


def summary(frame: pd.DataFrame) -> str:
    """Alpha by kind, traps by layer and expert, largest first, and what was not measured."""
    lines = ["Alpha by kind (bars: 1 to 10 in steps of a half, the last for all above):"]
    kinds = frame.groupby("kind", sort=False)
    width = max([len(str(kind)) for kind in kinds.groups], default=0)
    for kind, part in sorted(kinds, key=lambda item: -len(item[1])):
        alpha = part["alpha"].dropna()
        said = "no alpha" if alpha.empty else (
            f"median {alpha.median():5.2f}, 5 to 95 % {alpha.quantile(0.05):5.2f} to {alpha.quantile(0.95):5.2f}, "
            f"{(alpha < 2).sum():,} below 2, {(alpha > 6).sum():,} above 6"
        )
        none = f", {len(part) - len(alpha):,} without" if 0 < len(alpha) < len(part) else ""
        lines.append(f"  {kind:<{width}} {len(part):>6,} |{_bars(alpha.to_numpy())}| {said}{none}")
    trapped = frame[frame["traps"] > 0].sort_values(["traps", "trap_strength"], ascending=False, kind="stable")
    counted = int(frame["traps"].notna().sum())
    lines += ["", f"Traps: in {len(trapped):,} of {counted:,} matrices in which they were counted{', largest first:' if len(trapped) else '.'}"]
    for row in trapped.head(_MOST).to_dict("records"):
        lines.append(
            f"  {visible(row['layer'])}: {row['traps']:.3g}, the largest {row['trap_strength']:.2f} times the threshold; "
            f"weights up to {row['max_over_std']:.0f} standard deviations"
        )
    if len(trapped) > _MOST:
        lines.append(f"  ... and {len(trapped) - _MOST:,} more")
    stacks = experts(frame)
    if len(stacks):
        sampled = bool((stacks["measured"] < stacks["experts"]).any())
        lines += ["", f"Experts by stack{', means over all with 95 % intervals' if sampled else ''}, most traps first:"]
        ordered = stacks.sort_values(["traps", "alpha"], ascending=[False, True], kind="stable")
        for row in ordered.head(_MOST).to_dict("records"):
            lines.append(
                f"  {visible(row['stack'])}: {row['measured']} of {row['experts']}, alpha {_between(row, 'alpha')}, traps {_between(row, 'traps')}"
            )
        if len(stacks) > _MOST:
            lines.append(f"  ... and {len(stacks) - _MOST:,} more")
    failed = frame[frame["alpha"].isna() | frame["traps"].isna()]
    if len(failed):
        reasons = failed["alpha_reason"].where(failed["alpha"].isna(), failed["traps_reason"]).value_counts()
        said = "; ".join(f"{count:,}: {visible(reason)}" for reason, count in reasons.head(_MOST).items())
        lines += ["", f"Without alpha or traps: {len(failed):,} matrices ({said})."]
    if frame.attrs.get("not_asked_for"):
        lines += ["", f"Not asked for: {frame.attrs['not_asked_for']:,} matrices."]
    if missing := not_measured(frame):
        lines += ["", missing]
    return "\n".join(lines)


def _between(row: dict, name: str) -> str:
    mean = f"{row[name]:.2f}"
    return mean if row[f"{name}_low"] == row[name] else f"{mean} ({row[f'{name}_low']:.2f} to {row[f'{name}_high']:.2f})"


def _bars(alpha: np.ndarray) -> str:
    counts = np.histogram(alpha, _EDGES)[0]
    heights = np.ceil(counts / max(counts.max(), 1) * (len(_BARS) - 1)).astype(int)
    return "".join(_BARS[h] for h in heights)
