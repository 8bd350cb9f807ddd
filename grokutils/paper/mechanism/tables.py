"""Tables of the study of the mechanism, as a reader sees them, and numbers for sentences.

>>> points(-0.041, -0.05, -0.03)
'-4.1 [-5.0, -3.0]'
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from grokutils.paper.mechanism.conditions import CONDITIONS, MNIST, PLANNED, SEEDS, TOPICS, UNTIL

__all__ = [
    "FEATURES", "HERE", "PIXELS", "end_of", "fall_of", "median_of", "plan_table", "points", "printed_compared",
    "printed_fallen", "printed_here", "printed_mnist", "printed_shapes",
]  # fmt: skip

_NONE = "–"


def _number(x: float, style: str = ".2f") -> str:
    return _NONE if not np.isfinite(x) else f"{x:{style}}"


def points(value: float, low: float = np.nan, high: float = np.nan, style: str = ".1f") -> str:
    """A share in points, with its interval if there is one."""
    if not np.isfinite(value):
        return _NONE
    return f"{100 * value:{style}}" + (f" [{100 * low:{style}}, {100 * high:{style}}]" if np.isfinite(low) else "")


def fall_of(compared: pd.DataFrame, name: str, column: str = "fall") -> str:
    """What a condition lost, or the difference to the control's, in points with the interval and the number of seeds."""
    own = compared[compared.name == name]
    if not len(own) or not np.isfinite(own.iloc[0][column]):
        return "not yet measured"
    row = own.iloc[0]
    seeds = row.n if column == "difference" else row.reached
    return f"{points(row[column], row[column + '_low'], row[column + '_high'])} points ({seeds:g} seeds)"


def end_of(rows: pd.DataFrame, name: str) -> str:
    """Test accuracy where a condition begins and where it is best and last, means over seeds.

    For paths that are followed for a number of steps and not to a distance.
    """
    own = rows[rows.name == name].sort_values("step") if len(rows) else rows
    if not len(own):
        return "(not yet measured)"
    by = own.groupby("seed").test_settled
    first, best, last = by.first(), by.max(), by.last()
    return f"{first.mean():.3f} to {best.mean():.3f} at best and {last.mean():.3f} at the end ({len(first)} seeds)"


def median_of(rows: pd.DataFrame, name: str, column: str, of_seed: str = "first", style: str = ".2f") -> str:
    """Median over seeds of a column of one condition, of which each seed gives its first row, last, max or min."""
    own = rows[rows.name == name] if len(rows) else rows
    return _number(own.groupby("seed")[column].agg(of_seed).median(), style) if len(own) else "(not yet measured)"


def plan_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The plan: what each condition changes, when it was added, and of how many seeds there are records."""
    made = {}
    for path in (*CONDITIONS, *MNIST):
        own = rows[rows.name == path.name] if len(rows) else rows
        far = own.groupby("seed").reached.max() if len(own) else pd.Series(dtype=float)
        made[TOPICS[path.topic], path.name] = {
            "what is changed": path.says, "planned": path.added or PLANNED,
            "seeds recorded": f"{len(far)} of {len(SEEDS) if path in CONDITIONS else 1}",
            "median distance": _number(far.median()) if len(far) else _NONE,
            f"reached {UNTIL:g}": f"{int((far >= UNTIL - 1e-6).sum())}",
            "steps at most": f"{path.most:,}" if not path.saved else _NONE,
        }  # fmt: skip
    return pd.DataFrame.from_dict(made, orient="index").rename_axis(index=[None, None])


def _p(p: float) -> str:
    return _NONE if not np.isfinite(p) else "< 0.001" if p < 0.001 else f"{p:.3f}"


def printed_compared(compared: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.mechanism.study.compare` as a reader sees it."""
    made = {}
    for row in compared.to_dict("records"):
        made[TOPICS[row["topic"]], row["says"]] = {
            "came so far": f"{row['reached']} of {row['seeds']}",
            "steps": f"{row['steps']:,.0f}",
            "lost, points": points(*(row[name] for name in ("fall", "fall_low", "fall_high"))),
            "less Adam's": points(*(row[name] for name in ("difference", "difference_low", "difference_high")), "+.1f"),
            "p": _p(row["p"]), "p, corrected": _p(row["p_holm"]), "it": row["verdict"],
        }  # fmt: skip
    return pd.DataFrame.from_dict(made, orient="index").rename_axis(index=[None, None])


#: What `printed_here` shows: the columns of the record, and how many digits.
HERE = {
    "norm": ("norm / fork", ".2f"), "displacement_fc1": ("FC1 moved", ".2f"), "displacement_fc2": ("FC2 moved", ".2f"),
    "displacement_fc3": ("FC3 moved", ".2f"), "train_accuracy": ("train", ".3f"), "test_settled": ("test", ".3f"),
    "alpha_fc1": ("α of FC1", ".2f"), "alpha_fc2": ("α of FC2", ".2f"), "traps_fc1": ("traps of FC1", ".1f"),
    "traps_fc2": ("traps of FC2", ".1f"), "max_over_std_fc1": ("max|w|/std of FC1", ".1f"),
}  # fmt: skip
#: Where the lost accuracy could be.
FEATURES = {
    "test_settled": ("test", ".3f"), "probe_fc1": ("read from FC1", ".3f"), "probe_fc2": ("read from FC2", ".3f"),
    "known_fc1": ("known to FC1", ".3f"), "known_fc2": ("known to FC2", ".3f"), "cka_fc1": ("CKA of FC1", ".2f"),
    "cka_fc2": ("CKA of FC2", ".2f"),
}  # fmt: skip
PIXELS = {
    "change_rare": ("share of FC1's change on rare pixels", ".2f"), "change_unused": ("on unused pixels", ".2f"),
    "test_accuracy": ("test", ".3f"), "test_plain": ("images without them", ".3f"), "test_others": ("the others", ".3f"),
    "test_blanked": ("those pixels blanked", ".3f"), "test_rare_back": ("rare weights put back", ".3f"),
    "test_unused_off": ("unused weights off", ".3f"),
}  # fmt: skip


def printed_here(here: pd.DataFrame, columns: dict[str, tuple[str, str]] = HERE, names: Sequence[str] = ()) -> pd.DataFrame:
    """What the networks are like there: medians over seeds of `grokutils.paper.mechanism.study.at`."""
    made = {}
    for path in (*CONDITIONS, *MNIST):
        own = here[(here.name == path.name) & here.reached]
        if len(own) and (not names or path.name in names):
            made[path.says] = {
                label: _number(own[column].median(), style) for column, (label, style) in columns.items()
            } | {"seeds": len(own)}
    return pd.DataFrame.from_dict(made, orient="index")


def printed_mnist(rows: pd.DataFrame, levels: Sequence[float] = (0.2, 0.4, 0.6, 0.9)) -> pd.DataFrame:
    """The paths on MNIST: test accuracy at the fork, and where they have first come to some displacements, with the displacement
    itself; the last column is where the path ends."""
    made = {}
    for path in MNIST:
        own = rows[rows.name == path.name].sort_values("step") if len(rows) else rows
        if not len(own):
            continue
        row = {"fork": _number(own.test_settled.iloc[0], ".3f")}
        for level in levels:
            far = own[own.displacement >= level]
            row[f"at {level:g}"] = f"{far.test_settled.iloc[0]:.3f} ({far.displacement.iloc[0]:.2f})" if len(far) else _NONE
        row |= {
            "end": f"{own.test_settled.iloc[-1]:.3f} ({own.displacement.iloc[-1]:.2f})",
            "norm / fork": _number(own.norm.iloc[-1]), "train": _number(own.train_accuracy.iloc[-1], ".3f"),
            "α of FC1": _number(own.alpha_fc1.iloc[-1]), "traps of FC1": _number(own.traps_fc1.iloc[-1], ".1f"),
        }  # fmt: skip
        made[path.says] = row
    return pd.DataFrame.from_dict(made, orient="index")


def printed_shapes(shapes: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.mechanism.study.shapes` as a reader sees it: medians over seeds."""
    made = {}
    for path in CONDITIONS:
        own = shapes[shapes.name == path.name]
        if len(own):
            made[path.says] = {
                "path / displacement": _number(own.length.median(), ".1f"), "cosine": _number(own.turn.median()),
                "moved in bursts": _number(own.bursts.median()), "of the time": _number(own.burst_time.median()),
                "lowest train on the line": _number(own.barrier.median(), ".3f"), "seeds": len(own),
            }  # fmt: skip
    return pd.DataFrame.from_dict(made, orient="index")


def printed_fallen(fallen: pd.DataFrame) -> pd.DataFrame:
    """`grokutils.paper.mechanism.study.when_fallen` as a reader sees it: medians over seeds."""
    made = {}
    for path in CONDITIONS:
        own = fallen[fallen.name == path.name] if len(fallen) else fallen
        if len(own):
            made[path.says] = {
                "seeds": len(own), "displacement": _number(own.displacement.median()),
                "norm / fork": _number(own.norm.median()), "α of FC1": _number(own.alpha_fc1.median()),
                "α of FC2": _number(own.alpha_fc2.median()), "traps of FC1": _number(own.traps_fc1.median(), ".1f"),
                "traps of FC2": _number(own.traps_fc2.median(), ".1f"),
                "max|w|/std of FC1": _number(own.max_over_std_fc1.median(), ".1f"),
            }  # fmt: skip
    return pd.DataFrame.from_dict(made, orient="index")
