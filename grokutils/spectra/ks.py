"""How far a spectrum is from the Marchenko-Pastur law, and how far chance alone takes one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy  # its stats, which take a second to import, are loaded when first used
from scipy.linalg import eigvalsh_tridiagonal

from grokutils.spectra.marchenko_pastur import bulk_sigma, mp_cdf, weightwatcher_sigma
from grokutils.util.progress import tqdm

_FITS = {
    None: lambda x, Q: 1.0,
    "bulk": bulk_sigma,
    "weightwatcher": weightwatcher_sigma,
}


@dataclass(frozen=True)
class KsResult:
    """Distance from the Marchenko-Pastur law; every array has one number per spectrum."""

    #: Two-sided Kolmogorov-Smirnov distance.
    D: np.ndarray
    #: The sigma that the law was given, in units of the spectrum's own root mean square (1 if not fitted).
    sigma: np.ndarray
    #: The textbook's p-value, for as many *independent* points. Eigenvalues are not independent: far too
    #: large.
    p_textbook: np.ndarray
    #: The share of random matrices at least as far from the law, (1 + how many) / (1 + draws).
    p_monte_carlo: np.ndarray
    #: Mean, standard deviation and 95 % point of D over those random matrices.
    null_mean: float
    null_std: float
    null_q95: float


def wishart_eigenvalues(N: int, M: int, rng: np.random.Generator) -> np.ndarray:
    """Eigenvalues of G^T G for an N x M Gaussian G, ascending, without making G.

    The two-diagonal matrix with independent chi variables of N, N - 1, ... degrees of freedom on its
    diagonal and M - 1, M - 2, ... under it has singular values of exactly the same law (Dumitriu and
    Edelman, J. Math. Phys. 43, 2002).
    """
    diagonal = rng.chisquare(N - np.arange(M))
    under = rng.chisquare(np.arange(M - 1, 0, -1))
    return eigvalsh_tridiagonal(diagonal + np.append(0.0, under), np.sqrt(diagonal[:-1] * under))


def ks_distance(x: np.ndarray, Q: float, sigma: float) -> float:
    """Two-sided distance between the ascending ``x`` and the law; NaN if sigma is."""
    if np.isnan(sigma):
        return np.nan
    law, n = mp_cdf(x, Q, sigma), x.size
    return float(max(np.max(np.arange(1, n + 1) / n - law), np.max(law - np.arange(n) / n)))


@lru_cache(maxsize=128)
def mp_null(
    N: int, M: int, replicas: int = 1, fit: str | None = "bulk", draws: int = 400, seed: int = 0
) -> np.ndarray:
    """Distances of ``draws`` Gaussian matrices from the law, ascending; kept for the life of the process.

    >>> mp_null(784, 200, fit=None).mean().round(4)
    np.float64(0.0125)
    """
    rng = np.random.default_rng([seed, N, M, replicas])
    distances = np.empty(draws)
    for i in tqdm(range(draws), desc=f"null for {N} x {M}", delay=3, leave=False):
        x = np.sort(np.concatenate([wishart_eigenvalues(N, M, rng) for _ in range(replicas)]))
        x /= x.mean()
        distances[i] = ks_distance(x, N / M, _FITS[fit](x, N / M))
    distances.sort()
    distances.flags.writeable = False
    return distances


def mp_ks(eigenvalues: np.ndarray, N: int, M: int, fit: str | None, draws: int, seed: int) -> KsResult:
    """See `grokutils.spectra.traps.mp_ks`, which checks the arguments. ``eigenvalues`` is (spectra, replicas * M),
    ascending."""
    n = eigenvalues.shape[1]
    D, sigma = np.full((2, len(eigenvalues)), np.nan)
    for i, x in enumerate(eigenvalues):
        if x[-1] > 0:
            x = x / x.mean()
            sigma[i] = _FITS[fit](x, N / M)
            D[i] = ks_distance(x, N / M, sigma[i])
    null = mp_null(N, M, n // M, fit, draws, seed)
    null = null[np.isfinite(null)]
    at_least = null.size - np.searchsorted(null, D, side="left")
    return KsResult(
        D=D,
        sigma=sigma,
        p_textbook=scipy.stats.kstwo.sf(D, n),
        p_monte_carlo=np.where(np.isnan(D), np.nan, (1 + at_least) / (1 + null.size)),
        null_mean=float(null.mean()),
        null_std=float(null.std()),
        null_q95=float(np.quantile(null, 0.95)),
    )
