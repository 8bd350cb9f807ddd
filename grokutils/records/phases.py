"""Where memorisation, grokking and the collapse begin, from the accuracies alone, and what announced it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

__all__ = ["LAYER_CONTROLS", "NETWORK_CONTROLS", "PHASES", "Phases", "early_range", "find_phases", "lead_times", "onset"]

#: The three phases, as the papers call them.
PHASES = ("pre-grokking", "grokking", "anti-grokking")


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
        still known (the median of the training accuracies from there on counts as learnt)

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
    falling = _lasting(test[peak:] <= test[peak] - drop)
    # of most measurements since, not of each: one image forgotten for a moment ends no collapse
    if falling is not None and np.median(train[peak + falling :]) < memorised:
        falling = None
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
    """The first step from which a condition holds for `lasting` measurements in a row; None if it never does.

    >>> onset(np.array([1, 10, 100, 1000]), np.array([True, False, True, True]), lasting=2)
    100

    At the end of a record fewer measurements count, if the condition holds in all that are left.
    """
    holds = np.asarray(holds, dtype=bool)
    for i in np.flatnonzero(holds):
        if holds[i : i + lasting].all():
            return int(steps[i])
    return None


# A range needs a few measurements to mean anything.
_FEWEST = 5


def early_range(
    steps: np.ndarray, values: np.ndarray, rise: int | None
) -> tuple[int, float, float, float] | None:
    """The range of a signal before the test accuracy rose: of how many values, the smallest, the largest, and its
    width; None if fewer than two of them are finite.

    >>> early_range(np.array([1, 2, 3, 4, 5, 6]), np.array([3.0, 2.0, 4.0, 3.0, 3.0, 9.0]), rise=6)
    (5, 2.0, 4.0, 2.0)

    Five values are taken if there are fewer before the rise, or none. The width is never below a 1e-9 of the values:
    what rounding does to a constant signal is no change.
    """
    count = max(int((steps < rise).sum()) if rise is not None else 0, _FEWEST)
    reference = values[:count][np.isfinite(values[:count])]
    if reference.size < 2:
        return None
    low, high = float(reference.min()), float(reference.max())
    return count, low, high, max(high - low, 1e-9 * max(abs(low), abs(high)), 1e-300)


# What is measured of each layer and serves as a control of alpha and of the traps, and of the network.
LAYER_CONTROLS = (
    "max_over_std", "kurtosis", "mean_over_std", "spectral_norm", "l2_norm", "stable_rank", "effective_rank",
)  # fmt: skip
NETWORK_CONTROLS = (
    "l2_norm", "activation_sparsity_text", "activation_sparsity_notebook", "absolute_weight_entropy_text",
    "absolute_weight_entropy_notebook", "circuit_complexity_text", "circuit_complexity_notebook",
)  # fmt: skip

def lead_times(
    metrics: pd.DataFrame,
    diagnostics: pd.DataFrame,
    baselines: pd.DataFrame | None = None,
    *,
    drop: float = 0.05,
    alpha_range: tuple[float, float] = (2.0, 6.0),
    trapped_from: float = 0.5,
    lasting: int = 3,
) -> pd.DataFrame:
    """How long before the fall of the test accuracy each signal went off.

    >>> from grokutils import load_record
    >>> from grokutils.records.analysis import analyze_record
    >>> record = load_record("runs/x")                                                   # doctest: +SKIP
    >>> found = analyze_record(record)                                                   # doctest: +SKIP
    >>> lead_times(record.metrics, found.diagnostics, found.baselines)                   # doctest: +SKIP

    The *fall* is the step from which the test accuracy is `drop` or more below its best for good, with the
    training set still known (`find_phases`). Every signal is looked for from the step at which the training
    set was learnt, and counts once it has lasted for `lasting` measurements in a row; its onset is the first
    of them. Of each layer:

    - ``alpha leaves 2 to 6``: alpha is outside `alpha_range` after it has been inside;
    - ``alpha below 2``: alpha is below the lower end;
    - ``first trap``: `trapped_from` or more traps, in the mean over the shuffles;
    - ``trap growth``: at least one more than at the onset of the first trap;
    - each control in `LAYER_CONTROLS`; and of the whole network each in `NETWORK_CONTROLS` and
      ``train_loss``.

    All controls follow one rule, with nothing to tune: the control has left the range of its values in the
    pre-grokking phase by more than the width of that range, upwards or downwards. With m and M the smallest and
    largest value between the step at which the training set was learnt and the step before the test accuracy
    began to rise (or its first five measurements, if those are fewer), it goes off outside
    [m - (M - m), M + (M - m)]. The rule is the same in every unit, looks at nothing later than the onset,
    and noise alone does not trip it.

    Parameters
    ----------
    metrics : ``step``, ``train_accuracy``, ``test_accuracy`` and, for that control, ``train_loss``
        (`Record.metrics`); ``member`` if there are several
    diagnostics, baselines : of the same run, as from `grokutils.records.analysis.analyze_record`; columns of controls
        that are missing are left out
    drop : in accuracy
    alpha_range, trapped_from, lasting : as above

    Returns
    -------
    DataFrame, a row per member, layer and signal: ``member`` (if there are several), ``layer``, ``signal``,
    ``onset``, ``fall``, ``lead_steps`` = fall - onset and ``lead_decades`` = log10(fall / onset), positive if
    the signal came first and negative if it came after; NaN if either never came. ``low`` and ``high`` are the
    range a control left.

    Raises
    ------
    ValueError : missing columns, no rows, rows of several members without a column that tells them apart, or a
        threshold without meaning.
    """
    _check_lead_times(metrics, diagnostics, alpha_range, trapped_from, lasting)
    members = metrics["member"].unique() if "member" in metrics else [None]
    parts = []
    for member in members:
        own, layers, network = (_of_member(f, member) for f in (metrics, diagnostics, baselines))
        rows = _Signals(own, drop, alpha_range, trapped_from, lasting).rows(layers, network)
        part = pd.DataFrame(rows).astype({"onset": "Int64", "fall": "Int64"})
        if len(members) > 1:
            part.insert(0, "member", member)
        parts.append(part)
    return pd.concat(parts, ignore_index=True)


def _check_lead_times(metrics, diagnostics, alpha_range, trapped_from, lasting) -> None:
    if not (len(alpha_range) == 2 and 1 <= alpha_range[0] < alpha_range[1]):
        raise ValueError(f"alpha_range must be two ascending numbers of at least 1; got {alpha_range!r}.")
    if not trapped_from > 0:
        raise ValueError(f"trapped_from must be a positive number; got {trapped_from!r}.")
    if isinstance(lasting, bool) or not isinstance(lasting, (int, np.integer)) or lasting < 1:
        raise ValueError(f"lasting must be a whole number of at least 1; got {lasting!r}.")
    needed = {"step", "layer", "alpha", "traps"}
    if missing := needed - set(diagnostics.columns):
        raise ValueError(f"diagnostics must have the columns step, layer, alpha, traps; no {min(missing)}.")
    if metrics.empty:
        raise ValueError("metrics must have at least one row; got none.")


def _of_member(frame: pd.DataFrame | None, member) -> pd.DataFrame | None:
    if frame is None or member is None or "member" not in frame:
        return frame
    return frame[frame.member == member]


class _Signals:
    """The signals of one member against its one fall."""

    def __init__(self, metrics: pd.DataFrame, drop: float, alpha_range, trapped_from: float, lasting: int):
        phases = find_phases(metrics, drop=drop)
        self.metrics = metrics
        self.fall, self.learnt, self.rise = phases.collapse, phases.memorised, phases.grokking
        self.alpha_range, self.trapped_from, self.lasting = alpha_range, trapped_from, lasting

    def rows(self, diagnostics: pd.DataFrame, baselines: pd.DataFrame | None) -> list[dict]:
        found = []
        for layer, frame in diagnostics.groupby("layer", sort=False):
            found += [self._row(layer, *signal) for signal in self._fixed(self._usable(frame))]
            found += self._controls(layer, frame, LAYER_CONTROLS)
        if baselines is not None:
            found += self._controls("network", baselines, NETWORK_CONTROLS)
        return found + self._controls("network", self.metrics, ("train_loss",))

    def _usable(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows by step, from where the training set is learnt."""
        if frame.step.duplicated().any():
            raise ValueError("diagnostics and baselines must be those of one member, or say whose they are.")
        if self.learnt is None:
            return frame.iloc[:0]
        return frame[frame.step >= self.learnt].sort_values("step")

    def _fixed(self, frame: pd.DataFrame):
        """The signals with a threshold of their own: (name, onset)."""
        low, high = self.alpha_range
        step, alpha, traps = (frame[name].to_numpy() for name in ("step", "alpha", "traps"))
        outside = (alpha < low) | (alpha > high)
        been_inside = np.logical_or.accumulate((alpha >= low) & (alpha <= high)) if len(alpha) else outside
        yield f"alpha leaves {low:g} to {high:g}", self._onset(step, outside & been_inside)
        yield f"alpha below {low:g}", self._onset(step, alpha < low)
        first = self._onset(step, traps >= self.trapped_from)
        yield "first trap", first
        more = traps >= traps[step == first][0] + 1 if first is not None else np.zeros(len(step), bool)
        yield "trap growth", self._onset(step, more & (step >= (first or 0)))

    def _controls(self, layer: str, frame: pd.DataFrame, names: tuple[str, ...]) -> list[dict]:
        frame = self._usable(frame)
        return [self._control(layer, name, frame) for name in names if name in frame]

    def _control(self, layer: str, name: str, frame: pd.DataFrame) -> dict:
        step, value = frame.step.to_numpy(), frame[name].to_numpy(dtype=float)
        if (found := early_range(step, value, self.rise)) is None:
            return self._row(layer, name, None)
        count, low, high, width = found
        low, high = low - width, high + width
        out = (value < low) | (value > high)
        out[:count] = False
        return self._row(layer, name, self._onset(step, out), low, high)

    def _onset(self, step: np.ndarray, holds: np.ndarray) -> int | None:
        return onset(step, holds, self.lasting)

    def _row(self, layer: str, signal: str, at: int | None, low=np.nan, high=np.nan) -> dict:
        known = at is not None and self.fall is not None
        return {
            "layer": layer,
            "signal": signal,
            "onset": at,
            "fall": self.fall,
            "lead_steps": float(self.fall - at) if known else np.nan,
            "lead_decades": float(np.log10(self.fall / max(at, 1))) if known and self.fall else np.nan,
            "low": float(low),
            "high": float(high),
        }
