"""Which steps are measured and which are saved: log-spaced, so that every decade weighs the same."""

from __future__ import annotations

__all__ = ["MEASURES_PER_DECADE", "SAVES_PER_DECADE", "log_spaced"]

MEASURES_PER_DECADE = 40
SAVES_PER_DECADE = 10


def log_spaced(steps: int, per_decade: int) -> list[int]:
    """Step 0, the whole numbers nearest to 10^(k / per_decade), and the last step.

    >>> log_spaced(100, 2)
    [0, 1, 3, 10, 32, 100]

    Points of a short run are points of a longer one too (its own last step aside), so extending a run
    keeps its rows.
    """
    if steps < 0 or per_decade < 1:
        raise ValueError(f"steps must be at least 0 and per_decade at least 1; got {steps} and {per_decade}.")
    points = {0, steps}
    k = 0
    while (point := round(10 ** (k / per_decade))) <= steps:
        points.add(point)
        k += 1
    return sorted(points)
