"""Comparing the same seeds under two conditions, and many such comparisons at once.

>>> p = sign_flip_p(np.array([0.1, 0.2, 0.15, 0.12]))
>>> p, holm([p, 0.01]).tolist()
(0.125, [0.125, 0.02])
"""

from __future__ import annotations

import numpy as np

__all__ = ["holm", "sign_flip_p"]

# Up to this many differences all patterns of signs are gone through; with more, this many drawn ones.
_MOST_EXACT = 16
_DRAWN = 2**_MOST_EXACT


def sign_flip_p(differences, seed: int = 0) -> float:
    """Two-sided p-value of "the mean difference is zero", by flipping signs (Fisher 1935).

    >>> sign_flip_p(np.ones(10))
    0.001953125

    Exact up to 16 differences. Its smallest value is 2 / 2^n: with fewer than six seeds nothing can be shown at 5 %.

    Parameters
    ----------
    differences : (seeds,) of one condition less the other
    seed : of the patterns drawn, if there are more than 16

    Raises
    ------
    ValueError : no difference, or one that is not finite.
    """
    d = np.asarray(differences, dtype=float)
    if d.ndim != 1 or not d.size or not np.isfinite(d).all():
        raise ValueError(f"differences must be finite numbers, one for each seed; got {differences!r}.")
    n = d.size
    if n <= _MOST_EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        extra = 0
    else:
        signs = np.random.default_rng([seed, 6]).choice([-1, 1], size=(_DRAWN, n))
        extra = 1  # the pattern that was seen counts as drawn
    means = np.abs(signs @ d)
    # equal sums differ by rounding
    as_large = means >= abs(d.sum()) - 1e-12 * np.abs(d).sum()
    return float((as_large.sum() + extra) / (len(signs) + extra))


def holm(p) -> np.ndarray:
    """p-values corrected for their number (Holm 1979): below a level, the chance of any false one is below it.

    >>> holm([0.01, 0.04, 0.03]).round(3).tolist()
    [0.03, 0.06, 0.06]

    Raises
    ------
    ValueError : a number outside 0 to 1.
    """
    p = np.asarray(p, dtype=float)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise ValueError(f"p must be numbers between 0 and 1; got {p!r}.")
    order = np.argsort(p, kind="stable")
    steps = (len(p) - np.arange(len(p))) * p[order]
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return corrected
