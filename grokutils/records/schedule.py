"""Which steps are measured and which are saved: log-spaced, so that every decade weighs the same."""

from __future__ import annotations

import numbers

__all__ = ["MEASURES_PER_DECADE", "SAVES_PER_DECADE", "every", "log_spaced"]

MEASURES_PER_DECADE = 40
SAVES_PER_DECADE = 10


def log_spaced(steps: int, per_decade: int) -> list[int]:
    """Step 0, the whole numbers nearest to 10^(k / per_decade), and the last step.

    >>> log_spaced(100, 2)
    [0, 1, 3, 10, 32, 100]

    Points of a short run are points of a longer one too (its own last step aside), so extending a run
    keeps its rows.

    Raises
    ------
    ValueError : a negative or fractional number of steps, or fewer than one point a decade.
    """
    _check(steps=(steps, 0), per_decade=(per_decade, 1))
    points = {0, steps}
    k = 0
    while (point := round(10 ** (k / per_decade))) <= steps:
        points.add(point)
        k += 1
    return sorted(points)


def every(steps: int, interval: int) -> range:
    """The multiples of `interval` up to `steps`.

    >>> list(every(100, 30))
    [0, 30, 60, 90]

    Raises
    ------
    ValueError : as `log_spaced`.
    """
    _check(steps=(steps, 0), interval=(interval, 1))
    return range(0, steps + 1, interval)


def _check(**bounded: tuple[int, int]) -> None:
    for name, (value, low) in bounded.items():
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
            raise ValueError(f"{name} must be a whole number of at least {low}; got {value!r}.")
