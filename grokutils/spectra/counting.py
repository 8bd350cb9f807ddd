"""Traps of large matrices, counted without the spectrum of every shuffled copy.

>>> W = np.random.default_rng(0).normal(loc=0.5, size=(700, 600)).astype(np.float32)
>>> found = count_without_spectra(W, shuffles=2)
>>> found.counts, found.way
(array([1., 1.]), 'certificate')

What a trap is stays what `grokutils.spectra.traps.count_traps` says with ``method="bulk"``: the scale of the
Marchenko-Pastur law comes from the mean of the middle half of all eigenvalues, and a trap lies above a
threshold proportional to it. That mean needs no eigenvalue exactly, and the count needs none at all:

1. Large outliers are found by Lanczos and taken out of the Gram matrix G of the shuffled entries.
2. The middle mean is a trace of a function of G. Lanczos from a few random directions estimates it (Gauss
   quadrature: Golub and Meurant, 1994), and the traces of G and G^2, which are known, remove most of the
   estimate's variance. The result is an interval: eight standard errors wide on either side, and a little more.
3. So the threshold is an interval too. A Cholesky decomposition of (its lower end) * I - G proves that there is
   nothing above it; otherwise the signs in L D L^T count the eigenvalues above both ends (Sylvester's law of
   inertia). If the two counts agree, an exact scale would give the same.
4. If they do not, all eigenvalues are taken in float32, with a bound for their rounding; and if one lies so close
   to the threshold that rounding could decide, in float64. `TrapCount.way` tells which of the three it was.

The interval of step 2 is the only thing left to chance. Its standard error follows from how many entries a random
direction averages over, which is thousands, so eight of them are too few less than once in 10^14 matrices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import lapack
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from grokutils.spectra.alpha import CUTOFF, as_matrix, esd
from grokutils.spectra.marchenko_pastur import bulk_sigma, mp_middle_mean
from grokutils.spectra.traps import bulk_threshold, count_traps, gram_eigenvalues
from grokutils.util.checks import Interval
from grokutils.util.progress import tqdm

__all__ = ["TrapCount", "count_without_spectra", "gram_spectrum", "random_placement"]

#: With fewer eigenvalues than this all of them are computed: it takes no longer.
SMALL = 512

_LARGE = 2048
_EPS = float(np.finfo(np.float32).eps)
_STEPS = 24  # of Lanczos: quadrature exact for polynomials of degree 47
_STANDARD_ERRORS = 8
_LEAST_WIDTH = 1e-3  # half of the threshold's interval, relative: for what is of second order
_MOST_WIDTH = 0.05  # with a wider interval something will lie in it
_MOST_OUTLIERS = 40


@dataclass(frozen=True, eq=False)
class TrapCount:
    """Traps in each of S random placements of one matrix's entries."""

    #: The matrix, longer side first.
    N: int
    M: int
    #: (S,) traps in each; NaN where there is no bulk to compare with.
    counts: np.ndarray
    #: Mean and standard deviation (S - 1 in the denominator) of the counts.
    mean: float
    std: float
    #: What `TrapResult.sigma_mp` is, and how far from it the true one may be.
    sigma_mp: float
    sigma_error: float
    #: (S,) largest eigenvalue in units of the threshold; up to a few percent too small where it is no trap.
    strength: np.ndarray
    #: "certificate", "spectra in float32" or "spectra in float64".
    way: str
    #: "ok" or "failed", and why there are no counts.
    status: str
    reason: str


def count_without_spectra(W, seed: int = 0, shuffles: int = 1, exact: bool = False) -> TrapCount:
    """The counts of `grokutils.spectra.traps.count_traps` for random placements of the entries, much faster.

    >>> W = np.random.default_rng(0).standard_t(3, size=(50, 80))
    >>> count_without_spectra(W, shuffles=3).way  # small: all eigenvalues are computed anyway
    'spectra in float64'

    Parameters
    ----------
    W : matrix (rows, columns), either side longer; see `grokutils.spectra.alpha.as_matrix`. float32 and smaller
        types are not widened.
    seed : whole number; placement s is ``random_placement(W, [seed, s])``
    shuffles : how many placements, at least 1; they share one scale, as in `count_traps`
    exact : compute all eigenvalues in float64, and so leave nothing to chance or rounding

    Returns
    -------
    `TrapCount`.

    Raises
    ------
    TypeError, ValueError : as `as_matrix`; seed or shuffles not whole numbers, or too small.
    """
    A = as_real_matrix(W)
    seed, shuffles = int(Interval(int, 0).check("seed", seed)), int(Interval(int, 1).check("shuffles", shuffles))
    M = min(A.shape)
    norm = _norm(A)
    scale = 2.0 ** round(math.log2(norm / math.sqrt(A.size))) if norm > 0 else 1.0

    def placed(s: int) -> np.ndarray:
        B = random_placement(A, [seed, s])
        B = B if B.shape[0] >= B.shape[1] else B.T
        B /= B.dtype.type(scale)  # by a power of two: exact, and float32 squares neither overflow nor vanish
        return B

    found = None
    if not exact and M >= SMALL and norm > 0:
        try:
            found = _by_certificates(placed, A.shape, shuffles) or _by_float32_spectra(placed, A.shape, shuffles)
        except _HeavyTail:
            pass
    return found or _by_spectra(placed, A.shape, shuffles)


def as_real_matrix(W, name: str = "W") -> np.ndarray:
    """`as_matrix`, but float32 stays float32, and types that are smaller become float32."""
    if isinstance(W, torch.Tensor) and W.is_floating_point() and W.element_size() < 8 and W.layout == torch.strided:
        W = W.detach().cpu().float().numpy()
    if isinstance(W, np.ndarray) and W.dtype == np.float16:
        W = W.astype(np.float32)
    if not (isinstance(W, np.ndarray) and W.dtype == np.float32 and W.ndim == 2 and W.size):
        return as_matrix(W, name)
    if not np.isfinite(W.sum(dtype=np.float64)):
        return as_matrix(W, name)  # says what is wrong
    return W


def random_placement(W, seed) -> np.ndarray:
    """The same entries in uniformly random places, in their own type, in a sixth of the time of NumPy's shuffle.

    >>> random_placement(np.arange(6).reshape(2, 3), 0)
    array([[..., ..., ...],
           [..., ..., ...]])

    All arrangements are equally likely. Entries are put in random order block by block, and each block is dealt out
    to buckets in shares drawn from a multinomial law, so that every entry falls into every bucket with the same
    probability, independently of the others; then each bucket is put in random order (Rao, Sankhya A 23, 1961;
    Sandelius, J. R. Stat. Soc. B 24, 1962). Blocks and buckets fit into a processor's cache, which is what makes it
    fast. The draws are `torch.randperm`'s and `numpy.random.Generator.multinomial`'s, both seeded from ``seed``.

    Parameters
    ----------
    W : array of any shape
    seed : whole number, or list of whole numbers, as for `numpy.random.SeedSequence`
    """
    W = np.asarray(W)
    flat = np.ascontiguousarray(W).reshape(-1)
    sequence = np.random.SeedSequence(seed)
    rng = np.random.default_rng(sequence)
    generator = torch.Generator().manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))

    def mixed(part: np.ndarray) -> np.ndarray:
        return part[torch.randperm(part.size, generator=generator).numpy()]

    size = 1 << max(16, flat.size.bit_length() // 2 + 4)
    blocks = [flat[start : start + size] for start in range(0, max(flat.size, 1), size)]
    shares = rng.multinomial([block.size for block in blocks], np.full(len(blocks), 1.0 / len(blocks)))
    edges = np.concatenate([[0], np.cumsum(shares.sum(axis=0))])  # of the buckets
    places = edges[:-1] + np.cumsum(shares, axis=0) - shares
    out = np.empty_like(flat)
    for block, counts, starts in zip(blocks, shares.tolist(), places.tolist(), strict=True):
        block, taken = mixed(block), 0
        for count, start in zip(counts, starts, strict=True):
            out[start : start + count] = block[taken : taken + count]
            taken += count
    for start, stop in pairwise(edges.tolist()):
        out[start:stop] = mixed(out[start:stop])
    return out.reshape(W.shape)


def gram_spectrum(W, cutoff: float | str = CUTOFF, least: int = SMALL) -> np.ndarray:
    """The eigenvalues of W^T W, ascending, with zeros where rounding is all that is left: of a large matrix in a tenth of the
    time that `grokutils.spectra.alpha.esd` takes.

    >>> W = np.random.default_rng(0).normal(size=(700, 600))
    >>> bool(np.allclose(gram_spectrum(W), esd(W), rtol=1e-9))
    True

    They are those of the smaller Gram matrix, in float64 whatever the type of the weights. That squares the rounding errors: what
    lies below M eps times the largest eigenvalue is lost. So that no fit can notice, `esd` is taken after all where that is more
    than a hundredth of the ``cutoff``, and for matrices with a side under ``least``.

    ``W`` may also be a function that returns the matrix, which is then not kept; it may be called twice.
    """
    read = W if callable(W) else lambda: W
    A = as_real_matrix(read())
    if min(A.shape) < least:
        return _directly(A)
    G = _gram64(A)
    del A
    if not np.isfinite(G).all():
        return _directly(read())  # says how large its entries are
    eigenvalues = _eigenvalues(G)
    del G
    rounding = eigenvalues.size * np.finfo(np.float64).eps * eigenvalues[-1]
    if not isinstance(cutoff, str) and rounding > 0.01 * cutoff:
        return _directly(read())
    return np.where(eigenvalues > rounding, eigenvalues, 0.0)


def _directly(W) -> np.ndarray:
    eigenvalues = esd(W)
    lost = (8 * np.finfo(np.float64).eps) ** 2 * eigenvalues[-1]  # singular values are off by a few eps of the largest
    return np.where(eigenvalues > lost, eigenvalues, 0.0)


def _norm(A: np.ndarray) -> float:
    return math.sqrt(sum(float(np.square(rows, dtype=np.float64).sum()) for rows in row_blocks(A)))


def row_blocks(A: np.ndarray):
    """Slices of a few megabytes, for what is done in float64 to a matrix that is not."""
    step = max(1, (1 << 20) // A.shape[1])
    return (A[start : start + step] for start in range(0, A.shape[0], step))


def _gram64(A: np.ndarray) -> np.ndarray:
    """The smaller Gram matrix in float64, without a copy of A in float64."""
    tall = A if A.shape[0] >= A.shape[1] else A.T
    M = tall.shape[1]
    G = np.zeros((M, M), order="F")
    step = max(512, M // 4)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, tall.shape[0], step):
            rows = np.asarray(tall[start : start + step], dtype=np.float64)
            G = scipy.linalg.blas.dsyrk(1.0, rows.T, beta=1.0, c=G, lower=1, overwrite_c=1)
    return G.T  # its upper triangle, in row order


def _eigenvalues(G: np.ndarray) -> np.ndarray:
    """Ascending; of a Gram matrix given by its upper triangle."""
    extra = 16 if len(G) % 1024 == 0 else 0  # rows a power of two apart fight for the same places in the cache
    if extra:
        G, wide = np.zeros((len(G) + extra,) * 2, dtype=G.dtype), G
        G[: len(wide), : len(wide)] = wide
    return torch.linalg.eigvalsh(torch.from_numpy(G), UPLO="U").numpy()[extra:]


def _by_spectra(placed, shape: tuple[int, int], shuffles: int) -> TrapCount:
    M = min(shape)
    eigenvalues = np.empty((shuffles, M))
    for s in tqdm(range(shuffles), desc="spectra in float64", delay=3, leave=False, disable=shuffles == 1):
        x = np.maximum(_eigenvalues(_gram64(placed(s))), 0.0)
        lost = M * np.finfo(np.float64).eps * x[-1] > 1e-3 * x[M // 4]  # what the Gram matrix does not show
        eigenvalues[s] = gram_eigenvalues(placed(s).astype(np.float64)) if lost else x
    found = count_traps(eigenvalues, shape)
    strength = eigenvalues[:, -1] / found.threshold
    return _result(shape, found.counts, float(found.sigma_mp[0]), 0.0, strength, "spectra in float64", found.reason)


def _result(shape, counts, sigma, error, strength, way, reason="") -> TrapCount:
    good = counts[~np.isnan(counts)]
    return TrapCount(
        N=max(shape),
        M=min(shape),
        counts=counts,
        mean=float(good.mean()) if good.size else math.nan,
        std=float(good.std(ddof=1)) if good.size > 1 else math.nan,
        sigma_mp=sigma,
        sigma_error=error,
        strength=strength,
        way=way,
        status="ok" if good.size else "failed",
        reason=reason,
    )


def _gram32(B: np.ndarray) -> tuple[np.ndarray, float]:
    """The Gram matrix of a tall B in float32, and by how much its eigenvalues may be off: from the rounding of the
    product, which is measured in random directions in float64, and from B's own to float32."""
    X = B.astype(np.float32, copy=False)
    G = X.T @ X
    cast = 0.0 if X is B else math.sqrt(sum(_norm(b - x) ** 2 for b, x in zip(row_blocks(B), row_blocks(X), strict=True)))
    Z = np.random.default_rng(0).normal(size=(G.shape[0], 8))
    exact = np.zeros_like(Z)
    for rows in row_blocks(X):
        rows = rows.astype(np.float64)
        exact += rows.T @ (rows @ Z)
    done = np.concatenate([rows.astype(np.float64) @ Z for rows in row_blocks(G)])
    frobenius = np.linalg.norm(done - exact) / math.sqrt(Z.shape[1])
    return G, 4.0 * float(frobenius) + 2.0 * cast * math.sqrt(float(np.trace(G, dtype=np.float64)))


def _by_float32_spectra(placed, shape: tuple[int, int], shuffles: int) -> TrapCount | None:
    """Counts from all eigenvalues in float32; None if rounding could decide one."""
    N, M = max(shape), min(shape)
    eigenvalues, error = np.empty((shuffles, M)), np.empty(shuffles)
    for s in tqdm(range(shuffles), desc="spectra in float32", delay=3, leave=False, disable=shuffles == 1):
        G, gram_error = _gram32(placed(s))
        eigenvalues[s] = _eigenvalues(G)
        error[s] = M * _EPS * eigenvalues[s, -1] + gram_error
    eigenvalues = np.maximum(eigenvalues, 0.0)
    unit = eigenvalues.mean()
    if np.median(eigenvalues) < 100 * error.max():
        return None  # the bulk is too small for this
    sigma = bulk_sigma(eigenvalues / unit, N / M)
    middle = sigma**2 * mp_middle_mean(N / M)
    relative = float(error.max() / (unit * middle)) + _EPS
    threshold = sigma**2 * unit * bulk_threshold(N / M, M)
    slack = (threshold * relative + error)[:, None]
    if np.any(np.abs(eigenvalues - threshold) <= slack):
        return None
    counts = np.count_nonzero(eigenvalues > threshold, axis=1).astype(float)
    strength = eigenvalues[:, -1] / threshold
    return _result(shape, counts, sigma, sigma * relative / 2, strength, "spectra in float32")


@dataclass
class _Certified:
    """One shuffled matrix whose count is the same for every scale in an interval."""

    count: int
    top: float
    middle: _Middle


@dataclass
class _Middle:
    """The mean of the middle half of a spectrum, estimated."""

    mean: float
    #: Relative to the mean.
    standard_error: float
    quadrature_error: float

    def width(self) -> float:
        """Half of the interval that the mean lies in, relative."""
        return _STANDARD_ERRORS * self.standard_error + self.quadrature_error + _LEAST_WIDTH


class _HeavyTail(Exception):
    """So many eigenvalues above the bulk that one of them will lie at the threshold."""


def _by_certificates(placed, shape: tuple[int, int], shuffles: int) -> TrapCount | None:
    """Counts that hold for every scale the spectra may have; None where they do not."""
    N, M = max(shape), min(shape)
    unit, parts = 0.0, []
    for s in tqdm(range(shuffles), desc="certificates", delay=3, leave=False, disable=shuffles == 1):
        B = placed(s)
        unit = unit or _norm(B) ** 2 / M  # the mean eigenvalue, the same for all placements
        G, error = _gram32(B)
        del B
        part = _certify(G, error, unit, N / M, np.random.default_rng([s, 1]))
        if part is None:
            return None
        parts.append(part)
    middles = [part.middle for part in parts]
    mean = float(np.mean([m.mean for m in middles]))
    errors = np.array([(m.standard_error, m.quadrature_error) for m in middles])
    shared = _Middle(mean, math.sqrt(np.sum(errors[:, 0] ** 2)) / shuffles, float(errors[:, 1].mean()))
    width = shared.width()
    # the scale that all placements share must lie in the interval that each was certified for
    if any(abs(m.mean - mean) + width * mean > m.width() * m.mean * (1 + 1e-9) for m in middles):
        return None
    sigma = math.sqrt(mean / unit / mp_middle_mean(N / M))
    strength = np.array([part.top for part in parts]) / (sigma**2 * unit * bulk_threshold(N / M, M))
    counts = np.array([float(part.count) for part in parts])
    return _result(shape, counts, sigma, sigma * width / 2, strength, "certificate")


def _certify(G: np.ndarray, error: float, unit: float, Q: float, rng) -> _Certified | None:
    """The count in one Gram matrix, which is overwritten; None if it depends on the scale within its interval."""
    M = G.shape[0]
    to_threshold = bulk_threshold(Q, M) / mp_middle_mean(Q)
    probes = min(max(40_000 // M, 6), 24)
    middle, top = _middle_mean(G, unit, 0, probes, rng)
    outliers = np.empty(0)
    if top > 0.95 * middle.mean * to_threshold:
        k = _count_above(G, 1.02 * middle.mean * to_threshold)
        if k > _MOST_OUTLIERS:
            raise _HeavyTail
        if k:
            try:
                outliers, V = eigsh(G, k=k, v0=rng.normal(size=M).astype(np.float32), maxiter=30)
            except ArpackNoConvergence:
                return None
            # G = V diag(outliers) V^T + rest + what couples the two, which is no larger than the residual
            error += 2.0 * float(np.linalg.norm((G @ V).astype(np.float64) - V.astype(np.float64) * outliers))
            G -= (V * outliers) @ V.T
            unit -= float(outliers.sum(dtype=np.float64)) / M
            middle = None
    # a narrower interval costs four times as much, which is still less than all eigenvalues of a large matrix
    for more in (1, 4) if M >= _LARGE else (1,):
        if more > 1 or middle is None:
            middle, met = _middle_mean(G, unit, outliers.size, more * probes, rng)
            top = max(top, met)
        count = _agreed(G, middle, to_threshold, error, outliers, top)
        if count is not None:
            return _Certified(count, max([top, *outliers]), middle)
    return None


def _agreed(G, middle: _Middle, to_threshold: float, error: float, outliers, top: float) -> int | None:
    """The number of eigenvalues above both ends of the threshold's interval, if it is the same."""
    if not middle.width() <= _MOST_WIDTH:
        return None
    low, high = (middle.mean * to_threshold * (1 + side * middle.width()) for side in (-1, 1))
    slack = G.shape[0] * _EPS * high + error
    low, high = low - slack, high + slack
    if outliers.min() <= high if outliers.size else low <= top <= high:
        return None
    if _nothing_above(G, low):
        return outliers.size
    count = _count_above(G, low)
    return outliers.size + count if count == _count_above(G, high) else None


def _shifted(G: np.ndarray, t: float, sign: int) -> np.ndarray:
    """sign * (G - t I), as a new array that LAPACK may overwrite."""
    S = np.array(G.T, order="F") if sign > 0 else -G.T
    S[np.diag_indices_from(S)] -= np.float32(sign * t)
    return S


def _nothing_above(G: np.ndarray, t: float) -> bool:
    """Whether t I - G is positive definite."""
    return lapack.spotrf(_shifted(G, t, -1), lower=1, clean=0, overwrite_a=1)[1] == 0


def _count_above(G: np.ndarray, t: float) -> int:
    """Eigenvalues above t: the positive ones in the block diagonal of G - t I = L D L^T."""
    M = G.shape[0]
    D, pivots, _ = lapack.ssytrf(_shifted(G, t, 1), lower=1, lwork=64 * M, overwrite_a=1)
    pairs = int(np.count_nonzero(pivots < 0)) // 2  # blocks of two have one positive and one negative eigenvalue
    return pairs + int(np.count_nonzero((np.diagonal(D) > 0) & (pivots > 0)))


def _middle_mean(G: np.ndarray, unit: float, taken: int, probes: int, rng) -> tuple[_Middle, float]:
    """The mean of the middle half of the spectrum of a Gram matrix whose ``taken`` largest eigenvalues have been made
    zeros; and the largest eigenvalue that was met on the way. ``unit`` is the mean of what G has now."""
    M = G.shape[0]
    squares = float(np.einsum("ij,ij->i", G, G).sum(dtype=np.float64)) / M
    moments = np.array([1.0, 1.0, squares / unit**2])
    middle = 0.25 + taken / M, 0.75 + taken / M
    diagonal, beside = _lanczos(G, probes, rng)
    nodes, weights = _quadrature(diagonal, beside)
    mean, error = _calibrated(nodes / unit, weights, moments, middle, M)
    fewer = _STEPS * 3 // 4
    other, _ = _calibrated(*(_quadrature(diagonal[:fewer] / unit, beside[: fewer - 1] / unit)), moments, middle, M)
    return _Middle(mean * unit, error, 2.0 * abs(mean - other) / mean), float(nodes.max())


def _calibrated(x, w, moments, middle, M) -> tuple[float, float]:
    """(mean, relative standard error) of the middle of a spectrum whose first moments are known, from quadratures
    x, w (probes, nodes), each with sum of weights 1."""
    probes, order = x.shape[0], np.argsort(x, axis=None)
    x, w = x.ravel()[order], w.ravel()[order] / probes
    powers = np.stack([np.ones_like(x), x, x * x])
    root = np.sqrt(w)
    shift = np.linalg.lstsq((powers * w) @ powers.T, moments - powers @ w, rcond=None)[0]
    known = w * (1.0 + shift @ powers)  # the least change that makes the moments right
    spoilt = known.min() < 0  # by eigenvalues far away: they are to be taken out first
    total = np.cumsum(w if spoilt else known)
    share = np.diff(np.clip(total, *middle), prepend=middle[0])
    mean = 2.0 * float(share @ x)
    if spoilt or not mean > 0:
        return mean, math.inf
    # the mean moves with the trace of clip(G, quartiles), of which the moments explain all but the residual
    clipped = np.clip(x, *x[np.searchsorted(total, middle).clip(max=x.size - 1)])
    fit = np.linalg.lstsq((powers * root).T, clipped * root, rcond=None)[0]
    variance = float(w @ (clipped - fit @ powers) ** 2)
    return mean, 2.0 * math.sqrt(2.0 * variance / (probes * (M + 2))) / mean


def _lanczos(G: np.ndarray, probes: int, rng) -> tuple[np.ndarray, np.ndarray]:
    """Diagonals (steps, probes) and off-diagonals (steps - 1, probes) of the tridiagonal matrices that G is to as
    many random directions, all multiplied at once."""
    V = rng.standard_normal((G.shape[0], probes), dtype=np.float32)
    V /= np.linalg.norm(V, axis=0)
    before, length = np.zeros_like(V), np.zeros(probes, dtype=np.float32)
    diagonal, beside = np.empty((2, _STEPS, probes), dtype=np.float32)
    for step in range(_STEPS):
        U = G @ V
        U -= before * length
        diagonal[step] = np.einsum("ij,ij->j", U, V)
        U -= V * diagonal[step]
        length = np.linalg.norm(U, axis=0)
        length[length < _EPS * np.abs(diagonal[: step + 1]).max()] = 0.0  # the directions are exhausted
        beside[step] = length
        before, V = V, U / np.where(length > 0, length, np.inf)
    return diagonal.astype(np.float64), beside[:-1].astype(np.float64)


def _quadrature(diagonal: np.ndarray, beside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights, (probes, steps) each."""
    pairs = [scipy.linalg.eigh_tridiagonal(d, e) for d, e in zip(diagonal.T, beside.T, strict=True)]
    return np.array([x for x, _ in pairs]), np.array([v[0] ** 2 for _, v in pairs])
