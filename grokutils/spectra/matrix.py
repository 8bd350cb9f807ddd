"""Everything that is measured of one weight matrix, as one row of numbers."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.linalg
from scipy.sparse.linalg import LinearOperator, eigsh

from grokutils.spectra import baselines
from grokutils.spectra.alpha import (
    CUTOFF,
    ROUNDING,
    alpha_hat,
    as_matrix,
    erg_tail,
    fit_power_law,
    stable_rank,
)
from grokutils.spectra.arrays import dtype_name, precision
from grokutils.spectra.counting import count_without_spectra, gram_spectrum, random_placement
from grokutils.spectra.layers import Layer, NotALayer
from grokutils.spectra.traps import (
    METHODS,
    TrapResult,
    count_traps,
    find_traps,
    inverse_participation_ratio,
    mp_ks,
    shuffle_matrix,
)
from grokutils.util.blas import LARGE, threads_for

__all__ = ["MatrixDiagnosis", "Options", "diagnose_layer", "diagnose_matrix"]

# The Monte-Carlo p needs hundreds of random spectra of the same shape: a second for 200 eigenvalues (once in
# a process), many minutes for thousands.
_LARGEST_NULL = 512
# Of shuffles and other repetitions: more would fill the memory and take hours, and say no more.
_MOST = 100_000


@dataclass(frozen=True)
class Options:
    """What is measured, and how; checked when it is made. `grokutils.diagnose` says what each means."""

    shuffles: int = 20
    seed: Any = 0
    method: str = "bulk"
    bootstrap: int = 0
    cutoff: float | str = CUTOFF
    ks_draws: int = 400
    exact: bool = False

    def __post_init__(self) -> None:
        for name in ("shuffles", "bootstrap", "ks_draws"):
            _check_count(name, getattr(self, name), _MOST)
        if not isinstance(self.seed, (np.random.Generator, np.random.RandomState)):
            _check_count("seed", self.seed)
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}; got {self.method!r}.")
        fit_power_law([1.0], cutoff=self.cutoff)  # knows what a cutoff is

    def as_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    @property
    def whole_seed(self) -> int:
        """The seed of what cannot be drawn from a generator."""
        return int(self.seed) if isinstance(self.seed, (int, np.integer)) else 0


def _check_count(name: str, value: Any, most: float = math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value <= most:
        limit = "" if most == math.inf else f" and at most {most:,}"
        raise ValueError(f"{name} must be a whole number of at least 0{limit}; got {value!r}.")


DEFAULTS = Options()


@dataclass(frozen=True, eq=False)
class MatrixDiagnosis:
    """One matrix: its row, and the spectra that the row was read from."""

    #: By column name; `grokutils.util.columns.COLUMNS` says what each means.
    row: dict[str, Any]
    #: Eigenvalues of W^T W, ascending.
    eigenvalues: np.ndarray
    #: What was found in its shuffles; None if none were made, or traps were counted without their spectra.
    traps: TrapResult | None


def diagnose_matrix(W: Any, options: Options = DEFAULTS, *, name: str = "W", dtype: str = "") -> MatrixDiagnosis:
    """Spectrum, traps and controls of one matrix.

    >>> found = diagnose_matrix(np.random.default_rng(0).normal(size=(40, 30)), Options(shuffles=3))
    >>> found.row["traps"], found.eigenvalues.shape, found.traps.eigenvalues.shape
    (0.0, (30,), (3, 30))

    Parameters
    ----------
    W : matrix (rows, columns); see `grokutils.spectra.alpha.as_matrix`
    options : what is measured, and how
    name : what messages call the matrix
    dtype : the type that the numbers were stored in, if not that of W: it says which eigenvalues are equal but for rounding

    Returns
    -------
    `MatrixDiagnosis`. What a matrix is too small or too degenerate for is NaN in its row, which says why in
    ``alpha_reason`` and ``traps_reason``.

    Raises
    ------
    TypeError, ValueError : no matrix of finite real numbers.
    """
    matrix = as_matrix(W, name)
    with threads_for(matrix.shape):
        eigenvalues = gram_spectrum(matrix, options.cutoff, LARGE)
        found, traps = _traps(matrix, eigenvalues, options)
        controls = baselines.weight_controls(matrix, np.sqrt(eigenvalues))
        row = {
            "rows": matrix.shape[0],
            "columns": matrix.shape[1],
            **alpha_columns(eigenvalues, options, dtype or (dtype_name(W) if hasattr(W, "dtype") else "")),
            **traps,
            **controls,
            "zeros": float(np.count_nonzero(matrix == 0) / matrix.size),
            "l2_norm": float(np.sqrt(eigenvalues.sum())),
        }
    return MatrixDiagnosis(row, eigenvalues, found)


def diagnose_layer(layer: Layer, options: Options = DEFAULTS) -> MatrixDiagnosis:
    """The same for a layer of a model, except that one that cannot be read, or holds no finite numbers, is a
    row of NaN with the reason: a bad layer must not hide the others, nor end somebody's training."""
    shape: tuple[int, ...] = ()
    try:
        matrix = layer.read()
        shape = tuple(matrix.shape)
        return diagnose_matrix(matrix, options, name=layer.name, dtype=layer.dtype)
    except NotALayer:
        raise
    except Exception as error:  # whatever a file, a package or somebody's tensors raise when they are read
        reason = " ".join(str(error).split()) or type(error).__name__
    empty = diagnose_matrix(np.zeros((1, 1)), Options(shuffles=0)).row
    row = {key: math.nan if isinstance(value, float) else value for key, value in empty.items()}
    rows, columns = shape if len(shape) == 2 else (0, 0)
    row |= {"rows": rows, "columns": columns, "alpha_reason": reason, "traps_reason": reason}
    return MatrixDiagnosis(row, np.empty(0), None)


def alpha_columns(eigenvalues: np.ndarray, options: Options, dtype: str) -> dict[str, Any]:
    cutoff = options.cutoff
    positive = eigenvalues[eigenvalues > 0]
    rounding = ROUNDING
    if positive.size and math.log(positive[-1] / positive[0]) <= 2.5 * precision(dtype):
        rounding = 2.5 * precision(dtype)  # all of them are equal, as far as numbers of this type can be
    shared: dict[str, Any] = {"cutoff": cutoff, "rounding": max(rounding, ROUNDING)}
    fit = fit_power_law(eigenvalues, bootstrap=options.bootstrap, seed=options.whole_seed, **shared)
    clipped = fit_power_law(eigenvalues, fix_fingers="clip_xmax", **shared)
    low, high = fit.interval or (math.nan, math.nan)
    erg = erg_tail(eigenvalues, fit.xmin)
    return {
        "alpha": fit.alpha,
        "alpha_sigma": fit.sigma,
        "alpha_low": low,
        "alpha_high": high,
        "xmin": fit.xmin,
        "D": fit.D,
        "n_tail": fit.n_tail,
        "alpha_clipped": clipped.alpha,
        "alpha_hat": alpha_hat(fit.alpha, eigenvalues),
        "stable_rank": stable_rank(eigenvalues),
        "erg_count": erg.count,
        "erg_gap": erg.relative_gap,
        "alpha_reason": fit.reason,
    }


def _traps(matrix: np.ndarray, eigenvalues: np.ndarray, options: Options) -> tuple[TrapResult | None, dict]:
    nan = math.nan
    row: dict[str, Any] = dict.fromkeys(
        ("traps", "traps_std", "sigma_mp", "trap_strength", "trap_ipr", "trap_share", "trap_z", "ks_D",
         "ks_p_textbook", "ks_p", "spikes", "spikes_sigma_mp"), nan,
    )  # fmt: skip
    own = count_traps(eigenvalues, matrix.shape, options.method)
    row |= {"spikes": own.mean, "spikes_sigma_mp": float(own.sigma_mp[0])}
    if not options.shuffles:
        return None, row | {"traps_reason": "shuffles=0"}
    if _countable(matrix, options):
        return None, row | _without_spectra(matrix, options)
    before = copy.deepcopy(options.seed)  # to make the first shuffle once more
    found = find_traps(matrix, options.seed, options.shuffles, options.method)
    row["traps_reason"] = found.reason
    if found.status != "ok":
        return found, row
    row |= {
        "traps": found.mean,
        "traps_std": found.std,
        "sigma_mp": float(np.nanmean(found.sigma_mp)),
        "trap_strength": float(np.nanmean(found.eigenvalues[:, -1] / found.threshold)),
    }
    if found.counts[0] > 0:
        generator = np.random.default_rng([int(before), 0]) if isinstance(before, (int, np.integer)) else before
        row |= _largest_trap(matrix, shuffle_matrix(matrix, generator))
    if options.ks_draws and min(matrix.shape) <= _LARGEST_NULL:
        ks = mp_ks(found.eigenvalues[:1], matrix.shape, draws=options.ks_draws)
        row |= {
            "ks_D": float(ks.D[0]), "ks_p_textbook": float(ks.p_textbook[0]), "ks_p": float(ks.p_monte_carlo[0]),
        }  # fmt: skip
    return found, row


def _countable(matrix: np.ndarray, options: Options) -> bool:
    """Whether traps are counted without the spectra of the shuffles: of large matrices, unless something asks for those."""
    whole = isinstance(options.seed, (int, np.integer))
    return min(matrix.shape) >= LARGE and options.method == "bulk" and whole and not options.exact


def _without_spectra(matrix: np.ndarray, options: Options) -> dict[str, Any]:
    found = count_without_spectra(matrix, options.seed, options.shuffles)
    row: dict[str, Any] = {"traps_reason": found.reason}
    if found.status == "ok":
        row |= {"traps": found.mean, "traps_std": found.std, "sigma_mp": found.sigma_mp}
        row["trap_strength"] = float(np.nanmean(found.strength))
    if found.counts[0] > 0:
        row |= _largest_trap(matrix, random_placement(matrix, [int(options.seed), 0]))
    return row


def _largest_trap(matrix: np.ndarray, shuffled: np.ndarray) -> dict[str, float]:
    """How localised the first shuffle's largest trap is: what `trap_vectors` says of it, without the places."""
    wide = shuffled if matrix.shape[0] <= matrix.shape[1] else shuffled.T
    M = wide.shape[0]
    if M < LARGE:
        short = scipy.linalg.eigh(wide @ wide.T, subset_by_index=(M - 1, M - 1), check_finite=False)[1][:, 0]
    else:  # a trap stands apart, which a few dozen products with the matrix find out
        product = LinearOperator((M, M), matvec=lambda v: wide @ (v @ wide), dtype=wide.dtype)
        short = eigsh(product, k=1, v0=np.ones(M))[1][:, 0]
    long = short @ wide
    size = np.linalg.norm(long)  # the singular value
    long /= size
    shares = wide * long
    shares *= short[:, None]
    heaviest = int(np.argmax(shares))
    std = matrix.std()
    return {
        "trap_ipr": float(max(inverse_participation_ratio(short), inverse_participation_ratio(long))),
        "trap_share": float(shares.flat[heaviest] / size),
        "trap_z": float((wide[np.unravel_index(heaviest, wide.shape)] - matrix.mean()) / std) if std > 0 else math.nan,
    }
