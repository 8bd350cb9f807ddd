"""The Marchenko-Pastur law, in closed form, and the two ways of fitting its scale to a spectrum.

For an N x M matrix (N >= M, Q = N / M) of independent entries with mean 0 and standard deviation sigma, the M
eigenvalues of W^T W / N fill, for large N and M, the interval between (1 - 1/sqrt(Q))^2 and (1 +
1/sqrt(Q))^2, times sigma^2, with the density

    Q / (2 pi sigma^2 x) * sqrt((x_max - x) (x - x_min))

(Marchenko and Pastur, Math. USSR Sbornik 1, 1967). Here x always stands for such eigenvalues: divided by N,
or by their mean, which is the same thing up to sigma.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy.optimize import fmin


def check_law(Q: float, sigma) -> None:
    if not (np.isfinite(Q) and Q >= 1):
        raise ValueError(f"Q = N / M must be 1 or more (N is the longer side); got {Q!r}.")
    if not (np.all(np.isfinite(sigma)) and np.all(np.asarray(sigma) > 0)):
        raise ValueError(f"sigma must be a positive number; got {sigma!r}.")


def mp_support(Q: float, sigma: float = 1.0) -> tuple[float, float]:
    """The edges of the bulk.

    >>> mp_support(4.0)
    (0.25, 2.25)
    """
    check_law(Q, sigma)
    root = math.sqrt(1.0 / Q)
    return float(sigma * (1.0 - root)) ** 2, float(sigma * (1.0 + root)) ** 2


def mp_pdf(x, Q: float, sigma: float = 1.0) -> np.ndarray:
    """Density at ``x`` (any shape); zero outside the bulk.

    >>> float(mp_pdf(1.0, 4.0).round(4))
    0.6164

    At Q = 1 it diverges at x = 0, and is infinite there. Source: the module's first lines.
    """
    low, high = mp_support(Q, sigma)
    x = np.asarray(x, dtype=np.float64)
    inside = np.maximum((high - x) * (x - low), 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        density = Q * np.sqrt(inside) / (2.0 * np.pi * sigma**2 * x)
    return np.where(inside > 0, density, np.where((x == 0) & (low == 0), np.inf, 0.0))


def mp_cdf(x, Q: float, sigma: float = 1.0) -> np.ndarray:
    """The share of the law at or below ``x`` (any shape), in closed form.

    >>> mp_cdf([0.0, 1.0, 4.0], 1.0).round(4).tolist()
    [0.0, 0.609, 1.0]

    With a = x_min, b = x_max and the two angles

        theta = 2 atan(sqrt((x - a) / (b - x))),   phi = 2 atan(sqrt(b (x - a) / (a (b - x)))),

    both running from 0 at a to pi at b, the integral of the density is

        Q / (2 pi sigma^2) * ( sqrt((b - x)(x - a)) + (a + b) / 2 * theta - sqrt(a b) * phi ),

    as differentiation shows. Angles rather than arcsines keep full precision at the edges.
    """
    low, high = mp_support(Q, sigma)
    x = np.clip(np.asarray(x, dtype=np.float64), low, high)
    below, above = x - low, high - x
    theta = 2.0 * np.arctan2(np.sqrt(below), np.sqrt(above))
    phi = 2.0 * np.arctan2(np.sqrt(high * below), np.sqrt(low * above))
    integral = np.sqrt(above * below) + 0.5 * (low + high) * theta - np.sqrt(low * high) * phi
    share = np.clip(integral * Q / (2.0 * np.pi * sigma**2), 0.0, 1.0)
    return np.where(x >= high, 1.0, share)  # exactly 1, whatever the three terms round to


def mp_quantile(p, Q: float, sigma: float = 1.0) -> np.ndarray:
    """Where the law has the share ``p`` (any shape, between 0 and 1) at or below: the inverse of `mp_cdf`.

    >>> float(mp_quantile(0.5, 1.0).round(4))
    0.6528
    """
    low, high = mp_support(Q)
    p = np.asarray(p, dtype=np.float64)
    if not np.all((p >= 0) & (p <= 1)):
        raise ValueError(f"p must lie between 0 and 1; got {p!r}.")
    left, right = np.full(p.shape, low), np.full(p.shape, high)
    for _ in range(60):  # halving: nothing to tune, and 60 halvings reach the last digit
        middle = 0.5 * (left + right)
        over = mp_cdf(middle, Q) > p
        left, right = np.where(over, left, middle), np.where(over, middle, right)
    check_law(Q, sigma)
    return sigma**2 * np.where(p == 0, low, right)


@lru_cache(maxsize=256)
def mp_middle_mean(Q: float) -> float:
    """The mean of the law's middle half (from its 25 % to its 75 % quantile) with sigma = 1.

    >>> round(mp_middle_mean(1.0), 4)
    0.7283

    x times the density is a half-ellipse, whose area up to x is elementary.
    """
    low, high = mp_support(Q)
    radius, centre = 0.5 * (high - low), 0.5 * (high + low)

    def area(x):
        u = np.clip((x - centre) / radius, -1.0, 1.0)
        return 0.5 * radius**2 * (u * np.sqrt(1.0 - u * u) + np.arcsin(u))

    first, last = mp_quantile([0.25, 0.75], Q)
    return float(2.0 * Q / (2.0 * np.pi) * (area(last) - area(first)))


def bulk_sigma(x: np.ndarray, Q: float) -> float:
    """The sigma whose law has the same mean over its middle half as the eigenvalues; NaN without a bulk.

    Up to a quarter of the eigenvalues may be traps of any size, there is no grid that sigma could run into,
    and Q = 1 is no special case. The median would do too, but varies 2.5 times as much from one shuffle to
    the next. There is no bulk if half of the eigenvalues are zero.
    """
    x = np.sort(x, axis=None)
    n = x.size
    if not x[n // 2] > 0:
        return np.nan
    edges = np.arange(n + 1) / n
    weight = np.clip(np.minimum(edges[1:], 0.75) - np.maximum(edges[:-1], 0.25), 0.0, None)
    return float(np.sqrt(2.0 * np.dot(weight, x) / mp_middle_mean(Q)))


# What follows is WeightWatcher 0.7.5.5's fit: the same sums in the same order, so that the minimiser takes
# the same path to the same last digit. Its two weaknesses are kept: at Q = 1 the curve it fits does not widen
# with sigma, and the search starts at 0.05 of the sigma that would put the largest eigenvalue on the edge.

_LOW_DENSITY = 0.01
_NO_FIT = 1000.0


def weightwatcher_sigma(x: np.ndarray, Q: float) -> float:
    """Least squares between the law and a kernel estimate of the density; NaN if that is flat.

    ``x`` must have mean 1. The kernel estimate does not depend on sigma and is computed once; WeightWatcher
    computes it anew for each of the two hundred sigmas that it tries.
    """
    points = np.sqrt(x) if Q == 1 else x
    axis = np.linspace(0, np.max(points) + 0.5, 1000)
    density = _density(points, axis)
    keep = density > _LOW_DENSITY
    axis, density = axis[keep], density[keep]
    if axis.size == 0:
        return np.nan
    misfit = _misfit_at_q1 if Q == 1 else _misfit
    start = np.sqrt(np.max(x) / np.square(1 + 1.0 / np.sqrt(Q)))
    grid = np.mgrid[0.05 * start : 2.0 * start : 0.01 * start]
    start = grid[np.argmin(misfit(grid, axis, density, Q))]
    best = fmin(lambda sigma: misfit(sigma, axis, density, Q)[0], start, full_output=True, disp=False)[0]
    return float(best[0])


def _density(points: np.ndarray, axis: np.ndarray) -> np.ndarray:
    """Triangles of half-width 0.1 on every point, summed as scikit-learn sums them.

    In NumPy the sum is three lines and a third of the time. But it has plateaus, also where it is largest;
    there rounding decides which point is the peak, and the peak rules out sigmas. With NumPy one fit of 144
    came out 1 % different: for the same rounding it must be the same code.
    """
    from sklearn.neighbors import KernelDensity  # only here: importing it takes a second

    kernels = KernelDensity(kernel="linear", bandwidth=0.1).fit(points[:, None])
    return np.exp(kernels.score_samples(axis[:, None]))


def _sum_of_squares(curves: np.ndarray, density: np.ndarray) -> np.ndarray:
    residual = np.zeros((len(curves), 1000))  # padded, because the order of the sum depends on the length
    np.subtract(curves, density, out=residual[:, : density.size])
    return np.sum(np.square(residual, out=residual), axis=1)


def _misfit(sigmas: np.ndarray, axis: np.ndarray, density: np.ndarray, Q: float) -> np.ndarray:
    high = np.power(sigmas * (1 + np.sqrt(1 / Q)), 2)
    low = np.power(sigmas * (1 - np.sqrt(1 / Q)), 2)
    peak = axis[np.argmax(density)]
    allowed = ~((high < peak) | (high > np.max(axis)) | (low > peak))
    out = np.full(sigmas.size, density.size * _NO_FIT**2)
    if allowed.any():
        s, a, b = (v[allowed, None] for v in (sigmas, low, high))
        with np.errstate(divide="ignore", invalid="ignore"):
            curves = np.nan_to_num(
                (1 / (2 * np.pi * s * s * axis * (1 / Q))) * np.sqrt((b - axis) * (axis - a))
            )
        out[allowed] = _sum_of_squares(curves, density)
    return out


def _misfit_at_q1(sigmas: np.ndarray, axis: np.ndarray, density: np.ndarray, Q: float) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        quarter_circle = np.nan_to_num(np.sqrt(4 - axis**2))
    return _sum_of_squares((1 / (np.pi * sigmas * sigmas))[:, None] * quarter_circle, density)
