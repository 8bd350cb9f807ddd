"""Where memorisation, grokking and the collapse begin, from the accuracies alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["Phases", "find_phases"]


@dataclass(frozen=True)
class Phases:
    """Steps at which the phases of a run begin; None for one that it has not reached.

    Attributes
    ----------
    memorised : the training set is learnt: the *pre-grokking* phase begins
    grokking : the test accuracy begins its rise for good
    peak : the best test accuracy after memorisation
    collapse : the test accuracy has fallen for good: the *anti-grokking* phase begins
    peak_accuracy, final_accuracy : test accuracy at the peak and at the end
    """

    memorised: int | None
    grokking: int | None
    peak: int | None
    collapse: int | None
    peak_accuracy: float
    final_accuracy: float


def find_phases(
    metrics: pd.DataFrame, *, memorised: float = 0.99, rise: float = 0.05, drop: float = 0.10
) -> Phases:
    """Phases of one member's metrics (columns ``step``, ``train_accuracy``, ``test_accuracy``).

    >>> frame = pd.DataFrame({"step": [0, 10, 100, 1000, 10000],
    ...     "train_accuracy": [0.1, 1, 1, 1, 1], "test_accuracy": [0.1, 0.2, 0.3, 0.9, 0.6]})
    >>> find_phases(frame)
    Phases(memorised=10, grokking=100, peak=1000, collapse=10000, peak_accuracy=0.9, final_accuracy=0.6)

    Parameters
    ----------
    memorised : training accuracy that counts as learnt
    rise : grokking begins where the test accuracy is this far above its value at memorisation, and stays
    drop : the collapse begins where it is this far below its peak, and stays, while the training set is
        still known

    Raises
    ------
    ValueError : a missing column, no rows, rows of several members, or an accuracy or a threshold outside
        0 to 1.
    """
    for name, value in (("memorised", memorised), ("rise", rise), ("drop", drop)):
        if not 0 < value <= 1:
            raise ValueError(f"{name} must be greater than 0 and at most 1; got {value!r}.")
    missing = {"step", "train_accuracy", "test_accuracy"} - set(metrics.columns)
    if missing:
        raise ValueError(f"metrics must have the columns step, train_accuracy, test_accuracy; no {min(missing)}.")
    if metrics.empty:
        raise ValueError("metrics must have at least one row; got none.")
    if metrics.step.duplicated().any():
        raise ValueError("metrics must be those of one member; a step is there twice.")
    for name in ("train_accuracy", "test_accuracy"):
        outside = metrics[name][~metrics[name].between(0, 1)]  # NaN is outside too
        if len(outside):
            raise ValueError(f"{name} must be between 0 and 1; got {outside.iloc[0]}.")
    frame = metrics.sort_values("step")
    step = frame.step.to_numpy()
    train, test = frame.train_accuracy.to_numpy(), frame.test_accuracy.to_numpy()
    learnt = np.flatnonzero(train >= memorised)
    if not learnt.size:
        return Phases(None, None, None, None, float(test.max()), float(test[-1]))
    start = int(learnt[0])
    peak = start + int(np.argmax(test[start:]))
    rising = _lasting(test[start : peak + 1] >= test[start] + rise)
    falling = _lasting((test[peak:] <= test[peak] - drop) & (train[peak:] >= memorised))
    return Phases(
        memorised=int(step[start]),
        grokking=None if rising is None else int(step[start + rising]),
        peak=int(step[peak]),
        collapse=None if falling is None else int(step[peak + falling]),
        peak_accuracy=float(test[peak]),
        final_accuracy=float(test[-1]),
    )


def _lasting(holds: np.ndarray) -> int | None:
    """First position from which a condition holds to the end, None if it does not hold at the end."""
    if not holds.size or not holds[-1]:
        return None
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if broken.size else 0


def onset(steps: np.ndarray, holds: np.ndarray, lasting: int = 3) -> int | None:
    """The first step from which a condition holds `lasting` measurements in a row; None if it never does.

    >>> onset(np.array([1, 10, 100, 1000]), np.array([True, False, True, True]), lasting=2)
    100

    At the end of the record a shorter run of measurements counts if it is all there is.
    """
    holds = np.asarray(holds, dtype=bool)
    for i in np.flatnonzero(holds):
        if holds[i : i + lasting].all():
            return int(steps[i])
    return None


def lead_times(
    metrics: pd.DataFrame, diagnostics: pd.DataFrame, *, drop: float = 0.05, alpha_range: tuple[float, float] = (2, 6)
) -> pd.DataFrame:
    """How long before the fall of the test accuracy each signal went off, for one member.

    Parameters
    ----------
    metrics : columns ``step``, ``train_accuracy``, ``test_accuracy``
    diagnostics : rows of `grokutils.diagnose.diagnose` for the same member
    drop : the fall begins where the test accuracy is this far below its peak for good
    alpha_range : alpha signals when it has been inside and leaves at the lower end

    Returns
    -------
    DataFrame with a row per layer and signal: ``layer``, ``signal``, ``onset`` (step), ``fall`` (step),
    ``lead_decades`` = log10(fall / onset), positive if the signal came first, NaN if either never came.
    The controls signal where they first exceed, for good, the largest value they had up to memorisation by
    half.
    """
    phases = find_phases(metrics, drop=drop)
    fall, learnt = phases.collapse, phases.memorised
    rows = []
    for layer, frame in diagnostics.groupby("layer", sort=False):
        frame = frame.sort_values("step")
        step = frame.step.to_numpy()
        signals = {
            f"alpha below {alpha_range[0]:g}": frame.alpha.to_numpy() < alpha_range[0],
            "first lasting trap": frame.traps.to_numpy() >= 0.5,
        }
        early = step <= (learnt if learnt is not None else step[0])
        for name in ("max_over_std", "kurtosis", "spectral_norm", "l2_norm"):
            value = frame[name].to_numpy()
            before = value[early] if early.any() else value[:1]
            signals[f"{name} up by half"] = value > 1.5 * np.nanmax(before)
        shift = np.abs(frame.mean_over_std.to_numpy())
        signals["|mean|/std above 0.1"] = shift > 0.1
        for name, holds in signals.items():
            at = onset(step, holds)
            lead = np.log10(fall / max(at, 1)) if fall is not None and at is not None else np.nan
            rows.append({"layer": layer, "signal": name, "onset": at, "fall": fall, "lead_decades": lead})
    return pd.DataFrame(rows).astype({"onset": "Int64", "fall": "Int64"})
