"""Correlation traps: eigenvalues that stay outside the random bulk after the entries were shuffled.

>>> import numpy as np
>>> W = np.random.default_rng(0).normal(size=(200, 784))
>>> W[3, 5] = 60.0                                   # one weight of 60 standard deviations
>>> result = find_traps(W, shuffles=5)
>>> result.counts, round(float(result.sigma_mp[0]), 3)
(array([1., 1., 1., 1., 1.]), 0.99)
>>> trap_vectors(W).entries[0][0]
TrapEntry(row=3, col=5, value=60.0, z=..., share=...)

Shuffling destroys every correlation between rows and columns and keeps the entries. What is left of a random
matrix is a Marchenko-Pastur bulk (`mp_pdf`); what stands out of it can only come from the entries
themselves: a mean that is not zero gives at most one trap, and a single entry gives one once it is some 20
(200 x 200) or 28 (200 x 784) standard deviations large.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import scipy.linalg

from grokutils.spectra import ks as _mp_ks
from grokutils.spectra.alpha import MIN_EIGENVALUES, as_matrix, squared_singular_values
from grokutils.spectra.ks import KsResult
from grokutils.spectra.marchenko_pastur import (
    bulk_sigma,
    mp_cdf,
    mp_pdf,
    mp_quantile,
    mp_support,
    weightwatcher_sigma,
)
from grokutils.util.progress import tqdm

__all__ = [
    "METHODS",
    "KsResult",
    "TrapEntry",
    "TrapResult",
    "TrapVectors",
    "count_traps",
    "find_traps",
    "inverse_participation_ratio",
    "mp_cdf",
    "mp_ks",
    "mp_pdf",
    "mp_quantile",
    "mp_support",
    "shuffle_matrix",
    "trap_vectors",
]

METHODS = ("bulk", "weightwatcher")

#: WeightWatcher pools five shuffles if the shorter side is under a hundred, and counts traps in the pool.
_POOLED_BELOW, _POOLED = 100, 5
# Weights, or a mean, this many times the size of the others are taken out of the bulk when it would drown in their rounding.
_ENORMOUS = 1e5


@dataclass(frozen=True, eq=False)
class TrapResult:
    """Traps in each of S shuffles of one matrix. Eigenvalues are in the units of W^T W, not rescaled."""

    method: str
    #: The matrix, longer side first.
    N: int
    M: int
    #: Shuffled matrices pooled into each spectrum: 1, or 5 for method="weightwatcher" and M < 100.
    replicas: int
    #: (S,) traps in each spectrum, of all its replicas together; NaN where the law could not be fitted.
    counts: np.ndarray
    #: Mean and standard deviation (S - 1 in the denominator) of the counts that are numbers.
    mean: float
    std: float
    #: S arrays, the trap eigenvalues of each spectrum, largest first.
    trap_eigenvalues: tuple[np.ndarray, ...]
    #: (S,) standard deviation of the bulk in units of the root mean square entry: under 1 if there are traps.
    sigma_mp: np.ndarray
    #: (S,) edges of the bulk, and the threshold that a trap exceeds.
    bulk_min: np.ndarray
    bulk_max: np.ndarray
    threshold: np.ndarray
    #: (S, replicas * M) shuffled eigenvalues, ascending: store these and `count_traps` gives everything else.
    eigenvalues: np.ndarray
    #: "ok" or "failed" (no count is a number), and why any count is not.
    status: str
    reason: str


def shuffle_matrix(W, rng) -> np.ndarray:
    """The same entries in random places.

    >>> shuffle_matrix([[1, 2, 3], [4, 5, 6]], np.random.default_rng(0))
    array([[4., 3., 6.],
           [5., 1., 2.]])

    Parameters
    ----------
    W: matrix (rows, columns); see `grokutils.spectra.alpha.as_matrix` for what is accepted and what raises.
    rng: `numpy.random.Generator` or `numpy.random.RandomState`. ``RandomState(s)`` gives the shuffle that
        WeightWatcher makes after ``numpy.random.seed(s)``.
    """
    return _shuffled(as_matrix(W), rng)


def _shuffled(A: np.ndarray, rng) -> np.ndarray:
    flat = A.flatten()  # always a copy, in row order
    rng.shuffle(flat)
    return flat.reshape(A.shape)


def _permutation(size: int, rng) -> np.ndarray:
    """Where each entry of `_shuffled` came from: its flat index in A, for a generator in the same state."""
    source = np.arange(size)
    rng.shuffle(source)
    return source


def find_traps(W, seed=0, shuffles: int = 20, method: str = "bulk") -> TrapResult:
    """Shuffle, compare with the Marchenko-Pastur law, count what stands out; many times.

    >>> W = np.random.default_rng(0).normal(loc=0.5, size=(200, 200))
    >>> find_traps(W, shuffles=3).mean, find_traps(W, shuffles=3, method="weightwatcher").mean
    (1.0, 1.0)

    Parameters
    ----------
    W: matrix (rows, columns), either side longer; see `grokutils.spectra.alpha.as_matrix`.
    seed: whole number: shuffle s uses ``numpy.random.default_rng([seed, s])``, so more shuffles extend
        fewer. Or a NumPy Generator or RandomState, from which all shuffles are drawn in turn.
    shuffles: how many, at least 1. The count varies with the shuffle where entries are heavy-tailed.
    method: see `count_traps`. "weightwatcher" also rounds the entries to float32 and pools five shuffles if
        M < 100, so that with the same shuffles every number equals WeightWatcher's.

    Returns
    -------
    `TrapResult`. With M < 10, or no bulk to compare with (a constant matrix, or one with most entries equal),
    counts are NaN, ``status`` is "failed" and ``reason`` says why.

    Raises
    ------
    TypeError, ValueError: as `as_matrix`, and for an unknown method or unusable seed or number of shuffles.
    """
    A = as_matrix(W)
    N, M = max(A.shape), min(A.shape)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    _check_whole("shuffles", shuffles, 1)
    exact = method == "weightwatcher"
    if exact:
        largest = np.abs(A).max()
        if largest > np.finfo(np.float32).max:
            raise ValueError(
                f'W must fit into float32 for method="weightwatcher"; its largest entry is {largest:.3g}.'
            )
        A = A.astype(np.float32).astype(np.float64)
    replicas = _POOLED if exact and M < _POOLED_BELOW else 1
    eigenvalues = np.empty((shuffles, replicas * M))
    for s in tqdm(range(shuffles), desc=f"shuffles of {N} x {M}", delay=3, leave=False):
        rng = _generator(seed, s)
        pool = [(squared_singular_values if exact else gram_eigenvalues)(_shuffled(A, rng)) for _ in range(replicas)]
        eigenvalues[s] = np.sort(np.concatenate(pool))
    return _counted(*_check_spectra(eigenvalues, A.shape), method)


def _check_whole(name: str, value, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{name} must be a whole number, {least} or more; got {value!r}.")


def _generator(seed, shuffle: int):
    if isinstance(seed, (np.random.Generator, np.random.RandomState)):
        return seed
    _check_whole("seed", seed, 0)
    return np.random.default_rng([int(seed), shuffle])


def gram_eigenvalues(A: np.ndarray) -> np.ndarray:
    """Eigenvalues by way of the smaller Gram matrix: twice as fast, and exact to 1e-15 of the largest one.

    Where that is no longer exact for the bulk, because one weight or the mean is enormous, they are the squared singular values; and
    where those have lost it too, the bulk is that of the weights without what is enormous.
    """
    G = A @ A.T if A.shape[0] <= A.shape[1] else A.T @ A
    eigenvalues = np.maximum(np.linalg.eigvalsh(G), 0.0)
    M = eigenvalues.size
    rounding = M * np.finfo(np.float64).eps
    lower, largest = eigenvalues[M // 4], eigenvalues[-1]
    if not rounding * largest > 1e-3 * lower:
        return eigenvalues
    eigenvalues = squared_singular_values(A)
    if not rounding**2 * largest > 1e-6 * eigenvalues[M // 4]:
        return _without_rounding(eigenvalues)
    centre = np.median(A)
    size = np.median(np.abs(A - centre))
    apart = np.abs(A - centre) > _ENORMOUS * size
    k = int(np.count_nonzero(apart)) + int(abs(centre) > _ENORMOUS * size)
    if not 0 < k < M // 2:
        return _without_rounding(eigenvalues)
    rest = squared_singular_values(np.where(apart, 0.0, A - centre))
    return np.concatenate([rest[: M - k], eigenvalues[M - k :]])


def _without_rounding(x: np.ndarray) -> np.ndarray:
    """Zeros for eigenvalues that are rounding errors of the largest one, as squared singular values have them."""
    return np.where(x > (x.shape[-1] * np.finfo(np.float64).eps) ** 2 * x.max(axis=-1, keepdims=True), x, 0.0)


def count_traps(shuffled_eigenvalues, shape: tuple[int, int], method: str = "bulk") -> TrapResult:
    """Traps from the eigenvalues of shuffled matrices; the matrix itself is not needed.

    >>> spectra = np.linspace(200.0, 1600.0, 200) * np.ones((2, 1))
    >>> spectra[1, -1] = 4000.0
    >>> count_traps(spectra, (200, 784)).counts
    array([0., 1.])

    Each spectrum is divided by its mean. The law with standard deviation sigma_mp then ends at
    edge = sigma_mp^2 (1 + 1/sqrt(Q))^2, Q = N / M, and a trap lies above a threshold a little further out.

    - ``method="bulk"``: sigma_mp is matched to the middle half of the eigenvalues of all spectra together
      (they share their entries), and the threshold is sigma_mp^2 (edge_1 + margin(edge_1)), where edge_1 is
      the edge at sigma 1, margin(e) = sqrt(Q^-1/2 e^2/3 M^-2/3).
    - ``method="weightwatcher"``: sigma_mp is fitted to a kernel density of each spectrum, and the threshold
      is edge + margin(edge). This is WeightWatcher 0.7.5.5 to the last digit, with three consequences: at
      Q = 1 sigma_mp is only the height of the curve and stays near 1; sigma_mp cannot fall much under 0.05 of
      what the largest eigenvalue would need; and the margin shrinks more slowly than the bulk does, so that
      a large trap hides smaller ones.

    At sigma 1 the radicand is the width of the Tracy-Widom law of the largest eigenvalue (Johnstone, Annals
    of Statistics 29, 2001); its root is 6.3 widths for 200 x 784 and 3.7 for 200 x 200.

    Parameters
    ----------
    shuffled_eigenvalues: (S, n) or (n,), squared singular values in any order and unit, n = M or a multiple
        of it (pooled replicas). What `TrapResult.eigenvalues` holds. Those of the matrix itself may be given
        as well: with ``method="weightwatcher"`` that is WeightWatcher's ``mp_fit``.
    shape: of the matrix, either side first.

    Returns
    -------
    `TrapResult`; failures as in `find_traps`.

    Raises
    ------
    ValueError: eigenvalues of another shape, not finite or negative; an unknown method; an impossible shape.
    """
    x, N, M = _check_spectra(shuffled_eigenvalues, shape)
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method!r}.")
    return _counted(x if method == "weightwatcher" else _without_rounding(x), N, M, method)


def _counted(x: np.ndarray, N: int, M: int, method: str) -> TrapResult:
    S, n = x.shape
    sigma, low, high, threshold = np.full((4, S), math.nan)
    reason = ""
    if M < MIN_EIGENVALUES:
        reason = f"{M} eigenvalues; at least {MIN_EIGENVALUES} are needed"
    elif method == "bulk":
        sigma, low, high, threshold = _bulk_edges(x, N / M, M)
        if np.isnan(sigma).any():
            reason = "no bulk: half of the shuffled eigenvalues are zero, or lost in the rounding of the largest"
    else:
        for s in range(S):
            sigma[s], low[s], high[s], threshold[s] = _weightwatcher_edges(x[s], N / M, M)
        if failed := np.count_nonzero(np.isnan(sigma)):
            reason = f"no density to fit in {failed} of {S} shuffles"
    fitted = ~np.isnan(threshold)
    above = [row[row > limit][::-1] for row, limit in zip(x, threshold, strict=True)]
    counts = np.where(fitted, [float(len(traps)) for traps in above], math.nan)
    good = counts[fitted]
    return TrapResult(
        method=method,
        N=N,
        M=M,
        replicas=n // M,
        counts=counts,
        mean=float(good.mean()) if good.size else math.nan,
        std=float(good.std(ddof=1)) if good.size > 1 else math.nan,
        trap_eigenvalues=tuple(above),
        sigma_mp=sigma,
        bulk_min=low,
        bulk_max=high,
        threshold=threshold,
        eigenvalues=x,
        status="ok" if good.size else "failed",
        reason=reason,
    )


def _check_spectra(eigenvalues, shape) -> tuple[np.ndarray, int, int]:
    try:
        M, N = sorted(int(side) for side in shape)
    except (TypeError, ValueError):
        raise ValueError(f"shape must be two whole numbers, (rows, columns); got {shape!r}.") from None
    if M < 1:
        raise ValueError(f"shape must have sides of at least 1; got {shape!r}.")
    if np.ndim(eigenvalues) == 1:
        eigenvalues = eigenvalues[None] if hasattr(eigenvalues, "ndim") else [eigenvalues]
    x = as_matrix(eigenvalues, "the array of eigenvalues")
    if x.shape[1] % M:
        raise ValueError(
            f"a {N} x {M} matrix has {M} eigenvalues (or a multiple, if pooled); got {x.shape[1]}."
        )
    x = np.sort(x, axis=1)
    if x[:, 0].min() < -1e-9 * max(x[:, -1].max(), 0.0):
        raise ValueError(f"eigenvalues of W^T W must not be negative; the smallest is {x[:, 0].min():.6g}.")
    return x, N, M


def _margin(edge: float, Q: float, M: int) -> float:
    return np.sqrt(1 / np.sqrt(Q) * np.power(edge, 2 / 3) * np.power(M, -2 / 3))


def bulk_threshold(Q: float, M: int) -> float:
    """What a trap exceeds by ``method="bulk"``, for a bulk with sigma 1."""
    high = mp_support(Q)[1]
    return float(high + _margin(high, Q, M))


def _bulk_edges(x: np.ndarray, Q: float, M: int):
    """sigma_mp, edges and threshold of every row, from one sigma for all."""
    unit = x.mean(axis=1)
    if not unit.min() > 0:
        return np.full((4, len(x)), math.nan)
    sigma = bulk_sigma(x / unit[:, None], Q)
    low, high = mp_support(Q)
    scale = sigma**2 * unit
    return np.full(len(x), sigma), scale * low, scale * high, scale * bulk_threshold(Q, M)


def _weightwatcher_edges(x: np.ndarray, Q: float, M: int):
    """sigma_mp, edges and threshold of one ascending spectrum: WeightWatcher's operations, in its order."""
    norm = np.sqrt(np.sum(x))
    if not norm > 0:
        return (math.nan,) * 4
    scale = np.sqrt(x.size) / norm
    rescaled = (scale * scale) * x
    sigma = weightwatcher_sigma(rescaled, Q)
    high = (sigma * (1 + 1 / np.sqrt(Q))) ** 2
    low = (sigma * (1 - 1 / np.sqrt(Q))) ** 2
    threshold = high + _margin(high, Q, M)
    return sigma, low / (scale * scale), high / (scale * scale), threshold / (scale * scale)


def mp_ks(
    eigenvalues, shape: tuple[int, int], fit: str | None = "bulk", draws: int = 400, seed: int = 0
) -> KsResult:
    """Kolmogorov-Smirnov distance of spectra from the Marchenko-Pastur law, with two p-values side by side.

    >>> shuffled = find_traps(np.random.default_rng(0).normal(size=(200, 784)), shuffles=1).eigenvalues
    >>> ks = mp_ks(shuffled, (200, 784))
    >>> round(ks.null_mean, 3), bool(ks.p_textbook[0] > 0.999), bool(0.05 < ks.p_monte_carlo[0] < 0.999)
    (0.013, True, True)

    Eigenvalues repel each other, so a random spectrum follows the law far more closely than independent
    points would, and the textbook p is near 1 even for spectra that are significantly off. The Monte-Carlo p
    compares with Gaussian matrices of the same shape, treated in the same way (rescaled to mean 1, sigma
    fitted or not); they are drawn once for each shape, fit, number of draws and seed, and kept while the
    process lives.

    Parameters
    ----------
    eigenvalues: (S, n) or (n,), as for `count_traps`. Shuffled ones: the law says nothing about correlated
        entries.
    shape: of the matrix, either side first.
    fit: where the law's sigma comes from: "bulk" or "weightwatcher" as in `count_traps` (from each spectrum
        alone), or None for sigma = 1, the root mean square of the entries.
    draws: random matrices; the smallest possible p is 1 / (draws + 1).
    seed: of those draws.

    Raises
    ------
    ValueError: as `count_traps`; unknown fit, draws under 1, negative seed.
    """
    x, N, M = _check_spectra(eigenvalues, shape)
    if fit is not None and fit not in METHODS:
        raise ValueError(f"fit must be None or one of {', '.join(METHODS)}; got {fit!r}.")
    _check_whole("draws", draws, 1)
    _check_whole("seed", seed, 0)
    return _mp_ks.mp_ks(np.maximum(x, 0.0), N, M, fit, int(draws), int(seed))


@dataclass(frozen=True)
class TrapEntry:
    """One weight and its part in a trap."""

    #: Where it is in the matrix as it was given, not in the shuffled one.
    row: int
    col: int
    value: float
    #: (value - mean of all entries) / standard deviation of all entries.
    z: float
    #: u_i W_ij v_j over the singular value: over all entries of the matrix these shares add up to 1.
    share: float


@dataclass(frozen=True, eq=False)
class TrapVectors:
    """The singular vectors behind k traps of one matrix, largest eigenvalue first."""

    #: (k,) squared singular values.
    eigenvalues: np.ndarray
    #: (k, rows) and (k, columns), of length 1; the largest component of a left vector is positive.
    left: np.ndarray
    right: np.ndarray
    #: (k,) see `inverse_participation_ratio`.
    ipr_left: np.ndarray
    ipr_right: np.ndarray
    #: For every trap, the entries that carry most of it, largest share first.
    entries: tuple[tuple[TrapEntry, ...], ...]
    #: (rows * columns,) where in W.flat each shuffled entry came from; None if nothing was shuffled.
    permutation: np.ndarray | None

    def rank_one(self, trap: int, own_places: bool = True) -> np.ndarray:
        """The part of the matrix that belongs to one trap: sigma u v^T, (rows, columns).

        With ``own_places`` every number goes back to the place in W whose entry had been shuffled under it,
        so that ``W - rank_one(0)`` is W without its first trap.
        """
        T = np.sqrt(self.eigenvalues[trap]) * np.outer(self.left[trap], self.right[trap])
        if self.permutation is None or not own_places:
            return T
        out = np.empty_like(T)
        out.reshape(-1)[self.permutation] = T.reshape(-1)
        return out


def inverse_participation_ratio(vectors) -> np.ndarray:
    """sum_i v_i^4 / (sum_i v_i^2)^2 along the last axis: 1 if a single component carries the vector.

    >>> inverse_participation_ratio([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.5]])
    array([1.  , 0.25])

    1/n if all n components are equal in size, and about 3/n for a random vector; its inverse is the number
    of components that take part. NaN for a vector of zeros.
    """
    squares = np.square(np.asarray(vectors, dtype=np.float64))
    with np.errstate(invalid="ignore"):
        return np.sum(squares**2, axis=-1) / np.sum(squares, axis=-1) ** 2


def trap_vectors(
    W, seed=0, shuffle: int | None = 0, threshold: float | None = None, k: int | None = None, entries: int = 3
) -> TrapVectors:
    """Singular vectors of the traps, how localised they are, and which entries carry them.

    >>> W = np.random.default_rng(0).normal(loc=0.5, size=(200, 200))
    >>> vectors = trap_vectors(W)
    >>> len(vectors.eigenvalues), round(float(vectors.ipr_left[0]) * 200, 1)  # a mean shift: spread evenly
    (1, 1.1)

    Parameters
    ----------
    W: matrix (rows, columns); see `grokutils.spectra.alpha.as_matrix`.
    seed, shuffle: which shuffled matrix: number ``shuffle`` of ``find_traps(W, seed)`` by the method "bulk".
        With ``shuffle=None`` it is W itself, whose eigenvalues above the bulk are correlations rather than
        traps.
    threshold: eigenvalues above it are traps, e.g. ``find_traps(W, seed).threshold[shuffle]``; by default the
        threshold that `count_traps` finds from this one spectrum.
    k: take the k largest instead, wherever they are.
    entries: how many entries to name for each.

    Returns
    -------
    `TrapVectors` with as many vectors as there are traps, perhaps none (and none where no bulk can be
    fitted).

    Raises
    ------
    TypeError, ValueError: as `find_traps`; ``k`` out of 0 ... M; both ``k`` and ``threshold``.
    """
    A = as_matrix(W)
    M = min(A.shape)
    _check_whole("entries", entries, 0)
    if k is not None and threshold is not None:
        raise ValueError("give k or threshold, not both.")
    B, permutation = A, None
    if shuffle is not None:
        _check_whole("shuffle", shuffle, 0)
        permutation = _permutation(A.size, _generator(seed, shuffle))
        B = A.reshape(-1)[permutation].reshape(A.shape)
    if k is None:
        spectrum = gram_eigenvalues(B)
        if threshold is None:
            threshold = float(count_traps(spectrum, A.shape).threshold[0])
        k = int(np.count_nonzero(spectrum > threshold))
    _check_whole("k", k, 0)
    if k > M:
        raise ValueError(f"k must be at most {M}, the number of eigenvalues; got {k}.")
    eigenvalues, left, right = _largest_vectors(B, k)
    carriers = []
    for value, u, v in zip(eigenvalues, left, right, strict=True):
        parts = (u[:, None] * B * v).reshape(-1)  # they add up to the singular value
        share = parts / np.sqrt(value) if value > 0 else parts
        top = (
            np.argpartition(share, -entries)[-entries:] if 0 < entries < share.size else np.arange(share.size)
        )
        top = top[np.argsort(-share[top])][:entries]
        carriers.append(_entries(A, top if permutation is None else permutation[top], share[top]))
    return TrapVectors(
        eigenvalues=eigenvalues,
        left=left,
        right=right,
        ipr_left=inverse_participation_ratio(left),
        ipr_right=inverse_participation_ratio(right),
        entries=tuple(carriers),
        permutation=permutation,
    )


def _entries(A: np.ndarray, places: np.ndarray, shares: np.ndarray) -> tuple[TrapEntry, ...]:
    mean, std = A.mean(), A.std()
    values = A.reshape(-1)[places]
    z = (values - mean) / std if std > 0 else np.full(values.size, math.nan)
    rows, columns = np.unravel_index(places, A.shape)
    return tuple(
        TrapEntry(int(row), int(col), float(value), float(deviations), float(share))
        for row, col, value, deviations, share in zip(rows, columns, values, z, shares, strict=True)
    )


def _largest_vectors(B: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The k largest squared singular values with their left and right vectors, as rows."""
    rows, columns = B.shape
    if k == 0:
        return np.empty(0), np.empty((0, rows)), np.empty((0, columns))
    wide = B if rows <= columns else B.T
    M = wide.shape[0]
    values, short = scipy.linalg.eigh(wide @ wide.T, subset_by_index=(M - k, M - 1))
    values, short = np.maximum(values[::-1], 0.0), short.T[::-1]
    long = short @ wide
    size = np.linalg.norm(long, axis=1, keepdims=True)
    long = np.divide(long, size, out=np.zeros_like(long), where=size > 0)
    left, right = (short, long) if wide is B else (long, short)
    sign = np.sign(left[np.arange(k), np.argmax(np.abs(left), axis=1)])[:, None]
    sign[sign == 0] = 1.0
    return values, left * sign, right * sign
