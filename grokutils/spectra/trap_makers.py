"""What makes a trap: the two things that a shuffle leaves of a matrix are the mean of its entries and single
entries that are too large, and random-matrix theory says how much of either it takes.

>>> round(lone_weight((200, 784)), 1), round(mean_shift((200, 784)), 3)
(26.3, 0.066)
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from grokutils.spectra.traps import count_traps, find_traps, trap_vectors

__all__ = ["lone_weight", "mean_shift", "trap_carriers", "trap_causes"]


def _threshold(shape: tuple[int, int]) -> tuple[int, int, float]:
    """(N, M, trap threshold) of a matrix whose entries have standard deviation 1, in units of N."""
    M, N = sorted(shape)
    # any spectrum of mean 1 whose bulk is Marchenko and Pastur's would do: the threshold is in units of sigma^2
    law = count_traps(np.ones(M), (N, M))
    return N, M, float(law.threshold[0] / law.sigma_mp[0] ** 2)


def lone_weight(shape: tuple[int, int]) -> float:
    """How large a single weight must be, in standard deviations of the others, to be a trap by itself.

    >>> round(lone_weight((200, 200)), 1)
    18.3

    One entry of size t in a random N x M matrix of unit variance is a perturbation of rank one; past
    t = (N M)^(1/4) it pulls an eigenvalue of W^T W out of the bulk, to (t^2 + N)(t^2 + M) / t^2. (Benaych-Georges and
    Nadakuditi, Journal of Multivariate Analysis 111, 2012, section 3.1.) This is solved for the eigenvalue at the trap
    threshold of `grokutils.spectra.traps.count_traps`.

    Raises
    ------
    ValueError : a shape that is no pair of whole numbers of at least 1.
    """
    N, M, limit = _threshold(shape)
    half = (limit * N - N - M) / 2
    return math.sqrt(half + math.sqrt(half**2 - N * M))


def mean_shift(shape: tuple[int, int]) -> float:
    """How large the mean of all entries must be, in their standard deviations, to be a trap.

    >>> round(mean_shift((200, 200)), 3)
    0.091

    A mean m is the perturbation m times a matrix of ones, whose singular value is m sqrt(N M); then as `lone_weight`.
    """
    return lone_weight(shape) / math.sqrt(shape[0] * shape[1])


def trap_causes(W, outlying: float = 5.0, shuffles: int = 20, seed: int = 0) -> pd.DataFrame:
    """Traps of a matrix as it is, and with one suspected cause or both taken away.

    >>> W = np.random.default_rng(0).normal(loc=0.3, size=(100, 100)); W[3, 5] = 40
    >>> trap_causes(W, shuffles=2).traps.tolist()
    [2.0, 1.0, 1.0, 0.0]

    Parameters
    ----------
    W : matrix (rows, columns)
    outlying : weights farther from the mean than this many standard deviations are replaced by the mean, and so on
        with the standard deviation of the rest until there are none left
    shuffles, seed : as in `grokutils.spectra.traps.find_traps`

    Returns
    -------
    DataFrame: ``matrix``, ``traps`` (mean over the shuffles), ``traps_std``, ``weights_changed``.
    """
    A = np.array(W, dtype=np.float64)
    far = _outlying(A, outlying)
    cut = np.where(far, A[~far].mean(), A)
    rows = []
    for name, B in (
        ("as it is", A),
        ("its mean taken off", A - A.mean()),
        ("its outlying weights made average", cut),
        ("both", cut - cut.mean()),
    ):
        found = find_traps(B, seed=seed, shuffles=shuffles)
        rows.append((name, found.mean, found.std, int(far.sum()) if B is cut or name == "both" else 0))
    return pd.DataFrame(rows, columns=["matrix", "traps", "traps_std", "weights_changed"])


def _outlying(A: np.ndarray, limit: float) -> np.ndarray:
    """Which entries are outlying: the standard deviation is that of the others."""
    far = np.zeros(A.shape, bool)
    while True:
        rest = A[~far]
        more = ~far & (np.abs(A - rest.mean()) > limit * rest.std())
        if not more.any() or far.sum() + more.sum() >= A.size / 2:
            return far
        far |= more


def trap_carriers(W, entries: int = 3, seed: int = 0) -> pd.DataFrame:
    """The weights that carry each trap of a matrix's first shuffle.

    >>> W = np.random.default_rng(0).normal(size=(100, 100)); W[3, 5] = 40
    >>> trap_carriers(W, entries=1)[["trap", "row", "column", "share"]].round(2).values.tolist()
    [[1.0, 3.0, 5.0, 0.88]]

    Returns
    -------
    DataFrame, a row per trap and entry: ``trap`` (1 is the largest), ``strength`` (eigenvalue over threshold),
    ``ipr`` (the larger of its two vectors': near 1 if one weight is all of it), ``row``, ``column``, ``weight``,
    ``z`` (in standard deviations from the mean), ``share`` of the singular value.
    """
    found = trap_vectors(W, seed=seed, entries=entries)
    threshold = find_traps(W, seed=seed, shuffles=1).threshold[0]
    rows = [
        (number, value / threshold, max(left, right), e.row, e.col, e.value, e.z, e.share)
        for number, (value, left, right, carried) in enumerate(
            zip(found.eigenvalues, found.ipr_left, found.ipr_right, found.entries, strict=True), start=1
        )
        for e in carried
    ]
    return pd.DataFrame(rows, columns=["trap", "strength", "ipr", "row", "column", "weight", "z", "share"])
