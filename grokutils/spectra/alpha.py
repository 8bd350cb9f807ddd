"""From a weight matrix to its eigenvalues, and from those to alpha: the power-law fit of the tail.

>>> import numpy as np
>>> W = np.random.default_rng(0).standard_t(3, size=(300, 100))
>>> fit = fit_power_law(esd(W))
>>> round(fit.alpha, 2), fit.n_tail, fit.status
(6.39, 12, 'ok')

Conventions, the same as WeightWatcher's (checked against version 0.7.5.5):

- The eigenvalues are those of W^T W (the squared singular values): not divided by N, not centred.
- A matrix is N x M with N >= M; a wide one is read as its transpose. There are M eigenvalues.
- Weights keep their own precision. WeightWatcher rounds them to float32 first; to agree with it in the
  last digits on float64 weights, pass ``W.astype(np.float32)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg

from grokutils.spectra.arrays import plain
from grokutils.util.progress import tqdm

__all__ = [
    "CUTOFF",
    "MIN_EIGENVALUES",
    "ROUNDING",
    "ErgTail",
    "MatrixSpectrum",
    "PowerLawFit",
    "alpha_hat",
    "analyze_matrix",
    "as_matrix",
    "erg_tail",
    "esd",
    "fit_power_law",
    "stable_rank",
]

#: Eigenvalues up to this absolute size count as zero in the fit (WeightWatcher's EVALS_THRESH).
CUTOFF = 1e-5
#: With fewer eigenvalues than this a matrix is not fitted (WeightWatcher's min_evals).
MIN_EIGENVALUES = 10
#: Eigenvalues of a tail that agree to this are equal: a float32 matrix has seven digits, its eigenvalues fewer.
ROUNDING = 1e-4

_MOST_CLIPPED = 9  # "clip_xmax" takes off 2, 3, ..., 9 of the largest eigenvalues
_CLEAR_FALL = 1.0  # ... until alpha has fallen by more than this,
_LOW_ALPHA = 2.0  # ... or gives up once alpha is no larger than this.
_FLAT = 1e-10  # tails whose eigenvalues agree to ten digits have no slope, only rounding errors


def as_matrix(W, name: str = "W") -> np.ndarray:
    """The matrix as finite float64 numbers in rows and columns, or one sentence about why it is none.

    >>> as_matrix([[1, 2], [3, 4]])
    array([[1., 2.],
           [3., 4.]])

    Accepts anything NumPy reads (lists, any memory order, integers, booleans, float16) and torch tensors
    of any real type on any device, bfloat16 included. The result may share memory with ``W``.

    Raises
    ------
    TypeError: complex numbers, or things that are not numbers.
    ValueError: not two-dimensional, empty, or with NaN or infinite entries.
    """
    A = _as_float64(W, name)
    if A.ndim != 2:
        raise ValueError(f"{name} must be a matrix with two dimensions; got shape {tuple(A.shape)}.")
    if A.size == 0:
        raise ValueError(f"{name} must have at least one entry; got shape {tuple(A.shape)}.")
    with np.errstate(over="ignore", invalid="ignore"):
        total = A.sum()  # finite only if all entries are, and cheaper than looking at each
    if not math.isfinite(total) and (bad := int(np.count_nonzero(~np.isfinite(A)))):
        raise ValueError(
            f"{name} must hold finite numbers; {bad} of its {A.size} entries are NaN or infinite."
        )
    return A


def _as_float64(values, name: str) -> np.ndarray:
    if hasattr(values, "detach") and hasattr(values, "is_complex"):  # a tensor, without importing torch
        if values.is_complex():
            raise TypeError(f"{name} must hold real numbers; got a tensor of {values.dtype}.")
        if values.is_meta:
            raise ValueError(f"{name} must hold numbers; got a tensor on the meta device, which has none.")
        values = plain(values)
        if str(values.layout) != "torch.strided":
            values = values.to_dense()
        return values.cpu().double().numpy()
    try:
        A = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} must be rectangular; its rows have different lengths.") from error
    if A.dtype.kind == "V" and A.dtype.name.startswith(("bfloat16", "float", "int", "uint")):  # of ml_dtypes
        A = A.astype(np.float32)
    if A.dtype.kind not in "fiub":
        kind = "complex numbers" if A.dtype.kind == "c" else f"entries of type {A.dtype}"
        raise TypeError(f"{name} must hold real numbers; got {kind}.")
    return A.astype(np.float64, copy=False)


def esd(W) -> np.ndarray:
    """The empirical spectral density: all eigenvalues of W^T W, ascending.

    >>> esd([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])
    array([ 9., 16.])

    Parameters
    ----------
    W: matrix (rows, columns); see `as_matrix` for what is accepted and what raises.

    Returns
    -------
    The squared singular values, ``min(rows, columns)`` of them, in squared units of the weights. They are
    taken from the matrix itself and not from W W^T, so that small ones keep their digits.
    """
    A = as_matrix(W)
    eigenvalues = squared_singular_values(A)
    if not math.isfinite(eigenvalues[-1]):
        raise ValueError(f"W must have eigenvalues under 1e308; its largest entry is {np.abs(A).max():.3g}.")
    return eigenvalues


def squared_singular_values(A: np.ndarray) -> np.ndarray:
    """`esd` of what is known to be a matrix, by the call that WeightWatcher makes."""
    try:
        singular = scipy.linalg.svd(A, compute_uv=False, check_finite=False)
    except np.linalg.LinAlgError:  # the fast divide-and-conquer driver can fail where the plain one does not
        singular = scipy.linalg.svd(A, compute_uv=False, check_finite=False, lapack_driver="gesvd")
    with np.errstate(over="ignore"):
        return np.sort(singular * singular)


@dataclass(frozen=True)
class PowerLawFit:
    """The density p(x) ~ x^-alpha on [xmin, xmax], as fitted; NaN and a reason where there is no fit."""

    alpha: float
    #: Where the tail starts: one of the eigenvalues.
    xmin: float
    #: The largest eigenvalue that was fitted.
    xmax: float
    #: Kolmogorov-Smirnov distance of the tail from the fitted law (one-sided steps, see `fit_power_law`).
    D: float
    #: Standard error of alpha for a known xmin, (alpha - 1) / sqrt(n_tail).
    sigma: float
    #: Eigenvalues in the fitted tail.
    n_tail: int
    #: Eigenvalues taken off at the top by fix_fingers="clip_xmax" (0, or 2 to 9).
    n_clipped: int
    #: Alpha with nothing taken off.
    raw_alpha: float
    #: "ok" or "failed".
    status: str
    #: Why it failed; empty if it did not.
    reason: str
    #: The central 95 % of alpha over bootstrap resamples, if they were asked for.
    interval: tuple[float, float] | None = None
    #: How many resamples the interval rests on: those whose own fit did not fail.
    n_bootstrap: int = 0


def fit_power_law(
    eigenvalues,
    fix_fingers: str | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    cutoff: float | str = CUTOFF,
    rounding: float = ROUNDING,
) -> PowerLawFit:
    """Alpha of the tail, by maximum likelihood, with the xmin whose law lies closest to the data.

    >>> x = np.random.default_rng(0).pareto(1.5, size=2000) + 1     # alpha = 2.5, xmin = 1
    >>> fit = fit_power_law(x, bootstrap=100)
    >>> round(fit.alpha, 2), round(fit.sigma, 2), [round(a, 1) for a in fit.interval]
    (2.48, 0.03, [2.4, 2.6])

    Every eigenvalue but the largest is tried as xmin. With n eigenvalues x_i >= xmin,
    alpha = 1 + n / sum_i ln(x_i / xmin), and D = max_i |F(x_i) - (i - 1) / n|, where
    F(x) = 1 - (x / xmin)^(1 - alpha); the xmin with the smallest D is kept (Clauset, Shalizi and Newman,
    SIAM Review 51, 2009, equation 3.1 and section 3.3, with the lower steps of the empirical distribution
    only).

    Parameters
    ----------
    eigenvalues: 1-D, any order, not negative (rounding errors aside). At least 10, zeros counted.
    fix_fingers: None, or "clip_xmax" to refit without the 2, 3, ..., 9 largest eigenvalues and take the first
        fit whose alpha is more than 1 below the unclipped one (and keep the unclipped one if there is none).
    bootstrap: number of resamples (drawn with replacement, xmin chosen anew in each) for ``interval``.
        Eigenvalues repel each other, so they vary less than independent draws: read the interval as wide.
    seed: of the resamples.
    cutoff: eigenvalues up to this count as zero and are left out. The default, 1e-5, is WeightWatcher's and
        is in absolute units: alpha does not depend on the scale of W as long as no eigenvalue crosses it,
        and very small weights lose their whole spectrum. ``cutoff="relative"`` leaves out
        x <= x_max (n eps)^2 instead, the usual numerical rank for float32 weights (eps = 2^-23): then alpha
        has no scale at all.
    rounding: a tail whose eigenvalues differ by no more than this share of them has no slope, only rounding errors, such as that of
        an orthogonal matrix. WeightWatcher fits exponents of millions there.

    Returns
    -------
    `PowerLawFit`. A fit that fails has ``status="failed"``, NaN numbers and a ``reason``: fewer than 10
    eigenvalues, fewer than two above the cutoff, all of them or of the tail equal, or too few left to clip.

    Raises
    ------
    TypeError, ValueError: eigenvalues that are complex, not 1-D, empty, not finite or negative;
        unknown ``fix_fingers``; negative ``bootstrap``, ``seed`` or ``cutoff``.
    """
    x, total = _positive_part(eigenvalues, cutoff)
    if fix_fingers not in (None, "clip_xmax"):
        raise ValueError(f'fix_fingers must be None or "clip_xmax"; got {fix_fingers!r}.')
    _check_count("bootstrap", bootstrap)
    _check_count("seed", seed)
    if total < MIN_EIGENVALUES:
        return _failed(f"{total} eigenvalues; at least {MIN_EIGENVALUES} are needed")
    if x.size < 2:
        return _failed(f"{x.size} of {total} eigenvalues above the cutoff ({cutoff}); at least 2 are needed")
    fit = _fit(x, fix_fingers, rounding)
    if bootstrap and fit.status == "ok":
        interval, kept = _bootstrap_interval(x, fix_fingers, rounding, bootstrap, seed)
        fit = replace(fit, interval=interval, n_bootstrap=kept)
    return fit


def _positive_part(eigenvalues, cutoff) -> tuple[np.ndarray, int]:
    """The eigenvalues above the cutoff, ascending, and how many there were altogether."""
    x = _as_float64(eigenvalues, "eigenvalues")
    if x.ndim != 1 or x.size == 0:
        raise ValueError(f"eigenvalues must be a list of at least one number; got shape {tuple(x.shape)}.")
    x = np.sort(x)
    if not np.isfinite(x).all():
        raise ValueError(
            f"eigenvalues must be finite; {np.count_nonzero(~np.isfinite(x))} of {x.size} are not."
        )
    if x[0] < -1e-9 * max(x[-1], 0.0):
        raise ValueError(f"eigenvalues of W^T W must not be negative; the smallest is {x[0]:.6g}.")
    if isinstance(cutoff, str):
        if cutoff != "relative":
            raise ValueError(f'cutoff must be a number or "relative"; got {cutoff!r}.')
        cutoff = max(x[-1], 0.0) * (x.size * 2.0**-23) ** 2
    elif not (isinstance(cutoff, (int, float, np.number)) and 0 <= cutoff < math.inf):
        raise ValueError(f'cutoff must be a number that is not negative, or "relative"; got {cutoff!r}.')
    return x[np.searchsorted(x, cutoff, side="right") :], x.size


def _check_count(name: str, value) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 0:
        raise ValueError(f"{name} must be a whole number, 0 or more; got {value!r}.")


def _failed(reason: str) -> PowerLawFit:
    nan = math.nan
    return PowerLawFit(nan, nan, nan, nan, nan, 0, 0, nan, "failed", reason)


def _fit(x: np.ndarray, fix_fingers: str | None, rounding: float) -> PowerLawFit:
    """The fit of ascending, positive ``x``, at least two of them."""
    log_x = np.log(x / x[-1])  # relative to the largest: scaling W then changes nothing but the last digit
    raw_alpha, start, D = _best_start(log_x)
    alpha, clipped = raw_alpha, 0
    if math.isnan(raw_alpha):
        return _failed(f"all {x.size} eigenvalues above the cutoff are equal, so the tail has no slope")
    if fix_fingers == "clip_xmax":
        try:
            alpha, start, D, clipped = _clip(log_x, (alpha, start, D))
        except _TooFewLeft:
            return _failed(f'{x.size} eigenvalues above the cutoff are too few for fix_fingers="clip_xmax"')
    stop = x.size - clipped
    n_tail = stop - int(np.searchsorted(x, x[start]))  # those equal to xmin are in the tail, wherever it was cut
    if log_x[stop - 1] - log_x[start] <= rounding:
        return _failed(f"the {n_tail} eigenvalues of the tail are equal up to rounding, so it has no slope")
    return PowerLawFit(
        alpha=alpha,
        xmin=float(x[start]),
        xmax=float(x[stop - 1]),
        D=D,
        sigma=(alpha - 1.0) / math.sqrt(n_tail),
        n_tail=n_tail,
        n_clipped=clipped,
        raw_alpha=raw_alpha,
        status="ok",
        reason="",
    )


class _TooFewLeft(Exception):
    """Clipping has left fewer than two eigenvalues to fit."""


def _clip(log_x: np.ndarray, first: tuple[float, int, float]) -> tuple[float, int, float, int]:
    """Refit without the largest eigenvalues: (alpha, start, D, number taken off)."""
    n = log_x.size
    roomy = n >= _MOST_CLIPPED + 5  # enough for all refits and for the three checks below

    def refit(off: int) -> tuple[float, int, float]:
        if n - off < 2:
            raise _TooFewLeft
        return _best_start(log_x[: n - off])

    if roomy and first[0] <= 1.0 + _CLEAR_FALL:  # no alpha can be lower by more than that: save the work
        return *first, 0
    best, off = (*first, 0), 0
    for off in range(2, _MOST_CLIPPED + 1):
        fit = refit(off)
        if fit[0] + _CLEAR_FALL < first[0]:
            best = (*fit, off)
            break
        if fit[0] <= _LOW_ALPHA:
            break
    if not roomy:
        # WeightWatcher takes off up to three more to see whether alpha is steady. It uses the answer for
        # nothing, but where this runs out of eigenvalues it calls the whole fit failed; ten eigenvalues
        # never pass unless alpha falls early. Kept, so that its failures are failures here too.
        for more in range(off + 1, off + 4):
            if abs(refit(more)[0] - fit[0]) > _CLEAR_FALL:
                break
    return best


def _best_start(log_x: np.ndarray) -> tuple[float, int, float]:
    """(alpha, index of xmin, D) for ascending logarithms, or NaN where no tail has a slope.

    The distance of a candidate is a maximum over its tail, so its value at a dozen points of the tail is a
    lower bound. Candidates whose bound exceeds a distance already found are out, and the rest are measured
    in full: the answer is that of the full table of n^2 / 2 numbers, at a small part of its cost.
    """
    n = log_x.size
    first = np.arange(n - 1)
    count = n - first  # eigenvalues in the tail of each candidate: n, ..., 2
    rise = np.cumsum(log_x[::-1])[:0:-1] - count * log_x[:-1]  # sum of ln(x / xmin), summed from the top
    sloped = rise > _FLAT * count
    if not sloped.any():
        return math.nan, 0, math.nan
    alpha = 1.0 + np.divide(count, rise, out=np.full(n - 1, np.inf), where=sloped)

    def largest_gap(candidates, members):
        """Largest |fitted - empirical distribution|: candidates (k,), members of their tails (k, m)."""
        start = candidates[:, None]
        fitted = -np.expm1((1.0 - alpha[start]) * (log_x[members] - log_x[start]))
        return np.abs(fitted - (members - start) / count[start]).max(axis=1)

    def measure(candidates):
        members = np.maximum(np.arange(candidates.min(), n), candidates[:, None])  # at its start the gap is 0
        D[candidates] = largest_gap(candidates, members)
        return D[candidates].min()

    rows, best = first[sloped], np.inf
    D = np.full(n - 1, np.inf)
    for probes in (12, 96):
        if n < 8 * probes:  # a bound would cost as much as it saves
            break
        at = (np.arange(probes) + 0.5) / probes
        bound = largest_gap(rows, rows[:, None] + (count[rows][:, None] * at).astype(np.intp))
        order = np.argsort(bound)
        rows, bound = rows[order], bound[order]
        best = min(best, measure(rows[:8]))
        rows = rows[bound <= best + 1e-12]  # the margin is for rounding
    for some in np.array_split(rows, math.ceil(rows.size * n / 2**17)):  # a megabyte a table
        measure(some)
    i = int(np.argmin(D))
    return float(alpha[i]), i, float(D[i])


def _bootstrap_interval(x, fix_fingers, rounding, resamples: int, seed: int) -> tuple[tuple[float, float], int]:
    rng = np.random.default_rng(seed)
    alphas = []
    for _ in tqdm(range(resamples), desc="bootstrap of alpha", delay=3, leave=False):
        fit = _fit(np.sort(rng.choice(x, size=x.size)), fix_fingers, rounding)
        if fit.status == "ok":
            alphas.append(fit.alpha)
    if not alphas:
        return (math.nan, math.nan), 0
    low, high = np.percentile(alphas, [2.5, 97.5])
    return (float(low), float(high)), len(alphas)


def stable_rank(eigenvalues) -> float:
    """The squared Frobenius norm over the squared spectral norm: between 1 and the rank.

    >>> stable_rank([1.0, 1.0, 4.0])
    1.5

    NaN for a matrix of zeros. Raises as `fit_power_law` does.
    """
    x, _ = _positive_part(eigenvalues, 0.0)
    return float(x.sum() / x[-1]) if x.size else math.nan


def alpha_hat(alpha: float, eigenvalues) -> float:
    """alpha * log10(largest eigenvalue), WeightWatcher's alpha_weighted: alpha times the layer's scale.

    >>> alpha_hat(3.0, [1.0, 10.0, 100.0])
    6.0

    NaN where alpha is NaN or the matrix is zero. Source: Martin, Peng and Mahoney, Nature Communications 12,
    4122 (2021).
    """
    x, _ = _positive_part(eigenvalues, 0.0)
    return float(alpha * math.log10(x[-1])) if x.size else math.nan


@dataclass(frozen=True)
class ErgTail:
    """The tail of eigenvalues whose logarithms add up to zero (the trace-log, or ERG, condition)."""

    #: Eigenvalues in the tail (WeightWatcher's detX_num).
    count: int
    #: The smallest of them, in the units of the eigenvalues.
    eigenvalue: float
    #: xmin of the power law minus that: 0 where both conditions pick the same tail, the ideal of SETOL.
    gap: float
    #: The gap in units of the mean eigenvalue, which makes layers comparable.
    relative_gap: float


def erg_tail(eigenvalues, xmin: float = math.nan) -> ErgTail:
    """Count from the largest eigenvalue down until the logarithms add up to less than zero.

    >>> erg_tail([0.1, 0.2, 1.5, 2.2], xmin=1.5)
    ErgTail(count=3, eigenvalue=0.2, gap=1.3, relative_gap=1.3)

    The eigenvalues are first divided by their mean, so the whole spectrum can only add up to zero or less,
    and the count is at least 1 and at most all. The sum of logarithms is the log-determinant of the tail:
    |det X| = 1 in Martin, Hinrichs and Mahoney's SETOL. WeightWatcher multiplies where this adds, with the
    same count as long as its product fits into a float64 (up to a thousand eigenvalues or so). All equal, or
    all zero: a count of 0 and NaN, as no tail stands out. Raises as `fit_power_law` does.
    """
    x, total = _positive_part(eigenvalues, 0.0)
    if x.size == 0 or (x.size == total and x[0] == x[-1]):
        return ErgTail(0, math.nan, math.nan, math.nan)
    mean = x.sum() / total
    log_det = np.cumsum(np.log(x[::-1] / mean))
    below = np.flatnonzero(log_det < 0)
    # With zeros in the spectrum the sum may stay positive up to the first of them, which makes it -infinite.
    count = int(below[0]) + 1 if below.size else min(x.size + 1, total)
    eigenvalue = float(x[-count]) if count <= x.size else 0.0
    gap = float(xmin) - eigenvalue
    return ErgTail(count, eigenvalue, gap, gap / float(mean))


@dataclass(frozen=True, eq=False)
class MatrixSpectrum:
    """Everything this module reads off one matrix."""

    shape: tuple[int, int]
    eigenvalues: np.ndarray
    fit: PowerLawFit
    alpha_hat: float
    stable_rank: float
    erg: ErgTail


def analyze_matrix(
    W, fix_fingers: str | None = None, bootstrap: int = 0, seed: int = 0, cutoff: float | str = CUTOFF
) -> MatrixSpectrum:
    """Eigenvalues, power-law fit, alpha-hat, stable rank and ERG tail of one matrix.

    >>> result = analyze_matrix(np.diag([1.0, 2.0, 3.0]))
    >>> result.fit.alpha, result.fit.reason, result.eigenvalues
    (nan, '3 eigenvalues; at least 10 are needed', array([1., 4., 9.]))

    Arguments and errors are those of `esd` and `fit_power_law`.
    """
    A = as_matrix(W)
    eigenvalues = esd(A)
    fit = fit_power_law(eigenvalues, fix_fingers, bootstrap, seed, cutoff)
    return MatrixSpectrum(
        shape=A.shape,
        eigenvalues=eigenvalues,
        fit=fit,
        alpha_hat=alpha_hat(fit.alpha, eigenvalues),
        stable_rank=stable_rank(eigenvalues),
        erg=erg_tail(eigenvalues, fit.xmin),
    )
