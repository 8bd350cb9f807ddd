"""Where memorisation, grokking and the collapse begin, from the accuracies alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from grokutils.util.checks import Interval

__all__ = ["COLLAPSE", "FALL", "PHASES", "Phases", "find_phases"]

#: The three phases, as the papers call them.
PHASES = ("pre-grokking", "grokking", "anti-grokking")
#: So much test accuracy lost for good is a *fall*, and so much a *collapse*.
FALL, COLLAPSE = 0.05, 0.10
_SHARE = Interval(float, 0, 1, open_low=True)


@dataclass(frozen=True)
class Phases:
    """Steps at which the phases of a run begin; None for one that it has not reached.

    Attributes
    ----------
    memorised : the training set is learnt: the *pre-grokking* phase begins
    grokking : the test accuracy begins its rise for good
    peak : the best test accuracy after memorisation
    collapse : the test accuracy has fallen by ten points for good: the *anti-grokking* phase begins
    peak_accuracy, final_accuracy : test accuracy at the peak and at the end
    fall : the test accuracy has fallen by five points for good
    """

    memorised: int | None
    grokking: int | None
    peak: int | None
    collapse: int | None
    peak_accuracy: float
    final_accuracy: float
    fall: int | None = None


def find_phases(
    metrics: pd.DataFrame, *, memorised: float = 0.99, rise: float = 0.05, fall: float = FALL, collapse: float = COLLAPSE
) -> Phases:
    """Phases of one member's metrics (columns ``step``, ``train_accuracy``, ``test_accuracy``).

    >>> frame = pd.DataFrame({"step": [0, 10, 100, 1000, 10000],
    ...     "train_accuracy": [0.1, 1, 1, 1, 1], "test_accuracy": [0.1, 0.2, 0.3, 0.9, 0.6]})
    >>> find_phases(frame)
    Phases(memorised=10, grokking=100, peak=1000, collapse=10000, peak_accuracy=0.9, final_accuracy=0.6, fall=10000)

    Parameters
    ----------
    memorised : training accuracy that counts as learnt
    rise : grokking begins where the test accuracy is this far above its value at memorisation, and stays
    fall, collapse : begin where it is this far below its peak, and stays, while the training set is
        still known (the median of the training accuracies from there on counts as learnt)

    Raises
    ------
    ValueError : a missing column, no rows, rows of several members, or an accuracy or a threshold outside
        0 to 1.
    """
    for name, value in (("memorised", memorised), ("rise", rise), ("fall", fall), ("collapse", collapse)):
        _SHARE.check(name, value)
    missing = {"step", "train_accuracy", "test_accuracy"} - set(metrics.columns)
    if missing:
        raise ValueError(f"metrics must have the columns step, train_accuracy, test_accuracy; no {min(missing)}.")
    if metrics.empty:
        raise ValueError("metrics must have at least one row; got none.")
    metrics = metrics.dropna(subset=["train_accuracy", "test_accuracy"], how="all")  # where only a loss was measured
    if metrics.empty:
        raise ValueError("phases need train_accuracy and test_accuracy, which were not measured in this run.")
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
    fallen = []
    for points in (fall, collapse):
        falling = _lasting(test[peak:] <= test[peak] - points)
        # of most measurements since, not of each: one image forgotten for a moment ends no collapse
        known = falling is not None and np.median(train[peak + falling :]) >= memorised
        fallen.append(int(step[peak + falling]) if known else None)
    return Phases(
        memorised=int(step[start]),
        grokking=None if rising is None else int(step[start + rising]),
        peak=int(step[peak]),
        collapse=fallen[1],
        peak_accuracy=float(test[peak]),
        final_accuracy=float(test[-1]),
        fall=fallen[0],
    )


def _lasting(holds: np.ndarray) -> int | None:
    """First position from which a condition holds to the end, None if it does not hold at the end."""
    if not holds.size or not holds[-1]:
        return None
    broken = np.flatnonzero(~holds)
    return int(broken[-1]) + 1 if broken.size else 0
