"""What is read off a weight matrix at every measured step, at next to no cost."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["l2_norm", "matrices", "weight_statistics"]


def matrices(weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The weight matrices and kernels among a network's weights: what has two dimensions or more and is no bias, nor a
    buffer (`grokutils.experiment.models.base`).

    >>> list(matrices({"fc1.weight": np.ones((3, 4)), "fc1.bias": np.ones(3), "norm.weight": np.ones(3)}))
    ['fc1.weight']
    """
    return {
        name: w for name, w in weights.items()
        if np.ndim(w) >= 2 and not name.endswith("bias") and not name.startswith("buffer/")
    }  # fmt: skip


def weight_statistics(weight: np.ndarray) -> dict[str, float]:
    """Moments of the entries of a matrix: the controls every spectral measure is held against.

    >>> weight_statistics(np.array([[3.0, -4.0]]))["l2_norm"]
    5.0

    Returns
    -------
    dict with ``l2_norm`` (Frobenius), ``max_abs``, ``mean``, ``std`` (population) and ``kurtosis``
    (Pearson's: 3 for a Gaussian; NaN for a constant matrix).
    """
    w = np.asarray(weight, dtype=np.float64).ravel()
    if w.size == 0:
        raise ValueError("a weight matrix must have at least one entry; got none.")
    # entries that are all the same differ from their computed mean by rounding
    centred = w - w.mean() if w.min() < w.max() else np.zeros_like(w)
    squares = np.square(centred)
    variance = squares.mean()
    return {
        "l2_norm": float(np.sqrt(np.dot(w, w))),
        "max_abs": float(np.abs(w).max()),
        "mean": float(w.mean()),
        "std": float(np.sqrt(variance)),
        "kurtosis": float(np.square(squares / variance).mean()) if variance > 0 else float("nan"),
    }


def l2_norm(weights: Mapping[str, np.ndarray]) -> float:
    """The root of the summed squares of all weight matrices (P1, equation 7); biases do not count.

    >>> l2_norm({"fc1.weight": np.array([[3.0]]), "fc2.weight": np.array([[4.0]]), "fc1.bias": np.ones(1)})
    5.0
    """
    squares = (np.sum(np.square(w, dtype=np.float64)) for w in matrices(weights).values())
    return float(np.sqrt(sum(squares)))
